"""The query log is read from a real PostgreSQL and from files: filtered, resumed, capped, and never trusted blindly."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import psycopg2
import pytest

from tool_aware.config.data_sections import DatabaseSection
from tool_aware.config.environment import Environment, read_environment
from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.database import APPLICATION_NAME, DatabaseUnreachable, connect_to_database, ssl_mode
from tool_aware.dataset.curation import code_in, curate, derive_parameters
from tool_aware.dataset.log_files import read_log_file
from tool_aware.dataset.log_findings import LogFindings
from tool_aware.dataset.query_log import LogRecord, read_query_log
from tool_aware.demo.sample_log import fill_query_log, route_by_keywords, sample_query_log
from tool_aware.tools import Tool


@pytest.fixture(scope="module")
def server(new_database) -> dict[str, str]:
    variables = new_database("cipher_analytics", "cipher")
    fill_query_log(variables, count=700, seed=3)
    return variables


@pytest.fixture
def environment(server: dict[str, str]) -> Environment:
    return read_environment(server)


def changed(config: Config, **updates) -> DatabaseSection:
    return config.database.model_copy(update=updates)


def kept(config: Config, records) -> list[LogRecord]:
    return list(records)


# ---- reading --------------------------------------------------------------------------------------------


def test_rows_pass_the_filters_newest_first(config: Config, environment: Environment) -> None:
    records = list(read_query_log(changed(config, fetch_size=37), environment))
    expected = [
        item for item in sample_query_log(700, 3)
        if item.success and item.result_quality >= 0.7 and not item.error_message
    ]  # fmt: skip
    assert [record.query for record in records] == [item.query_text for item in reversed(expected)]
    assert all(record.session and record.quality >= 0.7 for record in records)


def test_since_and_limit_are_applied_by_the_server(config: Config, environment: Environment) -> None:
    everything = list(read_query_log(config.database, environment))
    middle = everything[len(everything) // 2].timestamp
    filters = config.database.filters.model_copy(update={"since": middle})
    recent = list(read_query_log(changed(config, filters=filters), environment))
    assert recent == [record for record in everything if record.timestamp >= middle]
    filters = config.database.filters.model_copy(update={"limit": 25})
    assert list(read_query_log(changed(config, filters=filters, fetch_size=10), environment)) == everything[:25]


def test_a_table_without_an_id_is_read_through_a_cursor_with_the_same_result(
    config: Config, environment: Environment
) -> None:
    columns = config.database.columns.model_copy(update={"id": None})
    by_cursor = read_query_log(changed(config, columns=columns, fetch_size=50), environment)
    assert list(by_cursor) == list(read_query_log(config.database, environment))


def test_reading_goes_on_after_the_connection_was_killed(config: Config, environment: Environment) -> None:
    settings = changed(config, fetch_size=50)
    undisturbed = list(read_query_log(settings, environment))
    records = read_query_log(settings, environment)
    seen = [next(records) for _ in range(120)]
    with contextlib.closing(connect_to_database(settings, environment)) as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = %s AND pid <> pg_backend_pid()",
            [APPLICATION_NAME],
        )
        assert cursor.rowcount == 1
    assert seen + list(records) == undisturbed


def test_the_session_is_read_only_and_has_a_time_limit(config: Config, environment: Environment) -> None:
    connection = connect_to_database(changed(config, statement_timeout_s=7), environment)
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("7s",)
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            cursor.execute("DELETE FROM query_logs")


def test_the_overall_deadline_ends_the_reading(
    config: Config, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = read_query_log(changed(config, fetch_size=10, deadline_s=600), environment)
    next(records)
    after_it_s = time.monotonic() + 601
    monkeypatch.setattr(time, "monotonic", lambda: after_it_s)
    with pytest.raises(UserError, match=r"deadline_s"):
        list(records)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"table": "no_such_table"}, "no table public.no_such_table"),
        ({"schema_name": "nowhere"}, "no table nowhere.query_logs"),
        ({"table": 'x"; DROP TABLE query_logs; --'}, "no table"),
        ({"table": "logs.queries"}, "--set database.schema_name=logs --set database.table=queries"),
    ],
)
def test_a_missing_table_is_named(config: Config, environment: Environment, update: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(read_query_log(changed(config, **update), environment))
    assert list(read_query_log(config.database, environment))


def test_rows_that_row_level_security_hides_are_told_of(
    config: Config, environment: Environment, server: dict[str, str]
) -> None:
    admin = psycopg2.connect(
        host=server["POSTGRES_HOST"], port=server["POSTGRES_PORT"], dbname=server["POSTGRES_DB"], user="postgres"
    )
    admin.autocommit = True
    with contextlib.closing(admin), admin.cursor() as cursor:
        cursor.execute("CREATE TABLE guarded AS SELECT * FROM query_logs")
        cursor.execute("GRANT SELECT ON guarded TO PUBLIC")
        cursor.execute("ALTER TABLE guarded ENABLE ROW LEVEL SECURITY")
        try:
            findings = LogFindings("public.guarded")
            assert not list(read_query_log(changed(config, table="guarded"), environment, findings))
            assert "public.guarded has row-level security" in findings.notes[0]
            findings = LogFindings("public.query_logs")
            assert list(read_query_log(config.database, environment, findings))
            assert not findings.notes
        finally:
            cursor.execute("DROP TABLE guarded")


def test_a_missing_column_is_named(config: Config, environment: Environment) -> None:
    columns = config.database.columns.model_copy(update={"quality": "rating"})
    with pytest.raises(UserError, match="rating") as caught:
        list(read_query_log(changed(config, columns=columns), environment))
    assert "database.columns" in str(caught.value)


def test_nobody_at_the_address_is_told_apart_from_other_errors(config: Config) -> None:
    nobody = Environment(postgres_host="127.0.0.1", postgres_port=1, postgres_password="hunter2!")
    with pytest.raises(DatabaseUnreachable) as caught:
        list(read_query_log(changed(config, connect_timeout_s=1), nobody))
    assert "hunter2!" not in str(caught.value)


def reload_settings(cursor: psycopg2.extensions.cursor) -> None:
    """Have the server read pg_hba.conf again, and wait until it has: it tells its own processes afterwards."""
    cursor.execute("SELECT pg_conf_load_time()")
    before = cursor.fetchone()
    cursor.execute("SELECT pg_reload_conf()")
    deadline_s = time.monotonic() + 120
    while cursor.execute("SELECT pg_conf_load_time()") or cursor.fetchone() == before:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_a_refused_password_is_an_error_that_does_not_show_it(
    config: Config, environment: Environment, server: dict[str, str]
) -> None:
    data_folder = Path(server["POSTGRES_HOST"])
    hba = next(data_folder.rglob("pg_hba.conf"), None)
    if hba is None:
        pytest.skip("the embedded server keeps pg_hba.conf elsewhere")
    before = hba.read_text()
    admin = psycopg2.connect(
        host=server["POSTGRES_HOST"], port=server["POSTGRES_PORT"], dbname="postgres", user="postgres"
    )
    admin.autocommit = True
    with contextlib.closing(admin), admin.cursor() as cursor:
        try:
            cursor.execute("ALTER ROLE cipher PASSWORD 'right'")
            hba.write_text("local all cipher scram-sha-256\n" + before)
            reload_settings(cursor)
            wrong = replace(environment, postgres_password="wr0ng-secret")
            with pytest.raises(UserError, match="refused the login") as caught:
                list(read_query_log(config.database, wrong))
            assert not isinstance(caught.value, DatabaseUnreachable)
            assert "wr0ng-secret" not in str(caught.value)
        finally:
            hba.write_text(before)
            reload_settings(cursor)


@pytest.mark.parametrize(
    ("host", "mode"),
    [("localhost", "prefer"), ("127.0.0.1", "prefer"), ("::1", "prefer"), ("/run/postgresql", "prefer"),
     ("db.example.com", "verify-full"), ("10.0.0.7", "verify-full")],
)  # fmt: skip
def test_remote_servers_are_verified_unless_configured_otherwise(host: str, mode: str) -> None:
    assert ssl_mode("auto", host) == mode
    assert ssl_mode("require", host) == "require"


# ---- files ----------------------------------------------------------------------------------------------


def write_export(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row, default=str) for row in rows))
    elif path.suffix == ".csv":
        import csv

        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_an_export_gives_the_same_rows_as_the_database(
    ending: str, tmp_path: Path, config: Config, environment: Environment
) -> None:
    logged = [asdict(item) for item in reversed(sample_query_log(700, 3))]
    path = write_export(tmp_path / f"log.{ending}", logged)
    from_file, from_database = (
        curate(records, config.toolbox, config.database.filters, max_per_session=20)
        for records in (read_log_file(path, config.database), read_query_log(config.database, environment))
    )
    assert len(from_file.rows) > 100
    assert from_file.rows == from_database.rows


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "x", "not a known kind"),
        ("a.jsonl", '{"query_text": "x"}', "tool_used"),
        ("a.jsonl", "{broken", "is not JSON"),
        ("a.jsonl", "[1]", "not an object"),
        ("a.csv", "query_text,tool_used,success\nx,y,maybe\n", "neither true nor false"),
        ("a.csv", "query_text,tool_used,result_quality\nx,y,good\n", "good"),
    ],
)
def test_a_bad_export_is_explained_with_its_row(
    name: str, text: str, message: str, tmp_path: Path, config: Config
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        list(read_log_file(path, config.database))


# ---- curation -------------------------------------------------------------------------------------------


def good(query: str, tool: str = "rag_retrieval", **details) -> LogRecord:
    return LogRecord(query, tool, **{"success": True, "quality": 0.9, **details})


def curated(config: Config, records: list[LogRecord], max_per_session: int = 20):
    return curate(records, config.toolbox, config.database.filters, max_per_session=max_per_session)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (good("where is the plan", success=False), "not_successful"),
        (good("where is the plan", quality=0.3), "low_quality"),
        (good("where is the plan", error="timeout"), "error"),
        (good("where is the plan", "sql_query"), "unknown_tool"),
        (good("where is </s> the plan"), "quarantine_control_token"),
        (good("plot my numbers nicely", "code_execution"), "parameters_not_derivable"),
    ],
)
def test_a_record_is_left_out_for_a_counted_reason(config: Config, record: LogRecord, reason: str) -> None:
    result = curated(config, [record, good("what does our lease say about pets")])
    assert result.rejected == {reason: 1}
    assert [row.query for row in result.rows] == ["what does our lease say about pets"]


def test_queries_on_which_the_log_disagrees_go_to_a_person(config: Config) -> None:
    result = curated(config, [good("price list"), good("Price list!", "web_search"), good("lease for Antwerp")])
    assert [row.query for row in result.rows] == ["lease for Antwerp"]
    assert result.to_label[0]["tools"] == ["rag_retrieval", "web_search"]


def test_a_busy_session_is_capped_and_near_repeats_count_once(config: Config) -> None:
    topics = ["lease", "pension", "canteen", "visa", "printer", "parking", "sabbatical", "payroll"]
    busy = [good(f"where do we keep the {topic} folder number {topic}", session="s1") for topic in topics]
    assert len(curated(config, busy, max_per_session=3).rows) == 3
    repeats = [good(f"what does our travel policy say about trains{end}") for end in ("", "?", " ?!", "s", " pls")]
    assert len(curated(config, repeats).rows) == 1


def test_a_session_stays_together_and_its_id_is_not_kept(config: Config) -> None:
    rows = curated(
        config, [good("our lease", session="user-17"), good("payroll dates for May", session="user-17")]
    ).rows
    assert len({row.metadata["group"] for row in rows}) == 1
    assert "user-17" not in str(rows)


def test_parameters_of_a_logged_row_are_derived_by_rule_or_not_at_all(config: Config) -> None:
    tools = config.toolbox
    assert derive_parameters(tools["web_search"], "gold price") == {"query": "gold price"}
    assert derive_parameters(tools["direct_chat"], "hi") == {"message": "hi"}
    assert derive_parameters(tools["code_execution"], "calculate 12 * (3 + 4)") == {"code": "print(12 * (3 + 4))"}
    assert derive_parameters(tools["code_execution"], "make a nice chart") is None
    assert derive_parameters(Tool("ping", "Ping"), "are you there") == {}
    two = {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}, "required": ["a", "b"]}
    assert derive_parameters(Tool("pair", "Two", two), "x") is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("run ```python\nprint(1)\n``` now", "print(1)"),
        ("what is 2 ** 10 - 1", "print(2 ** 10 - 1)"),
        ("from 3 to 5", None),
        ("is 3 * 4 more than 5 * 6", None),
        ("on 2024-05-01 at noon", None),
        ("compute 3 * (4", None),
    ],
)
def test_code_is_only_taken_from_the_text_itself(text: str, code: str | None) -> None:
    assert code_in(text) == code


def test_the_sample_log_routes_as_the_old_agent_did() -> None:
    assert route_by_keywords("Please CALCULATE this") == "code_execution"
    assert route_by_keywords("any news?") == "web_search"
    assert route_by_keywords("hello") == "rag_retrieval"
    assert sample_query_log(50, 1) == sample_query_log(50, 1)
    logged = sample_query_log(600)
    assert {item.tool_used for item in logged} >= {"rag_retrieval", "web_search", "code_execution"}
    assert (
        0.2 < sum(not item.success for item in logged) / len(logged) < 0.5
        or Counter(item.success for item in logged)[False] > 60
    )
