"""The script as a user meets it: what it refuses, what it says, what it leaves behind, and that no run is ever lost."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.repository import REPOSITORY
from tests.fixtures.warm_start import kill, warm_python
from tool_aware.config.settings import load_config
from tool_aware.files import sha256_of
from tool_aware.prompt import render_instruction, render_response
from tool_aware.rows import Row, write_rows
from tool_aware.tools import ToolCall


@pytest.fixture
def train(tiny_model_dir, toy_data_dir, tmp_path):
    """Run the script on the tiny model and the toy data; returns the finished process."""

    def command(*arguments: str, data: Path = toy_data_dir, model: Path | str = tiny_model_dir) -> list[str]:
        return [
            *warm_python(), str(REPOSITORY / "train_tool_aware.py"), "--config", str(REPOSITORY / "config.yaml"),
            "--set", f"model.name={model}", "--set", f"dataset.dir={data}", "--output_dir", str(tmp_path / "output"),
            "--set", "quantization.bnb_4bit_compute_dtype=float32",  # the same on every processor
            "--set", "training.learning_rate=5e-3", *arguments,
        ]  # fmt: skip

    def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments, **options), cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
        )

    run.command = command
    run.output = tmp_path / "output"
    return run


def refused(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_run_leaves_every_file_the_readme_lists(train):
    result = train("--set", "training.num_train_epochs=1", "--set", "training.save_steps=2")
    assert result.returncode == 0, result.stderr
    names = {path.name for path in train.output.iterdir()}
    assert {"lora_adapters", "final_model", "manifest.json", "metrics.jsonl", "runs", "checkpoint-4"} <= names
    assert {"README.md", "training.png"} <= names
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in (train.output / "final_model").iterdir()
    }
    lines = [json.loads(line) for line in (train.output / "metrics.jsonl").read_text().splitlines()]
    first = lines[0]
    assert {"step", "loss", "lr", "grad_norm", "examples", "tokens", "peak_gib"} <= first.keys()
    manifest = json.loads((train.output / "manifest.json").read_text())
    assert manifest["steps"] == 4
    assert manifest["outputs"]["lora_adapters/adapter_model.safetensors"]
    assert manifest["merged"]["into"] == "dequantized"
    assert manifest["merged"]["check"] == {"file": "test.json", "rows": 8, "different": []}
    assert "lora_adapters/README.md" not in manifest["outputs"]  # evaluate.py will add its results to it
    assert f"exporting the adapter of step {manifest['exported']['step']}" in result.stderr
    last_line = result.stdout.splitlines()[-1]
    assert last_line.startswith(f"Next: python evaluate.py --config {REPOSITORY / 'config.yaml'} --set model.name=")
    assert last_line.endswith(f"--output_dir {train.output}")

    message = refused(train())
    assert "holds a finished run" in message
    assert "--overwrite" in message
    message = refused(train("--resume"))
    assert "holds a finished run" in message


def test_a_dry_run_prints_the_plan_and_loads_no_weights(train, tiny_model_dir, tmp_path):
    model = tmp_path / "no_weights"
    shutil.copytree(tiny_model_dir, model)
    weights = (tiny_model_dir / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(weights[:8], "little")  # names and shapes, which are checked
    (model / "model.safetensors").write_bytes(weights[:header] + b"\xff" * (len(weights) - header))
    result = train("--dry-run", model=model)
    assert result.returncode == 0, result.stderr
    for text in ("steps       12, 3 epochs", "memory      ", "p50  p95  max", "\ntrain   "):
        assert text in result.stderr, result.stderr
    assert result.stdout == ""
    assert list(train.output.iterdir()) == []


def test_missing_data_names_the_stage_that_makes_it(train, tmp_path):
    assert "python prepare_dataset.py" in refused(train(data=tmp_path / "nothing"))


def test_a_missing_file_beside_those_of_someone_else_is_to_be_written_by_hand(train, toy_data_dir, tmp_path):
    shutil.copytree(toy_data_dir, tmp_path / "mine", ignore=shutil.ignore_patterns("val.json"))
    message = refused(train(data=tmp_path / "mine"))
    assert "mine/val.json: not found" in message
    assert "write it too, with rows that train.json and test.json of yours do not have" in message
    assert "prepare_dataset.py" not in message


def test_malformed_rows_are_all_named(train, toy_data_dir, tmp_path):
    shutil.copytree(toy_data_dir, tmp_path / "bad")
    rows = json.loads((tmp_path / "bad" / "train.json").read_text())
    rows[1]["response"] = "nonsense"
    rows[4]["response"], rows[4]["metadata"] = "Tool: send_mail\nParameters: {}\nReasoning: r", {}
    (tmp_path / "bad" / "train.json").write_text(json.dumps(rows))
    message = refused(train(data=tmp_path / "bad"))
    assert "2 problems" in message
    assert "row 2: response: no Tool line" in message
    assert "row 5: response: unknown tool 'send_mail'" in message


def test_responses_in_other_spellings_are_trained_scored_and_checked_like_the_rest(train, toy_data_dir, tmp_path):
    shutil.copytree(toy_data_dir, tmp_path / "spelt")
    for file in (tmp_path / "spelt").glob("*.json"):
        rows = json.loads(file.read_text())
        rows[0]["response"] = rows[0]["response"].replace("Tool: ", "Tool:  ")
        rows[1]["response"] = "\n" + rows[1]["response"].replace("Tool: ", "Tool:")
        rows[2]["response"] = rows[2]["response"].replace("\n", " \n")
        file.write_text(json.dumps(rows))
    result = train("--set", "training.max_steps=1", data=tmp_path / "spelt")
    assert result.returncode == 0, result.stderr
    assert "6 responses had other spacing or JSON" in result.stderr
    assert "on 8 of 8 rows of" in result.stderr


def test_examples_that_are_too_long_are_an_error_or_dropped_but_never_cut(train):
    message = refused(train("--set", "model.max_seq_length=287"))
    assert "--set training.too_long=drop" in message
    result = train("--dry-run", "--set", "model.max_seq_length=287", "--set", "training.too_long=drop")
    assert result.returncode == 0
    assert "are dropped" in result.stderr
    assert "max_new_tokens" not in result.stderr
    result = train("--dry-run", "--set", "evaluation.max_new_tokens=24")
    assert "answers have more than evaluation.max_new_tokens (24) tokens, the longest" in result.stderr


def test_unusable_models_are_explained(train, tmp_path):
    assert "no such folder" in refused(train(model="./nowhere"))
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(train(model=tmp_path / "empty"))
    assert "Hugging Face" in refused(train(model="nobody/never-uploaded"))


def test_an_adapter_of_another_base_is_refused(train, tmp_path, toy_data_dir):
    assert "no adapter found" in refused(train("--adapter", str(tmp_path)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "other/base"}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    message = refused(train("--adapter", str(tmp_path)))
    assert "was trained on other/base" in message


def test_an_adapter_of_other_tools_is_trained_further_on_rows_of_today(train, adapter, config, toy_rows, tmp_path):
    tools = config.as_dict()["tools"]
    shutil.copytree(adapter, tmp_path / "first" / "lora_adapters")
    (tmp_path / "first" / "manifest.json").write_text(json.dumps({"stage": "train", "config": {"tools": tools}}))
    calendar = {"name": "calendar", "description": "Read the user's calendar.", "parameters": {"type": "object"}}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"extends": str(REPOSITORY / "config.yaml"), "tools": [*tools, calendar]}))
    now = load_config(file).toolbox
    rows = [replace(row, instruction=render_instruction(row.query, now)) for row in toy_rows]
    response = render_response(ToolCall("calendar", {}, "It asks for a day."))
    details = {"source": "custom", "tool": "calendar"}
    rows += [Row(render_instruction(f"am I free on day {day}", now), response, details) for day in range(12)]
    for split, part in (("train", rows[8:]), ("val", rows[:8])):
        write_rows(tmp_path / "data" / f"{split}.json", part)
    start = ("--adapter", str(tmp_path / "first" / "lora_adapters"), "--skip-final-model")
    result = train("--config", str(file), *start, "--set", "training.max_steps=2", data=tmp_path / "data")
    assert result.returncode == 0, result.stderr
    manifest = json.loads((train.output / "manifest.json").read_text())
    assert [tool["name"] for tool in manifest["config"]["tools"]] == list(now.names)


def test_a_second_stage_goes_on_from_an_adapter(train, tmp_path):
    assert train("--set", "training.max_steps=2", "--set", "lora.r=4", "--skip-final-model").returncode == 0
    first = train.output / "lora_adapters"
    result = train(
        "--set",
        "training.max_steps=2",
        "--skip-final-model",
        "--adapter",
        str(first),
        "--output_dir",
        str(tmp_path / "output2"),
    )
    assert result.returncode == 0, result.stderr
    assert sha256_of(first / "adapter_model.safetensors") != sha256_of(
        tmp_path / "output2" / "lora_adapters" / "adapter_model.safetensors"
    )
    assert "LoRA r=4 alpha=16" in result.stderr
    assert "LoRA r=4, alpha=16" in (tmp_path / "output2" / "README.md").read_text()
    assert json.loads((tmp_path / "output2" / "manifest.json").read_text())["config"]["lora"]["r"] == 4


def test_a_second_stage_is_not_measured_on_what_the_first_was_taught(train, toy_data_dir, tmp_path):
    assert train("--set", "training.max_steps=1", "--skip-final-model").returncode == 0
    start = ("--adapter", str(train.output / "lora_adapters"), "--output_dir", str(tmp_path / "output2"))
    assert "lineage" in json.loads((train.output / "manifest.json").read_text())
    shutil.copytree(toy_data_dir, tmp_path / "other")
    for before, after in (("train", "test"), ("test", "val"), ("val", "train")):
        shutil.copy(toy_data_dir / f"{before}.json", tmp_path / "other" / f"{after}.json")
    message = refused(train(*start, data=tmp_path / "other"))
    assert "32 of the 32 rows of test.json" in message
    assert "dataset.splits_from" in message


def test_overwriting_never_deletes_what_the_run_starts_from(train):
    for name in ("lora_adapters", "checkpoint-5", "final_model"):
        (train.output / name).mkdir(parents=True)
    (train.output / "checkpoint-5" / "checkpoint.json").write_text("{}")
    (train.output / "manifest.json").write_text('{"stage": "train"}')  # of a version that kept no record of its files
    for adapter in (train.output / "lora_adapters", train.output / "checkpoint-5"):
        message = refused(train("--overwrite", "--adapter", str(adapter)))
        assert "--overwrite would delete the adapter" in message
        assert "another --output_dir" in message
    assert "delete what --resume continues from" in refused(train("--overwrite", "--resume"))
    assert len(list(train.output.iterdir())) == 4


def test_a_read_only_file_system_is_named(train, tmp_path):
    target = tmp_path / "disk"
    target.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", target], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting needs root")
    try:
        message = refused(train("--output_dir", str(target / "output")))
        assert "Read-only file system" in message
        assert str(target) in message
    finally:
        subprocess.run(["umount", target], check=True)


def test_without_a_key_weights_and_biases_records_offline_and_asks_nothing(train, monkeypatch):
    monkeypatch.setenv("USE_WANDB", "true")
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    result = train("--set", "training.max_steps=2", "--skip-final-model")
    assert result.returncode == 0, result.stderr
    assert "recorded offline" in result.stderr
    recorded = [path for path in (train.output / "wandb").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in recorded)
    assert not any(b"hf_planted" in path.read_bytes() for path in recorded)


def test_data_of_other_tools_is_stale(train, toy_data_dir, tmp_path):
    shutil.copytree(toy_data_dir, tmp_path / "stale")
    (tmp_path / "stale" / "manifest.json").write_text(
        json.dumps({"stage": "prepare_dataset", "outputs": {}, "config": {"tools": []}})
    )
    message = refused(train(data=tmp_path / "stale"))
    assert "other tools than config.yaml lists" in message
    assert "python prepare_dataset.py" in message


LONG = (
    "--set", "training.num_train_epochs=8", "--set", "training.save_steps=4", "--set", "lora.dropout=0.1",
    "--set", "logging.logging_steps=1",  # tests wait for the line of a step
    # Too fast on purpose: the best scoring of val.json comes early, and its adapter has to outlive old checkpoints.
    "--set", "training.learning_rate=5e-1", "--set", "training.lr_scheduler_type=constant",
    "--set", "training.tool_weight=20",
    "--skip-final-model",
)  # fmt: skip


def assert_same_ending(one: Path, other: Path, *, best_came_early: bool = True) -> None:
    """Two runs left the same adapter, of the same step, after the same scorings of val.json."""
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (one, other)]
    assert manifests[0]["exported"] == manifests[1]["exported"]
    assert manifests[0]["steps"] == manifests[1]["steps"]
    assert manifests[0]["exported"]["step"] < manifests[0]["steps"] or not best_came_early
    adapters = [folder / "lora_adapters" / "adapter_model.safetensors" for folder in (one, other)]
    assert sha256_of(adapters[0]) == sha256_of(adapters[1])
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (one, other)]
    scorings = [[line for line in run if "val_loss" in line] for run in lines]
    assert scorings[0] == scorings[1]


def test_a_signal_saves_and_the_resumed_run_ends_as_if_nothing_had_happened(train, tmp_path):
    whole = train(*LONG, "--output_dir", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    for signum, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        process = subprocess.Popen(
            train.command(*LONG, "--resume"), cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        for line in process.stderr:
            if line.startswith("step "):
                process.send_signal(signum)
                break
        said = process.communicate(timeout=300)[1]
        assert process.returncode == code, said
        assert not (train.output / "lora_adapters").exists()
    assert "unfinished run" in refused(train(*LONG))
    result = train(*LONG, "--resume")
    assert result.returncode == 0, result.stderr
    assert_same_ending(train.output, tmp_path / "whole")


def test_a_run_killed_before_its_export_goes_on_there_and_not_with_other_settings(train):
    five_steps = (*LONG, "--set", "training.max_steps=5")
    assert train(*five_steps).returncode == 0
    adapter = train.output / "lora_adapters" / "adapter_model.safetensors"
    before = sha256_of(adapter)
    (train.output / "manifest.json").unlink()
    shutil.rmtree(train.output / "lora_adapters")
    message = refused(train(*five_steps, "--set", "lora.r=4", "--resume"))
    assert "lora.r: 8 then, 4 now" in message
    assert train(*five_steps, "--resume").returncode == 0
    assert json.loads((train.output / "manifest.json").read_text())["steps"] == 5
    assert sha256_of(adapter) == before


KILLS = int(os.environ.get("KILLS", "4"))  # 40 in the long run of docs/BENCHMARKS.md


def test_killed_at_random_moments_the_run_ends_as_if_nothing_had_happened(train, tmp_path):
    settings = (*LONG, "--set", "training.save_steps=1", "--set", "training.save_total_limit=2")
    settings += ("--set", "training.num_train_epochs=5", "--set", "lora.dropout=0")  # by the toolkit's own decoder,
    settings += ("--set", "quantization.bnb_4bit_compute_dtype=bfloat16")  # and in 16 bits, as on a GPU
    generator = random.Random(0)
    assert train(*settings, "--output_dir", str(tmp_path / "whole")).returncode == 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            train.command(*settings, "--resume"),
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stderr:  # wait until it trains, then strike at a random moment of stepping or saving
            if line.startswith("Training"):
                break
        time.sleep(generator.uniform(0.0, 1.5))
        kill(process)
        process.communicate(timeout=300)
        if (train.output / "manifest.json").exists():  # it was faster: look, and go on killing a new run
            assert_same_ending(train.output, tmp_path / "whole", best_came_early=False)
            shutil.rmtree(train.output)
    result = train(*settings, "--resume")
    assert result.returncode == 0, result.stderr
    assert_same_ending(train.output, tmp_path / "whole", best_came_early=False)
