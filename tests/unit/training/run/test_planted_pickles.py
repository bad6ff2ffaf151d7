"""A pickle can run any program when it is read. None that the run did not write is ever read."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tool_aware.console import UserError
from tool_aware.files import read_json, sha256_of, write_json
from tool_aware.paths import CHECKPOINT_MANIFEST_NAME, OPTIMIZER_NAME, TRAINING_STATE_NAME, random_state_name
from tool_aware.training.run.checkpoints import newest_valid

READ_AT_RESUME = (OPTIMIZER_NAME, random_state_name(0), TRAINING_STATE_NAME)


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


def test_planted_pickles_put_their_checkpoints_aside_unread(make_loop, marker):
    settings = {"training__max_steps": 4, "training__save_steps": 1, "training__save_total_limit": 4}
    loop = make_loop(**settings)
    loop.run()
    output_dir = loop.output_dir
    for step, name in enumerate(READ_AT_RESUME, start=2):
        (output_dir / f"checkpoint-{step}" / name).write_bytes(pickle.dumps(Touch(marker), protocol=2))
    checkpoint, reasons = newest_valid(output_dir)
    assert checkpoint.name == "checkpoint-1"
    for name, reason in zip(READ_AT_RESUME, reversed(reasons), strict=True):
        assert f"{name} has changed since it was written" in reason
    make_loop(**settings).run(checkpoint)
    assert not marker.exists()


def test_who_also_rewrites_the_hashes_still_cannot_run_a_program(make_loop, marker):
    settings = {"training__max_steps": 3, "training__save_steps": 1, "training__save_total_limit": 3}
    loop = make_loop(**settings)
    loop.run()
    checkpoint = loop.output_dir / "checkpoint-1"
    manifest = read_json(checkpoint / CHECKPOINT_MANIFEST_NAME)
    for name in READ_AT_RESUME:
        original = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(pickle.dumps(Touch(marker), protocol=2))
        forged = {**manifest, "sha256": {**manifest["sha256"], name: sha256_of(checkpoint / name)}}
        write_json(checkpoint / CHECKPOINT_MANIFEST_NAME, forged)
        with pytest.raises((SafetensorError, UserError)):
            make_loop(**settings).run(checkpoint)
        (checkpoint / name).write_bytes(original)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):  # which other trainers would read
        (checkpoint / name).write_bytes(pickle.dumps(Touch(marker), protocol=2))
    make_loop(**settings).run(checkpoint)
    assert not marker.exists()


def test_a_checkpoint_holds_no_pickle(make_loop):
    loop = make_loop(training__max_steps=1)
    loop.run()
    for path in (loop.output_dir / "checkpoint-1").iterdir():
        assert path.suffix in (".safetensors", ".json", ".md"), path.name
