"""A folder has one writer, and its files are of one run, whenever the run was killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tool_aware import transaction
from tool_aware.console import UserError
from tool_aware.files import sha256_of
from tool_aware.transaction import FileSet, is_interrupted, locked

NAMES = ("train.json", "val.json", "charts/test.json")


def write_set(
    folder: Path, version: str, outdated: tuple[str, ...] = (), kept_as: dict[str, str] | None = None
) -> None:
    files = FileSet(folder)
    for name in NAMES:
        files.path(name).write_text(version)
    hashes = {name: sha256_of(files.path(name)) for name in NAMES}
    files.path("manifest.json").write_text(json.dumps({"version": version, "outputs": hashes}))
    files.commit(outdated, kept_as)


def version_of(folder: Path) -> str:
    """Return the version of a whole set; fail if the files are of several."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {name: sha256_of(folder / name) for name in NAMES} == manifest["outputs"]
    return manifest["version"]


class Crash(BaseException):
    """Stands for the end of the process: nothing below catches it."""


def test_files_are_replaced_together_and_outdated_ones_deleted(tmp_path):
    (tmp_path / "old.jsonl").write_text("of the set before")
    (tmp_path / "README.md").write_text("the user's")
    with locked(tmp_path):
        write_set(tmp_path, "1")
        write_set(tmp_path, "2", outdated=("old.jsonl",))
    assert version_of(tmp_path) == "2"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("README.md", "charts", "manifest.json", "train.json", "val.json"),
    ]


def test_a_crash_at_any_step_leaves_one_whole_set(tmp_path, monkeypatch):
    """Every system call that changes the folder is the last one of some run."""
    calls = ("rename", "replace", "unlink", "rmdir", "fsync", "mkdir")
    crashed_at = 0
    for step in range(200):
        folder = tmp_path / str(step)
        with locked(folder):
            write_set(folder, "old")
        (folder / "old.txt").write_text("of the old set")
        (folder / "README.md").write_text("the user's")
        done = 0
        with monkeypatch.context() as patch:
            for name in calls:
                original = getattr(os, name)

                def counted(*args, original=original, limit=step, **kwargs):
                    nonlocal done
                    done += 1
                    if done > limit:
                        raise Crash
                    return original(*args, **kwargs)

                patch.setattr(os, name, counted)
            try:
                with locked(folder):
                    write_set(folder, "new", ("old.txt",), {"README.md": "README.1.md"})
                finished = True
            except Crash:
                finished = False
        if not finished:
            crashed_at += 1
            if not is_interrupted(folder) and (folder / "manifest.json").is_file():
                assert version_of(folder) in ("old", "new")  # what a reader sees before the next run
        with locked(folder):
            is_new = version_of(folder) == "new"
            assert (folder / "old.txt").exists() != is_new
            assert (folder / ("README.1.md" if is_new else "README.md")).read_text() == "the user's"
            assert not is_interrupted(folder)
        if finished:
            break
    assert crashed_at >= 12
    assert version_of(folder) == "new"


def test_a_killed_process_leaves_one_whole_set(tmp_path):
    with locked(tmp_path):
        write_set(tmp_path, "old")
    program = f"""
        import os, signal, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from tests.unit import test_transaction as t
        replace, left = os.replace, [2]
        def kill(*args):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*args)
        os.replace = kill
        with t.locked(t.Path({str(tmp_path)!r})):
            t.write_set(t.Path({str(tmp_path)!r}), "new")
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -9
    assert is_interrupted(tmp_path)
    with locked(tmp_path):
        assert version_of(tmp_path) == "new"


def test_a_second_run_is_told_who_holds_the_folder(tmp_path):
    program = f"""
        import sys, pathlib
        sys.argv = ["prepare_dataset.py", "--quick"]
        from tool_aware.transaction import locked
        with locked(pathlib.Path({str(tmp_path)!r})):
            print("held", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as other:
        assert other.stdout.readline() == b"held\n"
        with (
            pytest.raises(UserError, match=r"prepare_dataset.py --quick \(process \d+ on .+, since ") as caught,
            locked(tmp_path),
        ):
            pass
        assert str(other.pid) in str(caught.value)
        other.kill()
        other.wait()
        with locked(tmp_path):  # a lock ends with its process
            pass


def test_an_error_before_the_decision_keeps_the_old_set(tmp_path):
    with locked(tmp_path):
        write_set(tmp_path, "old")
        files = FileSet(tmp_path)
        files.path("train.json").write_text("half")
        files.discard()
    assert version_of(tmp_path) == "old"


def test_a_file_system_without_locks_warns_and_goes_on(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(transaction.fcntl, "flock", no_locks)
    with locked(tmp_path):
        write_set(tmp_path, "1")
    assert "has no locks" in capsys.readouterr().err


# ---- whose folder it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".", "", "here", "..", "home", "/", "repository", "file", "link", "home/.."])
def test_no_run_writes_into_a_folder_that_is_not_for_it(name, tmp_path, monkeypatch):
    here = tmp_path / "all/here"
    for folder in (here, tmp_path / "all/home", here / "repository/.git"):
        folder.mkdir(parents=True)
    (here / "file").write_text("x")
    (here / "link").symlink_to(tmp_path / "all/home")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(tmp_path / "all/home"))
    where = {"here": here, "home": tmp_path / "all/home", "home/..": tmp_path / "all/home/.."}.get(name, Path(name))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="a stage needs a folder of its own"), locked(where):
        pass
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "mine.txt").write_text("the user's")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/.tool-aware.lock").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(UserError, match="cannot be written to"), locked(tmp_path / "data"):
        pass
    assert (tmp_path / "mine.txt").read_text() == "the user's"


def test_a_run_that_writes_nothing_leaves_nothing(tmp_path):
    with locked(tmp_path / "new/folder"):
        assert (tmp_path / "new/folder").is_dir()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["/proc/data", "/sys/data", "/dev/null/data"])
def test_a_folder_that_cannot_be_written_to_is_named_at_once(folder):
    with pytest.raises(UserError) as caught, locked(Path(folder)):
        pass
    assert caught.value.where == folder


def test_a_full_disk_is_noticed_before_the_work(small_disk):
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    with pytest.raises(UserError, match="cannot be written to: No space left"), locked(small_disk / "data"):
        pass


@pytest.mark.parametrize(
    "plan", ['{"outdated": ["../mine.txt"], "kept_as": {}}', '{"outdated": ["/etc/x"], "kept_as": {}}', "[]", "{"]
)
def test_a_planted_plan_deletes_nothing(plan, tmp_path):
    (tmp_path / "mine.txt").write_text("the user's")
    complete = tmp_path / "data/.tool-aware.complete"
    complete.mkdir(parents=True)
    (complete / ".plan.json").write_text(plan)
    (complete / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="not what an interrupted run leaves"), locked(tmp_path / "data"):
        pass
    assert (tmp_path / "mine.txt").exists()


def test_many_runs_at_once_take_turns_or_are_refused(tmp_path):
    """A lock whose file was deleted by its holder is not taken for one that is free."""
    program = f"""
        import pathlib, time
        from tool_aware.console import UserError
        from tool_aware.transaction import locked
        folder, held = pathlib.Path({str(tmp_path)!r}), 0
        for _ in range(200):
            try:
                with locked(folder):
                    (folder / "held").mkdir()  # fails if another process is here too
                    (folder / "held").rmdir()
                    held += 1
            except UserError:
                pass
        print(held)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2])
        for _ in range(3)
    ]
    printed = [run.communicate(timeout=120) for run in runs]
    assert [run.returncode for run in runs] == [0, 0, 0], printed
    assert sum(int(output) for output, _ in printed) > 0


def test_files_have_the_mode_that_the_umask_gives(tmp_path):
    earlier = os.umask(0o027)
    try:
        with locked(tmp_path / "data"):
            files = FileSet(tmp_path / "data")
            os.close(os.open(files.path("secretive.json"), os.O_CREAT, 0o600))  # as libraries write theirs
            files.path("manifest.json").write_text("{}")
            files.commit()
    finally:
        os.umask(earlier)
    modes = {
        path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "data", *(tmp_path / "data").iterdir())
    }
    assert modes == {"data": "0o750", "secretive.json": "0o640", "manifest.json": "0o640"}
