"""An agent reports to the router's server how a decision turned out, and the next data set learns from it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import asdict

import httpx2
import openai
import pytest

from tests.fixtures.repository import REPOSITORY
from tests.fixtures.warm_start import warm_python
from tests.unit.routing.test_feedback import do, environment, folder, logged, table  # noqa: F401  a real PostgreSQL
from tests.unit.routing.test_serve import serving
from tool_aware.config.data_sections import DatabaseSection
from tool_aware.config.environment import Environment
from tool_aware.console import Fallbacks
from tool_aware.dataset.logged import read_log
from tool_aware.demo.sample_log import SCHEMA
from tool_aware.routing import DecisionLog, Router
from tool_aware.routing.chat_requests import BadRequest
from tool_aware.routing.outcomes import report_outcome

ID = "8f5f5d2e-9c43-4e0f-8f55-0f2f2a6c1f6e"
QUERIES = ["what is known about tea?", "what is known about Leeds?", "what is known about gold?"]


@pytest.fixture(scope="module")
def served(environment, folder):  # noqa: F811
    """The root of a server, as a user starts it, that logs to a real database; stopped by SIGTERM."""
    do(environment, SCHEMA)  # the server checks the table
    variables = {name.upper(): str(value or "") for name, value in asdict(environment).items() if "postgres" in name}
    command = [*warm_python(), "-m", "tool_aware.routing.serve", str(folder), "--port", "0", "--log", "config.yaml"]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}
    ) as process:
        try:
            yield process, next(found[1] for line in process.stderr if (found := re.search(r"(http://\S+)/v1", line)))
        finally:
            process.kill()


@pytest.mark.parametrize("stops", [False, True])
def test_a_reported_outcome_is_in_the_log_and_in_the_next_data_set(served, environment, config, stops):  # noqa: F811
    process, root = served
    client = openai.OpenAI(base_url=f"{root}/v1", api_key="none", max_retries=0)
    ids = []
    for place, query in enumerate(QUERIES):
        asked = client.chat.completions.with_raw_response.create(
            model="tool-router",
            messages=[{"role": "user", "content": query}],
            tool_choice={"type": "function", "function": {"name": "direct_chat"}},
            metadata={"session": f"s-{place}"},
            stream=stops,
        )
        ids.append(asked.headers["X-Decision-Id"])
        reply = asked.parse()
        last = list(reply)[-1] if stops else reply
        assert last.decision["query_id"] == ids[-1]
    outcomes = [
        {"success": True, "quality": 1},
        {"success": True, "quality": 0.9, "tool": "web_search"},
        {"success": False, "error": "timeout after 30 s"},
    ]
    for one, outcome in zip(ids, outcomes, strict=True):
        reply = httpx2.post(f"{root}/v1/decisions/{one}/outcome", json=outcome)
        assert (reply.status_code, reply.json()["status"]) == (202, "accepted")
        assert (reply.json()["id"], reply.headers["X-Decision-Id"]) == (one, one)
    if stops:
        process.send_signal(signal.SIGTERM)  # what waits is written first
        assert process.wait(60) == 0
    else:
        for _ in range(200):
            counts = httpx2.get(f"{root}/metrics").text
            if 'tool_router_log_entries_total{kind="outcomes"} 3' in counts:
                break
        assert 'tool_router_outcomes_total{status="202"} 3' in counts
    columns = "query_text, tool_used, success, result_quality, error_message"
    assert logged(environment, columns)[0][1] == "direct_chat"
    assert logged(environment, columns)[1:] == [
        (QUERIES[1], "web_search", True, 0.9, None),
        (QUERIES[2], "direct_chat", False, None, "timeout after 30 s"),
    ]
    curated = read_log(config, environment, Fallbacks(), is_required=True)
    assert {row.query: row.tool for row in curated.rows}[QUERIES[1]] == "web_search"
    assert QUERIES[2] not in {row.query for row in curated.rows}


@pytest.mark.parametrize(
    ("decision_id", "body", "status", "message"),
    [
        ("17", b"{}", 404, "'17' is no id of a decision; it is in the header X-Decision-Id"),
        (ID, b"{", 400, "the body is not JSON"),
        (ID, b"[]", 400, "the body is a JSON list, not an object"),
        (ID, b"{}", 400, "says nothing: pass success, quality, tool or error"),
        (ID, b'{"sucess": true}', 400, "sucess: Extra inputs are not permitted"),
        (ID, b'{"success": "yes"}', 400, "success: Input should be a valid boolean"),
        (ID, b'{"quality": NaN}', 400, "quality is nan: pass a finite number"),
        (ID, b'{"tool": "weather"}', 400, "tool: 'weather' is none of the tools; they are rag_retrieval, web_search"),
        (ID, b'{"success": true}', 503, "too much waits for it"),
    ],
)
def test_an_outcome_that_cannot_be_taken_is_one_message(config, tmp_path, decision_id, body, status, message):
    log = DecisionLog(DatabaseSection(), Environment(postgres_host=str(tmp_path)), most_waiting=0)
    with pytest.raises(BadRequest, match=re.escape(message)) as caught:
        report_outcome(log, decision_id, body, config.toolbox)
    assert caught.value.status == status


def test_a_decision_that_cannot_be_sent_has_its_id_all_the_same(environment, folder, config):  # noqa: F811
    with DecisionLog(config.database, environment) as log, Router.load(folder, log=log) as router:
        router._decider.engine.close()  # from here on the model answers nothing
        with serving(router) as url, openai.OpenAI(base_url=url, api_key="x", max_retries=0) as client:
            tools = [{"type": "function", "function": {"name": "web_search"}}]
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(
                    model="tool-router", messages=[{"role": "user", "content": QUERIES[0]}], tools=tools
                )
        assert log.flush()
    assert logged(environment, "query_id") == [caught.value.response.headers["X-Decision-Id"]]


def test_a_server_without_a_log_says_how_to_get_one(config):
    with pytest.raises(BadRequest, match="start it with --log") as caught:
        report_outcome(None, ID, b'{"success": true}', config.toolbox)
    assert caught.value.status == 404
