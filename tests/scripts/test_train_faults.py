"""train_tool_aware.py under faults: what it refuses to touch, what it survives, what a kill at its end leaves."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import train_tool_aware
from tests.fixtures.repository import REPOSITORY
from tests.fixtures.warm_start import kill, warm_python
from tool_aware.console import UserError
from tool_aware.files import sha256_of
from tool_aware.lineage import runs_behind
from tool_aware.transaction import locked

KILLS = int(os.environ.get("KILLS", "3"))


@pytest.fixture
def argv(tiny_model_dir, toy_data_dir, tmp_path):
    """Build the command line of a short run."""

    def build(
        *flags: str, output: Path | str = tmp_path / "output", data: Path = toy_data_dir, model: Path = tiny_model_dir
    ) -> list[str]:
        return [
            *("--config", str(REPOSITORY / "config.yaml"), "--set", f"model.name={model}"),
            *("--set", f"dataset.dir={data}", "--output_dir", str(output)),
            *("--set", "quantization.bnb_4bit_compute_dtype=float32"),  # the same on every processor
            *("--set", "training.max_steps=2", "--set", "logging.tensorboard=false", *flags),
        ]  # fmt: skip

    return build


def refusal(arguments: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        train_tool_aware.main(arguments)
    return str(caught.value)


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".run.json")
    }


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--dry-run",)], ids=str)
def test_folders_that_hold_other_things_are_no_output_folders(argv, tmp_path, toy_data_dir, tiny_model_dir, flags):
    work = tmp_path / "work"
    work.mkdir()
    (work / "README.md").write_text("mine")
    (tmp_path / "link").symlink_to(toy_data_dir)
    before = content_of(toy_data_dir)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        for folder in (".", "..", work, Path.home(), "/", toy_data_dir, toy_data_dir.parent, tmp_path / "link"):
            assert "its own" in refusal(argv(*flags, output=folder)), folder
        assert "the base model" in refusal(argv(*flags, output=tiny_model_dir))
    assert content_of(work) == {"README.md": b"mine"}
    assert content_of(toy_data_dir) == before


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("README.md", lambda path: path.write_text("mine")),
        ("training.png", lambda path: path.write_bytes(b"mine")),
        ("checkpoint-7", lambda path: path.mkdir()),
        ("lora_adapters", lambda path: path.mkdir()),
        ("runs", lambda path: path.mkdir()),
        ("final_model", lambda path: path.symlink_to("/usr")),
        ("metrics.jsonl", lambda path: path.symlink_to("/nowhere")),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)], ids=str)
def test_what_no_run_wrote_is_neither_replaced_nor_deleted(argv, tmp_path, name, make, flags):
    output = tmp_path / "output"
    output.mkdir()
    make(output / name)
    message = refusal(argv(*flags))
    assert name in message
    assert "move it away" in message
    assert os.path.lexists(output / name)


def test_overwriting_deletes_what_the_record_lists_and_nothing_that_only_looks_like_it(argv, tmp_path):
    output = tmp_path / "output"
    theirs = ("checkpoint-old/model.bin", "movie.mp4.part", ".notes.part", "checkpoint-2.txt", "log.txt")
    for name in theirs:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_text("theirs")
    assert train_tool_aware.main(argv("--skip-final-model")) == 0
    assert train_tool_aware.main(argv("--skip-final-model", "--overwrite", "--set", "training.max_steps=1")) == 0
    assert not (output / "checkpoint-2").exists()
    assert all((output / name).read_text() == "theirs" for name in theirs)

    (output / "lora_adapters" / "notes.txt").write_text("mine")
    message = refusal(argv("--overwrite"))
    assert "lora_adapters/notes.txt" in message
    assert (output / "manifest.json").exists()


def test_a_second_run_in_a_folder_is_refused_with_the_name_of_the_first(argv, tmp_path):
    with locked(tmp_path / "output"):
        message = refusal(argv())
        assert "another run is writing here" in message
        assert f"process {os.getpid()}" in message
        assert train_tool_aware.main(argv("--dry-run")) == 0


def started(arguments: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    command = [*warm_python(), str(REPOSITORY / "train_tool_aware.py"), *arguments]
    environ = {**os.environ, **environment}
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)


def after(process: subprocess.Popen[str], line: str, action: Callable[[], object]) -> tuple[int, str]:
    """Do something once the process says `line`; return its exit code and what it said from there on."""
    assert process.stderr
    said = []
    for text in process.stderr:
        said.append(text)
        if text.startswith(line):
            break
    action()
    rest = process.communicate(timeout=300)[1]
    return process.returncode, "".join(said) + rest


def test_a_training_is_finished_whatever_goes_away_meanwhile(argv, toy_data_dir, tmp_path):
    """The rows, their hashes and the logs are needed no more; what lies in the way is moved aside."""
    data, output = tmp_path / "data", tmp_path / "output"
    shutil.copytree(toy_data_dir, data)
    read = sha256_of(data / "train.json")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")

    def damage() -> None:
        shutil.rmtree(data)
        (output / "metrics.jsonl").unlink()
        shutil.rmtree(output / "runs")
        (output / "runs").write_text("a file")
        (output / "final_model").symlink_to(tmp_path / "elsewhere")
        (output / "README.md").mkdir()
        (output / "training.png").mkdir()
        (output / "manifest.json").mkdir()

    flags = ("--set", "training.max_steps=8", "--set", "logging.tensorboard=true", "--set", "logging.logging_steps=1")
    code, said = after(started(argv(*flags, data=data), tmp_path), "step 1/", damage)
    assert code == 0, said
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["inputs"][str(data / "train.json")] == read
    fallbacks = "\n".join(manifest["fallbacks"])
    for text in ("TensorBoard has failed", "moved to final_model.aside", "moved to README.md.aside"):
        assert text in fallbacks
    assert (output / "final_model" / "model.safetensors").is_file()
    assert (output / "README.md").is_file()
    assert (tmp_path / "elsewhere" / "mine").read_text() == "mine"
    assert "Traceback" not in said


def test_rows_that_change_during_training_do_not_pass_the_leak_guard(argv, toy_data_dir, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(toy_data_dir, data)
    read = sha256_of(data / "train.json")
    process = started(argv("--skip-final-model", data=data), tmp_path)
    code, said = after(process, "step 1/", lambda: shutil.copy(data / "val.json", data / "train.json"))
    assert code == 0, said
    adapter = tmp_path / "output" / "lora_adapters"
    shutil.copytree(adapter, tmp_path / "copied")
    for folder in (adapter, tmp_path / "copied"):  # the record goes with the adapter
        (run,) = runs_behind(folder)
        assert run.train_sha256 == read
        assert run.train_queries() is None


def test_a_base_model_that_goes_away_leaves_the_adapter_and_a_run_to_resume(argv, tiny_model_dir, tmp_path):
    model, output = tmp_path / "model", tmp_path / "output"
    shutil.copytree(tiny_model_dir, model)
    code, said = after(started(argv(model=model), tmp_path), "step 1/", lambda: model.rename(tmp_path / "gone"))
    assert code == 2, said
    assert said.count("error:") == 1
    assert "--resume" in said
    adapter = sha256_of(output / "lora_adapters" / "adapter_model.safetensors")
    (tmp_path / "gone").rename(model)
    assert train_tool_aware.main(argv("--resume", model=model)) == 0
    assert sha256_of(output / "lora_adapters" / "adapter_model.safetensors") == adapter
    assert (output / "final_model" / "model.safetensors").is_file()


def kill_after(process: subprocess.Popen[str], seconds: float) -> None:
    time.sleep(seconds)
    kill(process)


def test_killed_while_it_finishes_a_run_is_finished_by_the_next_one(argv, tmp_path):
    output, generator = tmp_path / "output", random.Random(1)
    assert train_tool_aware.main(argv(output=tmp_path / "whole")) == 0
    wanted = content_of(tmp_path / "whole" / "lora_adapters")
    for _ in range(KILLS):
        process = started(argv("--resume"), tmp_path)
        after(process, "Saving", functools.partial(kill_after, process, generator.uniform(0, 1.0)))
        if not (output / "manifest.json").exists() and (output / "lora_adapters").is_dir():
            weights = output / "lora_adapters" / "adapter_model.safetensors"
            assert weights.read_bytes() == wanted["adapter_model.safetensors"]  # whole, whenever it was
        if (output / "manifest.json").exists():
            break
    is_finished_by_the_next = not (output / "manifest.json").exists()
    if is_finished_by_the_next:
        assert train_tool_aware.main(argv("--resume")) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert {name: sha256_of(output / name) for name in manifest["outputs"]} == manifest["outputs"]
    # A kill behind the manifest may leave what was being written then.
    assert not is_finished_by_the_next or not [path.name for path in output.iterdir() if path.name.endswith(".part")]
    assert (output / "final_model" / "model.safetensors").is_file()


def test_checkpoints_without_their_record_are_still_those_of_the_run(argv, tmp_path):
    """As in a folder of an earlier version, which kept no record."""
    assert train_tool_aware.main(argv("--skip-final-model")) == 0
    for name in (".run.json", "manifest.json", "README.md", "training.png"):
        (tmp_path / "output" / name).unlink()
    assert train_tool_aware.main(argv("--skip-final-model", "--resume")) == 0


def test_files_of_a_run_have_the_mode_that_the_umask_says(argv, tmp_path):
    before = os.umask(0o027)
    try:
        assert train_tool_aware.main(argv()) == 0
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "output").rglob("*") if path.is_file()]
    assert {oct(path.stat().st_mode & 0o777) for path in files} == {"0o640"}


def test_too_small_a_disk_is_told_before_training(argv, tmp_path, small_disk, tiny_model_dir):
    message = refusal(argv(output=small_disk / "output"))
    assert "the merged model" in message
    assert "--skip-final-model" in message
