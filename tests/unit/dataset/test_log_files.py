"""Exports of the query log as people really have them: read, or refused with what to do; never half read in silence."""

from __future__ import annotations

import bz2
import contextlib
import json
import random
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.environment import read_environment
from tool_aware.config.settings import Config, load_config
from tool_aware.console import Fallbacks, UserError
from tool_aware.dataset.csv_rows import csv_rows
from tool_aware.dataset.curation import Curated
from tool_aware.dataset.log_files import read_log_file
from tool_aware.dataset.log_findings import LogFindings
from tool_aware.dataset.logged import read_log

CASES = REPOSITORY / "tests" / "cases" / "logs_exports"
GOOD = {"query_text": "where is our lease", "tool_used": "rag_retrieval", "success": True, "result_quality": 0.9}
WITH_BROKEN_NAME = (CASES / "good.parquet").read_bytes().replace(b"query_text", b"query_te\xa2t")
HEADER = "query_text,tool_used,success,result_quality,timestamp,session_id,error_message"


def with_settings(config: Config, *overrides: str) -> Config:
    return load_config(REPOSITORY / "config.yaml", list(overrides))


def read(path: Path, config: Config, *overrides: str, encoding: str | None = None) -> tuple[Curated, list[str]]:
    fallbacks = Fallbacks()
    settings = with_settings(config, *overrides) if overrides else config
    curated = read_log(settings, read_environment({}), fallbacks, path, encoding)
    assert curated is not None
    return curated, list(fallbacks)


# ---- the cases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept", "rejected"),
    [
        *((name, 12, {}) for name in (
            "base.jsonl", "array.jsonl", "bom.jsonl", "utf16.jsonl", "u2028.jsonl", "epoch_ms.jsonl", "psql_time.jsonl",
            "rfc.jsonl", "z.jsonl", "session_int.jsonl", "success_words.jsonl", "error_null_text.jsonl",
            "error_obj.jsonl", "mysql_null.csv", "null_words.csv", "semicolon.csv", "tab.csv", "good.parquet",
        )),
        ("nulls.jsonl", 4, {"success_unknown": 6, "quality_unknown": 2}),
        ("pandas_float_success.parquet", 10, {"success_unknown": 2}),
        ("nan_quality.parquet", 6, {"quality_unknown": 6}),
        ("nan.jsonl", 0, {"quality_unknown": 12}),
        ("surrogate.jsonl", 11, {"quarantine_control_character": 1}),
        ("nul.csv", 8, {"quarantine_control_character": 6}),
        ("short_row.csv", 12, {"not_csv": 1}),
        ("long_row.csv", 12, {"not_csv": 1}),
    ],
)  # fmt: skip
def test_an_export_is_read_and_what_is_left_out_is_counted(
    name: str, kept: int, rejected: dict[str, int], config: Config
) -> None:
    curated, _ = read(CASES / name, config)
    assert (len(curated.rows), curated.rejected) == (kept, rejected)


@pytest.mark.parametrize(
    ("name", "found", "fix"),
    [
        ("cp1252.csv", "cp1252.csv:2: is not UTF-8", "--encoding cp1252"),
        ("header_space.csv", "no column query_text", "--set 'database.columns.query=\" query_text\"'"),
        ("upper.csv", "no column query_text", "--set database.columns.query=QUERY_TEXT"),
        ("nonstr.jsonl", "12 of 12 rows cannot be read", "database.columns"),
    ],
)  # fmt: skip
def test_an_export_that_is_misunderstood_is_refused_with_the_setting_that_mends_it(
    name: str, found: str, fix: str, config: Config
) -> None:
    with pytest.raises(UserError) as caught:
        read(CASES / name, config)
    assert found in str(caught.value)
    assert fix in str(caught.value)


def test_the_settings_that_a_message_names_mend_it(config: Config) -> None:
    assert len(read(CASES / "cp1252.csv", config, encoding="cp1252")[0].rows) == 12
    spaced = ('database.columns.query=" query_text"', 'database.columns.tool=" tool_used"')
    assert len(read(CASES / "header_space.csv", config, *spaced)[0].rows) == 12
    upper = ("database.columns.query=QUERY_TEXT", "database.columns.tool=TOOL_USED", "database.columns.id=ID")
    assert len(read(CASES / "upper.csv", config, *upper)[0].rows) == 12


# ---- kinds of files -------------------------------------------------------------------------------------


def lines(*rows: dict[str, Any], **changes: Any) -> str:
    return "".join(json.dumps(GOOD | row | changes) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log", lines({}).encode()),
        ("log.txt", f"{HEADER}\na,b,true,1,,,\n".encode()),
        ("log.csv", lines({}).encode()),
        ("log.tsv", b"query_text\ttool_used\nsay \"hi\"\tb\n"),
        ("log.csv", b"sep=;\r\nquery_text;tool_used\r\na;b\r\n"),
        ("log.csv", b"query_text|tool_used\na, b|c\n"),
        ("log.jsonl", b"\n\xef\xbb\xbf" + lines({}).encode()),
        ("log.json", lines({}, timestamp={"$date": {"$numberLong": "1772355600000"}}, id={"$oid": "65f"}).encode()),
        ("log.csv", f"\n{HEADER}\n\na,b,true,1,,,\n\n".encode()),
        ("log.csv", f'"{HEADER.replace(",", chr(34) + "," + chr(34))}"\n"a\nb","c","true","1","","",""\n'.encode()),
        ("log.csv", f"{HEADER}\na,b,true,1,,,".encode("utf-16")),
        ("log.jsonl.bz2", bz2.compress(lines({}).encode())),
        ("log.json", json.dumps([GOOD]).encode()),
        ("log.jsonl", lines({}).replace("\n", "\r\n").encode("utf-8-sig")),
    ],
)  # fmt: skip
def test_the_content_says_what_a_file_is(name: str, content: bytes, tmp_path: Path, config: Config) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert len(list(read_log_file(path, config.database))) == 1


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("log.jsonl", b"", "is empty"),
        ("log.csv", b" \n\n", "is empty"),
        ("log.csv", f"{HEADER}\n".encode(), "has no rows"),
        ("log.json", b"[]", "has no rows"),
        ("log.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        ("log.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS pointer"),
        ("log.parquet", b"PAR1 and then nothing", "is not Parquet"),
        ("log.parquet", WITH_BROKEN_NAME, "is not Parquet"),
        ("log.parquet", b"something else", "is not Parquet"),
        ("log.xlsx", b"PK\x03\x04....", "is a spreadsheet"),
        ("log.db", b"SQLite format 3\x00", "is a SQLite database"),
        ("log.csv", b"query_text,tool_used\ra,b\rc,d\r", "end in CR alone"),
        ("log.csv", b"query_text,tool_used,tool_used\na,b,c\n", "two columns 'tool_used'"),
        ("log.csv", b"<!DOCTYPE html><html>", "is an HTML page"),
        ("log.jsonl", b'{"query_text": "a",\n "tool_used": "b"}\n', "line 1 is not JSON"),
        ("log.jsonl.gz", b"\x1f\x8b\x08\x00broken", "cannot be unpacked"),
        ("log.csv", b"# exported on Monday\nquery_text,tool_used\na,b\n", "names its columns on line 2"),
        ("log.csv", b"Query log;\n\nquery_text;tool_used\na;b\n", "names its columns on line 3"),
        ("log.pkl", b"\x80\x04\x95\x00\x00", "is not text: it has zero bytes"),
        ("log.csv", b"17,where is it,web_search,0.9\n18,a,b,0.8\n", "put a line with the columns' names above them"),
        ("log.csv", b"mail ana.berg@example.org please,web_search\n", "mail <EMAIL_1> please"),
        ("log.jsonl", b'{"_id": "1", "_source": {"query_text": "a"}}\n', r"jq -c '\._source'"),
        ("log.json", b'{"hits": {"hits": [{"_source": {"query_text": "a"}}]}}', r"jq -c '\.hits\.hits\[\]\._source'"),
        ("log.json", b'[{"log entry": {"query_text": "a"}}]', r"""jq -c '\.\[\]\."log entry"'"""),
        ("log.json", b'{"0": {"query_text": "a"}, "1": {"query_text": "b"}}', r"jq -c '\.\[\]'"),
    ],
)  # fmt: skip
def test_what_is_no_log_is_refused(name: str, content: bytes, found: str, tmp_path: Path, config: Config) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=found):
        list(read_log_file(path, config.database))


def test_parquet_of_any_column_types_is_read(tmp_path: Path, config: Config) -> None:
    first = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
    count = 4
    table = pyarrow.table({
        "query_text": pyarrow.array([b"query 1", "q\u00fcery 2".encode(), b"\xff", None], pyarrow.binary()),
        "tool_used": pyarrow.array(["web_search"] * count).dictionary_encode(),
        "success": pyarrow.array([1, 1, 1, None], pyarrow.int8()),
        "result_quality": pyarrow.array([Decimal("0.70")] * count, pyarrow.decimal128(4, 2)),
        "timestamp": pyarrow.array([first] * count, pyarrow.timestamp("ns", "America/Lima")),
        "session_id": pyarrow.array([1.0, 2.0, None, 3.0]),
        "error_message": pyarrow.nulls(count),
        "more": pyarrow.array([[{"a": 1}]] * count),
    })  # fmt: skip
    path = tmp_path / "log.pq"
    pyarrow.parquet.write_table(table, path)
    findings = LogFindings("log")
    settings = config.database
    records = list(read_log_file(path, settings, findings))
    expected = [("query 1", "1"), ("qüery 2", "2")]
    assert [(record.query, record.session) for record in records] == expected
    assert {record.timestamp for record in records} == {datetime(2026, 3, 1, 9, 0)}
    assert findings.bad == {"unreadable_query": 1}


def test_times_beyond_what_python_holds_cost_their_row(tmp_path: Path, config: Config) -> None:
    times = pyarrow.array([0, 2**62, 1_000_000, 2_000_000], pyarrow.timestamp("us"))
    table = pyarrow.table({"query_text": ["a", "b", "c", "d"], "tool_used": ["t"] * 4, "timestamp": times})
    pyarrow.parquet.write_table(table, tmp_path / "log.parquet")
    findings = LogFindings("log")
    records = list(read_log_file(tmp_path / "log.parquet", config.database, findings))
    assert [record.query for record in records] == ["d", "c", "a"]
    assert findings.bad == {"unreadable_row": 1}


def test_mutated_exports_are_read_or_refused(tmp_path: Path, config: Config) -> None:
    random_ = random.Random(11)
    tokens = (b'"', b"\n", b"\x00", b"{", b"[", b",", b";", b"\\", b"\xff\xfe", b"NaN", b"1e999", b"\r",
              b"\x1f\x8b", b"[[" * 300)  # fmt: skip
    cases = sorted(CASES.iterdir())
    for _ in range(150):
        case = random_.choice(cases)
        content = bytearray(case.read_bytes())
        for _ in range(random_.choice((1, 2, 9))):
            at = random_.randrange(len(content))
            length = random_.choice((0, 1, 50))
            content[at : at + length] = random_.choice((*tokens, random_.randbytes(1), b""))
        path = tmp_path / case.name
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            read(path, config)


# ---- broken rows ----------------------------------------------------------------------------------------


def test_the_text_format_of_databases_is_read_with_its_escapes(tmp_path: Path, config: Config) -> None:
    queries = ["C:\\temp\\new", "one\ntwo", "a\tb", '"quoted"', 'say "hi"', "\\N is null", "plain"]
    escaped = [query.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") for query in queries]
    body = "".join(f"{query}\tweb_search\t\\N\n" for query in [*escaped, "two\\\nlines", "tab\\\there"])
    path = tmp_path / "log.tsv"
    path.write_text(f"query_text\ttool_used\terror_message\n{body}\\.\n")
    findings = LogFindings(str(path))
    records = list(read_log_file(path, config.database, findings))
    assert sorted(record.query or "" for record in records) == sorted([*queries, "two\nlines", "tab\there"])
    assert not findings.bad
    assert "text format" in findings.formats[0]


def test_tabs_with_quotes_are_csv_whatever_stands_for_null(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "log.tsv"
    path.write_text('query_text\ttool_used\terror_message\n"say ""hi"""\tb\t\\N\nC:\\new\tb\t\\N\n')
    assert {record.query for record in read_log_file(path, config.database)} == {'say "hi"', "C:\\new"}


def test_a_broken_row_of_csv_costs_that_row_alone(tmp_path: Path, config: Config) -> None:
    random_ = random.Random(3)
    for _ in range(60):
        broken = {
            '"never closed,b', 'x,"y', '"a"b,c', "only one", "a,b,c", '"two\nlines",b,c', '"a","b', 'a,"b"c',
        }  # fmt: skip
        rows: list[str] = [f"good {number},tool" for number in range(12)]
        some = random_.sample(sorted(broken), 4)
        for text in some:
            rows.insert(random_.randrange(len(rows) + 1), text)
        path = tmp_path / "log.csv"
        path.write_text("query_text,tool_used\n" + "\n".join(rows) + "\n")
        findings = LogFindings("log")
        found = {record.query for record in read_log_file(path, config.database, findings)}
        assert {f"good {number}" for number in range(12)} <= found, (rows, found)


def test_rows_are_numbered_by_the_line_they_begin_on() -> None:
    text = 'a,b\n"1\n2",x\n\nbad\ny,z\n'
    assert [(row.line, bool(row.problem)) for row in csv_rows(text.splitlines(keepends=True))] == [
        (1, False), (2, False), (5, True), (6, False),
    ]  # fmt: skip


def test_bad_rows_are_counted_by_reason_and_the_first_are_named(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "log.jsonl"
    bad = [{"success": "maybe"}, {"result_quality": "good"}, {"timestamp": "yesterday"}]
    path.write_text(lines(*({"query_text": f"q{n} about lease {n}"} for n in range(6)), *bad) + "{broken\n")
    curated, messages = read(path, config)
    assert curated.read == 10
    assert curated.rejected.items() >= {"unreadable_success": 1, "unreadable_quality": 1, "not_json": 1}.items()
    assert "4 of 10 rows of the log cannot be read" in messages[-1]
    assert f"{path}:7: success 'maybe' is neither true nor false" in messages[-1]
    assert f"{path}:10: is not JSON" in messages[-1]


def test_a_log_of_which_most_rows_are_bad_is_refused(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines({}, *({"success": "done well"} for _ in range(3))))
    with pytest.raises(UserError, match="3 of 4 rows cannot be read"):
        read(path, config)


@pytest.mark.parametrize(
    ("qualities", "said"),
    [
        ((1, 2, 3, 4, 5), "go from 1 to 5, and .*min_result_quality=3.8"),
        ((10, 55, 100), "go from 10 to 100"),
        ((0.1, 0.2), "none reaches"),
        ((0.7, 1.0), None),
    ],
)
def test_qualities_on_another_scale_are_warned_of(
    qualities: Iterable[float], said: str | None, tmp_path: Path, config: Config
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(*({"result_quality": value, "query_text": f"lease {value}"} for value in qualities)))
    _, messages = read(path, config)
    found = [message for message in messages if "the qualities" in message]
    assert bool(found) == (said is not None)
    assert said is None or re.search(said, found[0])


def test_stars_are_filtered_by_a_threshold_in_stars(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines(*({"result_quality": stars, "query_text": f"lease {stars}"} for stars in range(1, 6))))
    settings = with_settings(config, "database.filters.min_result_quality=4").database
    assert [record.quality for record in read_log_file(path, settings)] == [4.0, 5.0]


def test_logged_names_of_unknown_tools_are_listed_with_how_to_map_them(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(lines({"tool_used": "google"}, {"tool_used": "google"}, {"tool_used": "w\ud83d\x1b[31m"}))
    _, messages = read(path, config)
    said = next(message for message in messages if "logged tools" in message)
    assert "'google' 2" in said
    assert "database.tool_names" in said
    assert said.isascii()
    assert "\x1b" not in said
    curated, _ = read(path, config, "database.tool_names={google: web_search}")
    assert len(curated.rows) == 1


def test_escapes_that_stay_as_they_are_are_said(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "log.tsv"
    path.write_text("query_text\ttool_used\terror_message\none\\ntwo\tweb_search\tNULL\n")
    findings = LogFindings(str(path))
    assert [record.query for record in read_log_file(path, config.database, findings)] == ["one\\ntwo"]
    assert "mysql --batch" in findings.notes[0]


def test_a_row_with_a_key_given_twice_is_left_out(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(
        lines({"query_text": "a"}, {"query_text": "b"}, {"query_text": "c"})
        + '{"query_text": "x", "query_text": "y"}\n'
    )
    findings = LogFindings(str(path))
    assert len(list(read_log_file(path, config.database, findings))) == 3
    assert findings.bad == {"key_given_twice": 1}
