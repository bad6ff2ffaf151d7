"""prepare_dataset.py that is killed, run twice at once, on a full disk, in a folder of somebody else: nothing is lost
or mixed. SOAK=20 kills it twenty times instead of four."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import prepare_dataset
from tests.fixtures.repository import REPOSITORY
from tests.fixtures.warm_start import kill, warm_python
from tool_aware import sandboxed
from tool_aware.config.settings import load_config
from tool_aware.console import UserError
from tool_aware.data_folder import read_data_folder
from tool_aware.files import hashes_in, sha256_of
from tool_aware.manifest import read_manifest
from tool_aware.rows import SPLITS, load_rows
from tool_aware.sandbox import NotIsolated
from tool_aware.transaction import is_interrupted, locked

SMALL = (
    "--set",
    "dataset.synthetic_per_tool=12",
    "--set",
    "dataset.ambiguous=4",
    "--set",
    "dataset.follow_ups=8",
    "--set",
    "dataset.two_requests=8",
    "--set",
    "dataset.use_query_log=false",
)
KILLS = int(os.environ.get("SOAK", "4"))


class Killed(BaseException):
    """Stands for the end of the process."""


def words(folder: Path, *more: str) -> list[str]:
    return ["--config", str(REPOSITORY / "config.yaml"), *SMALL, "--set", f"dataset.dir={folder}", *more]


def prepare(folder: Path, *more: str) -> int:
    return prepare_dataset.main(words(folder, *more))


def started(folder: Path, *more: str, python: Sequence[str] = (sys.executable,)) -> subprocess.Popen[str]:
    command = [*python, "prepare_dataset.py", *words(folder, *more)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    while text not in (line := process.stderr.readline()):
        assert line, f"ended before {text}"


def seed_of(folder: Path) -> int | None:
    """Return the seed of the whole set in a folder, None for an empty one; fail if its files are of two sets."""
    if is_interrupted(folder):
        with locked(folder):
            pass
    manifest = read_manifest(folder)
    if manifest is None:
        assert not [path for path in folder.iterdir() if not path.name.startswith(".tool-aware.")]
        return None
    assert hashes_in(folder, [folder / name for name in manifest["outputs"]]) == manifest["outputs"]
    assert read_data_folder(folder, load_config(REPOSITORY / "config.yaml").toolbox, SPLITS).changed == []
    return manifest["seed"]


# ---- kills --------------------------------------------------------------------------------------------------


def test_a_kill_at_any_moment_leaves_a_whole_set_or_none(tmp_path):
    moments, ended_whole = random.Random(7), 0
    for seed in range(1, KILLS + 1):
        before = seed_of(tmp_path)
        process = started(tmp_path, "--set", f"dataset.seed={seed}", python=warm_python())
        if seed % 2:
            wait_for(process, "Writing")
            time.sleep(moments.uniform(0, 0.4))
        else:
            time.sleep(moments.uniform(0.05, 0.5))
        kill(process)
        process.communicate()
        assert seed_of(tmp_path) in (before, seed)
        ended_whole += seed_of(tmp_path) == seed
    assert prepare(tmp_path, "--set", "dataset.seed=1000") == 0  # without --overwrite
    assert seed_of(tmp_path) == 1000
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    print(f"{KILLS} kills, {ended_whole} of them after the new set was decided on")


def test_an_end_at_every_step_of_writing_leaves_a_whole_set(tmp_path, monkeypatch):
    prepare(tmp_path / "first")
    replace, steps = os.replace, 0
    while True:
        folder = shutil.copytree(tmp_path / "first", tmp_path / str(steps))
        left = steps

        def until(source, target):
            nonlocal left
            left -= ".tool-aware" in str(source)
            if left < 0:
                raise Killed
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", until)
            try:
                prepare(folder, "--set", "dataset.seed=2")
                break
            except Killed:
                pass
        assert seed_of(folder) == (2 if steps else 42)  # the first of them finishes the manifest, which decides
        steps += 1
    assert steps >= 8  # one for each file


# ---- two at once --------------------------------------------------------------------------------------------


def test_a_second_run_is_refused_and_names_the_first(tmp_path):
    process = started(tmp_path, "--set", "dataset.synthetic_per_tool=8000")
    wait_for(process, "Synthesising")
    with pytest.raises(UserError, match=r"another run is writing here: prepare_dataset.py .*per_tool=8000") as caught:
        prepare(tmp_path)
    assert f"process {process.pid}" in str(caught.value)
    process.kill()
    process.communicate()
    assert prepare(tmp_path) == 0


# ---- files of the user --------------------------------------------------------------------------------------


def test_no_file_of_a_foreign_folder_is_replaced_or_deleted(tmp_path):
    mine = {"README.md": "my notes", "paper.tex": "x", "data.csv": "a,b"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    assert prepare(tmp_path) == 0
    assert prepare(tmp_path, "--overwrite") == 0
    assert {name: (tmp_path / name).read_text() for name in mine} == mine
    manifest = read_manifest(tmp_path)
    assert "README.md" not in manifest["outputs"]
    assert any("README.md is not this stage's" in fallback for fallback in manifest["fallbacks"])


@pytest.mark.parametrize("name", ["train.json", "to_label.jsonl", "sample_raw.json", "dataset_report.html"])
def test_a_file_of_somebody_else_stops_the_run_and_is_renamed_with_overwrite(name, tmp_path, capsys):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name}: written by someone else, or edited since"):
        prepare(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
    prepare(tmp_path, "--overwrite")
    kept = tmp_path / name.replace(".", ".before-1.")
    is_written = name != "to_label.jsonl"  # there is nothing to label here, so it is in nobody's way
    assert (kept if is_written else tmp_path / name).read_text() == "mine"
    assert read_data_folder(tmp_path, load_config(REPOSITORY / "config.yaml").toolbox, SPLITS).changed == []


def test_edited_files_are_kept_under_names_that_are_free(tmp_path):
    for number in (1, 2):
        prepare(tmp_path, "--overwrite")
        (tmp_path / "train.json").write_text(f"edited {number}")
        (tmp_path / "README.md").write_text("my card")
    prepare(tmp_path, "--overwrite")
    assert (tmp_path / "train.before-1.json").read_text() == "edited 1"
    assert (tmp_path / "train.before-2.json").read_text() == "edited 2"
    assert (tmp_path / "README.md").read_text() == "my card"


def test_files_of_an_earlier_run_that_a_later_one_lacks_are_deleted_if_nobody_edited_them(tmp_path):
    prepare(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "to_label.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    listed = {"to_label.jsonl": sha256_of(tmp_path / "to_label.jsonl"), "notes.txt": sha256_of(tmp_path / "notes.txt")}
    manifest["outputs"] |= {**listed, "../outside.txt": "0"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    prepare(tmp_path)
    assert not (tmp_path / "to_label.jsonl").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"  # no name of this stage, whatever a manifest says


def test_a_folder_of_another_stage_is_refused_even_with_overwrite(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"stage": "train", "outputs": {}}))
    with pytest.raises(UserError, match="holds a finished run of the stage train"):
        prepare(tmp_path, "--overwrite")


@pytest.mark.parametrize("name", [".", "..", "repository"])
def test_folders_that_are_not_for_a_stage_are_refused_before_any_work(name, tmp_path, monkeypatch):
    (tmp_path / "here/repository/.git").mkdir(parents=True)
    (tmp_path / "here/README.md").write_text("mine")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UserError, match="a stage needs a folder of its own"):
        prepare(Path(name), "--overwrite")
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["README.md", "repository"]


def test_a_link_to_a_folder_elsewhere_is_followed_and_stays(tmp_path):
    (tmp_path / "big disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "big disk")
    prepare(tmp_path / "data")
    assert (tmp_path / "data").is_symlink()
    assert seed_of(tmp_path / "big disk") is not None


# ---- disks, names, inputs -----------------------------------------------------------------------------------


def test_a_disk_without_room_is_noticed_before_the_work(tmp_path, small_disk, capsys):
    for more in ((), ("--set", "dataset.synthetic_per_tool=8000")):
        if not more:
            (small_disk / "filler").write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - 150_000)))
        with pytest.raises(UserError, match=r"are needed and .* are free"):
            prepare(small_disk / "data", *more)
        assert "Synthesising" not in capsys.readouterr().err


def test_a_folder_is_named_as_it_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run #3", "2024", "a: b", "ends in a space "):
        prepare(Path(name))
        assert (tmp_path / name / "train.json").is_file()


def test_the_manifest_has_the_hash_of_the_log_that_was_read(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(
            json.dumps({"query_text": f"how tall is tower {n}?", "tool_used": "web_search", "success": True}) + "\n"
            for n in range(20)
        )
    )
    before = sha256_of(log)
    prepare(tmp_path / "data", "--logs", str(log))
    log.write_text("something else")
    assert read_manifest(tmp_path / "data")["inputs"] == {str(log): before}


def test_a_log_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    from tool_aware.dataset import logged

    log = tmp_path / "log.jsonl"
    log.write_text('{"query_text": "how tall is it?", "tool_used": "web_search", "success": true}\n' * 3)
    read = logged.read_log_file

    def with_more(path, *arguments):
        records = list(read(path, *arguments))
        with log.open("a") as file:
            file.write("{}\n")
        return iter(records)

    monkeypatch.setattr(logged, "read_log_file", with_more)
    with pytest.raises(UserError, match="was changed while it was read"):
        prepare(tmp_path / "data", "--logs", str(log))
    assert not (tmp_path / "data").exists()


def test_a_clock_that_is_set_back_gives_no_negative_time(tmp_path, monkeypatch):
    back = iter(range(10_000_000, 0, -100))
    monkeypatch.setattr(time, "time", lambda: float(next(back)))
    prepare(tmp_path)
    assert 0 <= read_manifest(tmp_path)["seconds"] < 600


def test_earlier_splits_of_two_runs_are_refused(tmp_path):
    for seed in (1, 2):
        prepare(tmp_path / str(seed), "--set", f"dataset.seed={seed}", "--set", "dataset.synthetic_per_tool=80")
    os.replace(tmp_path / "2/train.json", tmp_path / "1/train.json")
    with pytest.raises(UserError, match="belongs to another data set"):
        prepare(tmp_path / "3", "--set", f"dataset.splits_from={tmp_path / '1'}")
    assert len(load_rows(tmp_path / "1/val.json", load_config(REPOSITORY / "config.yaml").toolbox).rows) > 0


# ---- programs of an endpoint on a machine that cannot isolate them --------------------------------------------


@pytest.fixture
def no_isolation(tmp_path, monkeypatch):
    """The sandbox's child as it is on a processor that it does not know, and an endpoint that is not asked."""
    child = tmp_path / "sandboxed.py"
    source = Path(sandboxed.__file__).read_text(encoding="utf-8")
    child.write_text(source.replace('"x86_64": (', '"other": (').replace('"aarch64": (', '"another": ('))
    monkeypatch.setattr("tool_aware.sandbox._CHILD", child)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_MODEL", "none")


PARAPHRASED = ("--generator", "openai", "--set", "dataset.paraphrases=0")


def test_programs_are_not_run_without_isolation_which_is_found_before_the_work(no_isolation, tmp_path, capsys):
    with pytest.raises(NotIsolated, match="cannot be isolated on this machine") as caught:
        prepare(tmp_path / "data", *PARAPHRASED)
    assert "--run-unisolated" in str(caught.value)
    assert not (tmp_path / "data").exists()
    assert "Synthesising" not in capsys.readouterr().err


def test_programs_that_run_without_isolation_are_told_of_in_plan_and_manifest(no_isolation, tmp_path, capsys):
    prepare(tmp_path / "data", *PARAPHRASED, "--run-unisolated")
    assert "run WITHOUT isolation" in capsys.readouterr().err
    assert any("run without isolation" in text for text in read_manifest(tmp_path / "data")["fallbacks"])


def test_the_flag_changes_nothing_where_programs_can_be_isolated(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_MODEL", "none")
    prepare(tmp_path / "data", *PARAPHRASED, "--run-unisolated")
    assert "run in a sandbox" in capsys.readouterr().err
    assert not any("isolation" in text for text in read_manifest(tmp_path / "data")["fallbacks"])
