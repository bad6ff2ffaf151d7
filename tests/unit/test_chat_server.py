"""Replies of servers as they are: parts, nulls, web pages, redirects, cut, endless; one message, never the key."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fixtures.repository import CASES
from tests.unit.test_database import running
from tool_aware import chat_server
from tool_aware.chat_server import ChatServer, chat_reply, offered_models, text_of
from tool_aware.config.environment import Environment
from tool_aware.console import Fallbacks, UserError
from tool_aware.dataset.synthesis import remote
from tool_aware.evaluation.answering import endpoint as endpoint_module
from tool_aware.evaluation.answering.endpoint import Endpoint
from tool_aware.evaluation.answering.predictions import PredictionLog
from tool_aware.rows import Row
from tool_aware.streams import GuardedStream

KEY = "sk-0123456789abcdef"
GOOD = "Tool: web_search\nParameters: {}\nReasoning: y."
Ask = Callable[[int], Any]


def ask_as_evaluation(port: int) -> str:
    return Endpoint(f"http://127.0.0.1:{port}", "router", 8, 1, KEY).ask("hello").text


def ask_as_synthesis(port: int) -> str:
    variables = Environment(openai_base_url=f"http://127.0.0.1:{port}/v1", openai_model="router", openai_api_key=KEY)
    return remote.endpoint_of(variables).chat("hello")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "RETRY_WAITS_S", (0.0,))
    monkeypatch.setattr(remote, "RETRY_PAUSE_S", 0.0)
    monkeypatch.setattr(remote, "RETRIES", 1)


@contextlib.contextmanager
def answering(*replies: bytes, pause_s: float = 0.0) -> Iterator[tuple[int, list[bytes]]]:
    """Answer each request with the next of `replies`, then with the last; yield the port and what was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                for number in range(99):
                    client, _ = listener.accept()
                    with client, contextlib.suppress(OSError):
                        client.settimeout(10)
                        asked.append(request_of(client))
                        for piece in pieces(replies[min(number, len(replies) - 1)], pause_s):
                            client.sendall(piece)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], asked
        listener.close()


def request_of(client: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        received += client.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    sizes = [int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while sizes and len(body) < sizes[0]:
        body += client.recv(65536)
    return head + b"\r\n\r\n" + body


def pieces(reply: bytes, pause_s: float) -> Iterator[bytes]:
    if not pause_s:
        yield reply
        return
    for byte in reply:
        yield bytes([byte])
        time.sleep(pause_s)


def reply(body: object, status: str = "200 OK", *headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(content)}", "Connection: close", *headers])
    return head.encode() + b"\r\n\r\n" + content


def said(content: object, **more: object) -> dict[str, Any]:
    return {"choices": [{"message": {"content": content, **more}, "finish_reason": "stop"}]}


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
WHOLE = json.dumps(said(GOOD)).encode()


@pytest.mark.parametrize("ask", [ask_as_evaluation, ask_as_synthesis])
@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (reply(said(GOOD)), GOOD),
        (reply(said([{"type": "thinking", "thinking": [{"text": "hm"}]}, {"type": "text", "text": GOOD}])), GOOD),
        (reply(said([{"type": "output_text", "text": "Tool: "}, {"type": "text", "text": "x"}])), "Tool: x"),
        (reply(said(["Tool: ", "x"])), "Tool: x"),
        (reply(said([None, 3, {}, {"type": "image_url"}, {"type": "text"}])), ""),
        (reply(said([])), ""),
        (reply(said(None)), ""),
        (reply({"choices": [{"message": {}}]}), ""),
        (reply(said("x\ud83d")), "x???"),
        (reply({**said(GOOD), "usage": None}), GOOD),
        (reply({**said(GOOD), "usage": [1]}), GOOD),
        (reply({**said(GOOD), "error": None}), GOOD),
        (CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(WHOLE), WHOLE), GOOD),
        (b"HTTP/1.0 200 OK\r\n\r\n" + WHOLE, GOOD),
        (reply(b"\xef\xbb\xbf" + WHOLE), GOOD),
        (reply(json.dumps(said("caf\u00e9"), ensure_ascii=False).encode("utf-16")), "caf\u00e9"),
        (reply(json.dumps(said("caf\u00e9"), ensure_ascii=False).encode("latin-1"), "200 OK",
               "Content-Type: application/json; charset=iso-8859-1"), "caf\u00e9"),
        (reply(gzip.compress(WHOLE, mtime=0), "200 OK", "Content-Encoding: gzip"), GOOD),
    ],
)  # fmt: skip
def test_an_answer_is_read_in_each_form(ask: Ask, sent: bytes, text: str) -> None:
    with answering(sent) as (port, asked):
        assert ask(port).replace("\ufffd", "?") == text
    assert f"Authorization: Bearer {KEY}".encode() in asked[0]


@pytest.mark.parametrize("ask", [ask_as_evaluation, ask_as_synthesis])
@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (reply({"choices": []}), "holds no answer"),
        (reply({"choices": None}), "holds no answer"),
        (reply({"choices": {}}), "holds no answer"),
        (reply({"choices": [None]}), "holds no answer"),
        (reply({"choices": [{}]}), "holds no answer"),
        (reply({"choices": [{"message": None}]}), "holds no answer"),
        (reply({"choices": [{"message": "x"}]}), "holds no answer"),
        (reply(said(3)), "holds no answer"),
        (reply(said({"text": "x"})), "holds no answer"),
        (reply(None), "holds no answer"),
        (reply([]), "holds no answer"),
        (reply("text"), "holds no answer"),
        (reply({"error": {"message": f"bad key {KEY}"}}), "answered with an error: bad key ***"),
        (reply({"error": "x"}), "answered with an error: x"),
        (reply({"error": [KEY]}), "answered with an error"),
        (reply(f"<html>{KEY}</html>".encode()), "web page"),
        (reply(b"<html>gateway</html>", "502 Bad Gateway"), "answered 502"),
        (reply({"error": f"Incorrect API key provided: {KEY}"}, "401 Unauthorized"), "answered 401"),
        (reply(b"x" * 1000 + KEY.encode(), "400 " + KEY), "answered 400"),
        (reply(b"", "302 Found", "Location: https://u:p0123456789@login.example.internal/?k=1"),
         "moved to https://login.example.internal/;"),
        (reply(b"", "307 Temporary Redirect"), "answered 307"),
        (reply(b""), "it is empty"),
        (reply(WHOLE[:-9]), "not JSON"),
        (reply(b"\xff\xfe\xfa"), "not JSON"),
        (reply(b"[" * 100_000), "not JSON"),
        (reply("café".encode("latin-1")), "not JSON"),
        (reply(WHOLE, "200 OK", "Content-Type: application/json; charset=nonsense"), "not JSON"),
        (reply(b"no gzip", "200 OK", "Content-Encoding: gzip"), "cannot be unpacked"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{", "the connection ended"),
        (CHUNKED + b"ff\r\n{", "the connection ended"),
        (CHUNKED + b"zz\r\n", "answer"),
        (b"", "cannot be reached"),
        (b"\x15\x03\x01 no HTTP", "cannot be reached"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n", "cannot be reached"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_one_message_without_the_key(ask: Ask, sent: bytes, message: str) -> None:
    with answering(sent) as (port, _), pytest.raises(UserError) as caught:
        ask(port)
    assert message in str(caught.value)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "0123456789" not in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("ask", [ask_as_evaluation, ask_as_synthesis])
@pytest.mark.parametrize(
    "fault",
    [reply({}, "503 Busy", "Retry-After: 0"), reply({}, "429 Slow", "Retry-After: nan"), reply(b"{"), b"",
     b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n{"],
)  # fmt: skip
def test_a_fault_that_passes_costs_one_more_request(ask: Ask, fault: bytes) -> None:
    with answering(fault, reply(said(GOOD))) as (port, asked):
        assert ask(port) == GOOD
    assert len(asked) == 2


def test_no_server_makes_a_run_wait_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for wish in ("86400", "1e300", "inf", "-5", "Wed, 21 Oct 2099 07:28:00 GMT"):
        with answering(reply({}, "503 Busy", f"Retry-After: {wish}")) as (port, _), pytest.raises(UserError):
            ChatServer(f"http://127.0.0.1:{port}", pauses_s=(0.5,)).request("models")
    assert max(pauses) <= chat_server.LONGEST_PAUSE_S
    assert min(pauses) >= 0


def test_a_reply_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_server, "LARGEST_REPLY_BYTES", 1000)
    with answering(reply(b" " * 5000)) as (port, _), pytest.raises(UserError, match="sent more than"):
        ChatServer(f"http://127.0.0.1:{port}").request("models")
    with answering(reply(b" " * 900), pause_s=0.02) as (port, _), pytest.raises(UserError, match="in time"):
        ChatServer(f"http://127.0.0.1:{port}", timeout_s=1.0, pauses_s=()).request("models")


class Hostile:
    """A server that sends `pieces` with a pause after each, again and again, until the client has gone."""

    def __init__(self, head: bytes, piece: bytes, pause_s: float = 0.0) -> None:
        self.head, self.piece, self.pause_s = head, piece, pause_s
        self.sent_bytes = self.requests = 0

    @contextlib.contextmanager
    def serving(self) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        client, _ = listener.accept()
                        threading.Thread(target=self._answer, args=[client], daemon=True).start()

            threading.Thread(target=serve, daemon=True).start()
            yield listener.getsockname()[1]

    def _answer(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, IndexError):
            client.settimeout(10)
            request_of(client)
            self.requests += 1
            client.sendall(self.head)
            while self.sent_bytes < 2**28:
                client.sendall(self.piece)
                self.sent_bytes += len(self.piece)
                time.sleep(self.pause_s)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("head", "piece", "pause_s", "message", "most_bytes"),
    [
        (OK, b"X-Slow: y\r\n", 0.05, "cannot be reached: no reply in time", 10_000),
        (OK, b"X", 0.05, "cannot be reached: no reply in time", 10_000),
        (b"H", b"", 0.05, "cannot be reached: no reply in time", 10_000),
        (OK, b"X-Many: y\r\n", 0.0, "cannot be reached", 2**23),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01, "cannot be reached: no reply in time", 2**20),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0.01, "cannot be reached: no reply in time", 2**20),
        (OK + b"\r\n", b" ", 0.05, "did not end in time", 10_000),
        (CHUNKED, b"1\r\n \r\n", 0.05, "did not end in time", 10_000),
        (OK + b"\r\n", b" " * 2**16, 0.0, "sent more than 8 MiB", 2**25),
        (CHUNKED, b"10000\r\n" + b" " * 2**16 + b"\r\n", 0.0, "sent more than 8 MiB", 2**25),
        (b"HTTP/1.1 500 Error\r\n\r\n", b"<" * 2**16, 0.0, "answered 500", 2**23),
        (b"HTTP/1.1 401 No\r\n\r\n", b"x", 0.05, "did not end in time", 10_000),
    ],
)
def test_a_server_that_goes_on_and_on_is_given_up(head, piece, pause_s, message, most_bytes) -> None:
    server = Hostile(head, piece, pause_s)
    begun_s = time.monotonic()
    with server.serving() as port, pytest.raises(UserError, match=message):
        ChatServer(f"http://127.0.0.1:{port}", KEY, timeout_s=1.0, pauses_s=(0.0,) * 20).request("models", {})
    assert time.monotonic() - begun_s < 30  # twenty repetitions of one second each, if the time were not counted
    assert server.sent_bytes < most_bytes * 21


def test_no_attempt_begins_once_the_time_is_over() -> None:
    server = Hostile(OK, b"X", 0.05)
    with server.serving() as port, pytest.raises(UserError):
        ChatServer(f"http://127.0.0.1:{port}", timeout_s=0.5, pauses_s=(0.0,) * 20).request("models")
    assert server.requests <= 2


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b" " * 2**24, mtime=0),
        b'{"choices": [{"message": {"content": ' + b"[" * 2**20 + b"]" * 2**20 + b"}}]}",
        b'{"choices": ' + b'{"a":' * 2**18 + b"1" + b"}" * 2**18 + b"}",
        b"[" + b"9" * 2**22 + b"]",
        b'"' + b"x" * 2**22 + b'"',
        b"[" + b"[]," * 2**20 + b"[]]",
    ],
)
def test_large_deep_and_packed_replies_are_one_message(content: bytes) -> None:
    headers = ["Content-Encoding: gzip"] if content[:2] == b"\x1f\x8b" else []
    with answering(reply(content, "200 OK", *headers)) as (port, _), pytest.raises(UserError) as caught:
        ask_as_evaluation(port)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:{other}/v1/models", "//127.0.0.1:{other}/", "file:///etc/passwd", "ftp://x/", "/models"],
)
def test_no_redirect_is_followed_and_no_key_sent_along(status: str, target: str) -> None:
    with answering(reply(said(GOOD))) as (other, asked_there):
        moved = reply(b"", status, f"Location: {target.format(other=other)}")
        with answering(moved) as (port, asked), pytest.raises(UserError, match="redirects are not followed"):
            ask_as_evaluation(port)
        assert len(asked) == 1
        assert not asked_there


def test_proxies_are_used_except_for_hosts_that_are_excluded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with answering(reply(said(GOOD))) as (port, asked):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        assert ChatServer("http://model.example.internal/v1").request("models") == said(GOOD)
        assert asked[0].startswith(b"GET http://model.example.internal/v1/models ")
        monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
        ask_as_evaluation(port)
        assert asked[1].startswith(b"POST /v1/chat/completions ")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "nonsense://x", "http://127.0.0.1:1", "http://[x", "\x01"])
def test_a_proxy_that_is_none_is_one_message(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(UserError, match="cannot be reached"):
        ChatServer("http://model.example.internal/v1", KEY, timeout_s=5.0, pauses_s=()).request("models")


@pytest.mark.parametrize("key", ["sk-0123456789\nX-Evil: 1", "sk-0123456789é", "sk-0123456789\0"])
def test_a_key_that_no_header_can_hold_is_one_message_without_it(key: str) -> None:
    with answering(reply(said(GOOD))) as (port, asked), pytest.raises(UserError) as caught:
        ChatServer(f"http://127.0.0.1:{port}", key, pauses_s=()).request("models")
    assert "0123456789" not in str(caught.value)
    assert not any(b"Evil" in request for request in asked)


def test_escape_sequences_of_a_server_do_not_reach_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r"
    with answering(reply(evil.encode(), "400 Bad")) as (port, _), pytest.raises(UserError) as caught:
        ask_as_evaluation(port)
    stream = io.StringIO()
    GuardedStream(stream).write(str(caught.value))
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ({"data": [{"id": "router"}, {"id": None}, {}, None, 3]}, ["router"]),
        ({"data": None}, []),
        ({}, []),
        ([{"id": "router"}], ["router"]),
        ({"models": [{"name": "router"}]}, ["router"]),
        ({"data": "router"}, None),
        ("router", None),
        (None, []),
    ],
)
def test_the_list_of_models_is_read_in_each_form(listed: object, names: list[str] | None) -> None:
    assert offered_models(listed) == names


def test_a_list_of_models_that_is_none_is_a_message() -> None:
    for body in ({"data": "x"}, {"data": None}, b"<html>"):
        with answering(reply(body)) as (port, _), pytest.raises(UserError) as caught:
            Endpoint(f"http://127.0.0.1:{port}/v1/", "router", 8, 1).check()
        assert f"127.0.0.1:{port}/v1" in str(caught.value)


def test_a_login_in_the_address_is_sent_and_never_shown() -> None:
    with answering(reply({}, "404 Not Found")) as (port, asked), pytest.raises(UserError) as caught:
        Endpoint(f"http://me:p%40ss0123456789@127.0.0.1:{port}/v1?k=0123456789", "router", 8, 1).check()
    assert b"Authorization: Basic bWU6cEBzczAxMjM0NTY3ODk=" in asked[0]
    assert asked[0].startswith(b"GET /v1/models?k=0123456789 ")
    assert "0123456789" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["", "localhost:8000", "ftp://x", "http://", "http://h:99999", "http://h/\n", "http://[x"]
)
def test_an_address_that_is_none_is_refused_before_anything_is_sent(address: str) -> None:
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        ChatServer(address, KEY, option="OPENAI_BASE_URL")


def test_what_is_no_number_of_tokens_counts_as_none() -> None:
    for value, count in ((9.0, 9), (9, 9), ("9", 0), (None, 0), (-1, 0), (True, 0), (float("inf"), 0)):
        assert chat_reply({**said(GOOD), "usage": {"completion_tokens": value}}, "x").new_tokens == count


def test_text_of_any_content_is_text() -> None:
    assert [text_of(value) for value in (None, 3, {}, "x", ["x", ["y"]], True)] == ["", "", "", "x", "x", ""]


@pytest.mark.parametrize(
    ("mode", "text", "note"),
    [("ok", GOOD, ""), ("parts", GOOD, ""), ("null", "", "reasoning_content"), ("tool_calls", "", "tool_calls"),
     ("surrogate", GOOD, ""), ("usage_float", GOOD, "")],
)  # fmt: skip
def test_answers_whose_text_is_elsewhere_are_counted(tmp_path: Any, mode: str, text: str, note: str) -> None:
    rows = {index: Row(f"question {index}", "", {"tool": "a"}) for index in range(3)}
    fallbacks = Fallbacks()
    with running(CASES / "secret_in_traceback/stub.py", mode) as (port, _):
        endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", "router", 8, 2, KEY)
        endpoint.check()
        answers = endpoint.answer_rows(rows, PredictionLog(tmp_path / "a.jsonl", {}), fallbacks)
    assert {(answer.text or "")[:16].encode() for answer in answers} == {text[:16].encode()}
    assert [note in message and "3 of 3" in message for message in fallbacks] == ([True] if note else [])
