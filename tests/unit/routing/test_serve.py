"""The OpenAI client gets tool calls from the served router, and one clear message for what cannot be answered."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace

import openai
import pytest
import uvicorn

from tests.fixtures.repository import REPOSITORY
from tests.fixtures.warm_start import warm_python
from tests.unit.routing.test_router import QUERIES, TOOLS, folder, router  # noqa: F401  the same adapter, loaded
from tests.unit.routing.test_served import served, server  # noqa: F401  the same behind a server
from tool_aware.console import UserError
from tool_aware.prompt import Turn
from tool_aware.routing.chat_api import Serving, make_app
from tool_aware.routing.chat_replies import NO_TOOL_NEEDED
from tool_aware.routing.chat_requests import NOTHING_TO_CALL, BadRequest, read_question
from tool_aware.routing.serve import _listening, main
from tool_aware.tools import Tool, Toolbox

MODEL = "tool-router"
TOOLBOX = Toolbox(tool.as_tool() for tool in TOOLS)


def offered(*names: str, **parameters) -> list[dict]:
    """The router's tools in OpenAI's form."""
    return [
        {
            "type": "function",
            "function": {"name": name, "parameters": parameters.get(name, dict(TOOLBOX[name].parameters))},
        }
        for name in names
    ]


def user(text) -> dict:
    return {"role": "user", "content": text}


def called(name: str) -> dict:
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": "{}"}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@contextmanager
def serving(router, **options):  # noqa: F811
    running = uvicorn.Server(uvicorn.Config(make_app(router, Serving(**options)), port=0, log_level="error"))
    thread = threading.Thread(target=running.run)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def client(router):  # noqa: F811
    with serving(router) as url, openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def ask(client, *messages, **options):
    return client.chat.completions.create(model=MODEL, messages=list(messages), **options)


def test_a_client_gets_the_routers_decision_as_a_tool_call(client, router):  # noqa: F811
    for query in QUERIES[:3]:
        expected = router.route(query)
        reply = ask(client, user(query))
        (choice,) = reply.choices
        (call,) = choice.message.tool_calls
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert (call.function.name, json.loads(call.function.arguments)) == (expected.tool, expected.parameters)
        assert getattr(choice.message, "reasoning", "") == expected.reasoning
        assert reply.decision["confidence"] == pytest.approx(expected.confidence, abs=1e-4)
        assert reply.decision["abstained"] == expected.abstained
        assert reply.decision["fallback"] == expected.fallback
        assert reply.decision["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)


def test_the_code_of_the_howto_runs(client, capsys):
    section = (REPOSITORY / "docs" / "HOWTO.md").read_text().partition("### Serve the router to OpenAI clients")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    exec(code.replace("http://localhost:8080/v1", str(client.base_url)), {})
    assert capsys.readouterr().out.startswith(("chat {", "ping {", "stop {", "run {"))


def test_a_stream_says_the_same(client):
    whole = ask(client, user("17 * 23"), tools=offered("ping", "stop"), tool_choice="required")
    chunks = list(ask(client, user("17 * 23"), tools=offered("ping", "stop"), tool_choice="required", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert call.index == 0
    assert call.function.to_dict() == whole.choices[0].message.tool_calls[0].function.to_dict()
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, "tool_calls"]
    assert chunks[-1].decision["probabilities"] == whole.decision["probabilities"]
    (text,) = [
        chunk.choices[0].delta.content
        for chunk in ask(client, user("hi"), tool_choice="none", stream=True)
        if chunk.choices[0].delta.content
    ]
    assert text == NOTHING_TO_CALL


@pytest.mark.parametrize("server", ["vLLM"], indirect=True)
def test_a_connected_router_is_served_too_and_a_server_that_fails_is_a_fallback(server, served):  # noqa: F811
    with serving(served) as url, openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        reply = ask(client, user("hi"), tool_choice={"type": "function", "function": {"name": "ping"}})
        assert json.loads(reply.choices[0].message.tool_calls[0].function.arguments) == {"n": 2}
        server.faults += [(503, b"{}")] * 2
        reply = ask(client, user("hi"))
        assert (reply.decision["tool"], reply.decision["fallback_kind"]) == ("chat", "error")
        assert "answered 503" in reply.decision["fallback"]
        assert (
            ask(client, user("hi"), tools=offered("stop", "ping"), tool_choice="required").decision["fallback"] is None
        )


def test_only_what_is_offered_is_chosen(client):
    for query in QUERIES:
        # Not "chat": the random model may not end its message.
        reply = ask(client, user(query), tools=offered("stop", "ping"), tool_choice="required")
        assert reply.choices[0].message.tool_calls[0].function.name in ("ping", "stop")
        assert set(reply.decision["probabilities"]) == {"ping", "stop"}
        assert sum(reply.decision["probabilities"].values()) == pytest.approx(1)
    wanted = {"type": "function", "function": {"name": "ping"}}
    reply = ask(client, user("hi"), tool_choice=wanted)
    assert reply.choices[0].message.tool_calls[0].function.name == "ping"
    assert reply.decision["confidence"] is None
    required = ask(client, user("hi"), tools=offered("chat", "ping", "stop"), tool_choice="required")
    assert set(required.decision["probabilities"]) == {"ping", "stop"}


def test_the_tool_for_calling_none_is_a_text_where_it_is_not_offered(client, router, monkeypatch):  # noqa: F811
    scores: Future = Future()
    scores.set_result(dict.fromkeys(TOOLBOX.names, -9.0) | {"chat": -0.1})
    monkeypatch.setattr(router._decider.engine, "choose", lambda prompt: scores)
    reply = ask(client, user("hi"), tools=offered("ping", "run"))
    assert (reply.choices[0].finish_reason, reply.choices[0].message.content) == ("stop", NO_TOOL_NEEDED)
    assert reply.choices[0].message.tool_calls is None
    assert reply.decision["tool"] == "chat"


def test_a_model_that_fails_is_no_reason_to_say_that_no_tool_is_needed(client, router, monkeypatch):  # noqa: F811
    monkeypatch.setattr(router._decider.engine._decoder_of_choices, "losses_behind", None)
    with pytest.raises(openai.InternalServerError, match="no tool could be chosen: ") as caught:
        ask(client, user("hi"), tools=offered("ping", "run"))
    assert (caught.value.status_code, caught.value.response.headers["Retry-After"]) == (503, "1")
    assert ask(client, user("hi")).decision["fallback_kind"] == "error"


def test_tools_that_the_model_has_not_seen_are_read_where_that_is_wanted(router):  # noqa: F811
    parameters = {"type": "object", "properties": {"day": {"enum": ["today", "tomorrow"]}}, "required": ["day"]}
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("sun", "rain")]
    with serving(router, takes_any_tools=True) as url, openai.OpenAI(base_url=url, api_key="x") as client:
        replies = [ask(client, user("hi"), tools=tools, tool_choice=choice) for choice in ("auto", "required")]
        assert [set(reply.decision["probabilities"]) for reply in replies] == [{"sun", "rain", "chat"}, {"sun", "rain"}]
        wanted = {"type": "function", "function": {"name": "rain"}}
        reply = ask(client, user("hi"), tools=tools, tool_choice=wanted)
        assert json.loads(reply.choices[0].message.tool_calls[0].function.arguments)["day"] in ("today", "tomorrow")
        own = ask(client, user("hi")).decision["probabilities"]
        long = {"type": "object", "properties": {"text": {"type": "string", "minLength": 1000}}, "required": ["text"]}
        tools = [{"type": "function", "function": {"name": "write", "parameters": long}}]
        with pytest.raises(
            openai.UnprocessableEntityError, match="no tool could be chosen: the model's answer is no call"
        ):
            ask(client, user("hi"), tools=tools, tool_choice="required")  # the query would not fit the schema either
    other = router.for_tools(Toolbox([*(Tool(name, "", parameters) for name in ("sun", "rain")), TOOLBOX["chat"]]))
    expected = other.route("hi", parameters=False).probabilities
    assert replies[0].decision["probabilities"] == pytest.approx(expected, abs=1e-4)
    assert own == pytest.approx(router.route("hi", parameters=False).probabilities, abs=1e-4)


def test_the_results_of_tools_come_back_as_text_so_that_a_loop_ends(client):
    results = [{"role": "tool", "tool_call_id": "1", "content": text} for text in ("four", "five")]
    reply = ask(client, user("2 + 2"), called("run"), *results)
    assert (reply.choices[0].finish_reason, reply.choices[0].message.content) == ("stop", "four\nfive")
    assert reply.decision is None


def test_earlier_messages_are_the_history():
    messages = [
        {"role": "system", "content": "You are kind."},
        user("leave in Sweden"),
        called("ping"),
        {"role": "tool", "tool_call_id": "1", "content": "480 days"},
        {"role": "assistant", "content": "It is 480 days."},
        user([{"type": "text", "text": "thank"}, {"type": "text", "text": "you"}]),
        {"role": "assistant", "content": "You are welcome."},
        user("and in Norway?"),
    ]
    question = read_question(json.dumps({"model": MODEL, "messages": messages}).encode(), MODEL, TOOLBOX, "chat")
    assert question.query == "and in Norway?"
    assert question.history == (Turn("leave in Sweden", "ping"), Turn("thank\nyou", "chat"))


def test_defaults_are_written_out_for_a_schema_that_requires_them(client, router, monkeypatch):  # noqa: F811
    answer: Future = Future()
    answer.set_result("Tool: ping\nParameters: {}\nReasoning: It asks.")
    monkeypatch.setattr(router._decider.engine, "complete", lambda prompt, tool: answer)
    strict = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    reply = ask(client, user("hi"), tools=offered("ping", ping=strict), tool_choice="required")
    assert reply.decision["problems"] == ["'n' is a required property"]
    properties = {"n": {"enum": [1, 2], "default": 2}}
    other = Tool("ping", "pings", {"type": "object", "properties": properties})
    changed = Toolbox([*(tool for tool in TOOLBOX if tool.name != "ping"), other])
    monkeypatch.setattr(router, "_decider", replace(router._decider, tools=changed))
    reply = ask(client, user("hi"), tools=offered("ping", ping=strict), tool_choice="required")
    assert json.loads(reply.choices[0].message.tool_calls[0].function.arguments) == {"n": 2}
    assert reply.decision["problems"] == []


def test_a_tool_is_the_same_with_other_texts_unions_and_without_optional_parameters():
    union = {"x": {"type": "integer"}, "y": {"type": ["string", "null"], "default": None}}
    own = Tool("call", "calls", {"type": "object", "properties": union, "required": ["x"]})
    asked = {"x": {"type": "integer", "minimum": 1}, "y": {"anyOf": [{"type": "string"}, {"type": "null"}]}}

    def read(properties):
        function = {"name": "call", "description": "?", "parameters": {"type": "object", "properties": properties}}
        body = {"model": MODEL, "messages": [user("hi")], "tools": [{"type": "function", "function": function}]}
        return read_question(json.dumps(body).encode(), MODEL, Toolbox([own]), None).among

    assert read(asked) == read({"x": {"type": "integer"}}) == ("call",)
    for other in ({"y": {"type": ["string", "null"]}}, {**asked, "z": {}}, {"x": {"type": "string"}}):
        with pytest.raises(BadRequest, match="offer it as the model knows it"):
            read(other)


FUNCTION = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not JSON"),
        (b"\xff\xfe{", "the body is not JSON"),
        (b"[1]", "a JSON list, not an object"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": None}, "messages: Input should be a valid list"),
        ({"messages": [user("")]}, "messages: the last user message is empty"),
        ({"messages": [user([])]}, "messages: the last user message is empty"),
        ({"messages": [user(17)]}, "messages.0.content: must be a text, or a list of parts"),
        ({"messages": [user([{"type": "image_url"}])]}, "messages.0.content: part 0 is no text"),
        ({"messages": [user("\ud800")]}, "the body is not JSON: 'utf-8' codec"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages: none of them is a user's"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role: "),
        ({"messages": [user("hi"), called("run")]}, "messages: the last one is the assistant's"),
        ({"messages": ["hi"]}, "messages.0: "),
        ({"model": "gpt-9"}, "model: 'gpt-9' is not served; 'tool-router' is"),
        ({"model": None}, "model: "),
        ({"n": 2}, "n: 2; a decision is one answer"),
        ({"tools": []}, "tools: List should have at least 1 item"),
        ({"tools": [FUNCTION]}, "tools: the model was not trained with weather; its tools are chat, ping, stop, run"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type: Input should be 'function'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name: 'a b' does not match"),
        ({"tools": offered("ping", "ping")}, "tools: two of them have the same name"),
        ({"tools": offered("chat", chat={"type": "object", "properties": {"x": {}}})}, "chat has the parameters x"),
        ({"tools": offered("ping", ping={"type": "object", "properties": {"n": {"enum": [9]}}})}, "other values for n"),
        ({"tools": offered("stop", stop={"type": "array"})}, "tools.0.function.parameters: "),
        (
            {"tools": offered("stop", stop={"type": "object", "properties": {"x": {"type": "float"}}})},
            "tools.0.function.parameters: stop.x.type: is not a JSON Schema: 'float' is no type",
        ),
        ({"tool_choice": "any"}, "tool_choice: must be auto, none, required"),
        ({"tool_choice": FUNCTION}, "tool_choice: 'weather' is not offered"),
        ({"functions": []}, "use tools and tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format: only text"),
    ],
)
def test_what_cannot_be_read_is_one_message(body, message):
    content = {"model": MODEL, "messages": [user("hi")], **body} if isinstance(body, dict) else body
    encoded = json.dumps(content).encode() if isinstance(body, dict) else body
    with pytest.raises(BadRequest, match=re.escape(message)) as caught:
        read_question(encoded, MODEL, TOOLBOX, "chat")
    assert caught.value.status == 400


@pytest.mark.parametrize("query", ["x" * 100_000, "word " * 500])
def test_a_query_that_is_too_long_is_refused_in_openais_form(client, query):
    with pytest.raises(openai.BadRequestError, match=r"the model takes 400") as caught:
        ask(client, user(query))
    assert (caught.value.code, caught.value.type) == ("context_length_exceeded", "invalid_request_error")
    assert ask(client, user("hi"), tool_choice="none").choices


def test_a_body_of_more_than_a_mebibyte_is_refused(client):
    with pytest.raises(openai.APIStatusError, match="more than 1,048,576 bytes") as caught:
        ask(client, user("x" * 3_000_000))
    assert caught.value.status_code == 413


def test_an_unknown_path_is_refused_in_openais_form(client):
    with pytest.raises(openai.NotFoundError, match="there are /v1/chat/completions"):
        client.embeddings.create(model=MODEL, input="hi")


def test_more_requests_than_allowed_are_sent_back_with_a_time_to_wait(router, monkeypatch):  # noqa: F811
    never, asked = Future(), threading.Event()

    def choose(_prompt: object) -> Future:
        asked.set()
        return never

    monkeypatch.setattr(router._decider.engine, "choose", choose)
    with serving(router, at_once=1, deadline_s=4.0) as url, openai.OpenAI(base_url=url, api_key="x") as client:
        first: list = []
        asking = threading.Thread(target=lambda: first.append(ask(client, user("hi"))))
        client.models.list()  # it is connected
        asking.start()
        assert asked.wait(60)
        with pytest.raises(openai.RateLimitError, match="1 requests are under way") as caught:
            ask(client.with_options(max_retries=0), user("hi"))
        assert caught.value.response.headers["Retry-After"] == "1"
        asking.join()
    (late,) = first
    assert late.decision["fallback"] == "no answer within 4 s"
    assert late.choices[0].message.tool_calls[0].function.name == "chat"


def test_a_key_is_demanded_of_all_but_the_health_check(router):  # noqa: F811
    import httpx2

    with serving(router, api_key="right-key-1234") as url:
        for key in ("wrong-key", "schlüssel"[:3]):
            with pytest.raises(openai.AuthenticationError, match="TOOL_AWARE_API_KEY"):
                ask(openai.OpenAI(base_url=url, api_key=key, max_retries=0), user("hi"))
        client = openai.OpenAI(base_url=url, api_key="right-key-1234")
        assert [model.id for model in client.models.list()] == [client.models.retrieve(MODEL).id] == [MODEL]
        root = url.removesuffix("/v1")
        assert httpx2.get(f"{root}/health").json() == {"status": "ok"}
        assert httpx2.get(f"{root}/metrics").status_code == 401
        counts = httpx2.get(f"{root}/metrics", headers={"Authorization": "Bearer right-key-1234"}).text
        assert 'tool_router_requests_total{status="401"} 2' in counts


def test_decisions_are_counted(router, monkeypatch):  # noqa: F811
    import httpx2

    with serving(router) as url, openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
        ask(client, user("hi"), tool_choice={"type": "function", "function": {"name": "stop"}})
        monkeypatch.setattr(router._decider.engine._decoder_of_choices, "losses_behind", None)
        ask(client, user("hi"))
        counts = httpx2.get(f"{url.removesuffix('/v1')}/metrics").text
    for line in (
        'tool_router_requests_total{status="200"} 2',
        'tool_router_decisions_total{tool="stop"} 1',
        'tool_router_decisions_total{tool="chat"} 1',
        'tool_router_fallbacks_total{kind="error"} 1',
        "tool_router_abstentions_total 1",
        'tool_router_decision_seconds_bucket{le="+Inf"} 2',
    ):
        assert line in counts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "there is no key"),
        (["--connect", "http://localhost:1/v1"], "go together"),
        (["--host", "192.0.2.1"], "there is no key"),
    ],
)
def test_an_open_address_without_a_key_and_half_an_address_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_a_signal_ends_the_server_after_the_requests_under_way(folder):  # noqa: F811
    command = [*warm_python(), "-m", "tool_aware.routing.serve", str(folder), "--port", "0"]
    # Replies that the kernel holds back for an acknowledgement would take 40 ms more.
    with _listening("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
            client, replies = openai.OpenAI(base_url=url, api_key="x", max_retries=10), []
            wanted = {"type": "function", "function": {"name": "chat"}}
            asking = threading.Thread(target=lambda: replies.append(ask(client, user("hi"), tool_choice=wanted)))
            ask(client, user("hi"), tool_choice="none")
            asking.start()
            time.sleep(0.1)
            process.send_signal(signal.SIGTERM)
            asking.join()
            assert replies[0].decision["tool"] == "chat"
            assert process.wait(60) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
