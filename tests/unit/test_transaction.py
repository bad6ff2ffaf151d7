"""A folder has one writer, and its files are of one run, whenever the run was killed."""

from __future__ import annotations

import json
import os
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


def write_set(folder: Path, version: str, outdated: tuple[str, ...] = ()) -> None:
    files = FileSet(folder)
    for name in NAMES:
        files.path(name).write_text(version)
    hashes = {name: sha256_of(files.path(name)) for name in NAMES}
    files.path("manifest.json").write_text(json.dumps({"version": version, "outputs": hashes}))
    files.commit(outdated)


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
        *(".lock", "README.md", "charts", "manifest.json", "train.json", "val.json"),
    ]


def test_a_crash_at_any_step_leaves_one_whole_set(tmp_path, monkeypatch):
    """Every system call that changes the folder is the last one of some run."""
    calls = ("rename", "replace", "unlink", "rmdir", "fsync", "mkdir")
    crashed_at = 0
    for step in range(200):
        folder = tmp_path / str(step)
        with locked(folder):
            write_set(folder, "old")
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
                    write_set(folder, "new")
                finished = True
            except Crash:
                finished = False
        if not finished:
            crashed_at += 1
            if not is_interrupted(folder) and (folder / "manifest.json").is_file():
                assert version_of(folder) in ("old", "new")  # what a reader sees before the next run
        with locked(folder):
            assert version_of(folder) in ("old", "new")
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
