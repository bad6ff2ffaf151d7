"""A served model gives the decisions of the loaded one: a small server around the same weights answers as others do."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.unit.routing.test_router import QUERIES, folder, router  # noqa: F401  the same adapter, loaded
from tool_aware.chat_format import tool_name_tokens
from tool_aware.console import UserError
from tool_aware.routing import Router
from tool_aware.routing.served import _Score, _Token, most_open

CALL = 'Parameters: {"n": 2}\nReasoning: It asks for a ping.'


class Server(ThreadingHTTPServer):
    """Answers completions by greedy decoding, token by token; `kind` is whose interface it has."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, model, kind: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.kind = model, kind
        self.named: set[int] = set()  # tokens that are listed although a model of random weights has likelier ones
        self.bodies: list[dict] = []
        self.faults: list[tuple[int, bytes]] = []
        self.models: object = {"data": [{"id": "router", "owned_by": "llamacpp" if kind == "llama.cpp" else "vllm"}]}
        self.one_at_a_time = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def complete(self, ids: list[int], tokens: int, alternatives: int) -> list[tuple[int, dict[int, float]]]:
        import torch

        found = []
        with self.one_at_a_time, torch.no_grad():
            for _ in range(tokens):
                log_p = self.model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
                likeliest = {*log_p.topk(alternatives).indices.tolist(), *self.named}
                found.append((int(log_p.argmax()), {token: float(log_p[token]) for token in likeliest}))
                ids = [*ids, found[-1][0]]
        return found


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.reply(200, json.dumps(self.server.models).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if self.server.faults:
            return self.reply(*self.server.faults.pop(0))
        is_llama = self.path == "/completion"
        assert is_llama == (self.server.kind == "llama.cpp")
        alternatives = body.get("n_probs" if is_llama else "logprobs")
        if not alternatives:
            return self.reply(
                200, json.dumps({"content": CALL} if is_llama else {"choices": [{"text": CALL}]}).encode()
            )
        places = self.server.complete(body["prompt"], body["n_predict" if is_llama else "max_tokens"], alternatives)
        if is_llama:
            listed = [
                {"id": token, "top_logprobs": [{"id": other, "logprob": p} for other, p in likeliest.items()]}
                for token, likeliest in places
            ]
            return self.reply(200, json.dumps({"content": "", "completion_probabilities": listed}).encode())
        probabilities = {
            "tokens": [f"token_id:{token}" for token, _ in places],
            "top_logprobs": [{f"token_id:{other}": p for other, p in likeliest.items()} for _, likeliest in places],
        }
        return self.reply(200, json.dumps({"choices": [{"text": "", "logprobs": probabilities}]}).encode())

    def reply(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(params=["llama.cpp", "vLLM"])
def server(request, quantized):
    server = Server(quantized, request.param)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def served(server, folder, model_dir, monkeypatch):  # noqa: F811
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (model_dir / name).is_file():
            (folder / name).write_bytes((model_dir / name).read_bytes())
    monkeypatch.setattr("tool_aware.routing.served._PAUSES_S", (0.01,))
    with Router.connect(server.url, "router", folder, timeout_s=20) as served:
        names = tool_name_tokens(served._decider.tokenizer, served.tools.names)
        server.named = {token for ids in names.values() for token in ids}
        yield served


def test_choices_and_their_probabilities_are_those_of_the_loaded_model(served, router):  # noqa: F811
    for ours, theirs in zip(
        router.route_many(QUERIES, parameters=False), served.route_many(QUERIES, parameters=False), strict=True
    ):
        assert theirs.fallback is None
        assert theirs.tool == ours.tool
        likely = {tool: p for tool, p in ours.probabilities.items() if p > 0.02}
        assert {tool: theirs.probabilities[tool] for tool in likely} == pytest.approx(likely, abs=0.02)


def test_requests_name_ids_temperature_0_and_a_grammar(served, server):
    decision = served.route_many(QUERIES)[0]
    assert all(body["temperature"] == 0 for body in server.bodies)
    assert all(isinstance(token, int) for body in server.bodies for token in body["prompt"])
    last = server.bodies[-1]
    grammar = last["grammar"] if server.kind == "llama.cpp" else last["structured_outputs"]["regex"]
    assert "Parameters: " in grammar
    assert decision.tool


def test_an_answer_is_read_as_a_call_or_the_reason_is_said(served):
    for decision in served.route_many(map(str, range(12))):
        if decision.tool == "ping":
            assert (decision.parameters, decision.reasoning) == ({"n": 2}, "It asks for a ping.")
            assert decision.fallback is None
        elif decision.tool == "chat":
            assert decision.fallback is None or "message" in decision.fallback or "'n'" in decision.fallback


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((500, b"boom"), "answered 500"),
        ((429, b"slow down"), "answered 429"),
        ((200, b"<html>"), "web page"),
        ((200, b"nonsense"), "not JSON"),
        ((200, b"{}"), "no probabilities"),
        ((200, b'{"choices": null, "completion_probabilities": [3]}'), "no probabilities"),
    ],
)
def test_a_fault_of_the_server_becomes_a_decision_without_the_model(served, server, fault, reason):
    server.faults = [fault] * 2
    decision = served.route("hi")
    assert (decision.tool, decision.parameters, decision.abstained) == ("chat", {"message": "hi"}, True)
    assert reason in decision.fallback


def test_a_fault_that_passes_is_not_noticed(served, server):
    server.faults = [(429, b"slow down")]
    assert served.route("hi", parameters=False).fallback is None


def test_a_server_that_goes_away_becomes_a_decision(served, server):
    server.shutdown()
    server.server_close()
    decision = served.route("hi", deadline_s=5)
    assert decision.tool == "chat"
    assert decision.fallback


def test_a_deadline_holds_against_a_slow_server(served, server):
    with server.one_at_a_time:
        decision = served.route("hi", deadline_s=0.2, parameters=False)
    assert decision.fallback == "no answer within 0.2 s"


@pytest.mark.parametrize("models", [{"data": [{"id": "other"}]}, {"data": None}, "nonsense", {"data": [None]}])
def test_a_server_without_the_model_is_refused_at_once(server, folder, models):  # noqa: F811
    server.models = models
    with pytest.raises(UserError, match="does not serve 'router'"):
        Router.connect(server.url, "router", folder)


def test_names_are_read_on_until_what_is_unknown_does_not_matter():
    names = {"web": [1, 2, 9], "rag": [1, 3, 9], "chat": [4, 9]}
    first = [_Token(1, {1: -0.1, 4: -9.0}), _Token(2, {2: -0.2, 3: -1.8}), _Token(9, {9: -0.0})]
    scores = {name: _Score(0.0, 0).read_on(ids, first, 0) for name, ids in names.items()}
    assert (scores["web"].known, scores["rag"].known, scores["chat"].known) == (3, 2, 1)
    assert scores["rag"].log_p == pytest.approx(-1.9)
    assert most_open(scores, names) == "rag"
    scores["rag"] = scores["rag"].read_on(names["rag"], [_Token(9, {9: -2.0})], 2)
    assert scores["rag"] == _Score(pytest.approx(-3.9), 3)
    assert most_open(scores, names) is None
