"""train_tool_aware.py in several processes: it learns what one process learns, and one process speaks and writes."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import train_tool_aware
from tests.fixtures.repository import REPOSITORY
from tests.fixtures.warm_start import warm_executable
from tool_aware.console import UserError, run
from tool_aware.files import sha256_of
from tool_aware.transaction import locked

# Relative: float32 sums are taken in another order. A norm is less well conditioned than a loss.
TOLERANCES = {"loss": 1e-5, "val_loss": 1e-5, "val_tool_accuracy": 0, "grad_norm": 1e-3}
SETTINGS = {
    "training.num_train_epochs": 2,
    "training.per_device_train_batch_size": 3,  # 6 rows a step; the last step of an epoch has 2, one for each process
    "training.per_device_eval_batch_size": 3,
    "training.learning_rate": 5e-3,
    "logging.logging_steps": 1,
}


@pytest.fixture(scope="module")
def arguments(tiny_model_dir, toy_data_dir):
    """Build the command line of a run into a folder; keyword arguments replace settings, `__` standing for the dot."""

    def build(output: Path, *flags: str, **changed: object) -> list[str]:
        settings = {
            "model.name": tiny_model_dir,
            "dataset.dir": toy_data_dir,
            "quantization.bnb_4bit_compute_dtype": "float32",  # the same on every processor
            **SETTINGS,
            **{key.replace("__", "."): value for key, value in changed.items()},
        }
        options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        return [
            "--config",
            str(REPOSITORY / "config.yaml"),
            "--output_dir",
            str(output),
            "--skip-final-model",
            *options,
            *flags,
        ]

    return build


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def launched(arguments, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder and the messages of a run in two processes, started by torchrun as a job of a cluster starts it."""
    output = tmp_path_factory.mktemp("launched") / "output"
    command = [REPOSITORY / "launch" / "train.sh", *arguments(output)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    place = {"PATH": path, "GPUS": "2", "MASTER_PORT": free_port(), "SAVE_SECONDS": "100"}
    place["PYTHON_EXEC"] = warm_executable(output.parent)  # what torchrun starts the processes with
    done = subprocess.run(
        command,
        cwd=output.parent,
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return output, done


class Pair:
    """Two processes as a launcher starts them, forked to save the imports; each writes its messages to a file."""

    def __init__(self, argv: Sequence[str], folder: Path, **environment: str) -> None:
        folder.mkdir(exist_ok=True)
        common = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
        common |= environment
        self._messages = [folder / f"messages_{rank}.txt" for rank in range(2)]
        context = multiprocessing.get_context("fork")
        self.processes = [
            context.Process(
                target=self._work, args=(argv, {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}, path)
            )
            for rank, path in enumerate(self._messages)
        ]
        for process in self.processes:
            process.start()

    @staticmethod
    def _work(argv: Sequence[str], place: dict[str, str], messages: Path) -> None:
        os.environ.update(place)
        sys.stdout = sys.stderr = messages.open("w", buffering=1)
        run(lambda: train_tool_aware.main(argv))

    def messages(self) -> list[str]:
        """What each process has said so far, stdout and stderr together."""
        return [path.read_text() if path.exists() else "" for path in self._messages]

    def wait_for(self, text: str) -> None:
        """Wait until the first process says `text`."""
        deadline_s = time.monotonic() + 300
        while text not in self.messages()[0]:
            assert time.monotonic() < deadline_s, self.messages()
            time.sleep(0.02)

    def exit_codes(self) -> list[int]:
        """Wait for both and return their exit codes."""
        for process in self.processes:
            process.join(60)
        return [process.exitcode for process in self.processes]


def figures(output: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def adapter_of(output: Path) -> str:
    return sha256_of(output / "lora_adapters" / "adapter_model.safetensors")


def test_two_processes_learn_what_one_does(launched, arguments, tmp_path):
    alone = tmp_path / "alone"
    batch = {"training__per_device_train_batch_size": 6}
    assert train_tool_aware.main(arguments(alone, **batch)) == 0
    for name, tolerance in TOLERANCES.items():
        assert figures(launched[0], name) == pytest.approx(figures(alone, name), rel=tolerance), name
    assert figures(launched[0], "examples") == figures(alone, "examples") == [6, 6, 6, 6, 6, 2] * 2
    assert figures(alone, "loss")[-1] < figures(alone, "loss")[0] - 0.05


def test_one_process_speaks_and_writes(launched):
    output, done = launched
    assert done.stderr.count("effective batch 3 x 1 x 2 processes") == 1
    assert done.stdout.count("Trained 12 steps") == 1
    assert len(re.findall(r"^step \d+/12  loss", done.stderr, re.MULTILINE)) == 12
    assert len(list((output / "runs").iterdir())) == 1
    names = {path.name for path in output.iterdir()}
    assert names >= {"lora_adapters", "manifest.json", "metrics.jsonl", "runs", "checkpoint-12"}
    assert {name for name in names if name.startswith(".")} <= {".lock", ".run.json", ".tool-aware.lock"}
    checkpoint = next(output.glob("checkpoint-*"))
    assert {"random_state_0.safetensors", "random_state_1.safetensors"} <= {path.name for path in checkpoint.iterdir()}


def test_a_signal_to_one_process_stops_all_and_the_resumed_run_ends_as_if_nothing_had_happened(
    launched, arguments, tmp_path
):
    output = tmp_path / "output"
    pair = Pair(arguments(output), tmp_path / "first")
    pair.wait_for("step 2/12  loss")
    os.kill(pair.processes[1].pid, signal.SIGTERM)
    assert pair.exit_codes() == [143, 143]
    assert pair.messages()[0].count("stopped by SIGTERM") == 1
    assert pair.messages()[1] == ""
    assert len(list(output.glob("checkpoint-*"))) == 1
    assert not (output / "lora_adapters").exists()
    with pytest.raises(UserError, match="processes: 2 then, 1 now"):
        train_tool_aware.main(arguments(output, "--resume"))

    pair = Pair(arguments(output, "--resume"), tmp_path / "second")
    assert pair.exit_codes() == [0, 0], pair.messages()
    assert "resuming from" in pair.messages()[0]
    assert adapter_of(output) == adapter_of(launched[0])


def test_a_mistake_is_told_once_and_all_leave_with_its_exit_code(launched, arguments, tmp_path):
    pair = Pair(arguments(launched[0]), tmp_path)
    assert pair.exit_codes() == [2, 2]
    first, second = pair.messages()
    assert "holds a finished run" in first
    assert second == ""


@pytest.mark.parametrize("count", ["abc", "", "-1", "2.0", "0x2"])
def test_a_launchers_variable_that_is_no_number_is_told_once(arguments, tmp_path, count):
    pair = Pair(arguments(tmp_path / "output"), tmp_path, WORLD_SIZE=count)
    assert pair.exit_codes() == [2, 2]
    first, second = pair.messages()
    assert f"WORLD_SIZE={count} is not a number" in first
    assert second == ""


def test_a_folder_held_by_another_run_is_told_once_and_by_its_holder(arguments, tmp_path):
    with locked(tmp_path / "output"):
        pair = Pair(arguments(tmp_path / "output"), tmp_path)
        assert pair.exit_codes() == [2, 2]
    first, second = pair.messages()
    assert "another run is writing here" in first
    assert second == ""


def test_a_base_model_spread_over_the_processes_gives_the_same_losses(launched, arguments, tmp_path):
    sharded = arguments(tmp_path / "sharded", "--config", str(REPOSITORY / "config.fsdp.yaml"))
    pair = Pair(sharded, tmp_path)
    assert pair.exit_codes() == [0, 0], pair.messages()
    assert "spread over 2 processes" in pair.messages()[0]
    for name, tolerance in TOLERANCES.items():
        assert figures(tmp_path / "sharded", name) == pytest.approx(figures(launched[0], name), rel=tolerance), name


@pytest.mark.parametrize("name", ["two_gpus.yaml", "two_machines.yaml"])
def test_the_files_for_accelerate_are_what_it_reads(name):
    from accelerate.commands.config.config_args import load_config_from_file

    read = load_config_from_file(str(REPOSITORY / "launch" / name))
    assert read.num_processes % read.num_machines == 0
    assert str(read.distributed_type).endswith("MULTI_GPU")
    assert read.mixed_precision == "no"
