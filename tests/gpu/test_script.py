"""monitor_gpu.py as a user runs it: a process of its own, with a stub in the place of the driver's library."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import yaml

from tests.gpu.conftest import REPOSITORY, Script
from tool_aware.config import load_config
from tool_aware.gpu.plot import read_log

EMPTY_DATA = ("--set", "dataset.dir=/nonexistent")  # the estimate then does not depend on what data/ holds


def wait_for(process: subprocess.Popen[str], path: Path, samples: int) -> None:
    """Wait until a log holds some samples."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if path.exists() and len(json.loads(path.read_text())["samples"]) >= samples:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError("no samples were written")


def cpu_seconds(script: Script, *arguments: str) -> float:
    """Processor time of one run: what it would take on a machine that does nothing else. The best of three."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        script.run(*arguments)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def allow_small_files_only() -> None:
    """Make writes fail in this process as they do on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


# ---- monitor ---------------------------------------------------------------------------------------------


def test_the_briefs_command_watches_and_ends_with_a_summary(script, tmp_path):
    log = tmp_path / "gpu_logs.json"
    result = script.run("monitor", "--interval", "0.1", "--output", str(log), "--count", "3")
    assert result.returncode == 0
    lines = [line for line in result.stdout.splitlines() if "GPU 0  memory 5.9 of 12.0 GiB (49%)" in line]
    assert len(lines) == 3
    assert "3 samples in 0.2 s" in result.stdout
    assert len(json.loads(log.read_text())["samples"]) == 3


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_summary_and_whole_log(script, tmp_path, signum, code):
    log = tmp_path / "log.json"
    process = script.start("monitor", "--interval", "0.1", "--output", str(log))
    wait_for(process, log, 2)
    process.send_signal(signum)
    out, err = process.communicate(timeout=20)
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
    assert process.wait(timeout=20) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_a_gpu_lost_in_mid_run_is_told_and_the_other_goes_on_until_it_returns(script, stub, tmp_path):
    log = tmp_path / "log.json"
    process = script.start("monitor", "--interval", "0.1", "--output", str(log))
    wait_for(process, log, 1)
    stub.add("error 1 15")
    time.sleep(0.4)
    stub.add("used 1 4096")
    time.sleep(0.4)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert "GPU 1  GPU is lost" in out
    assert "GPU 1 gave no answer for" in out
    seconds = [sample["gpus"][1] for sample in json.loads(log.read_text())["samples"]]
    assert seconds[-1]["memory_used_mib"] == 4096
    assert all(sample["gpus"][0]["memory_used_mib"] == 6050 for sample in json.loads(log.read_text())["samples"])


def test_a_gpu_that_hangs_holds_up_one_sample_and_no_more(script, stub):
    process = script.start("monitor", "--interval", "0.1")
    for _ in range(2):
        process.stdout.readline()
    stub.add("hang 1 30")
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "GPU 1  no answer from the driver for 1 s" in out
    after = out.split("no answer from the driver")
    assert len(after) > 5
    assert all("GPU 0  memory 5.9 of 12.0 GiB" in part for part in after[1:-1])


def test_it_ends_with_the_process_it_waits_for(script):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1)"]) as other:
        result = script.run("monitor", "--interval", "30", "--until-exit", str(other.pid))
    assert result.returncode == 0
    assert "1 samples" in result.stdout


def test_a_wrapped_command_keeps_its_output_and_its_exit_code(script):
    result = script.run("monitor", "--interval", "0.1", "--", "sh", "-c", "sleep 0.5; echo its own words; exit 7")
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
    process.communicate(timeout=20)  # its end is the end of the command too, which holds the same pipes
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
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.count(f"{log}: cannot be written: File too large") == 1
    assert "free some space" not in err
    assert "alert:" in err
    assert "Traceback" not in err
    assert "60 samples" in out
    assert len(read_log(log).series[0]) >= 2


@pytest.mark.parametrize(("own_code", "code"), [(0, 2), (7, 7)])
def test_a_full_disk_neither_ends_a_wrapped_command_nor_hides_its_exit_code(script, tmp_path, own_code, code):
    arguments = ["--interval", "0.01", "--output", str(tmp_path / "log.jsonl"), "--"]
    command = ["sh", "-c", f"sleep 1; echo has ended; exit {own_code}"]
    process = script.start("monitor", *arguments, *command, preexec_fn=allow_small_files_only)
    out, err = process.communicate(timeout=30)
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
    deadline = time.monotonic() + 20
    while before.count("GPU 0") < 2 and time.monotonic() < deadline:
        before += shown(0.3)
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    os.kill(process.pid, signal.SIGWINCH)
    after, deadline = "", time.monotonic() + 20
    while time.monotonic() < deadline and max(map(len, after.split("\r\n"))) < 120:
        after += shown(0.3)
    os.kill(process.pid, signal.SIGINT)
    end = shown(2.0)
    os.close(screen)
    assert process.wait(timeout=20) == 130
    assert "\x1b[1A" in before, "the view is redrawn in place"
    assert max(len(line) for line in before.split("\r\n") if "memory" in line) < 100
    assert max(len(line) for line in after.split("\r\n") if "memory" in line) >= 120
    assert "\x1b[?25h" in end, "the cursor is shown again"
    assert "\x1b[32m" not in before, "NO_COLOR is respected"


# ---- check -----------------------------------------------------------------------------------------------


def test_check_on_a_machine_without_a_gpu_says_what_is_missing(script_without_driver):
    result = script_without_driver.run("check")
    assert result.returncode == 2
    assert "libnvidia-ml.so.1 is missing" in result.stdout
    assert "not ready" in result.stdout


def test_check_shows_each_gpu_and_answers_in_json(script):
    text = script.run("check", *EMPTY_DATA).stdout
    for words in (
        "NVIDIA GeForce RTX 4070 Ti",
        "12.0 GiB: 5.9 used, 5.8 free",
        "64 C, 98 % busy, 212 of 285 W",
        "999999991",
    ):
        assert words in text
    answer = json.loads(script.run("check", "--json", *EMPTY_DATA).stdout)
    assert {line["name"] for line in answer["lines"]} >= {"driver", "torch", "bitsandbytes", "memory", "disk", "model"}
    assert answer["gpus"][0]["used_bytes"] == 6050 * 2**20


def test_check_is_quick(script):
    assert cpu_seconds(script, "check", *EMPTY_DATA) < 1.0


def test_check_shows_no_secret(script):
    script.environment = {**script.environment, "HF_TOKEN": "hf_secretsecret", "POSTGRES_PASSWORD": "hunter2hunter2"}
    result = script.run("check", *EMPTY_DATA)
    assert "hf_secret" not in result.stdout + result.stderr
    assert "hunter2" not in result.stdout + result.stderr


def test_check_names_a_model_it_does_not_know_and_goes_on(script):
    result = script.run("check", "--set", "model.name=someone/unheard-of")
    assert result.returncode == 2
    assert "no built-in preset" in result.stdout
    assert "ok       driver" in result.stdout


@pytest.mark.parametrize(
    ("setting", "name", "words"),
    [
        ("lora.target_modules=[foo]", "adapter", "no linear layer 'foo'"),
        ("model.name=someone/unheard-of", "model", "no built-in preset"),
        ("dataset.dir={folder}", "data", "train.json: is not JSON"),
    ],
)
def test_what_is_wrong_with_the_config_is_a_line_of_the_json_under_its_own_name(script, tmp_path, setting, name, words):
    (tmp_path / "train.json").write_text("[{")
    result = script.run("check", "--json", *EMPTY_DATA, "--set", setting.format(folder=tmp_path))
    assert result.returncode == 2
    problems = {
        line["name"]: line["finding"] for line in json.loads(result.stdout)["lines"] if line["status"] == "problem"
    }
    assert words in problems.pop(name)
    assert problems.keys() <= {"torch"}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("init -1 18", "different versions"),
        ("init -1 9", "kernel module is not loaded"),
        ("init -1 4", "no permission"),
        ("gpus -1 0", "has no GPU"),
    ],
)
def test_each_broken_driver_has_its_line_and_exit_code_2(script, stub, state, words):
    stub.set(state)
    for command in ("check", "monitor"):
        result = script.run(command)
        assert result.returncode == 2
        assert words in result.stdout + result.stderr
        assert "Traceback" not in result.stderr


# ---- estimate and plot -----------------------------------------------------------------------------------

BRIEF = ("--model-size", "7.0", "--quantization", "4bit", "--lora-r", "8", "--batch-size", "1", "--seq-length", "2048")


def test_the_briefs_estimate(script_without_driver):
    result = script_without_driver.run("estimate", *BRIEF)
    assert result.returncode == 0
    assert "needed on the card" in result.stdout
    record = json.loads(script_without_driver.run("estimate", *BRIEF, "--json").stdout)
    assert 5.5 < record["total_gib"] < 8
    assert record["spec"]["tokens"] == 2048
    assert "H200" in record["calibrated_on"]


def test_an_estimate_takes_less_than_half_a_second(script_without_driver):
    assert cpu_seconds(script_without_driver, "estimate", *BRIEF) < 0.5


def test_an_estimate_that_does_not_fit_exits_with_3_and_writes_a_config_that_does(script_without_driver, tmp_path):
    wanted = tmp_path / "config.6gb.yaml"
    arguments = ["estimate", *EMPTY_DATA, "--batch-size", "64", "--vram", "6"]
    assert script_without_driver.run(*arguments).returncode == 3
    assert script_without_driver.run(*arguments, "--write", str(wanted)).returncode == 0
    assert yaml.safe_load(wanted.read_text())["training"]["per_device_train_batch_size"] < 64
    again = script_without_driver.run("estimate", *EMPTY_DATA, "--config", str(wanted), "--vram", "6")
    assert again.returncode == 0
    assert "fits 6 GiB" in again.stdout
    refused = script_without_driver.run(*arguments, "--write", str(wanted))
    assert refused.returncode == 2
    assert "is there already" in refused.stderr


def test_the_config_that_is_written_is_the_one_that_was_estimated(script_without_driver, tmp_path):
    wanted = tmp_path / "config.9gb.yaml"
    changes = ["lora.r=64", "lora.target_modules=[q_proj, v_proj]", "tools.0.description=Other words", "lora.alpha=2e1"]
    arguments = ["estimate", *EMPTY_DATA, "--model", "mistralai/Mistral-7B-v0.3", "--quantization", "8bit"]
    arguments += [word for change in changes for word in ("--set", change)]
    assert script_without_driver.run(*arguments, "--vram", "9.5", "--write", str(wanted)).returncode == 0
    edits = json.loads(script_without_driver.run(*arguments, "--vram", "9.5", "--json").stdout)["edits"]
    assert edits
    overrides = [change for change in arguments[2::2] if "=" in change]
    expected = load_config(
        REPOSITORY / "config.yaml",
        ["dataset.dir=/nonexistent", *overrides, "model.name=mistralai/Mistral-7B-v0.3"]
        + [f"{key}={json.dumps(value)}" for key, value in {"quantization.load_in_4bit": False, **edits}.items()],
    )
    assert load_config(wanted) == expected
    assert yaml.safe_load(wanted.read_text())["lora"] == {
        "r": 64,
        "alpha": 20.0,
        "target_modules": ["q_proj", "v_proj"],
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model-size", "3"], "--model-size"),
        (["--model", "tinyllama-1.1b"], "name its folder or its Hugging Face id"),
        (["--table"], "name one: --vram 10"),
    ],
)
def test_what_no_config_says_is_not_written(script_without_driver, tmp_path, arguments, words):
    wanted = tmp_path / "config.yaml"
    result = script_without_driver.run("estimate", *EMPTY_DATA, "--vram", "9.5", "--write", str(wanted), *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert not wanted.exists()


def test_without_vram_the_card_that_is_there_is_fitted(script):
    result = script.run("estimate", *EMPTY_DATA)
    assert "fits 12 GiB" in result.stdout
    assert "time on NVIDIA GeForce RTX 4070 Ti" in result.stdout


def test_check_and_estimate_judge_the_slice_that_is_named(script, stub):
    slices = {1001: ("MIG-aaaa", 20000), 1002: ("MIG-bbbb", 9856)}
    stub.add("mig 1 1", *(f"uuid {i} {name}\ntotal {i} {mib}\nused {i} 0" for i, (name, mib) in slices.items()))
    script.environment = {**script.environment, "CUDA_VISIBLE_DEVICES": "MIG-bbbb"}
    assert "GiB are free on slice MIG-bbbb" in script.run("check", *EMPTY_DATA).stdout
    assert "fits 9.62 GiB" in script.run("estimate", *EMPTY_DATA).stdout


def test_no_gpu_is_fitted_where_cuda_may_see_none(script):
    script.environment = {**script.environment, "CUDA_VISIBLE_DEVICES": "7"}
    assert "CUDA_VISIBLE_DEVICES=7 names no GPU" in script.run("check", *EMPTY_DATA).stdout
    result = script.run("estimate", *EMPTY_DATA)
    assert "CUDA_VISIBLE_DEVICES=7 names no GPU" in result.stderr
    assert "fits" not in result.stdout


def test_the_estimate_obeys_the_memory_budget_of_the_config(script_without_driver):
    arguments = ["estimate", *EMPTY_DATA, "--vram", "24", "--json", "--set"]
    limited = json.loads(script_without_driver.run(*arguments, "training.memory_budget_gib=8").stdout)
    assert limited["plan"]["budget_from"] == "training.memory_budget_gib: 8"
    assert limited["total_gib"] <= 8
    planned, as_it_is = (
        json.loads(script_without_driver.run(*arguments, f"training.memory_budget_gib={setting}").stdout)["spec"]
        for setting in ("auto", "null")
    )
    assert (as_it_is["checkpointing"], as_it_is["kept_layers"], as_it_is["cached_layers"]) == (True, 0, 0)
    assert planned["cached_layers"] > 0


def test_the_table_for_the_readme_has_all_card_sizes(script_without_driver):
    result = script_without_driver.run("estimate", "--table", *EMPTY_DATA)
    assert [line.split()[1] for line in result.stdout.splitlines()[2:]] == [
        "6",
        "8",
        "10",
        "12",
        "16",
        "24",
        "40",
        "80",
    ]


def test_the_traced_step_stands_in_the_json_beside_the_formula_for_the_same_step(script_without_driver):
    arguments = ["estimate", *EMPTY_DATA, "--model", "tinyllama-1.1b", "--vram", "8", "--exact", "--json"]
    exact = json.loads(script_without_driver.run(*arguments).stdout)["exact"]
    assert exact["without"] == ["cached layers"]
    assert exact["gib"] == pytest.approx(exact["formula_gib"], rel=0.02)


def test_evaluation_is_estimated_too(script_without_driver):
    result = script_without_driver.run("estimate", "--evaluation", *EMPTY_DATA)
    assert result.returncode == 0
    assert "keys and values" in result.stdout
    record = json.loads(script_without_driver.run("estimate", "--evaluation", "--json", *EMPTY_DATA).stdout)
    assert record["calibrated_on"].startswith("21 runs on one H200")
    arguments = ["--batch-size", "128", "--seq-length", "308", "--set", "evaluation.max_new_tokens=80"]
    assert "128 x 448 tokens" in script_without_driver.run("estimate", "--evaluation", *arguments, *EMPTY_DATA).stdout


def test_evaluation_is_held_to_a_card(script_without_driver):
    arguments = ["estimate", "--evaluation", *EMPTY_DATA, "--vram", "12"]
    fitting = script_without_driver.run(*arguments)
    assert fitting.returncode == 0
    assert "fits 12 GiB" in fitting.stdout
    record = json.loads(script_without_driver.run(*arguments, "--json").stdout)
    most = record["largest_batch_size"]
    assert record["fits"]
    assert 0 < record["left_gib"] < 12
    assert script_without_driver.run(*arguments, "--batch-size", str(most)).returncode == 0
    one_more = script_without_driver.run(*arguments, "--batch-size", str(most + 1))
    assert one_more.returncode == 3
    assert f"room for: evaluation.batch_size: {most}" in one_more.stdout
    assert "GiB too much" in one_more.stdout
    none = script_without_driver.run(*arguments, "--vram", "3")
    assert none.returncode == 3
    assert "no evaluation.batch_size fits" in none.stdout


def test_evaluation_is_estimated_for_the_model_that_is_named(script_without_driver):
    arguments = ["estimate", "--evaluation", "--json", *EMPTY_DATA]
    models = ([], ["--model", "mistral-nemo"], ["--model-size", "3"])
    small, large, scaled = (
        json.loads(script_without_driver.run(*arguments, *model).stdout)["spec"]["architecture"]["name"]
        for model in models
    )
    assert (small, large, scaled) == ("Mistral-7B v0.2", "Mistral-Nemo-12B", "Mistral-7B scaled to 3B")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--write", "config.10gb.yaml"], "there is no GPU here to fit"),
        (["--evaluation", "--exact"], "are about training"),
        (["--evaluation", "--card", "RTX 4070 Ti"], "are about training"),
        (["--model", "someone/unheard-of"], "no built-in preset"),
        (["--lora-r", "1000"], "lora.r"),
        (["--model-size", "-7"], "not above 0"),
        (["--config", "missing.yaml"], "not found"),
    ],
)
def test_a_mistake_in_an_estimate_is_one_message(script_without_driver, arguments, words):
    result = script_without_driver.run("estimate", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_log_is_drawn(script, tmp_path):
    log = tmp_path / "gpu_logs.json"
    script.run("monitor", "--interval", "0.05", "--count", "5", "--output", str(log))
    result = script.run("plot", str(log))
    assert result.returncode == 0
    assert (tmp_path / "gpu_logs.png").stat().st_size > 10_000


def test_help_answers_at_once():
    assert cpu_seconds(Script(dict(os.environ)), "--help") < 0.3
