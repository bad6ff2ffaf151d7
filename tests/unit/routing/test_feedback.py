"""Decisions reach a real PostgreSQL, with their outcomes, and the next data set; no agent ever waits for it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psycopg2
import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.data_sections import ColumnsSection, DatabaseSection, RouterColumnsSection
from tool_aware.config.environment import Environment, read_environment
from tool_aware.console import Fallbacks, UserError
from tool_aware.database import ROUTER_APPLICATION_NAME
from tool_aware.dataset.logged import read_log
from tool_aware.demo.sample_log import SCHEMA
from tool_aware.paths import ROUTER_SETTINGS_NAME
from tool_aware.router_settings import RouterSettings
from tool_aware.routing import Decision, DecisionLog, Router, feedback, watch
from tool_aware.routing.decision_writer import DecisionWriter

DECISION = Decision("web_search", {"query": "x"}, "", 0.9, abstained=False)


@pytest.fixture(scope="module")
def environment(new_database) -> Environment:
    return read_environment(new_database("cipher_analytics", "cipher"))


@pytest.fixture(autouse=True)
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with an empty table, and try again soon."""
    monkeypatch.setattr(feedback, "FIRST_PAUSE_S", 0.05)
    if "environment" in request.fixturenames:
        do(request.getfixturevalue("environment"), f"DROP TABLE IF EXISTS query_logs; {SCHEMA}")


@contextlib.contextmanager
def connected(environment: Environment) -> Iterator[psycopg2.extensions.cursor]:
    connection = psycopg2.connect(
        host=environment.postgres_host, dbname=environment.postgres_db, user=environment.postgres_user
    )
    connection.autocommit = True
    with contextlib.closing(connection), connection.cursor() as cursor:
        yield cursor


def do(environment: Environment, statement: str) -> None:
    with connected(environment) as cursor:
        cursor.execute(statement)


def logged(environment: Environment, columns: str = "query_text") -> list:
    with connected(environment) as cursor:
        cursor.execute(f"SELECT {columns} FROM query_logs ORDER BY id")
        return [row[0] if len(row) == 1 else row for row in cursor.fetchall()]


@pytest.fixture(scope="module")
def folder(config, model_dir, adapter_dir, tmp_path_factory) -> Path:
    """An adapter's folder with router.json."""
    folder = tmp_path_factory.mktemp("run") / "lora_adapters"
    shutil.copytree(adapter_dir, folder)
    here = config.model.model_copy(update={"name": str(model_dir)})
    settings = RouterSettings.of(config).model_copy(update={"model": here})
    (folder / ROUTER_SETTINGS_NAME).write_text(settings.model_dump_json())
    return folder


def test_what_a_router_decided_and_an_agent_reported_is_in_the_next_data_set(environment, config, folder):
    queries = [f"what is known about {name}?" for name in ("copper", "Ghent", "irony", "chess", "tea", "Leeds")]
    queries[5] += " Reply to li.ito@example.com."
    with DecisionLog(config.database, environment) as log, Router.load(folder, log=log) as router:
        decisions = [router.route(query, parameters=False, session="s-1") for query in queries[:2]]
        names = ["s-2", "s-3", None, "s-4"]
        decisions += router.route_many(queries[2:], sessions=names, parameters=False)
        log.report(decisions[0].query_id, success=True, quality=0.3)
        log.report(decisions[1].query_id, success=True, quality=0.9)
        log.report(decisions[2].query_id, success=False, quality=0.9)
        log.report(decisions[3].query_id, success=True, quality=1, error="timeout after 30 s")
        log.report(decisions[5].query_id, success=True, quality=1)  # nothing is said of the fifth
        assert log.flush()
        with DecisionLog(config.database, environment) as other:  # another process, another day
            other.report(decisions[5].query_id, tool="rag_retrieval")
    assert logged(environment, "query_id, query_text, session_id, success, result_quality") == [
        (decision.query_id, query, session, success, quality)
        for decision, query, session, success, quality in zip(
            decisions,
            queries,
            ["s-1", "s-1", *names],
            [True, True, False, True, None, True],
            [0.3, 0.9, 0.9, 1.0, None, 1.0],
            strict=True,
        )
    ]
    columns = config.database.columns
    assert logged(environment, columns.tool)[:5] == [decision.tool for decision in decisions[:5]]
    times = logged(environment, "extract(epoch FROM timestamp)")
    assert all(abs(float(moment) - time.time()) < 120 for moment in times)  # in UTC

    curated = read_log(config, environment, Fallbacks(), is_required=True)
    assert queries[4] not in {row.query for row in curated.rows}
    kept = {row.query: row for row in curated.rows}
    usable = {query for query in queries[1:2] if config.toolbox[decisions[1].tool].text_parameter}
    assert set(kept) - {"what is known about Leeds? Reply to <EMAIL_1>."} <= usable
    assert kept["what is known about Leeds? Reply to <EMAIL_1>."].tool == "rag_retrieval"
    assert {"low_quality": 1, "not_successful": 1, "error": 1}.items() <= curated.rejected.items()


def test_the_code_of_the_docs_runs(environment, folder, monkeypatch, tmp_path):
    for field, value in asdict(environment).items():
        if field.startswith("postgres_"):
            monkeypatch.setenv(field.upper(), str(value or ""))
    monkeypatch.chdir(tmp_path)
    shutil.copy(REPOSITORY / "config.yaml", tmp_path)
    text = (REPOSITORY / "docs" / "HOWTO.md").read_text().partition("### Learn from the agent's decisions")[2]
    code = text.partition("```python\n")[2].partition("```")[0]
    exec(code.replace("output/lora_adapters", str(folder)), {})
    assert logged(environment, "session_id, success, result_quality") == [("conversation 17", True, 0.9)]


def test_no_call_waits_for_a_database_that_is_down(capsys, tmp_path):
    nowhere = Environment(postgres_host=str(tmp_path))
    log = DecisionLog(DatabaseSection(), nowhere, most_waiting=20)
    begun_s = time.monotonic()
    ids = {log.record(DECISION, f"query {number}").query_id for number in range(2000)}
    log.report(ids.pop(), success=True)
    assert time.monotonic() - begun_s < 20  # a pause between tries takes longer than all of them
    time.sleep(0.4)
    assert not log.flush(0.01)
    assert (log.counts.dropped, log.counts.waiting) == (1981, 20)
    log.close(2)
    assert (log.counts.dropped, log.counts.waiting) == (2001, 0)
    log.record(DECISION, "after the end")
    assert log.counts.dropped == 2002
    told = capsys.readouterr().err
    assert told.count("the query log cannot be written") == 1
    assert told.count("20 entries wait for the query log; further ones are dropped until it catches up") == 1
    assert "20 decisions and outcomes were not written" in told
    assert len(told.splitlines()) == 3


def test_what_waits_in_an_outage_is_written_after_it(environment, capsys):
    with DecisionLog(DatabaseSection(), environment) as log:
        log.record(DECISION, "before")
        assert log.flush()
        do(environment, "ALTER TABLE query_logs RENAME TO moved")
        decision = log.record(DECISION, "meanwhile")
        log.report(decision.query_id, success=True, quality=0.8)
        assert not log.flush(0.6)
        do(environment, "ALTER TABLE moved RENAME TO query_logs")
        assert log.flush()
    assert logged(environment, "query_text, success, result_quality") == [
        ("before", None, None),
        ("meanwhile", True, 0.8),
    ]
    told = capsys.readouterr().err
    assert told.count("cannot be written: relation") == told.count("is written again; 0 entries were dropped") == 1


def test_a_connection_that_was_closed_since_the_last_batch_is_no_outage(environment, capsys):
    with DecisionLog(DatabaseSection(), environment) as log:
        log.record(DECISION, "before")
        assert log.flush()
        of_router = f"application_name = '{ROUTER_APPLICATION_NAME}'"
        do(environment, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {of_router}")
        log.record(DECISION, "after")
        assert log.flush()
    assert logged(environment) == ["before", "after"]
    assert not capsys.readouterr().err


def test_a_locked_table_holds_up_neither_the_agent_nor_its_end(environment, capsys):
    log = DecisionLog(DatabaseSection(), environment)
    with connected(environment) as cursor:
        cursor.execute("BEGIN; LOCK TABLE query_logs")
        begun_s = time.monotonic()
        log.record(DECISION, "meanwhile")
        log.close(0.5)
        assert time.monotonic() - begun_s < 30  # the table stays locked
    assert log.counts.dropped == 1
    assert "1 decisions and outcomes were not written" in capsys.readouterr().err


def test_a_forked_process_logs_beside_its_parent(environment):
    log = DecisionLog(DatabaseSection(), environment)
    log.record(DECISION, "parent")
    child = os.fork()
    if not child:
        log.record(DECISION, "child")
        os._exit(0 if log.flush() and log.counts.rows == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    log.record(DECISION, "parent again")
    log.close()
    assert sorted(logged(environment)) == ["child", "parent", "parent again"]


def test_a_value_that_the_table_cannot_hold_costs_its_own_row_alone(environment, capsys):
    odd = "a \0 and half a pair \ud83d"
    with DecisionLog(DatabaseSection(), environment) as log:
        for number in range(40):
            log.record(DECISION, f"query {number}", session="s" * 65 if number == 17 else number)
        log.record(DECISION, odd)
        log.report("no-such-id", success=True)
        assert log.flush()
    counts = log.counts
    assert (counts.rows, counts.refused, counts.unknown) == (40, 1, 1)
    assert logged(environment) == [*(f"query {n}" for n in range(40) if n != 17), "a \ufffd and half a pair \ufffd"]
    told = capsys.readouterr().err
    assert told.count("refuses a value") == told.count("is not in the query log") == 1


def test_confidence_is_written_where_there_is_a_column(environment):
    do(environment, "ALTER TABLE query_logs ADD COLUMN confidence real")
    settings = DatabaseSection(router_columns=RouterColumnsSection(confidence="confidence"))
    with DecisionLog(settings, environment) as log:
        log.record(DECISION, "sure")
        log.record(replace(DECISION, confidence=None), "by rules")
    assert logged(environment, "query_text, confidence") == [("sure", pytest.approx(0.9)), ("by rules", None)]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"table": "elsewhere"}, "name your query log's schema_name and table"),
        ({"columns": ColumnsSection(session="talk")}, 'column "talk" of relation "query_logs" does not exist'),
        ({"router_columns": RouterColumnsSection(decision_id="key")}, 'column "key" of relation'),
        ({"columns": ColumnsSection(success="timestamp", timestamp=None)}, "invalid input syntax for type timestamp"),
        ({"columns": ColumnsSection(tool='x"; DROP TABLE query_logs; --')}, "does not exist"),
    ],
)
def test_a_table_that_cannot_take_decisions_is_told_of_before_the_first(environment, update, message):
    with pytest.raises(UserError, match=message):
        DecisionWriter(DatabaseSection().model_copy(update=update), environment).check()
    DecisionWriter(DatabaseSection(), environment).check()
    assert logged(environment) == []


def test_missing_rights_are_named(environment):
    do(environment, "REVOKE UPDATE ON query_logs FROM cipher")
    with pytest.raises(UserError, match=r"GRANT SELECT, INSERT, UPDATE ON public\.query_logs"):
        DecisionWriter(DatabaseSection(), environment).check()


@pytest.mark.parametrize(
    ("query_id", "values", "message"),
    [
        (None, {"success": True}, "no such decision"),
        ("a", {}, "says nothing"),
        ("a", {"success": "yes"}, "success is 'yes'"),
        ("a", {"quality": float("nan")}, "quality is nan"),
        ("a", {"error": "x"}, "name it in database.columns.error"),
    ],
)
def test_an_outcome_that_cannot_be_written_is_refused(query_id, values, message):
    log = DecisionLog(DatabaseSection(columns=ColumnsSection(error=None)), Environment())
    with pytest.raises(UserError, match=message):
        log.report(query_id, **values)
    assert log.counts.waiting == 0


# ---- python -m tool_aware.routing.watch ---------------------------------------------------------------------


@pytest.fixture
def evaluated(tmp_path, environment, monkeypatch) -> list[str]:
    """Return arguments for a table with confidences, a database in the environment, and an evaluation."""
    do(environment, "ALTER TABLE query_logs ADD COLUMN confidence real")
    monkeypatch.setattr(watch, "read_environment", lambda: environment)
    tools = {"rag_retrieval": 30, "web_search": 60, "code_execution": 5, "direct_chat": 5}
    per_tool = {tool: {"predicted": rows} for tool, rows in tools.items()}
    (tmp_path / "finetuned_model_metrics.json").write_text(json.dumps({"per_tool": per_tool}))
    bins = [{"low": 0.6, "rows": 10, "confidence": 0.65}, {"low": 0.9, "rows": 90, "confidence": 0.95}]
    trust = {"test_rows": 100, "reliability": bins, "threshold": {"confidence": 0.7, "test_coverage": 0.9}}
    (tmp_path / "comparison.json").write_text(json.dumps({"trust": trust}))
    config = ["--config", str(REPOSITORY / "config.yaml"), "--set", f"evaluation.results_dir={tmp_path}"]
    return [*config, "--set", "database.router_columns.confidence=confidence"]


def test_drift_disagreement_and_what_to_label_are_shown_beside_the_evaluation(evaluated, environment, capsys):
    settings = DatabaseSection(router_columns=RouterColumnsSection(confidence="confidence"))
    with DecisionLog(settings, environment) as log:
        for number in range(40):
            sure = log.record(DECISION, f"latest news on copper {number}")
            log.report(sure.query_id, success=True, quality=0.9)
        for number in range(20):
            log.record(replace(DECISION, tool="direct_chat", confidence=0.6), f"today is day {number}")
        unsure = replace(DECISION, tool="direct_chat", confidence=0.31)
        log.record(unsure, "who is li.ito@example.com")
        log.record(unsure, "Who is li.ito@example.com?")
        failed = log.record(DECISION, "latest news on gold")
        log.report(failed.query_id, success=False)
        log.record(replace(DECISION, tool="rag_retrieval", confidence=None), "where is our org chart")
    assert watch.main([*evaluated, "--json", "--label", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    share_of = {one["name"]: one for one in [*found["tools"], *found["confidence"], found["below_threshold"]]}
    assert (share_of["direct_chat"]["count"], share_of["direct_chat"]["before"]) == (22, 0.05)
    assert share_of["direct_chat"]["is_beyond_chance"]
    assert not share_of["web_search"]["is_beyond_chance"]
    assert (share_of["below the threshold"]["count"], share_of["below the threshold"]["before"]) == (22, 0.1)
    assert found["mean_confidence_before"] == pytest.approx(0.92)
    assert (found["decisions"], found["without_confidence"]) == (64, 1)
    assert found["outcomes"] == {"learnt from": 40, "success_unknown": 23, "not_successful": 1}
    assert found["rules_instead"]["web_search instead of direct_chat"] == 20
    label = [(one["query"], one["why"]) for one in found["label_next"]]
    assert label == [
        ("latest news on gold", "not successful"),
        ("Who is <EMAIL_1>?", "below the threshold, rules: rag_retrieval"),
        ("today is day 19", "below the threshold, rules: web_search"),
    ]
    assert found["label_next"][0]["id"] == failed.query_id
    assert watch.main([*evaluated, "--last", "4"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "direct_chat 2 50.0% 5.0% +45.0%*" in shown
    assert "0.31 direct_chat below the threshold, rules: rag_retrieval Who is <EMAIL_1>" in shown


def test_an_agent_without_decisions_or_another_table_is_told_what_to_do(evaluated, environment, capsys):
    with pytest.raises(UserError, match="holds no decisions of the last 2 hours"):
        watch.main([*evaluated, "--hours", "2"])
    with pytest.raises(UserError, match="does not exist"):
        watch.main([*evaluated, "--set", "database.table=elsewhere"])
    with DecisionLog(DatabaseSection(), environment) as log:
        log.record(DECISION, "latest news")
    assert watch.main([*evaluated, "--hours", "2", "--set", "database.router_columns.confidence=null"]) == 0
    assert "ALTER TABLE public.query_logs ADD COLUMN confidence real" in capsys.readouterr().err
