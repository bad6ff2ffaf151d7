"""Errors for people, exit codes for programs, and text that stays plain where nobody watches."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.console import Fallbacks, UserError, duration, table

BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def run_program(body: str) -> subprocess.CompletedProcess[str]:
    code = f"from tool_aware.console import *\nimport os, signal\ndef main():\n    {body}\nrun(main)"
    return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("return 0", 0, ""),
        ("raise UserError('is wrong', where='config.yaml', fix='mend it')", 2, "config.yaml: is wrong\n  fix: mend it"),
        ("raise GateFailed('accuracy 0.7 is below 0.8')", 3, "below 0.8"),
        ("raise RuntimeError('bug')", 1, "RuntimeError: bug"),
        ("open('/nowhere/at/all')", 2, "/nowhere/at/all: No such file"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, "stopped by SIGINT"),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "stopped by SIGTERM"),
        ("os.kill(os.getpid(), signal.SIGHUP)", 129, "stopped by SIGHUP"),
    ],
)
def test_the_exit_code_follows_the_outcome(body, code, said):
    result = run_program(body)
    assert result.returncode == code
    assert said in result.stderr
    assert ("Traceback" in result.stderr) == (code == 1)


def test_a_terminal_that_closes_ends_no_run_under_nohup():
    code = "from tool_aware.console import run; import os; run(lambda: os.kill(os.getpid(), 1) or 0)"
    result = subprocess.run(["nohup", sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=False)
    assert result.returncode == 0


def test_a_reader_that_leaves_early_is_no_error():
    command = (
        f"{sys.executable} -c \"from tool_aware.console import run; run(lambda: print('line\\n' * 100000))\" | head -1"
    )
    result = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.stdout == "line\n"
    assert result.stderr == ""


def test_a_reader_that_leaves_early_does_not_hide_the_exit_code():
    code = "from tool_aware.console import run; run(lambda: print('line\\n' * 1000) or 3)"
    command = f'set -o pipefail; {sys.executable} -c "import time; time.sleep(0.5); {code}" | true'
    result = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, env=BUFFERED, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (3, "")


@pytest.mark.parametrize("lines", [1, 100_000])
@pytest.mark.parametrize(
    ("target", "own_code", "code", "said"),
    [
        (">/dev/full", 0, 2, "No space left on device\n"),
        (">/dev/full", 3, None, "No space left on device\n"),
        (">&-", 3, 3, ""),
        ("2>&-", 3, 3, ""),
        ("2>/dev/full", 3, 3, ""),
        (">/dev/full 2>/dev/full", 0, 2, ""),
    ],
)
def test_an_output_that_cannot_be_written_is_no_traceback(lines, target, own_code, code, said):
    body = f"(say('story'), print('line\\n' * {lines}), {own_code})[2]"
    program = f"from tool_aware.console import run, say; run(lambda: {body})"
    command = ["bash", "-c", f'{sys.executable} -c "{program}" {target}']
    result = subprocess.run(command, cwd=REPOSITORY, env=BUFFERED, capture_output=True, text=True, check=False)
    assert result.returncode == (code or own_code)
    assert result.stderr.removeprefix("story\n").endswith(said)
    assert result.stderr.count("\n") <= 2
    assert "Traceback" not in result.stderr


def test_a_file_opened_later_does_not_take_the_place_of_a_closed_stream(tmp_path):
    program = (
        "import os; from tool_aware.console import run; run(lambda: open('file', 'w') and os.system('echo child'))"
    )
    command = ["bash", "-c", f'{sys.executable} -c "{program}" >&-']
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "file").read_text() == ""


def test_what_where_and_fix_are_on_lines_of_their_own():
    assert str(UserError("is wrong", where="file", fix="mend it")) == "file: is wrong\n  fix: mend it"


def test_tables_line_up():
    assert table(("tool", "F1"), [("a", 1), ("long", 22)]) == "tool  F1\n----  --\na      1\nlong  22"


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.25, "1.2 s"), (42, "42 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_durations_are_easy_to_read(seconds, text):
    assert duration(seconds) == text


def test_a_fallback_is_told_once_and_kept_in_order(capsys):
    fallbacks = Fallbacks(["told before"])
    for message in ("no database", "no tokenizer", "no database"):
        fallbacks.add(message)
    fallbacks.extend(["told where it happened"])
    assert list(fallbacks) == ["told before", "no database", "no tokenizer", "told where it happened"]
    assert capsys.readouterr().err == "warning: no database\nwarning: no tokenizer\n"


def test_fallbacks_can_be_sent_to_another_process():
    assert list(pickle.loads(pickle.dumps(Fallbacks(["a", "b"])))) == ["a", "b"]


def ended(program: str) -> tuple[int, str, str]:
    """Run a program in a process of its own; return its exit code and what it wrote."""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_signal_after_the_work_is_no_traceback(tmp_path):
    """At each moment between the end of the work and the end of the process."""
    body = (
        "import atexit, os, signal, sys, threading\nfrom tool_aware import console\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\n"
        "flush = console._after_flush\n"
        "console._after_flush = lambda code: (os.kill(os.getpid(), signal.SIGTERM), flush(code))[1]\n"
        "console.run(lambda: print('done') or 0)"
    )
    assert ended(body) == (0, "done\n", "")
    body = (
        "import os, signal\nfrom tool_aware import console\nwork = console._outcome\n"
        "console._outcome = lambda main: (work(main), os.kill(os.getpid(), signal.SIGTERM))[0]\n"
        "console.run(lambda: print('done') or 0)"
    )
    assert ended(body) == (143, "done\n", "")


def test_a_script_waits_for_its_threads_and_exit_functions_before_it_ends_at_once():
    body = (
        "import atexit, threading, time\nfrom tool_aware.console import run\n"
        "class Held:\n    def __del__(self): print('taken apart')\n"
        "held = Held()\n"
        "atexit.register(print, 'exit function')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\n"
        "run(lambda: print('done') or 3)"
    )
    assert ended(body) == (3, "done\nthread\nexit function\n", "")
