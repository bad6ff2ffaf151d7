"""What evaluate.py leaves and prints, resumes and compares; its exit codes."""

import json
import os
import shutil
import subprocess
import threading
import time
from http.server import ThreadingHTTPServer

import pytest

from tests.fixtures.evaluate_script import BRIEFS_FILES, REPOSITORY, command, refused
from tests.fixtures.http_replies import JsonReplies
from tests.fixtures.warm_start import kill


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
    folder, result = finished
    said = "16 of 16 answers have more than evaluation.max_new_tokens (24) tokens"
    assert result.stderr.count(said) == 1
    assert any(said in fallback for fallback in json.loads((folder / "manifest.json").read_text())["fallbacks"])
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
    assert plan.stderr.count("16 known") == 8  # the base's; this folder has answered nothing yet
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
        folder,
        "--predictions",
        gold_answers,
        "--min",
        "accuracy=0.99",
        "--min",
        "f1.web_search=1",
        "--max-drop",
        "direct_chat=0",
        "--require-significant",
    )
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
    tiny_model_dir, adapter, evaluation_data_dir, tmp_path, finished
):
    slow = ("--set", "evaluation.batch_size=2", "--no-robustness", "--no-constrained")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = command(tiny_model_dir, adapter, evaluation_data_dir, tmp_path / "killed", *slow)
    log, deadline_s = tmp_path / "killed" / "predictions" / "base.jsonl", time.time() + 300
    while not (log.exists() and 4 <= log.read_bytes().count(b"\n") <= 16):  # again if it was done before it was killed
        assert time.time() < deadline_s
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        process = subprocess.Popen(
            arguments, cwd=REPOSITORY, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 3):
            time.sleep(0.005)
        kill(process)
    kept = log.read_bytes().count(b"\n") - 1
    assert 0 < kept < 16
    assert not (tmp_path / "killed" / "manifest.json").exists()
    resumed = subprocess.run(arguments, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True)
    assert f"base {kept:>2} known".replace(" ", "") in resumed.stderr.replace(" ", "").replace("16rows,", "")
    whole, _ = finished  # answered in batches of 16, and never stopped
    for name in BRIEFS_FILES:
        assert (tmp_path / "killed" / name).read_text() == (whole / name).read_text()


class Answering(JsonReplies):
    """An OpenAI-compatible server that knows one answer per prompt."""

    def do_GET(self):  # noqa: N802  http.server calls it
        self.reply({"data": [{"id": "router"}]})

    def do_POST(self):  # noqa: N802
        prompt = self.body()["messages"][0]["content"]
        self.reply({"choices": [{"message": {"content": self.server.answers[prompt]}, "finish_reason": "length"}]})


@pytest.fixture
def serve(finished, evaluation_data_dir):
    """Start a server that answers as `base_model` or `finetuned_model` did; returns its address."""
    folder, _ = finished
    prompts = [row["instruction"] for row in json.loads((evaluation_data_dir / "test.json").read_text())]
    servers = []

    def start(model):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        results = json.loads((folder / f"{model}_results.json").read_text())
        server.answers = {prompts[row["row"]]: row["response"] for row in results}
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
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
