"""A checkpoint is whole or it is not used, and what was damaged is put aside, not deleted."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import load_config
from tool_aware.console import UserError
from tool_aware.files import read_json, write_json
from tool_aware.training.run.checkpoints import (
    checkpoints_in,
    damage,
    new_checkpoint,
    newest_valid,
    refuse_another_run,
    remove_old,
    run_settings,
)


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """A run with two whole checkpoints."""
    for step in (5, 10):
        with new_checkpoint(tmp_path, step, {"lora.r": 8}) as folder:
            for name in (
                "adapter_model.safetensors",
                "optimizer.safetensors",
                "random_state_0.safetensors",
                "training_state.json",
            ):
                (folder / name).write_text(f"{name} at {step}")
    return tmp_path


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES = {
    "one flipped bit in the weights": lambda folder: flip_one_bit(folder / "adapter_model.safetensors"),
    "a truncated file": lambda folder: truncate(folder / "training_state.json"),
    "a lost optimizer": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "a lost random state": lambda folder: (folder / "random_state_0.safetensors").unlink(),
    "a planted pickle": lambda folder: (folder / "scaler.pt").write_bytes(pickle.dumps(1)),
    "a lost manifest": lambda folder: (folder / "checkpoint.json").unlink(),
    "a truncated manifest": lambda folder: truncate(folder / "checkpoint.json") or truncate(folder / "checkpoint.json"),
}


@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_is_used(output_dir, harm, capsys):
    harm(output_dir / "checkpoint-10")
    newest, reasons = newest_valid(output_dir)
    assert newest == output_dir / "checkpoint-5"
    assert (output_dir / "checkpoint-10.damaged").is_dir()
    assert len(reasons) == 1
    assert "checkpoint-10" in capsys.readouterr().err


def test_a_file_that_nothing_unpickles_may_lie_in_a_checkpoint(output_dir):
    (output_dir / "checkpoint-10" / ".DS_Store").write_bytes(b"?")
    assert newest_valid(output_dir) == (output_dir / "checkpoint-10", [])


def test_the_newest_is_by_step_and_not_by_name(output_dir):
    assert [path.name for path in checkpoints_in(output_dir)] == ["checkpoint-5", "checkpoint-10"]
    assert newest_valid(output_dir) == (output_dir / "checkpoint-10", [])


def test_without_any_whole_checkpoint_there_is_none(tmp_path):
    assert newest_valid(tmp_path) == (None, [])


def test_a_checkpoint_that_fails_while_being_written_never_appears(output_dir):
    with pytest.raises(ZeroDivisionError), new_checkpoint(output_dir, 15, {}) as folder:
        (folder / str(1 / 0)).write_text("never")
    assert sorted(path.name for path in output_dir.glob("[!.]*")) == ["checkpoint-10", "checkpoint-5"]


def test_only_the_newest_are_kept(output_dir):
    remove_old(output_dir, keep=1)
    assert [path.name for path in checkpoints_in(output_dir)] == ["checkpoint-10"]


def test_a_checkpoint_of_other_settings_is_refused_with_the_difference(output_dir):
    with pytest.raises(UserError, match=r"lora\.r: 8 then, 16 now"):
        refuse_another_run(output_dir / "checkpoint-10", {"lora.r": 16})
    refuse_another_run(output_dir / "checkpoint-10", {"lora.r": 8})


def test_a_checkpoint_of_an_earlier_format_is_refused_and_says_what_can_be_done_with_it(output_dir):
    manifest = read_json(output_dir / "checkpoint-10" / "checkpoint.json")
    del manifest["format"]
    write_json(output_dir / "checkpoint-10" / "checkpoint.json", manifest)
    assert newest_valid(output_dir) == (output_dir / "checkpoint-10", [])
    with pytest.raises(UserError, match=r"another version of this toolkit \(checkpoint format 1") as caught:
        refuse_another_run(output_dir / "checkpoint-10", {"lora.r": 8})
    assert f"--adapter {output_dir / 'checkpoint-10'}" in caught.value.fix


def write_lines(folder: Path) -> None:
    with (folder / "training_state.json").open("w") as file:
        file.write("x" * 2**20)


def tokenizers_error(folder: Path) -> None:
    raise Exception("No space left on device (os error 28)")  # as tokenizers does


WRITERS = {
    "torch.save": lambda folder: torch.save({"moments": torch.zeros(2**20)}, folder / "any.pt"),
    "safetensors": lambda folder: save_file({"a": torch.zeros(2**20)}, folder / "adapter_model.safetensors"),
    "open": write_lines,
    "write_json": lambda folder: write_json(folder / "training_state.json", ["x" * 2**20]),
    "tokenizers": tokenizers_error,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_a_full_disk_is_told_whichever_library_meets_it(small_disk, write):
    with new_checkpoint(small_disk, 5, {}) as folder:
        (folder / "weights").write_bytes(b"x" * 2**19)
    told = r"disk is full: at least 0\.\d MiB are needed and 0\.5 MiB are free"
    with pytest.raises(UserError, match=told) as caught, new_checkpoint(small_disk, 10, {}) as folder:
        write(folder)
    assert caught.value.where == str(small_disk)
    assert [path.name for path in small_disk.glob("[!.]*")] == ["checkpoint-5"]
    assert damage(small_disk / "checkpoint-5") is None


def test_another_error_of_a_writer_is_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(RuntimeError, match="shares memory"), new_checkpoint(tmp_path, 5, {}):
        raise RuntimeError("shares memory")


def test_a_full_disk_is_named_and_leaves_older_checkpoints_intact(small_disk):
    with new_checkpoint(small_disk, 5, {}) as folder:
        (folder / "weights").write_bytes(b"x" * 2**19)
    with pytest.raises(UserError, match="disk is full") as caught, new_checkpoint(small_disk, 10, {}) as folder:
        (folder / "weights").write_bytes(b"x" * 2**20)
    assert str(small_disk) in str(caught.value)
    assert "--resume" in str(caught.value)
    assert damage(small_disk / "checkpoint-5") is None
    assert [path.name for path in small_disk.glob("[!.]*")] == ["checkpoint-5"]


def test_what_changes_nothing_that_is_learnt_may_differ_when_a_run_is_resumed():
    given = run_settings(load_config(REPOSITORY / "config.yaml"))
    for override in (
        "training.packing=block",
        "training.per_device_eval_batch_size=2",
        "training.save_steps=7",
        "model.attn_implementation=eager",
        "optimization.offload=true",
    ):
        assert run_settings(load_config(REPOSITORY / "config.yaml", [override])) == given, override
    assert run_settings(load_config(REPOSITORY / "config.yaml", ["lora.r=4"])) != given
