"""A pickle can run any program when it is read. None that the run did not write is ever read."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from tool_aware.records import read_json, sha256_of, write_json
from tool_aware.training.checkpoints import CHECKPOINT_MANIFEST, newest_valid
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
    pickle.loads(pickle.dumps(Touch(path)))
    path.unlink()  # fails unless the pickle is as harmful as it has to be
    return path


@pytest.fixture
def run_with_checkpoints(make_trainer):
    """A run of two steps with a checkpoint after each, and how to start it anew."""
    settings = {"training__max_steps": 2, "training__save_steps": 1}
    trainer = make_trainer(**settings)
    train(trainer, None)
    return Path(trainer.args.output_dir), lambda: make_trainer(**{**settings, "training__max_steps": 3})


@pytest.mark.parametrize("name", READ_AT_RESUME)
def test_a_planted_pickle_puts_its_checkpoint_aside_unread(run_with_checkpoints, marker, name):
    output_dir, new_trainer = run_with_checkpoints
    (output_dir / "checkpoint-2" / name).write_bytes(pickle.dumps(Touch(marker)))
    checkpoint, (reason,) = newest_valid(output_dir)
    assert checkpoint.name == "checkpoint-1"
    assert f"{name} has changed since it was written" in reason
    train(new_trainer(), checkpoint)
    assert not marker.exists()


@pytest.mark.parametrize("name", READ_AT_RESUME)
def test_who_also_rewrites_the_hashes_still_cannot_run_a_program(run_with_checkpoints, marker, name):
    output_dir, new_trainer = run_with_checkpoints
    checkpoint = output_dir / "checkpoint-2"
    (checkpoint / name).write_bytes(pickle.dumps(Touch(marker)))
    manifest = read_json(checkpoint / CHECKPOINT_MANIFEST)
    manifest["sha256"][name] = sha256_of(checkpoint / name)
    write_json(checkpoint / CHECKPOINT_MANIFEST, manifest)
    assert newest_valid(output_dir) == (checkpoint, [])
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train(new_trainer(), checkpoint)
    assert not marker.exists()
