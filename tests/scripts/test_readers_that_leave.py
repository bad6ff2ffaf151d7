"""A reader that goes away (`| head`) ends no work and changes no exit code, in any of the four scripts."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.fixtures.evaluate_script import command_line
from tests.fixtures.repository import REPOSITORY
from tests.fixtures.warm_start import warm_python

PIPES = ["2>&1 | head -1", "2>&1 | true", "| true", ">&- 2>&-"]


def code_of(words: Sequence[object], pipe: str, **variables: str) -> tuple[int, str]:
    """Run a command in front of a reader; return its own exit code and what else was said."""
    shell = f"{' '.join(shlex.quote(str(word)) for word in words)} {pipe}; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    ended = subprocess.run(
        ["bash", "-c", shell], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    return ended.returncode, ended.stderr


def written_by(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["stage"]


@pytest.mark.parametrize("pipe", PIPES)
def test_a_failed_gate_stays_one(tiny_model_dir, adapter, evaluation_data_dir, gold_answers, tmp_path, pipe):
    answers = ["Tool: direct_chat\nParameters: {}\nReasoning: x."] * 16
    gold_answers.write_text(json.dumps(answers))
    options = ["--predictions", gold_answers, "--min", "accuracy=0.99"]
    words = [*warm_python(), *command_line(tiny_model_dir, adapter, evaluation_data_dir, tmp_path / "r", *options)]
    code, messages = code_of(words, pipe)
    assert code == 3
    assert "Traceback" not in messages
    assert written_by(tmp_path / "r") == "evaluate"


@pytest.mark.parametrize("pipe", PIPES[:2])
def test_data_is_made_to_the_end(tmp_path, pipe):
    small = (
        "dataset.synthetic_per_tool=10",
        "dataset.ambiguous=0",
        "dataset.follow_ups=0",
        "dataset.two_requests=0",
        "dataset.use_query_log=false",
    )
    settings = (*small, f"dataset.dir={tmp_path / 'data'}")
    words = [*warm_python(), "prepare_dataset.py", *(part for setting in settings for part in ("--set", setting))]
    code, messages = code_of(words, pipe)
    assert code == 0
    assert "Traceback" not in messages
    assert written_by(tmp_path / "data") == "prepare_dataset"


@pytest.mark.parametrize("pipe", PIPES[:1])
def test_a_model_is_trained_to_the_end(tiny_model_dir, toy_data_dir, tmp_path, pipe):
    settings = {
        "model.name": tiny_model_dir,
        "dataset.dir": toy_data_dir,
        "training.output_dir": tmp_path / "output",
        "training.max_steps": 3,
        "logging.logging_steps": 1,
        "logging.tensorboard": "false",
    }
    words = [*warm_python(), "train_tool_aware.py", "--skip-final-model"]
    words += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    code, messages = code_of(words, pipe)
    assert code == 0, messages
    assert "Traceback" not in messages
    assert written_by(tmp_path / "output") == "train"
    assert (tmp_path / "output/lora_adapters/adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("alert", "expected"), [("memory>1%", 3), ("memory>99%", 0)])
@pytest.mark.parametrize("pipe", ["| head -1", "2>&1 | head -1"])
def test_a_monitor_that_nobody_reads_ends_with_the_code_of_its_alert(stub, alert, expected, pipe):
    words = [sys.executable, "monitor_gpu.py", "monitor", "--interval", "0.1", "--duration", "60", "--alert", alert]
    code, messages = code_of(words, pipe, **stub.environment)
    assert code == expected
    assert "Traceback" not in messages
