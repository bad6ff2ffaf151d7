"""monitor_gpu.py where something is broken: a model's folder, a GPU that is silent at first, a place to write to."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from tests.fixtures.nvidia_driver import REPOSITORY
from tool_aware.monitor.plot import read_log

SHAPES = {
    "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{bad", "config.json:1: is not JSON"),
        ("[1]", "config.json: holds no settings"),
        (json.dumps({**SHAPES, "num_attention_heads": 0}), "config.json has num_attention_heads 0"),
        (json.dumps({**SHAPES, "head_dim": "x"}), "config.json has head_dim 'x'"),
    ],
)
def test_a_damaged_model_folder_is_one_message(script_without_driver, tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    result = script_without_driver.run("estimate", "--model", str(tmp_path), "--seq-length", "100")
    assert result.returncode == 2
    assert words in result.stderr
    assert str(tmp_path) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--until-exit", "99999999999"], "no such process"),
        (["--interval", "1e12", "--count", "2"], "is not within"),
        (["--interval", "1e-320", "--count", "2"], "is not within"),
        (["--gpu=-1"], "there is no GPU -1"),
    ],
)
def test_a_number_out_of_range_is_one_message(script, arguments, words):
    result = script.run("monitor", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_gpu_that_is_silent_at_the_start_has_its_name_from_when_it_answers(script, stub, tmp_path, suffix):
    log = tmp_path / f"log{suffix}"
    stub.add("error 1 15")
    process = script.start("monitor", "--interval", "0.1", "--output", str(log))
    process.stdout.readline()
    stub.add("use 1 7")
    while "GPU 1  memory" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert "H100 80GB HBM3" in out
    assert "unknown GPU" not in out
    assert read_log(log).names[1] == "NVIDIA H100 80GB HBM3"
    assert read_log(log).totals_mib[1] == 81559


def test_a_terminal_that_closes_ends_monitor_and_command_with_a_whole_log(script, tmp_path):
    log = tmp_path / "log.json"
    screen, terminal = pty.openpty()
    command = [sys.executable, "monitor_gpu.py", "monitor", "--interval", "0.1", "--output", str(log), "--"]
    process = subprocess.Popen(
        [*command, "sleep", "60"], cwd=REPOSITORY, stdin=terminal, stdout=terminal, stderr=terminal,
        env=script.environment, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    deadline = time.monotonic() + 120
    while not log.exists() or not json.loads(log.read_text())["samples"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.close(screen)
    process.send_signal(signal.SIGHUP)  # as the kernel does for who has this terminal as its controlling one
    assert process.wait(timeout=120) in (2, 129)
    assert json.loads(log.read_text())["summary"]["samples"] >= 1
