"""A table and its exports give the same records, whatever the kind of the file."""

# ruff: noqa: F811 - fixtures that are imported have the names of the tests' arguments

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import random
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from psycopg2.extras import execute_values

from tests.fixtures.logged_table import COLUMNS, START, environment, execute, filtered, server, table_of, with_columns  # noqa: F401
from tests.fixtures.postgres import connected
from tool_aware.config.environment import Environment
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, UserError
from tool_aware.dataset.log_files import read_log_file
from tool_aware.dataset.log_findings import LogFindings
from tool_aware.dataset.log_records import LogRecord
from tool_aware.dataset.logged import read_log
from tool_aware.dataset.newest_first import newest_first
from tool_aware.dataset.query_log import read_query_log


def random_rows(random_: random.Random, count: int, *, zoned: bool) -> list[tuple[Any, ...]]:
    errors = (None, None, None, None, "", "   ", "NULL", "null", "\\N", "None", "nan", "timeout", "no tool\nfound",
              "\t", "0", " " * 40, "NULL" + " " * 30, "a" * 17)  # fmt: skip
    qualities = (None, 0.7, 0.7, 0.69999, 0.9, 1.0, 0.0, float("nan"))
    sessions = (None, "", "s1", "S 2", "nan", "17")
    queries = (
        None,
        "",
        "  ",
        "NULL",
        "\\N",
        "was kostet ein Käse",
        "a\u2028b",
        "two\nlines",
        'say "hi", please',
        "x,y;z\t",
    )
    rows = []
    for number in range(count):
        moment: datetime | None = START + timedelta(minutes=random_.randint(0, 60 * 24 * 40), microseconds=number)
        if zoned:
            moment = moment.replace(tzinfo=timezone(timedelta(hours=random_.choice((-7, 0, 2, 5.5)))))
        if random_.random() < 0.1:
            moment = None
        query = random_.choice(queries) if random_.random() < 0.4 else f"query number {number}"
        rows.append((
            number * 3 + 1, query, random_.choice(("web_search", "rag_retrieval", "direct_chat ", None, "other")),
            random_.choice((True, True, True, False, None)), random_.choice(qualities), moment,
            random_.choice(sessions), random_.choice(errors),
        ))  # fmt: skip
    random_.shuffle(rows)
    return rows


def exported(folder: Path, rows: Sequence[tuple[Any, ...]]) -> list[Path]:
    items = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
    lines = [json.dumps(item, default=lambda value: value.isoformat()) for item in items]
    paths = [
        folder / name for name in ("log.jsonl", "log.json", "log.jsonl.gz", "log.csv", "log.csv.gz", "log.parquet")
    ]
    paths[0].write_text("\n".join(lines), encoding="utf-8")
    paths[1].write_text(f"[{','.join(lines)}]", encoding="utf-16")
    paths[2].write_bytes(gzip.compress(paths[0].read_bytes()))
    with paths[3].open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerows([COLUMNS, *rows])
    paths[4].write_bytes(gzip.compress(paths[3].read_bytes()))
    times = pyarrow.timestamp("ns", "Europe/Berlin") if any(r[5] and r[5].tzinfo for r in rows) else None
    columns = {name: [item[name] for item in items] for name in COLUMNS}
    arrays = {name: pyarrow.array(values, times if name == "timestamp" else None) for name, values in columns.items()}
    arrays["result_quality"] = arrays["result_quality"].cast(pyarrow.float32())
    arrays["tool_used"] = arrays["tool_used"].dictionary_encode()
    pyarrow.parquet.write_table(pyarrow.table(arrays), paths[5], row_group_size=50)
    return paths


SINCE = (None, datetime(2026, 3, 20, 7, 30), datetime(2026, 3, 20, 9, 30, tzinfo=timezone(timedelta(hours=2))))


@pytest.mark.parametrize("seed", range(6))
def test_a_table_and_its_exports_give_the_same_records(
    seed: int, tmp_path: Path, config: Config, environment: Environment, execute: Any, server: dict[str, str]
) -> None:
    random_ = random.Random(seed)
    zoned = bool(seed % 2)
    rows = random_rows(random_, 240, zoned=zoned)
    execute(f"ALTER ROLE reader SET timezone = '{random_.choice(('UTC', 'Asia/Kolkata', 'America/Lima'))}'")
    kinds = {"timestamp": "timestamptz" if zoned else "timestamp"}
    kinds["result_quality"] = random_.choice(("float", "real", "numeric"))
    execute(table_of(**kinds))
    with contextlib.closing(connected(server)) as connection, connection, connection.cursor() as cursor:
        execute_values(cursor, "INSERT INTO query_logs VALUES %s", rows)
    paths = exported(tmp_path, rows)
    for since in SINCE:
        for limit, only_success, least in ((None, True, 0.7), (31, True, 0.7), (None, False, None), (7, False, 0.7)):
            settings = filtered(
                config.database, since=since, limit=limit, only_success=only_success, min_result_quality=least
            ).model_copy(update={"fetch_size": random_.choice((1, 17, 10_000))})
            expected = list(read_query_log(settings, environment))
            assert expected
            for path in paths:
                assert list(read_log_file(path, settings)) == expected, path.name
            without_id = with_columns(settings, id=None)
            by_time = list(read_query_log(without_id, environment))
            timed = [record for record in by_time if record.timestamp]
            for path in paths:
                assert [r for r in read_log_file(path, without_id) if r.timestamp] == timed, path.name


def test_missing_values_pass_no_filter_and_a_missing_column_is_no_filter(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"query_text": "a", "tool_used": "t", "success": null, "result_quality": 0.9}\n'
                    '{"query_text": "b", "tool_used": "t", "success": true, "result_quality": null}\n'
                    '{"query_text": "c", "tool_used": "t", "success": true, "result_quality": 0.9}\n')  # fmt: skip
    findings = LogFindings("log")
    assert [record.query for record in read_log_file(path, config.database, findings)] == ["c"]
    assert findings.left_out == {"success_unknown": 1, "quality_unknown": 1}
    assert "no column timestamp, session_id, error_message" in findings.notes[0]
    path.write_text('{"query_text": "a", "tool_used": "t"}\n')
    assert len(list(read_log_file(path, config.database))) == 1
    with pytest.raises(UserError, match="needs the time"):
        list(read_log_file(path, filtered(config.database, since=START)))


def test_records_are_sorted_in_runs_as_they_are_in_memory() -> None:
    random_ = random.Random(5)
    keyed = []
    for number in range(300):
        moment = random_.choice((None, START + timedelta(days=random_.randint(1, 9))))
        keyed.append(
            (random_.choice((None, str(random_.randint(1, 40)))), LogRecord(f"{number}", "t", timestamp=moment))
        )
    named = [(f"x{identity}", record) for identity, record in keyed]
    for items in (keyed, named):
        assert list(newest_first(items, in_memory=7)) == list(newest_first(items))


@pytest.mark.parametrize("limit", [None, 20])
@pytest.mark.parametrize("identity", ["serial PRIMARY KEY", "text"])
def test_rows_of_a_table_show_the_same_earlier_turns_as_those_of_its_export(
    limit: int | None, identity: str, tmp_path: Path, config: Config, environment: Environment, execute: Any,
    server: dict[str, str],
) -> None:  # fmt: skip
    random_ = random.Random(5)
    rows = [
        (
            number, f"{random_.choice(('leave', 'travel', 'gifts'))} policy {number * 7919 % 1000}", "rag_retrieval",
            random_.random() < 0.7, random_.choice((0.1, 0.9)), START + timedelta(minutes=number * 4),
            random_.choice(("s1", "s2", "s3", None)), random_.choice((None, None, "timeout after 30 seconds")),
        )
        for number in range(200)
    ]  # fmt: skip
    execute(table_of(id=identity))
    with contextlib.closing(connected(server)) as connection, connection, connection.cursor() as cursor:
        execute_values(cursor, "INSERT INTO query_logs VALUES %s", rows)
    export = exported(tmp_path, rows)[0]
    database = filtered(config.database, limit=limit).model_copy(update={"fetch_size": 7})
    settings = config.model_copy(update={"database": database})
    of_table, of_export = (read_log(settings, environment, Fallbacks(), path) for path in (None, export))
    assert of_table
    assert of_export
    assert of_table.rows == of_export.rows
    assert sum(len(row.history) == 3 for row in of_table.rows) > (5 if limit else 20)
