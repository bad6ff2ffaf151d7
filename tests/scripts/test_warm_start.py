"""The start of scripts that tests share: where it does not serve, every script imports torch and its company anew."""

from __future__ import annotations

import importlib
import signal
import subprocess

from tests.fixtures.warm_start import LIBRARIES, kill, warm_python

WAITS = "print('waits', flush=True); input()"
OPEN = "import os; print(sorted(os.listdir('/proc/self/fd'), key=int))"


def test_scripts_start_warm_also_after_the_libraries_were_imported_in_this_process():
    """Libraries set variables when they are imported; none of them may be taken for one that a test has set."""
    start = warm_python()
    for library in (*LIBRARIES, "torch._inductor.compile_fx"):
        importlib.import_module(library)
    program = "import sys; print('torch' in sys.modules)"
    told = subprocess.run([*start, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout == "True\n"


def waiting() -> subprocess.Popen[str]:
    """Start a script that says so and waits for a line."""
    return subprocess.Popen([*warm_python(), "-c", WAITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_script_has_nothing_open_of_those_that_run_beside_it():
    alone = subprocess.run([*warm_python(), "-c", OPEN], capture_output=True, text=True, check=True).stdout
    with waiting() as other, waiting() as another:
        assert other.stdout.readline()
        assert another.stdout.readline()
        assert subprocess.run([*warm_python(), "-c", OPEN], capture_output=True, text=True, check=True).stdout == alone
        another.communicate("\n")
        other.communicate("\n")


def test_each_of_several_scripts_gets_its_own_signals_and_its_own_end():
    with waiting() as stopped, waiting() as killed, waiting() as finished:
        for process in (stopped, killed, finished):
            assert process.stdout.readline()
        stopped.send_signal(signal.SIGTERM)
        assert stopped.wait() == -signal.SIGTERM
        kill(killed)
        assert killed.returncode == -signal.SIGKILL
        finished.communicate("\n")
        assert finished.returncode == 0


def test_a_script_ends_with_the_process_that_stands_for_it():
    with waiting() as process:
        assert process.stdout.readline()
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not process.stdout.read()  # returns when nothing is left that could write into it
