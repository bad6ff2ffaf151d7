"""Finding the run beside the monitor, and reading how far it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tool_aware.monitor.sampling import TrainingProgress
from tool_aware.monitor.training_run import TAIL_BYTES, find_training, last_step, training_processes
from tool_aware.paths import METRICS_NAME

LINE = {"step": 120, "steps": 300, "loss": 0.4312, "eta_s": 250.0}


def write_metrics(folder: Path, *lines: object, tail: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def fake_process(proc: Path, pid: int, cwd: Path, *words: str, started_s_ago: float = 60.0) -> None:
    (proc / str(pid)).mkdir(parents=True)
    ticks = int((time.clock_gettime(time.CLOCK_BOOTTIME) - started_s_ago) * os.sysconf("SC_CLK_TCK"))
    (proc / str(pid) / "stat").write_text(f"{pid} (a ) name) S {'0 ' * 18}{ticks} 0")
    (proc / str(pid) / "cmdline").write_text("\0".join(words) + "\0")
    (proc / str(pid) / "cwd").symlink_to(cwd)


def test_the_newest_step_of_a_running_script_is_found(tmp_path):
    write_metrics(tmp_path / "output", {**LINE, "step": 110}, LINE)
    fake_process(tmp_path / "proc", 77, tmp_path, "python", "train_tool_aware.py")
    found = find_training(tmp_path / "output", tmp_path / "proc")
    assert found == TrainingProgress(77, 120, 300, 0.4312, 250.0)


def test_a_run_told_to_write_elsewhere_is_followed_there(tmp_path):
    write_metrics(tmp_path / "elsewhere", LINE)
    for number, option in enumerate((["--output_dir", "./elsewhere"], ["--output-dir=elsewhere"])):
        proc = tmp_path / f"proc{number}"
        fake_process(proc, 77, tmp_path, "python", "train_tool_aware.py", *option)
        assert find_training(tmp_path / "output", proc).step == 120


@pytest.mark.parametrize(
    "options",
    [
        ["--set", "training.output_dir=elsewhere"],
        ["--set=training.output_dir=./elsewhere", "--resume"],
        ["--set", "lora.r=8", "--config", "other.yaml"],
        ["--config=derived.yaml"],
        ["--config", "wrong.yaml", "--output_dir", "elsewhere"],
    ],
)
def test_settings_that_name_the_directory_are_followed(tmp_path, options):
    (tmp_path / "other.yaml").write_text("training: {output_dir: elsewhere}")
    (tmp_path / "derived.yaml").write_text("extends: other.yaml")
    (tmp_path / "wrong.yaml").write_text("training: {output_dir: output}")
    write_metrics(tmp_path / "elsewhere", LINE)
    write_metrics(tmp_path / "output", {**LINE, "step": 999})
    fake_process(tmp_path / "proc", 77, tmp_path, "python3.11", "-u", "train_tool_aware.py", *options)
    assert find_training(tmp_path / "output", tmp_path / "proc").step == 120


def test_the_progress_of_an_earlier_run_in_the_same_directory_is_not_shown(tmp_path):
    write_metrics(tmp_path / "output", LINE)
    written_s = time.time() - 30
    os.utime(tmp_path / "output" / METRICS_NAME, (written_s, written_s))
    fake_process(tmp_path / "new", 77, tmp_path, "python", "train_tool_aware.py", started_s_ago=20)
    assert find_training(tmp_path / "output", tmp_path / "new") is None
    fake_process(tmp_path / "old", 77, tmp_path, "python", "train_tool_aware.py", started_s_ago=40)
    assert find_training(tmp_path / "output", tmp_path / "old").step == 120


@pytest.mark.parametrize(
    ("words", "is_run"),
    [
        (["tail", "-f", "train_tool_aware.py"], False),
        (["vim", "train_tool_aware.py"], False),
        (["python", "lint.py", "train_tool_aware.py"], False),
        (["python", "-c", "pass", "train_tool_aware.py"], False),
        (["python"], False),
        (["./train_tool_aware.py", "--resume"], True),
        (["/usr/bin/python3", "-X", "dev", "-u", "/home/a/train_tool_aware.py"], True),
        (["python", "-m", "pdb", "train_tool_aware.py"], True),
    ],
)
def test_only_a_process_that_runs_the_script_is_a_run(tmp_path, words, is_run):
    fake_process(tmp_path, 77, tmp_path, *words)
    assert [pid for pid, _ in training_processes(tmp_path)] == [77] * is_run


def test_a_process_whose_directory_cannot_be_seen_is_passed_over(tmp_path):
    write_metrics(tmp_path / "output", LINE)
    fake_process(tmp_path / "proc", 77, tmp_path, "python", "train_tool_aware.py")
    (tmp_path / "proc" / "77" / "cwd").unlink()
    assert find_training(tmp_path / "output", tmp_path / "proc") is None


def test_of_two_runs_the_one_of_this_output_directory_is_meant(tmp_path):
    proc = tmp_path / "proc"
    for pid, name in ((1, "other"), (2, "mine"), (3, "another")):
        write_metrics(tmp_path / name, {**LINE, "step": pid})
        fake_process(proc, pid, tmp_path, "python", "train_tool_aware.py", "--output_dir", name)
    assert find_training(tmp_path / "mine", proc).pid == 2


def test_a_finished_run_is_not_shown(tmp_path):
    write_metrics(tmp_path / "output", LINE)
    fake_process(tmp_path / "proc", 77, tmp_path, "vim", "notes.txt")
    assert find_training(tmp_path / "output", tmp_path / "proc") is None


def test_lines_without_a_loss_and_torn_lines_are_passed_over(tmp_path):
    write_metrics(tmp_path, LINE, {"step": 120, "val_loss": 0.5}, tail='{"step": 130, "lo')
    assert last_step(tmp_path / METRICS_NAME)["step"] == 120


def test_a_long_log_is_read_from_its_end(tmp_path):
    lines = [{**LINE, "step": step} for step in range(5 * TAIL_BYTES // 60)]
    write_metrics(tmp_path, *lines)
    assert last_step(tmp_path / METRICS_NAME)["step"] == len(lines) - 1


def test_a_real_process_is_found_by_the_script_it_runs(tmp_path):
    script = tmp_path / "train_tool_aware.py"
    script.write_text("import time; time.sleep(600)")
    command = [sys.executable, str(script), "--output_dir", "run_of_this_test"]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        try:
            deadline = time.monotonic() + 120
            while process.pid not in dict(training_processes()) and time.monotonic() < deadline:
                time.sleep(0.05)
            write_metrics(tmp_path / "run_of_this_test", LINE)
            assert find_training(tmp_path / "run_of_this_test").pid == process.pid
        finally:
            process.kill()
