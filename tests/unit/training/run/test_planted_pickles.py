"""A pickle can run any program when it is read. None that the run did not write is ever read."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tool_aware.files import read_json, sha256_of, write_json
from tool_aware.paths import CHECKPOINT_MANIFEST_NAME
from tool_aware.training.run.checkpoints import newest_valid
from tool_aware.training.trainer import train

READ_AT_RESUME = ("optimizer.pt", "scheduler.pt", "rng_state.pth")


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """What the planted program would create; that it would is tried first."""
    path = tmp_path / "was_here"
    pickle.loads(pickle.dumps(Touch(path), protocol=2))
    path.unlink()  # fails unless the pickle is as harmful as it has to be
    return path


def test_planted_pickles_put_their_checkpoints_aside_unread(make_trainer, marker):
    settings = {"training__max_steps": 4, "training__save_steps": 1, "training__save_total_limit": 4}
    trainer = make_trainer(**settings)
    train(trainer, None)
    output_dir = Path(trainer.args.output_dir)
    for step, name in enumerate(READ_AT_RESUME, start=2):
        (output_dir / f"checkpoint-{step}" / name).write_bytes(pickle.dumps(Touch(marker), protocol=2))
    checkpoint, reasons = newest_valid(output_dir)
    assert checkpoint.name == "checkpoint-1"
    for name, reason in zip(READ_AT_RESUME, reversed(reasons), strict=True):
        assert f"{name} has changed since it was written" in reason
    train(make_trainer(**settings), checkpoint)
    assert not marker.exists()


def test_who_also_rewrites_the_hashes_still_cannot_run_a_program(make_trainer, marker):
    settings = {"training__max_steps": 3, "training__save_steps": 1, "training__save_total_limit": 3}
    trainer = make_trainer(**settings)
    train(trainer, None)
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-1"
    manifest = read_json(checkpoint / CHECKPOINT_MANIFEST_NAME)
    for name in READ_AT_RESUME:
        original = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(pickle.dumps(Touch(marker), protocol=2))
        forged = {**manifest, "sha256": {**manifest["sha256"], name: sha256_of(checkpoint / name)}}
        write_json(checkpoint / CHECKPOINT_MANIFEST_NAME, forged)
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            train(make_trainer(**settings), checkpoint)
        (checkpoint / name).write_bytes(original)
    assert not marker.exists()
