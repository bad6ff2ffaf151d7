"""Columns of any type are read as what they mean, and what makes no sense is named."""

# ruff: noqa: F811 - fixtures that are imported have the names of the tests' arguments

from __future__ import annotations

import contextlib
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.logged_table import START, environment, execute, filtered, server, table_of, with_columns  # noqa: F401
from tests.fixtures.postgres import connected
from tool_aware.config.environment import Environment, read_environment
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, UserError
from tool_aware.dataset.curation import curate
from tool_aware.dataset.log_files import read_log_file
from tool_aware.dataset.log_findings import LogFindings
from tool_aware.dataset.log_records import LogRecord
from tool_aware.dataset.logged import read_log
from tool_aware.dataset.query_log import read_query_log

VALUES = {
    "id": "1", "query_text": "'where is our lease'", "tool_used": "'rag_retrieval'", "success": "true",
    "result_quality": "0.9", "timestamp": "'2026-03-01 09:00:00'", "session_id": "'s1'", "error_message": "NULL",
}  # fmt: skip
USUAL = LogRecord("where is our lease", "rag_retrieval", True, 0.9, START, "s1", None)


@pytest.mark.parametrize(
    ("column", "kind", "value", "field", "expected"),
    [
        ("session_id", "integer", "7", "session", "7"),
        ("session_id", "bigint", "7000000000", "session", "7000000000"),
        ("session_id", "uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "session",
         "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ("session_id", "float", "7", "session", "7"),
        ("session_id", "char(8)", "'s1'", "session", "s1"),
        ("session_id", "jsonb", "'\"s1\"'", "session", "s1"),
        ("id", "uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "query", USUAL.query),
        ("id", "varchar(10)", "'one'", "query", USUAL.query),
        ("id", "numeric(20)", "17", "query", USUAL.query),
        ("id", "timestamptz", "now()", "query", USUAL.query),
        ("query_text", "jsonb", "'\"where is our lease\"'", "query", USUAL.query),
        ("query_text", "json", "'\"half \\ud83d of it\"'", "query", "half \ud83d of it"),
        ("query_text", "bytea", "'where is our l\\303\\266ase'", "query", "where is our löase"),
        ("query_text", "char(30)", "'where is our lease'", "query", f"{USUAL.query:30}"),
        ("tool_used", "jsonb", "'\"rag_retrieval\"'", "tool", "rag_retrieval"),
        ("tool_used", "char(20)", "'rag_retrieval'", "tool", "rag_retrieval"),
        ("tool_used", "name", "'rag_retrieval'", "tool", "rag_retrieval"),
        ("success", "smallint", "1", "success", True),
        ("success", "integer", "0", "success", False),
        ("success", "text", "'t'", "success", True),
        ("success", "text", "'Yes'", "success", True),
        ("success", "float", "1.0", "success", True),
        ("success", "bit", "B'1'", "success", True),
        ("success", "jsonb", "'true'", "success", True),
        ("success", "char(3)", "'no'", "success", False),
        ("result_quality", "numeric(4,2)", "0.90", "quality", 0.9),
        ("result_quality", "real", "0.7", "quality", 0.7),
        ("result_quality", "money", "0.90", "quality", 0.9),
        ("result_quality", "text", "'90 %'", "quality", 0.9),
        ("result_quality", "text", "'0,9'", "quality", 0.9),
        ("result_quality", "numeric", "'NaN'", "quality", None),
        ("result_quality", "integer", "4", "quality", 4.0),
        ("result_quality", "jsonb", "'0.9'", "quality", 0.9),
        ("timestamp", "timestamptz", "'2026-03-01 11:00:00+02'", "timestamp", START),
        ("timestamp", "date", "'2026-03-01'", "timestamp", datetime(2026, 3, 1)),
        ("timestamp", "bigint", "1772355600", "timestamp", START),
        ("timestamp", "bigint", "1772355600000", "timestamp", START),
        ("timestamp", "bigint", "1772355600000000", "timestamp", START),
        ("timestamp", "float", "1772355600.5", "timestamp", START + timedelta(microseconds=500_000)),
        ("timestamp", "text", "'Sun, 01 Mar 2026 10:00:00 +0100'", "timestamp", START),
        ("timestamp", "timestamp", "'infinity'", "timestamp", datetime.max),
        ("timestamp", "timestamptz", "'-infinity'", "timestamp", datetime.min),
        ("timestamp", "timestamp", "NULL", "timestamp", None),
        ("error_message", "jsonb", "'{}'", "error", None),
        ("error_message", "jsonb", "'null'", "error", None),
        ("error_message", "jsonb", "'{\"code\": 4}'", "error", "{'code': 4}"),
        ("error_message", "boolean", "false", "error", None),
        ("error_message", "integer", "0", "error", None),
        ("error_message", "integer", "504", "error", "504"),
        ("error_message", "text[]", "'{}'", "error", None),
        ("error_message", "char(64)", "'NULL'", "error", None),
    ],
)  # fmt: skip
def test_a_column_of_another_type_is_read_as_what_it_means(
    column: str, kind: str, value: str, field: str, expected: Any, config: Config, environment: Environment,
    execute: Any,
) -> None:  # fmt: skip
    execute("ALTER ROLE reader SET DateStyle = 'SQL, DMY'; ALTER ROLE reader SET bytea_output = 'escape'")
    execute(table_of(**{column: kind}))
    execute(f"INSERT INTO query_logs VALUES ({', '.join((VALUES | {column: value}).values())})")
    settings = filtered(config.database, only_success=False, min_result_quality=None)
    findings = LogFindings("log")
    records = list(read_query_log(settings, environment, findings))
    if field == "error" and expected is not None:
        assert not records
        assert findings.rejected in ({"error": 1}, {})
    else:
        assert [getattr(record, field) for record in records] == [expected]


@pytest.mark.parametrize(
    ("column", "kind", "bad", "found"),
    [
        ("query_text", "jsonb", "'{\"text\": \"hi\"}'", "query is an object"),
        ("tool_used", "jsonb", "'[\"web_search\"]'", "tool is a list"),
        ("query_text", "bytea", "'\\xff'", "query is bytes that are not UTF-8"),
        ("success", "integer", "7", "success 7 is neither true nor false"),
        ("success", "text", "'perhaps'", "success 'perhaps' is neither"),
        ("result_quality", "text", "'good'", "quality 'good' is not a number"),
        ("result_quality", "float", "'infinity'", "quality 'Infinity' is not a number"),
        ("result_quality", "boolean", "true", "quality True is not a number"),
        ("timestamp", "timestamp", "'0044-03-15 BC'", "timestamp '0044-03-15T00:00:00 BC' is no time"),
        ("timestamp", "text", "'3/1/2026 9:00'", "timestamp '3/1/2026 9:00' is no time"),
        ("timestamp", "interval", "'3 days'", "timestamp '3 days' is no time"),
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_costs_its_row_and_most_of_them_the_run(
    column: str, kind: str, bad: str, found: str, config: Config, environment: Environment, execute: Any
) -> None:
    execute(table_of(**{column: kind}))
    execute(f"INSERT INTO query_logs VALUES ({', '.join((VALUES | {column: bad}).values())})")
    settings = filtered(config.database, only_success=False, min_result_quality=None)
    with pytest.raises(UserError, match="1 of 1 rows cannot be read") as caught:
        list(read_query_log(settings, environment))
    assert f"id 1: {found}" in str(caught.value)
    good = {"query_text": "'\"hi\"'", "tool_used": "'\"web\"'"}.get(column, "NULL")
    for number in ("2", "3"):
        execute(f"INSERT INTO query_logs VALUES ({', '.join((VALUES | {'id': number, column: good}).values())})")
    findings = LogFindings("log")
    list(read_query_log(settings, environment, findings))
    assert findings.bad.total() == 1
    assert found in findings.messages(settings.filters)[0]


def test_a_database_without_an_encoding_costs_only_rows_that_are_not_utf8(
    config: Config, environment: Environment, server: dict[str, str]
) -> None:
    settings = config.database
    with contextlib.closing(connected(server, "plain_bytes")) as connection, connection.cursor() as cursor:
        cursor.execute(table_of())
        for number, text in enumerate((r"'plain'", r"E'caf\303\251'", r"E'caf\351'"), start=1):
            values = VALUES | {"id": str(number), "query_text": text}
            cursor.execute(f"INSERT INTO query_logs VALUES ({', '.join(values.values())})")
        connection.commit()
        findings = LogFindings("log")
        of_it = read_environment({**server, "POSTGRES_DB": "plain_bytes"})
        assert [record.query for record in read_query_log(settings, of_it, findings)] == ["café", "plain"]
        assert findings.bad == {"not_utf8": 1}


@pytest.mark.parametrize("fetch_size", [1, 2, 3, 5, 100])
def test_repeated_and_missing_ids_lose_no_row_and_repeat_none(
    fetch_size: int, config: Config, environment: Environment, execute: Any
) -> None:
    execute(table_of(id="integer"))
    for number, identity in enumerate((3, 3, 3, 3, 2, None, 1, None, 1, 5, None)):
        values = VALUES | {"id": "NULL" if identity is None else str(identity), "query_text": f"'q{number}'"}
        execute(f"INSERT INTO query_logs VALUES ({', '.join(values.values())})")
    settings = config.database.model_copy(update={"fetch_size": fetch_size})
    queries = [record.query for record in read_query_log(settings, environment)]
    assert queries[0] == "q9"
    assert sorted(queries[1:5]) == ["q0", "q1", "q2", "q3"]
    assert sorted(queries) == sorted(f"q{number}" for number in range(11))


@pytest.mark.parametrize("kind", ["uuid", "text"])
def test_where_ids_are_no_numbers_the_newest_come_first(
    kind: str, config: Config, environment: Environment, execute: Any
) -> None:
    execute(table_of(id=kind))
    for number, identity in enumerate(("b", "a", "d", "c")):
        value = f"'{identity * 8}-0000-0000-0000-000000000000'"
        moment = f"'2026-03-0{number + 1}'"
        values = VALUES | {"id": value, "query_text": f"'{identity}'", "timestamp": moment}
        execute(f"INSERT INTO query_logs VALUES ({', '.join(values.values())})")
    settings = filtered(config.database, limit=3)
    assert [record.query for record in read_query_log(settings, environment)] == ["c", "d", "a"]
    execute("ALTER TABLE query_logs ALTER COLUMN timestamp TYPE text")
    assert [record.query for record in read_query_log(settings, environment)] == ["c", "d", "a"]


def test_views_partitions_domains_and_enums_are_read_under_any_name(
    config: Config, environment: Environment, execute: Any
) -> None:
    execute("CREATE DOMAIN score AS real CHECK (VALUE >= 0); CREATE TYPE \"Tool\" AS ENUM ('rag_retrieval', 'other')")
    execute(
        'CREATE TABLE "Logs 100%" ("Id" bigint, "q.text" text, "the Tool" "Tool", ok boolean, score score,'
        ' "at" timestamptz, s uuid, err text) PARTITION BY RANGE ("Id")'
    )
    execute('CREATE TABLE part PARTITION OF "Logs 100%" FOR VALUES FROM (0) TO (100)')
    execute('CREATE VIEW a_view AS SELECT * FROM "Logs 100%"')
    execute('CREATE MATERIALIZED VIEW kept AS SELECT * FROM "Logs 100%" WITH NO DATA')
    execute("INSERT INTO part VALUES (1, 'where', 'rag_retrieval', true, 0.7, now(), NULL, NULL)")
    execute("REFRESH MATERIALIZED VIEW kept")
    settings = with_columns(
        config.database, id="Id", query="q.text", tool="the Tool", success="ok", quality="score", timestamp="at",
        session="s", error="err",
    )  # fmt: skip
    try:
        for table in ("Logs 100%", "part", "a_view", "kept"):
            records = list(read_query_log(settings.model_copy(update={"table": table}), environment))
            assert [(r.query, r.tool, r.quality) for r in records] == [("where", "rag_retrieval", 0.7)]
    finally:
        execute('DROP TABLE "Logs 100%" CASCADE; DROP DOMAIN score; DROP TYPE "Tool"')


def test_a_column_or_a_table_in_another_spelling_is_suggested(
    config: Config, environment: Environment, execute: Any
) -> None:
    execute(table_of().replace("tool_used", '"Tool Used"'))
    with pytest.raises(UserError) as caught:
        list(read_query_log(config.database, environment))
    assert "no column tool_used" in str(caught.value)
    assert "--set 'database.columns.tool=\"Tool Used\"'" in str(caught.value)
    execute('ALTER TABLE query_logs RENAME TO "Query_Logs"')
    with pytest.raises(UserError, match=r"there is public\.Query_Logs"):
        list(read_query_log(config.database, environment))


def test_what_tools_are_called_now_is_taken_from_the_config(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "log.jsonl"
    lines = [{"query_text": f"price of {metal}", "tool_used": "search"} for metal in ("gold", "tin", "copper")]
    path.write_text("\n".join(map(json.dumps, lines)))
    result = curate(read_log_file(path, config.database), config.toolbox, config.database.filters, max_per_session=9)
    assert result.unknown_tools == {"search": 3}
    settings = config.database.model_copy(update={"tool_names": {"search": "web_search"}})
    assert {record.tool for record in read_log_file(path, settings)} == {"web_search"}


@pytest.mark.parametrize("kind", ["integer", "uuid", "text"])
def test_sessions_of_any_type_reach_the_rows_as_one_group_each(
    kind: str, config: Config, environment: Environment, execute: Any
) -> None:
    execute(table_of(session_id=kind))
    sessions = {"uuid": "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"}.get(kind, "'7'")
    for number, topic in enumerate(("lease for Antwerp", "payroll dates of May", "price list of pens"), start=1):
        values = VALUES | {"id": str(number), "query_text": f"'where is our {topic}'", "session_id": sessions}
        execute(f"INSERT INTO query_logs VALUES ({', '.join(values.values())})")
    fallbacks = Fallbacks()
    curated = read_log(config, environment, fallbacks)
    assert curated is not None
    assert len(curated.rows) == 3
    assert len({row.metadata["group"] for row in curated.rows}) == 1
    assert not list(fallbacks)
