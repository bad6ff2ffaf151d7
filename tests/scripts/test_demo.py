"""From a query log in a real PostgreSQL to a report of base against tuned, through the four scripts, as in the demo."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.repository import REPOSITORY
from tests.fixtures.warm_start import warm_executable, warm_python
from tool_aware.console import UserError
from tool_aware.demo.__main__ import main

SHRINK = (
    "--logged-queries=800", "--pretraining-steps=12", "--set=training.max_steps=12",
    "--set=dataset.synthetic_per_tool=40", "--set=evaluation.max_new_tokens=24",
)  # fmt: skip
# `python -m tool_aware.demo`, which starts its scripts with an interpreter that has the libraries.
START = """
import runpy, sys
sys.path.insert(0, {repository!r})
sys.executable = {python!r}
runpy.run_module("tool_aware.demo", run_name="__main__", alter_sys=True)
"""
REAL_FILES = ("data/train.json", "output/checkpoint-100/optimizer.pt", "evaluation_results/comparison.json")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo, shrunk, beside real data and an unfinished run; returns the demo's folder and the finished process."""
    folder = tmp_path_factory.mktemp("demo")
    for name in REAL_FILES:
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("real")
    python = warm_executable(tmp_path_factory.mktemp("bin"))
    (folder / "start.py").write_text(START.format(repository=str(REPOSITORY), python=python))
    environment = {**os.environ, "HF_TOKEN": "hf_planted", "POSTGRES_PASSWORD": "planted"}
    result = subprocess.run(
        [*warm_python(), "start.py", "--config", str(REPOSITORY / "config.demo.yaml"), *SHRINK],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1800,
    )  # fmt: skip
    (folder / "start.py").unlink()
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder / ".demo", result


def test_every_file_of_the_projects_structure_is_there(demo):
    folder, _ = demo
    for name in (
        "data/train.json", "data/val.json", "data/test.json", "data/sample_raw.json", "data/manifest.json",
        "output/lora_adapters/adapter_model.safetensors", "output/final_model/model.safetensors",
        "output/final_model/tokenizer.json", "output/metrics.jsonl", "output/manifest.json",
        "evaluation_results/base_model_metrics.json", "evaluation_results/base_model_results.json",
        "evaluation_results/finetuned_model_metrics.json", "evaluation_results/finetuned_model_results.json",
        "evaluation_results/comparison.json", "evaluation_results/report.html", "evaluation_results/manifest.json",
    ):  # fmt: skip
        assert (folder / name).is_file(), name
    assert list(folder.glob("output/checkpoint-*"))
    assert list(folder.glob("output/runs/events.*"))
    assert list(folder.glob("evaluation_results/*.png"))


def test_real_data_runs_and_results_are_left_alone(demo):
    folder, result = demo
    real = {str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*") if path.is_file()}
    assert {name for name in real if not name.startswith(".demo/")} == set(REAL_FILES)
    assert all((folder.parent / name).read_text() == "real" for name in REAL_FILES)
    assert ".demo/evaluation_results/" in result.stdout  # where the last screen says to look


@pytest.mark.parametrize(
    "setting", ["training.output_dir=output", "dataset.dir=.demo/../data", "evaluation.results_dir=.demo"]
)
def test_the_demo_refuses_to_write_elsewhere(setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"writes below \.demo/ only") as refusal:
        main(["--config", str(REPOSITORY / "config.demo.yaml"), "--set", setting])
    assert setting in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_the_last_screen_is_the_comparison_with_its_interval(demo):
    _, result = demo
    screen = result.stdout[result.stdout.rindex("wall time") :]
    for text in ("COMPARISON", "Base Model Accuracy:", "Fine-tuned Model Accuracy:", "95% Interval:", "rag_retrieval"):
        assert text in screen
    assert "say nothing about Mistral-7B" in screen
    assert "train_tool_aware.py --overwrite" in screen


def test_rows_come_from_the_log_and_from_synthesis_and_hold_no_personal_data(demo):
    folder, _ = demo
    text = (folder / "data/train.json").read_text()
    assert {row["metadata"]["source"] for row in json.loads(text)} >= {"query_log", "synthetic"}
    assert "@example.com" not in text
    assert "4111 1111 1111 1111" not in text


def test_each_manifest_vouches_for_what_the_stage_before_left(demo):
    folder, _ = demo
    prepared, trained = (json.loads((folder / name / "manifest.json").read_text()) for name in ("data", "output"))
    assert prepared["outputs"]["train.json"] in trained["inputs"].values()
    assert trained["steps"] == 12


def test_the_merged_model_loads_by_itself(demo):
    from transformers import AutoModelForCausalLM

    folder, _ = demo
    model = AutoModelForCausalLM.from_pretrained(folder / "output" / "final_model")
    assert not hasattr(model.config, "quantization_config")


def test_no_secret_is_written_or_said(demo):
    folder, result = demo
    assert "hf_planted" not in result.stdout + result.stderr
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".json", ".jsonl", ".md", ".html", ".txt", ".yaml"):
            assert "hf_planted" not in path.read_text(errors="replace"), path
