"""A real HTTP server on loopback that speaks the OpenAI protocol, with the faults that servers have."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tool_aware.console import UserError
from tool_aware.evaluation.answering import endpoint as endpoint_module
from tool_aware.evaluation.answering.endpoint import Endpoint
from tool_aware.evaluation.answering.predictions import PredictionLog
from tool_aware.evaluation.answering.probe import make_probe, run_probe
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.rows import Row
from tool_aware.tokenizer import control_tokens_in

ROWS = {index: Row(f"question {index}", "", {"tool": "a"}) for index in range(12)}


class Server(ThreadingHTTPServer):
    """Answers `tuned: QUESTION` or `base: QUESTION` by model name; `faults` are status codes to give first."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.seen, self.lock = [], [], threading.Lock()
        self.running = self.most_running = 0
        self.required_key = None
        self.applies_adapter = True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200, {"data": [{"id": "router"}, {"id": "plain"}]})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.seen.append(body)
            server.running += 1
            server.most_running = max(server.most_running, server.running)
            fault = server.faults.pop() if server.faults else None
        try:
            if server.required_key and self.headers.get("Authorization") != f"Bearer {server.required_key}":
                self.reply(401, {"error": "no key"})
            elif fault == "cut":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{")
                self.close_connection = True
            elif fault:
                self.reply(fault, {"error": "try later"})
            else:
                name = "tuned" if body["model"] == "router" and server.applies_adapter else "base"
                text = f"{name} answers {body['messages'][0]['content']}"
                choice = {"message": {"content": text}, "finish_reason": "length" if text.endswith("7") else "stop"}
                self.reply(200, {"choices": [choice], "usage": {"completion_tokens": 5}})
        finally:
            with server.lock:
                server.running -= 1

    def reply(self, status, value):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(endpoint_module, "RETRY_WAITS_S", (0.0, 0.0, 0.0))
    with serving() as running:
        yield running


@contextmanager
def serving():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def endpoint_of(server, **changes):
    fields = {"served_name": "router", "max_new_tokens": 64, "concurrency": 3, **changes}
    return Endpoint(f"http://127.0.0.1:{server.server_port}", **fields)


def test_every_row_is_asked_greedily_and_answers_come_back_in_row_order(server, tmp_path):
    answers = endpoint_of(server).answer_rows(ROWS, PredictionLog(tmp_path / "a.jsonl", {}))
    assert [answer.row for answer in answers] == list(ROWS)
    assert answers[3].text == "tuned answers question 3"
    assert (answers[7].is_truncated, answers[8].is_truncated) == (True, False)
    assert answers[0].new_tokens == 5
    assert all(body["temperature"] == 0 and body["max_tokens"] == 64 for body in server.seen)
    assert 1 <= server.most_running <= 3


def test_control_tokens_that_a_user_typed_reach_the_server_as_text(server, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    controls = control_tokens_in(tmp_path)
    assert {"<s>", "</s>", "<unk>"} <= set(controls)
    endpoint_of(server, controls=controls).ask("say </s><s> [INST] twice")
    sent = server.seen[0]["messages"][0]["content"]
    assert sent == "say < /s>< s> [INST] twice"
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(tokenizer(sent)["input_ids"][1:])


def test_faults_that_pass_are_tried_again(server, tmp_path):
    server.faults = [503, 429, "cut"]
    answers = endpoint_of(server, concurrency=1).answer_rows(ROWS, PredictionLog(tmp_path / "a.jsonl", {}))
    assert len(answers) == 12
    assert len(server.seen) == 15


def test_answers_got_before_a_lasting_fault_are_kept_for_the_next_run(server, tmp_path):
    server.faults = [400, None, None, None, None]  # given from the end: four answers, then a refusal
    with pytest.raises(UserError, match="answered 400"):
        endpoint_of(server, concurrency=1).answer_rows(ROWS, PredictionLog(tmp_path / "a.jsonl", {}))
    log = PredictionLog(tmp_path / "a.jsonl", {})
    assert 1 <= len(log.done) < 12
    known = len(log.done)
    server.seen.clear()
    endpoint_of(server).answer_rows(ROWS, log)
    assert len(server.seen) == 12 - known


def test_a_missing_key_is_asked_for_and_never_shown(server, tmp_path):
    server.required_key = "sesame"
    with pytest.raises(UserError, match="OPENAI_API_KEY") as caught:
        endpoint_of(server, api_key="wrong-secret").answer(0, "x")
    assert "wrong-secret" not in str(caught.value)
    assert endpoint_of(server, api_key="sesame").answer(0, "x").text == "tuned answers x"


def test_a_model_that_is_not_served_is_named_with_those_that_are(server):
    endpoint_of(server).check()
    with pytest.raises(UserError, match="does not serve 'other'; it serves router, plain"):
        endpoint_of(server, served_name="other").check()


def test_a_server_that_is_not_there_is_a_message(monkeypatch):
    monkeypatch.setattr(endpoint_module, "RETRY_WAITS_S", (0.0,))
    with pytest.raises(UserError, match="cannot be reached"):
        Endpoint("http://127.0.0.1:9/v1", "router", 8, 1).check()


def test_the_probe_tells_when_the_base_model_answers(server):
    base = [Prediction(index, f"base answers question {index}") for index in ROWS]
    tuned = [Prediction(index, f"tuned answers question {index}") for index in ROWS]
    tuned[0] = base[0]  # says nothing about which model runs
    probe = make_probe(ROWS, base, tuned)
    assert len(probe) == 8
    assert all(item.instruction != "question 0" for item in probe)
    assert run_probe(endpoint_of(server), probe) == {"tuned": 8, "base": 0, "neither": 0}
    server.applies_adapter = False
    with pytest.raises(UserError, match="answers as the base model does \\(8 of 8") as caught:
        run_probe(endpoint_of(server), probe)
    assert "--lora-modules" in str(caught.value)
