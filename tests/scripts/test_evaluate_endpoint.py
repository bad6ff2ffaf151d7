"""Answers of a server: kept apart from those of the local models, and never taken for those of another server."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import ThreadingHTTPServer

import pytest

import evaluate as script
from tests.fixtures.evaluate_script import REPOSITORY, command_line
from tests.fixtures.http_replies import JsonReplies
from tests.fixtures.in_process import outcome
from tool_aware.evaluation import baselines_beside


class Answering(JsonReplies):
    """A chat server with llama.cpp's /props, which knows one answer per prompt and counts the requests."""

    def do_GET(self):  # noqa: N802  http.server calls it
        server = self.server
        if self.path == "/v1/models":
            self.reply({"data": [{"id": "router", "created": server.requests, "owned_by": "llamacpp"}]})
        elif self.path == "/props" and server.model_path:
            self.reply({"model_path": server.model_path, "build_info": "b1"})
        else:
            self.send_error(404)

    def do_POST(self):  # noqa: N802
        prompt = self.body()["messages"][0]["content"]
        self.server.requests += 1
        self.reply({"choices": [{"message": {"content": self.server.answers[prompt]}, "finish_reason": "stop"}]})


@pytest.fixture
def server(evaluation_data_dir):
    """A server with the right answers."""
    rows = json.loads((evaluation_data_dir / "test.json").read_text())
    running = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    running.answers = {row["instruction"]: row["response"] for row in rows}
    running.model_path, running.requests = "f16.gguf", 0
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def ask(server, tiny_model_dir, adapter, evaluation_data_dir, tmp_path, capsys):
    """Evaluate the server with settings from a file that names the results folder `results`."""
    unprobed = tmp_path / "output" / "lora_adapters"  # no evaluation of another test has left a probe there
    shutil.copytree(adapter, unprobed, ignore=shutil.ignore_patterns("probe.json"))

    def call(*options):
        words = command_line(tiny_model_dir, unprobed, evaluation_data_dir, tmp_path / "results")[1:]
        words = [word for word in words if word != "--set" and not word.startswith("evaluation.results_dir=")]
        settings = tmp_path / "config.yaml"
        base, folder = REPOSITORY / "config.yaml", tmp_path / "results"
        settings.write_text(f"extends: {base}\nevaluation:\n  results_dir: {folder}\n")
        sets = [part for word in words for part in ("--set", word)]
        url = f"http://127.0.0.1:{server.server_port}/v1"
        asked = ["--config", str(settings), *sets, "--no-robustness", "--endpoint", url, "--served-model", "router"]
        server.requests = 0
        return outcome(script.main, [*asked, *map(str, options)], capsys)

    return call


def test_answers_of_a_server_leave_the_local_evaluation_and_name_the_server(ask, server, tmp_path):
    local = tmp_path / "results" / "finetuned_model_metrics.json"
    local.parent.mkdir()
    local.write_text("{}")
    result = ask()
    assert result.code == 0, result.stderr
    assert local.read_text() == "{}"
    assert "results_router/, so that those of base and adapter stay" in result.stderr
    report = (tmp_path / "results_router" / "report.md").read_text()
    assert f"http://127.0.0.1:{server.server_port}/v1, which serves it as router" in report
    assert "f16.gguf" in report
    manifest = json.loads((tmp_path / "results_router" / "manifest.json").read_text())
    assert manifest["served"]["router"]["model_path"] == "f16.gguf"


def test_earlier_answers_are_used_again_only_if_the_same_server_gave_them(ask, server):
    assert ask().code == 0
    assert server.requests == 16
    assert ask().code == 0
    assert server.requests == 8  # rows of the log, to see whether it is still the same
    server.model_path = "Q4_K_M.gguf"
    result = ask()
    assert server.requests == 16
    assert "16 earlier answers of router are not used again: the server says something else" in result.stderr


def test_earlier_answers_of_a_model_with_other_weights_under_the_same_name_are_not_used_again(ask, server):
    assert ask().code == 0
    server.answers = dict.fromkeys(server.answers, "Tool: direct_chat")
    result = ask()
    assert "not used again: the server gives another answer to row 0 now" in result.stderr
    assert "fine-tuned: tool accuracy 0.00 %" in result.stdout


def test_a_server_that_says_nothing_of_itself_is_asked_again(ask, server):
    server.model_path = None
    assert ask().code == 0
    result = ask()
    assert server.requests == 8 + 16
    assert "says nothing by which it could be told from another" in result.stderr


def test_baselines_begin_before_a_server_is_asked(ask, server, monkeypatch):
    begun = []

    class Beside:
        def __init__(self, function, *arguments):
            begun.append(server.requests)
            self.result = lambda: function(*arguments)

    monkeypatch.setattr(baselines_beside, "MANY_WHILE_IDLE", 1)
    monkeypatch.setattr(baselines_beside, "usable_cores", lambda: 2)
    monkeypatch.setattr(baselines_beside, "Beside", Beside)
    result = ask()
    assert result.code == 0, result.stderr
    assert begun == [0]
    assert server.requests > 0
    assert "TF-IDF + logistic regression" in result.stdout
