"""monitor_gpu.py monitor as a user runs it: a process of its own, with a stub in the place of the driver's library."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.nvidia_driver import EMPTY_DATA, REPOSITORY
from tool_aware.monitor.plot import read_log

PATIENCE_S = 120  # of waits that end when something happens: for the slowest machine


def wait_until(process: subprocess.Popen[str], path: Path, is_reached: Callable[[list[dict]], bool]) -> None:
    """Wait until the samples in a log fulfil a condition."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if path.exists() and is_reached(json.loads(path.read_text())["samples"]):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("no such samples were written")


def wait_for(process: subprocess.Popen[str], path: Path, samples: int) -> None:
    """Wait until a log holds some samples."""
    wait_until(process, path, lambda found: len(found) >= samples)


def allow_small_files_only() -> None:
    """Make writes fail in this process as they do on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


def test_the_briefs_command_watches_and_ends_with_a_summary(script, tmp_path):
    log = tmp_path / "gpu_logs.json"
    result = script.run("monitor", "--interval", "0.1", "--output", str(log), "--count", "3")
    assert result.returncode == 0
    lines = [line for line in result.stdout.splitlines() if "GPU 0  memory 5.9 of 12.0 GiB (49%)" in line]
    assert len(lines) == 3
    assert float(re.search(r"3 samples in (\d+\.\d) s", result.stdout)[1]) >= 0.2
    assert len(json.loads(log.read_text())["samples"]) == 3


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_summary_and_whole_log(script, tmp_path, signum, code):
    log = tmp_path / "log.json"
    process = script.start("monitor", "--interval", "0.1", "--output", str(log))
    wait_for(process, log, 2)
    process.send_signal(signum)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    assert "peak GiB" in out
    assert "Traceback" not in err
    assert json.loads(log.read_text())["summary"]["gpus"]["0"]["memory_peak_mib"] == 6050


def test_a_kill_leaves_a_log_that_can_be_read(script, tmp_path):
    log = tmp_path / "log.json"
    process = script.start("monitor", "--interval", "0.1", "--output", str(log))
    wait_for(process, log, 2)
    process.kill()
    process.communicate()
    assert len(json.loads(log.read_text())["samples"]) >= 2


def test_a_reader_that_goes_away_is_no_error(script):
    process = script.start("monitor", "--interval", "0.1")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=PATIENCE_S) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_gpu_lost_in_mid_run_is_told_and_the_other_goes_on_until_it_returns(script, stub, tmp_path):
    log = tmp_path / "log.json"
    process = script.start("monitor", "--interval", "0.1", "--output", str(log))
    wait_for(process, log, 1)
    stub.add("error 1 15")
    wait_until(process, log, lambda samples: samples[-1]["gpus"][1]["memory_used_mib"] is None)
    stub.add("used 1 4096")
    wait_until(process, log, lambda samples: samples[-1]["gpus"][1]["memory_used_mib"] == 4096)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert "GPU 1  GPU is lost" in out
    assert "GPU 1 gave no answer for" in out
    seconds = [sample["gpus"][1] for sample in json.loads(log.read_text())["samples"]]
    assert seconds[-1]["memory_used_mib"] == 4096
    assert all(sample["gpus"][0]["memory_used_mib"] == 6050 for sample in json.loads(log.read_text())["samples"])


def test_a_gpu_that_hangs_holds_up_one_sample_and_no_more(script, stub):
    process = script.start("monitor", "--interval", "0.1")
    for _ in range(2):
        process.stdout.readline()
    stub.add("hang 1 600")
    out = ""
    while out.count("no answer from the driver") < 6:
        out += process.stdout.readline()
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert "GPU 1  no answer from the driver for 1 s" in out
    after = out.split("no answer from the driver")
    assert all("GPU 0  memory 5.9 of 12.0 GiB" in part for part in after[1:-1])


def test_it_ends_with_the_process_it_waits_for(script):
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        process = script.start("monitor", "--interval", "600", "--until-exit", str(other.pid))
        assert "GPU 0" in process.stdout.readline()
        other.stdin.close()
        out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert "1 samples" in out


def test_a_wrapped_command_keeps_its_output_and_its_exit_code(script, tmp_path):
    log = tmp_path / "log.jsonl"
    command = f"until grep -q memory_used_mib {log}; do sleep 0.05; done; echo its own words; exit 7"
    result = script.run("monitor", "--interval", "0.1", "--output", str(log), "--", "sh", "-c", command)
    assert result.returncode == 7
    assert result.stdout.startswith("its own words\n")
    assert "peak GiB" in result.stdout
    assert "GPU 0  memory" not in result.stdout


def test_a_wrapped_command_that_does_not_exist_is_the_users_mistake(script):
    result = script.run("monitor", "--", "no-such-command")
    assert result.returncode == 2
    assert "no-such-command" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_ending_the_monitor_ends_the_wrapped_command(script, tmp_path, signum):
    log = tmp_path / "log.json"
    process = script.start("monitor", "--interval", "0.1", "--output", str(log), "--", "sleep", "60")
    wait_for(process, log, 1)
    process.send_signal(signum)
    process.communicate(timeout=PATIENCE_S)  # its end is the end of the command too, which holds the same pipes
    assert process.returncode == 128 + signum


@pytest.mark.parametrize(
    "arguments", [["--prometheus", "BUSY"], ["--until-exit", "4194303"], ["--", "no-such-command"]]
)
def test_a_start_that_fails_leaves_the_earlier_log_where_it_is(script, tmp_path, arguments):
    log = tmp_path / "log.json"
    log.write_text("precious")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        busy = str(other.getsockname()[1])
        arguments = [busy if word == "BUSY" else word for word in arguments]
        assert script.run("monitor", "--output", str(log), *arguments).returncode == 2
    assert log.read_text() == "precious"
    assert not list(tmp_path.glob("log.*.json"))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_a_full_disk_is_one_message_and_leaves_what_was_written_while_the_watch_goes_on(script, tmp_path, suffix):
    log = tmp_path / f"log{suffix}"
    arguments = ["--interval", "0.02", "--count", "60", "--output", str(log), "--alert", "memory>40%"]
    process = script.start("monitor", *arguments, preexec_fn=allow_small_files_only)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    assert err.count(f"{log}: cannot be written: File too large") == 1
    assert "free some space" not in err
    assert "alert:" in err
    assert "Traceback" not in err
    assert "60 samples" in out
    assert len(read_log(log).series[0]) >= 2


@pytest.mark.parametrize(("own_code", "code"), [(0, 2), (7, 7)])
def test_a_full_disk_neither_ends_a_wrapped_command_nor_hides_its_exit_code(script, tmp_path, own_code, code):
    log = tmp_path / "log.jsonl"
    arguments = ["--interval", "0.01", "--output", str(log), "--"]
    is_full = f"[ $(stat -c %s {log}) -gt 2500 ]"  # of the 3000 bytes that may be written
    command = ["sh", "-c", f"until {is_full}; do sleep 0.05; done; sleep 1; echo has ended; exit {own_code}"]
    process = script.start("monitor", *arguments, *command, preexec_fn=allow_small_files_only)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    assert "cannot be written" in err
    assert "has ended" in out


def test_an_alert_is_a_line_and_an_exit_code(script):
    result = script.run("monitor", "--interval", "0.1", "--count", "3", "--alert", "memory>40%", "--alert", "use>99%")
    assert result.returncode == 3
    assert result.stderr.count("alert:") == 1
    assert "GPU 0: memory>40% (49.3 %)" in result.stderr


def test_chosen_gpus_only(script):
    result = script.run("monitor", "--gpu", "1", "--count", "1")
    assert "GPU 1" in result.stdout
    assert "GPU 0" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--alert", "memory"], "is no condition"),
        (["--output", "log.xml"], "cannot write .xml"),
        (["--gpu", "9"], "no GPU 9"),
        (["--until-exit", "4194303"], "no such process"),
        (["--interval", "0"], "not above 0"),
        (["--config", "missing.yaml"], "not found"),
    ],
)
def test_a_mistake_is_one_message(script, arguments, words):
    result = script.run("monitor", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_the_live_view_is_redrawn_follows_a_resize_and_leaves_the_cursor(script):
    screen, terminal = pty.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    # A size in the environment would win over the terminal's; pytest-xdist sets one.
    of_the_terminal = {name: value for name, value in script.environment.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "monitor_gpu.py", "monitor", "--interval", "0.2"],
        cwd=REPOSITORY, stdout=terminal, stderr=terminal, stdin=terminal, start_new_session=True,
        env={**of_the_terminal, "TERM": "xterm", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    os.close(terminal)

    def shown(seconds: float) -> str:
        text, end = b"", time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([screen], [], [], 0.05)[0]:
                try:
                    text += os.read(screen, 65536)
                except OSError:  # the other side has closed
                    break
        return text.decode(errors="replace")

    before = ""
    deadline = time.monotonic() + PATIENCE_S
    while before.count("GPU 0") < 2 and time.monotonic() < deadline:
        before += shown(0.3)
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    os.kill(process.pid, signal.SIGWINCH)
    after, deadline = "", time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and max(map(len, after.split("\r\n"))) < 120:
        after += shown(0.3)
    os.kill(process.pid, signal.SIGINT)
    end = shown(PATIENCE_S)  # ends with the process
    os.close(screen)
    assert process.wait(timeout=PATIENCE_S) == 130
    assert "\x1b[1A" in before, "the view is redrawn in place"
    assert max(len(line) for line in before.split("\r\n") if "memory" in line) < 100
    assert max(len(line) for line in after.split("\r\n") if "memory" in line) >= 120
    assert "\x1b[?25h" in end, "the cursor is shown again"
    assert "\x1b[32m" not in before, "NO_COLOR is respected"


def test_a_log_is_drawn(script, tmp_path):
    log = tmp_path / "gpu_logs.json"
    script.run("monitor", "--interval", "0.05", "--count", "5", "--output", str(log))
    result = script.run("plot", str(log))
    assert result.returncode == 0
    assert (tmp_path / "gpu_logs.png").stat().st_size > 10_000


def test_a_card_whose_memory_in_all_is_unknown_is_watched_and_no_alert_is_promised_on_it(script, stub):
    stub.add("total 0 0", "total 1 0")
    watched = script.run("monitor", "--count", "1", "--interval", "0.1")
    assert watched.returncode == 0, watched.stderr
    refused = script.run("monitor", "--count", "1", "--alert", "memory>95%")
    assert refused.returncode == 2
    assert "does not report the memory in all of GPU 0 (NVIDIA GeForce RTX 4070 Ti), GPU 1" in refused.stderr
    checked = script.run("check", *EMPTY_DATA)
    assert "Traceback" not in checked.stderr
