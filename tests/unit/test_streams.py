"""Losing what is printed ends no work and changes no verdict; what others wrote cannot act on the terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.streams import GuardedStream, without_controls

WORK = """
import time
from pathlib import Path
from tool_aware.console import run, say, Progress

def main():
    progress = Progress("step", 2000, plain_interval_s=0)
    for number in range(2000):
        say(f"step {number}")
        progress.update(number)
        print("result", number)
    Path("done").write_text("all steps")
    return CODE

run(main)
"""


@pytest.mark.parametrize("pipe", ["2>&1 | head -1", "2>&1 | true", "| head -1", "2>/dev/full", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize("code", [0, 2, 3])
def test_work_is_finished_and_its_verdict_kept_whoever_stops_reading(tmp_path, pipe, code):
    (tmp_path / "work.py").write_text(WORK.replace("CODE", str(code)))
    shell = f"{sys.executable} work.py {pipe}; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (tmp_path / "done").read_text() == "all steps"
    assert ended.returncode == code
    assert b"Traceback" not in ended.stderr


def test_a_full_disk_behind_stdout_is_an_error_of_finished_work(tmp_path):
    (tmp_path / "work.py").write_text(WORK.replace("CODE", "0"))
    shell = f"{sys.executable} work.py >/dev/full"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    ended = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (tmp_path / "done").exists()
    assert ended.returncode == 2
    assert b"the output cannot be written: No space left on device" in ended.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),  # colours do no harm, and are ours
        ("\r\x1b[2Kprogress", "\r\x1b[2Kprogress"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[2J\x1b[Hgone", "\\x1b[2J\\x1b[Hgone"),
        ("good\rbad", "good\\rbad"),
        ("back\b\b\b\bover", "back\\x08\\x08\\x08\\x08over"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("nul\0", "nul\\x00"),
        ("line\u2028separator", "line\\u2028separator"),
        ("Größe 😀 日本", "Größe 😀 日本"),
    ],
)
def test_control_characters_are_spelled_out(text, shown):
    assert without_controls(text) == shown
    stream = io.StringIO()
    GuardedStream(stream).write(text)
    assert stream.getvalue() == shown


def test_a_locale_without_the_character_does_not_end_the_work():
    program = "from tool_aware.console import run, say; run(lambda: (say('Δ é'), print('Δ é'), 0)[2])"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "\\u0394 \\xe9\n", "\\u0394 \\xe9\n")


@pytest.mark.parametrize("value", ["abc", "", "-1", "1.5", "²"])
@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK"])
def test_odd_variables_of_a_launcher_do_not_keep_messages_from_being_printed(name, value):
    program = "from tool_aware.console import run, say; run(lambda: say('hello') or 0)"
    environment = {**os.environ, name: value}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "hello\n")
