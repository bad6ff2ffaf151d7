"""evaluate.py as a user runs it: a subprocess on a tiny random model, its files, its exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tool_aware.records import write_manifest, write_rows

REPOSITORY = Path(__file__).resolve().parent.parent
BRIEFS_FILES = {
    "base_model_metrics.json", "finetuned_model_metrics.json", "base_model_results.json",
    "finetuned_model_results.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def toy_data_dir(tmp_path_factory, toy_rows):
    """A data folder with 28 / 4 / 16 rows."""
    folder = tmp_path_factory.mktemp("data")
    for split, part in (("train", toy_rows[:28]), ("val", toy_rows[28:32]), ("test", toy_rows[32:])):
        write_rows(folder / f"{split}.json", part)
    return folder


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


def test_a_run_leaves_the_files_of_the_brief_and_prints_the_comparison(finished):
    folder, result = finished
    names = {path.name for path in folder.iterdir()}
    assert names >= {*BRIEFS_FILES, "comparison.json", "report.html", "report.md", "manifest.json"}
    for line in ("COMPARISON", "Base Model Accuracy:", "Fine-tuned Model Accuracy:", "Improvement:", "95% Interval:"):
        assert line in result.stdout
    assert all(tool in result.stdout for tool in ("rag_retrieval", "web_search", "code_execution", "direct_chat"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == {"rows": 16}
    assert {"report.html", *BRIEFS_FILES} <= manifest["outputs"].keys()
    for name in ("base_model_confusion.png", "finetuned_model_confusion.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_a_model_that_never_stops_is_bounded_and_counted_as_truncated(finished):
    folder, _ = finished
    metrics = json.loads((folder / "finetuned_model_metrics.json").read_text())
    assert metrics["truncated"] == 16
    assert metrics["errors"] == {"truncated": 16}
    assert metrics["accuracy"]["value"] == 0
    assert [row[-1] for row in metrics["confusion"]] == [4, 4, 4, 4]  # all in the column `invalid`


def test_a_second_run_loads_no_model_and_finds_the_same(finished, evaluate):
    folder, first = finished
    again = evaluate(folder)
    assert again.returncode == 0
    assert "Loading" in first.stderr
    assert "Loading" not in again.stderr
    assert again.stdout == first.stdout


def test_other_weights_in_the_same_folder_are_not_taken_for_the_old_ones(finished, evaluate, tiny_model_dir, tmp_path):
    shutil.copytree(finished[0] / "predictions", tmp_path / "predictions")
    model = tmp_path / "model"
    shutil.copytree(tiny_model_dir, model, copy_function=shutil.copy2)
    plan = evaluate(tmp_path, "--dry-run", "--model", model)
    assert plan.stderr.count("16 known") == 6  # the base's; this folder has answered nothing yet
    weights = tiny_model_dir / "model.safetensors"
    before = weights.stat()
    os.utime(weights)
    changed = evaluate(tmp_path, "--dry-run")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # other tests share the folder
    assert "known" not in changed.stderr


def test_the_adapter_gets_a_probe_and_its_model_card_the_figures(finished, adapter):
    probe = json.loads((adapter / "probe.json").read_text())
    assert probe
    assert all(item["base"] != item["tuned"] for item in probe)
    card = (adapter / "README.md").read_text()
    assert "model-index:" in card
    assert "type: accuracy" in card


def test_answers_made_elsewhere_are_scored_against_the_bases_of_an_earlier_run(finished, evaluate, gold_answers):
    folder, _ = finished
    result = evaluate(
        folder, "--predictions", gold_answers, "--min", "accuracy=0.99", "--min", "f1.web_search=1",
        "--max-drop", "direct_chat=0", "--require-significant",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Fine-tuned Model Accuracy: 100.00%" in result.stdout
    assert "fine-tuned is better than base: +100.0 points" in result.stdout


def test_a_gate_that_is_missed_ends_with_3_and_says_which(finished, evaluate):
    folder, _ = finished
    result = evaluate(folder, "--min", "accuracy=0.5", "--min", "parse_rate=0", "--require-significant")
    assert result.returncode == 3
    assert "accuracy is 0.000, wanted at least 0.5" in result.stderr
    assert "no significant improvement" in result.stderr
    assert "parse_rate" not in result.stderr
    assert "COMPARISON" in result.stdout  # the work was done and is shown


def test_choice_only_needs_no_answers(evaluate, tmp_path):
    result = evaluate(tmp_path, "--choice-only", "--no-robustness", "--limit", 5)
    assert result.returncode == 0, result.stderr
    assert "5 of 16 rows" in (tmp_path / "report.html").read_text()
    rows = json.loads((tmp_path / "finetuned_model_results.json").read_text())
    assert len(rows) == 5
    assert all(row["chosen"] and len(row["scores"]) == 4 for row in rows)


def test_choosing_only_leaves_the_figures_of_whole_calls_in_the_model_card(finished, evaluate, adapter, tmp_path):
    before = (adapter / "README.md").read_text()
    assert "whole_call_accuracy" in before
    result = evaluate(tmp_path, "--choice-only", "--no-robustness")
    assert result.returncode == 0, result.stderr
    assert (adapter / "README.md").read_text() == before


def test_a_run_killed_half_way_goes_on_and_ends_as_if_it_had_not_been(
    tiny_model_dir, adapter, toy_data_dir, tmp_path, finished
):
    slow = ("--set", "evaluation.batch_size=2", "--no-robustness", "--no-constrained")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = command(tiny_model_dir, adapter, toy_data_dir, tmp_path / "killed", *slow)
    process = subprocess.Popen(arguments, cwd=REPOSITORY, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log, deadline_s = tmp_path / "killed" / "predictions" / "base.jsonl", time.time() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") > 3):
        assert time.time() < deadline_s
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = log.read_bytes().count(b"\n") - 1
    assert 0 < kept < 16
    assert not (tmp_path / "killed" / "manifest.json").exists()
    resumed = subprocess.run(arguments, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True)
    assert f"base {kept:>2} known".replace(" ", "") in resumed.stderr.replace(" ", "").replace("16rows,", "")
    whole, _ = finished  # answered in batches of 16, and never stopped
    for name in BRIEFS_FILES:
        assert (tmp_path / "killed" / name).read_text() == (whole / name).read_text()


class Answering(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that knows one answer per prompt."""

    def do_GET(self):
        self.reply({"data": [{"id": "router"}]})

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        self.reply({"choices": [{"message": {"content": self.server.answers[prompt]}, "finish_reason": "length"}]})

    def reply(self, value):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(finished, toy_data_dir):
    """Start a server that answers as `base_model` or `finetuned_model` did; returns its address."""
    folder, _ = finished
    prompts = [row["instruction"] for row in json.loads((toy_data_dir / "test.json").read_text())]
    servers = []

    def start(model):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        results = json.loads((folder / f"{model}_results.json").read_text())
        server.answers = {prompts[row["row"]]: row["response"] for row in results}
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_server_that_applies_the_adapter_is_evaluated(evaluate, serve, tmp_path, finished):
    # Another results folder with the base's answers, so that other tests find theirs as they were.
    shutil.copytree(finished[0] / "predictions", tmp_path / "predictions")
    result = evaluate(tmp_path, "--endpoint", serve("finetuned_model"), "--served-model", "router")
    assert result.returncode == 0, result.stderr
    assert "replies as fine-tuned, 0 as the base" in result.stderr
    assert "COMPARISON" in result.stdout


def test_a_server_that_silently_answers_with_the_base_model_is_refused(evaluate, serve, tmp_path):
    result = evaluate(tmp_path, "--endpoint", serve("base_model"), "--served-model", "router")
    refused(result, "answers as the base model does", "--lora-modules")


# ---- bad input --------------------------------------------------------------------------------------------


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


def test_an_empty_test_set_is_refused(evaluate, toy_data_dir, tmp_path):
    data = copy_of(toy_data_dir, tmp_path, test=lambda rows: [])
    refused(evaluate(tmp_path / "r", data_dir=data), "test.json", "must be a non-empty JSON array")


def test_missing_data_names_the_stage_to_run(evaluate, tmp_path):
    refused(evaluate(tmp_path / "r", data_dir=tmp_path), "test.json: not found", "python prepare_dataset.py")


def test_test_rows_found_in_train_are_refused_with_their_numbers(evaluate, toy_data_dir, tmp_path):
    train = json.loads((toy_data_dir / "train.json").read_text())
    data = copy_of(toy_data_dir, tmp_path, test=lambda rows: [rows[0], train[4], *rows[1:]])
    refused(evaluate(tmp_path / "r", data_dir=data), "must not have been trained on", "row 2 is row 5 of train.json")


def test_test_rows_that_the_adapter_was_taught_elsewhere_are_refused(evaluate, adapter, toy_data_dir, config, tmp_path):
    shutil.copytree(adapter, tmp_path / "output/lora_adapters")
    shutil.copytree(toy_data_dir, tmp_path / "elsewhere")
    shutil.copy(toy_data_dir / "test.json", tmp_path / "elsewhere/train.json")
    inputs = [tmp_path / "elsewhere/train.json"]
    settings = config.as_dict()
    write_manifest(tmp_path / "output", stage="train", config=settings, seed=1, started_s=0.0, inputs=inputs)
    result = evaluate(tmp_path / "r", "--dry-run", "--adapter", tmp_path / "output/lora_adapters")
    refused(result, "16 of 16 rows stand in", "elsewhere/train.json")


def test_a_test_file_whose_tools_are_not_in_the_config_is_refused(evaluate, toy_data_dir, tmp_path):
    def rename(rows):
        return [
            {**row, "response": row["response"].replace("web_search", "browse"), "metadata": {"source": "custom"}}
            for row in rows
        ]

    data = copy_of(toy_data_dir, tmp_path, test=rename)
    refused(evaluate(tmp_path / "r", data_dir=data), "unknown tool 'browse'", "4 problems")


def test_results_of_another_test_file_are_not_overwritten(finished, evaluate, toy_data_dir, tmp_path):
    folder, _ = finished
    before = (folder / "comparison.json").read_bytes()
    data = copy_of(toy_data_dir, tmp_path, test=lambda rows: rows[:5])
    refused(evaluate(folder, data_dir=data), "results of another test file", "--overwrite")
    assert (folder / "comparison.json").read_bytes() == before


def test_a_part_of_an_evaluation_does_not_replace_a_whole_one(evaluate, gold_answers, tmp_path):
    gold = ("--predictions", gold_answers)
    for options in (["--limit", 5], ["--limit", 3], [], []):  # parts in any order, then whole ones
        result = evaluate(tmp_path / "r", *gold, *options)
        assert result.returncode == 0, result.stderr
    before = (tmp_path / "r" / "comparison.json").read_bytes()
    for option, words in ((["--choice-only"], "--choice-only"), (["--limit", 5], "--limit 5")):
        result = evaluate(tmp_path / "r", *gold, *option)
        refused(result, f"a whole evaluation, which {words} would replace", "--set evaluation.results_dir=")
    assert (tmp_path / "r" / "comparison.json").read_bytes() == before
    assert evaluate(tmp_path / "r", *gold, "--limit", 16).returncode == 0  # all rows there are
    assert evaluate(tmp_path / "r", *gold, "--limit", 5, "--overwrite").returncode == 0
    assert json.loads((tmp_path / "r" / "manifest.json").read_text())["partial"] == ["--limit 5"]


def test_figures_of_a_base_that_this_run_does_not_know_do_not_stay(finished, evaluate, gold_answers, tmp_path):
    shutil.copytree(finished[0], tmp_path / "r", ignore=shutil.ignore_patterns("predictions"))
    (tmp_path / "r" / "notes.txt").write_text("mine")
    result = evaluate(tmp_path / "r", "--predictions", gold_answers)
    assert result.returncode == 0, result.stderr
    left = {path.name for path in (tmp_path / "r").iterdir()}
    outputs = json.loads((tmp_path / "r" / "manifest.json").read_text())["outputs"]
    assert left == {*outputs, "manifest.json", "notes.txt"}
    assert not any(name.startswith("base_model") for name in left)


def test_a_plan_with_overwrite_deletes_no_answers(finished, evaluate):
    folder, _ = finished
    before = {path: path.read_bytes() for path in (folder / "predictions").iterdir()}
    plan = evaluate(folder, "--overwrite", "--dry-run")
    assert plan.returncode == 0
    assert "known" not in plan.stderr
    assert {path: path.read_bytes() for path in (folder / "predictions").iterdir()} == before


def test_a_missing_adapter_names_the_stage_to_run(evaluate, tmp_path):
    result = evaluate(tmp_path / "r", "--adapter", tmp_path / "nothing")
    refused(result, "no adapter found", "python train_tool_aware.py")


def test_output_dir_names_the_training_whose_adapter_is_evaluated(evaluate, adapter, tmp_path):
    refused(evaluate(tmp_path / "r", "--output_dir", tmp_path), f"{tmp_path}/lora_adapters", "no adapter found")
    shutil.copytree(adapter, tmp_path / "stage2" / "lora_adapters")
    result = evaluate(tmp_path / "r", "--output_dir", tmp_path / "stage2", "--dry-run")
    assert f"fine-tuned  {tmp_path}/stage2/lora_adapters" in result.stderr


def test_an_adapter_of_another_base_is_refused_before_anything_is_loaded(evaluate, adapter, tmp_path):
    other = tmp_path / "adapter"
    other.mkdir()
    (other / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    (other / "adapter_model.safetensors").write_bytes(b"")
    refused(evaluate(tmp_path / "r", "--adapter", other), "was trained on someone/else", "--set model.name=")


def test_an_adapter_trained_with_other_tools_is_refused(evaluate, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "output" / "lora_adapters")
    tools = [{"name": "rag_retrieval"}, {"name": "calendar"}]
    manifest = {"stage": "train", "config": {"tools": tools}}
    (tmp_path / "output" / "manifest.json").write_text(json.dumps(manifest))
    result = evaluate(tmp_path / "r", "--adapter", tmp_path / "output" / "lora_adapters")
    refused(result, "was trained with the tools rag_retrieval, calendar", "python train_tool_aware.py")


def test_data_made_with_other_tools_is_warned_of(evaluate, toy_data_dir, tmp_path, config):
    data = copy_of(toy_data_dir, tmp_path)
    tools = config.as_dict()["tools"]
    tools[1]["description"] = "Search the archive."
    (data / "manifest.json").write_text(json.dumps({"stage": "prepare_dataset", "config": {"tools": tools}}))
    result = evaluate(tmp_path / "r", "--dry-run", data_dir=data)
    assert result.returncode == 0
    assert "data was made with another definition of web_search than the config has" in result.stderr


def test_a_folder_that_is_no_merged_model_is_refused(evaluate, adapter, tmp_path):
    refused(evaluate(tmp_path / "r", "--model", tmp_path / "nothing"), "no such folder")
    refused(evaluate(tmp_path / "r", "--model", adapter), "holds an adapter", f"--adapter {adapter}")


def test_a_merged_model_is_compared_with_the_bases_answers_of_an_earlier_run(
    evaluate, finished, tiny_model_dir, tmp_path
):
    shutil.copytree(finished[0] / "predictions", tmp_path / "predictions")
    unquantised = ("--set", "quantization.load_in_4bit=false")
    result = evaluate(tmp_path, "--model", tiny_model_dir, *unquantised, "--no-robustness", "--no-constrained")
    assert result.returncode == 0, result.stderr
    assert "COMPARISON" in result.stdout
    assert "base:" not in result.stderr  # nothing was generated for it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min", "acuracy=0.8"], "'acuracy' is not one of accuracy"),
        (["--min", "accuracy=80"], "needs a number from 0 to 1"),
        (["--max-drop", "chat=0.1"], "'chat' is not one of rag_retrieval"),
        (["--endpoint", "http://127.0.0.1:9"], "--endpoint and --served-model go together"),
        (["--limit", "0"], "must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(evaluate, tmp_path, options, words):
    refused(evaluate(tmp_path / "r", *options), words)


def test_a_class_without_rows_is_not_available_and_neither_0_nor_1(evaluate, toy_data_dir, tmp_path):
    data = copy_of(toy_data_dir, tmp_path, test=lambda rows: [r for r in rows if r["metadata"]["tool"] != "web_search"])
    gold = tmp_path / "gold.json"
    gold.write_text(json.dumps([row["response"] for row in json.loads((data / "test.json").read_text())]))
    result = evaluate(tmp_path / "r", "--predictions", gold, "--min", "f1.web_search=0.1", data_dir=data)
    assert result.returncode == 3
    assert "no test rows for web_search: their figures are n/a" in result.stderr
    assert "f1.web_search is n/a" in result.stderr
    metrics = json.loads((tmp_path / "r" / "finetuned_model_metrics.json").read_text())
    assert metrics["per_tool"]["web_search"]["f1"]["value"] is None
    assert metrics["macro_f1"]["value"] == 1


def test_the_plan_is_printed_without_doing_anything(evaluate, tmp_path):
    result = evaluate(tmp_path / "r", "--dry-run")
    assert result.returncode == 0
    assert "16 of 16" in result.stderr
    assert not (tmp_path / "r").exists()
