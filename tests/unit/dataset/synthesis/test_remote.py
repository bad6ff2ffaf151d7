"""Paraphrases from an endpoint (a local server here) pass five gates or are counted; a stopped run continues."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.dataset.synthesis import remote
from tool_aware.dataset.synthesis.content import load_content
from tool_aware.dataset.synthesis.generator import Generator
from tool_aware.dataset.synthesis.programs import problem_of_program
from tool_aware.dataset.synthesis.remote import Endpoint, paraphrase
from tool_aware.rows import Row
from tool_aware.sandbox import Limits

KEY = "sk-test-0123456789abcdef"


class Stub(ThreadingHTTPServer):
    """An OpenAI-compatible server that answers from a script and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.prompts: list[str] = []
        self.keys: list[str] = []
        self.failures: list[int] = []
        self.candidates: list[object] = []
        self.routed = "web_search"

    def answer(self, prompt: str) -> str:
        if prompt.startswith("Rewrite"):
            return "Here you are:\n```json\n" + json.dumps(self.candidates) + "\n```"
        return f"Tool: {self.routed}\nParameters: {{}}\nReasoning: because"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.keys.append(self.headers["Authorization"])
        if self.server.failures:
            self.send_response(self.server.failures.pop(0))
            self.send_header("Retry-After", "0")
            self.end_headers()
            return
        prompt = body["messages"][0]["content"]
        self.server.prompts.append(prompt)
        content = json.dumps({"choices": [{"message": {"role": "assistant", "content": self.server.answer(prompt)}}]})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setattr(remote, "RETRY_PAUSE_S", 0.01)
    server = Stub()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def endpoint(stub: Stub) -> Endpoint:
    return Endpoint(f"http://127.0.0.1:{stub.server_port}/v1", "any", KEY)


@pytest.fixture(scope="module")
def sources(config: Config) -> list[Row]:
    return Generator(load_content(), config.toolbox, seed=1).rows_for("web_search", 6)


def candidate(query: str, **changes: object) -> dict:
    return {
        "query": query,
        "tool": "web_search",
        "parameters": {"query": query},
        "reasoning": f'"{query}" is news.',
    } | changes


def test_each_gate_stops_what_it_is_for(
    stub: Stub, endpoint: Endpoint, sources: list[Row], config: Config, tmp_path: Path
) -> None:
    stub.candidates = [
        candidate("who leads the giro after today's mountain stage"),
        candidate("x", tool="direct_chat"),
        "not an object",
        candidate("how much snow fell in aspen overnight", parameters={"query": "snow", "depth": 3}),
        candidate("who leads the giro after today's mountain stages"),
    ]
    made = paraphrase(sources[:1], [], config.toolbox, endpoint.chat, tmp_path / "j.jsonl", wanted=10)
    assert [row.query for row in made.rows] == ["who leads the giro after today's mountain stage"]
    assert made.candidates == 5
    assert made.stopped == {"format": 2, "schema": 1, "code": 0, "round_trip": 0, "near_duplicate": 1}
    assert made.rows[0].metadata["group"] == sources[0].metadata["group"]
    assert made.rows[0].metadata["source"] == "paraphrase"
    assert set(stub.keys) == {f"Bearer {KEY}"}


def test_the_round_trip_stops_what_the_model_itself_would_route_elsewhere(
    stub: Stub, endpoint: Endpoint, sources: list[Row], config: Config, tmp_path: Path
) -> None:
    stub.routed = "rag_retrieval"
    stub.candidates = [candidate("who leads the giro after today's mountain stage")]
    made = paraphrase(sources[:1], [], config.toolbox, endpoint.chat, tmp_path / "j.jsonl", wanted=10)
    assert made.rows == []
    assert made.stopped["round_trip"] == 1


def test_the_code_gate_runs_the_program(stub: Stub, endpoint: Endpoint, config: Config, tmp_path: Path) -> None:
    stub.routed = "code_execution"
    source = Generator(load_content(), config.toolbox, seed=1).rows_for("code_execution", 1)
    stub.candidates = [
        candidate("what is twelve cubed", tool="code_execution", parameters={"code": "print(12 ** 3)"}),
        candidate(
            "delete everything here", tool="code_execution", parameters={"code": "import os\nprint(os.getcwd())"}
        ),
        candidate("divide by nothing please", tool="code_execution", parameters={"code": "print(1 / 0)"}),
    ]
    made = paraphrase(source, [], config.toolbox, endpoint.chat, tmp_path / "j.jsonl", wanted=10)
    assert [row.query for row in made.rows] == ["what is twelve cubed"]
    assert made.stopped["code"] == 2


def test_a_stopped_run_goes_on_and_asks_nothing_twice(
    stub: Stub, endpoint: Endpoint, sources: list[Row], config: Config, tmp_path: Path
) -> None:
    journal = tmp_path / "j.jsonl"
    stub.candidates = [candidate("who leads the giro after today's mountain stage")]
    first = paraphrase(sources[:2], [], config.toolbox, endpoint.chat, journal, wanted=10)
    asked = len(stub.prompts)
    with journal.open("a") as file:
        file.write('{"source": "cut off by a cra')
    again = paraphrase(sources[:2], [], config.toolbox, endpoint.chat, journal, wanted=10)
    assert again.rows == first.rows
    assert (again.requests, len(stub.prompts)) == (0, asked)


def test_a_busy_server_is_asked_again_and_a_refused_key_is_not(
    stub: Stub, endpoint: Endpoint, sources: list[Row], config: Config, tmp_path: Path
) -> None:
    stub.failures = [429, 503]
    assert endpoint.chat("hello").startswith("Tool:")
    assert len(stub.keys) == 3
    stub.failures = [401]
    with pytest.raises(UserError, match="key was refused") as caught:
        endpoint.chat("hello")
    assert KEY not in str(caught.value)
    assert len(stub.keys) == 4
    assert KEY not in repr(endpoint)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("print(1", "SyntaxError"),
        ("import os\nprint(os.listdir())", "PermissionError"),
        ("from subprocess import run\nprint(1)", "No module named 'subprocess'"),
        ("print(open('/etc/passwd').read())", "PermissionError"),
        ("while True: pass", "runs longer than 1 s"),
        ("x = [0] * 10**10\nprint(len(x))", "MemoryError"),
        ("x = 1", "prints nothing"),
        ("print(undefined)", "NameError"),
    ],
)
def test_a_program_that_may_not_be_used_is_named(code: str, problem: str) -> None:
    found = problem_of_program(code, Limits(time_s=1))
    assert found is not None
    assert problem in found


def test_a_harmless_program_may_be_used() -> None:
    assert problem_of_program("import math\nfrom datetime import date\nprint(math.pi, date(2024, 1, 1))") is None


@pytest.mark.parametrize(
    "answer",
    [
        None, [], {}, 3, "text", [[]], [None], [3], [[{}]], [{"query": None}], [{"query": "x", "tool": ["web_search"]}],
        [candidate("x", parameters=None)], [candidate("x", parameters=[1])], [candidate("x", reasoning=None)],
        [candidate("who won \ud83d")], [candidate("x", parameters={"query": "\ud83d"})],
        [candidate("x", parameters={"query": "x", "\ud83d": 1})], [candidate("x", parameters={"query": float("nan")})],
        [candidate("x", reasoning="\udc00")], [candidate("x", parameters={"query": {"a": 1}})], [candidate("\0 x")],
        [candidate(["x"])], [candidate("x" * 100_000)],
    ],
)  # fmt: skip
def test_candidates_of_any_shape_are_counted(
    stub: Stub, endpoint: Endpoint, sources: list[Row], config: Config, tmp_path: Path, answer: object
) -> None:
    stub.candidates = answer  # type: ignore[assignment]
    journal = tmp_path / "j.jsonl"
    made = paraphrase(sources[:1], [], config.toolbox, endpoint.chat, journal, wanted=10)
    assert made.candidates - sum(made.stopped.values()) == len(made.rows)
    assert paraphrase(sources[:1], [], config.toolbox, endpoint.chat, journal, wanted=10).requests == 0


@pytest.mark.parametrize(
    "line",
    ["", "{", "3", "[]", "null", "{}", '{"source": 3}', '{"source": "x", "rows": 1, "candidates": 1, "stopped": {}}',
     '{"source": "x", "rows": [{}], "candidates": 1, "stopped": {}}', "[" * 9999, '{"source": "\\ud83d"}',
     '{"source": "x", "rows": [], "candidates": "1", "stopped": {}}', '{"source": "x", "stopped": {"other": 1}}'],
)  # fmt: skip
def test_a_broken_line_of_the_journal_is_asked_again(
    stub: Stub, endpoint: Endpoint, sources: list[Row], config: Config, tmp_path: Path, line: str
) -> None:
    stub.candidates = [candidate("who leads the giro after today's mountain stage")]
    journal = tmp_path / "j.jsonl"
    journal.write_text(f"{line}\n".replace('"x"', json.dumps(sources[0].query)))
    assert paraphrase(sources[:1], [], config.toolbox, endpoint.chat, journal, wanted=1).requests == 1
