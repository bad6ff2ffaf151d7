"""evaluate.py as a user runs it: a subprocess on a tiny random model and toy data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tool_aware.records import write_rows

REPOSITORY = Path(__file__).resolve().parents[2]
BRIEFS_FILES = {
    "base_model_metrics.json", "finetuned_model_metrics.json", "base_model_results.json",
    "finetuned_model_results.json",
}  # fmt: skip


@pytest.fixture(scope="session")
def toy_data_dir(tmp_path_factory, toy_rows):
    """A data folder with 28 / 4 / 16 rows."""
    folder = tmp_path_factory.mktemp("data")
    for split, part in (("train", toy_rows[:28]), ("val", toy_rows[28:32]), ("test", toy_rows[32:])):
        write_rows(folder / f"{split}.json", part)
    return folder


@pytest.fixture(scope="session")
def adapter(tmp_path_factory, tiny_model_dir):
    """An adapter of random matrices for the tiny model, in an output folder of its own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    settings = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    folder = tmp_path_factory.mktemp("output") / "lora_adapters"
    get_peft_model(base, settings).save_pretrained(folder)
    return folder


def command(tiny_model_dir, adapter, data_dir, results_dir, *options):
    settings = {
        "model.name": tiny_model_dir, "training.output_dir": adapter.parent, "dataset.dir": data_dir,
        "evaluation.results_dir": results_dir, "evaluation.max_new_tokens": 24,
    }  # fmt: skip
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, "evaluate.py", *overrides, *map(str, options)]


@pytest.fixture
def evaluate(tiny_model_dir, adapter, toy_data_dir):
    """Run evaluate.py on the toy data; `data_dir` and `results_dir` can be others."""

    def run(results_dir, *options, data_dir=toy_data_dir, **environment):
        return subprocess.run(
            command(tiny_model_dir, adapter, data_dir, results_dir, *options),
            cwd=REPOSITORY, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_model_dir, adapter, toy_data_dir):
    """One whole run: its results folder and its output."""
    folder = tmp_path_factory.mktemp("results")
    result = subprocess.run(
        command(tiny_model_dir, adapter, toy_data_dir, folder), cwd=REPOSITORY, capture_output=True, text=True,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder, result


@pytest.fixture
def gold_answers(tmp_path, toy_data_dir):
    """The right answers, as a file made elsewhere."""
    rows = json.loads((toy_data_dir / "test.json").read_text())
    path = tmp_path / "gold.json"
    path.write_text(json.dumps([row["response"] for row in rows]))
    return path


def refused(result, *words):
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


def copy_of(data_dir, tmp_path, **changes):
    """A data folder in which some files are others."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.json", "val.json", "test.json"):
        text = (data_dir / name).read_text()
        (folder / name).write_text(json.dumps(changes[name[:-5]](json.loads(text))) if name[:-5] in changes else text)
    return folder
