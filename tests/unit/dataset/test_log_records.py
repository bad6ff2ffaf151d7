"""What logged values mean, whatever their type."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tool_aware.config.settings import Config
from tool_aware.dataset.log_findings import LogFindings
from tool_aware.dataset.log_records import FieldProblem, LoggedRow, kept_records, record_of

NINE = datetime(2026, 3, 1, 9, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-01T09:00:00Z", NINE), ("2026-03-01T09:00:00z", NINE), ("2026-03-01 09:00:00+00", NINE),
        ("2026-03-01 10:30:00+0130", NINE), ("2026-03-01 09:00:00 UTC", NINE), ("2026-03-01 09:00:00 +0000", NINE),
        ("2026-03-01 09:00:00 +0000 UTC", NINE), ("2026-03-01T09:00", NINE), ("20260301T090000Z", NINE),
        ("01.03.2026 09:00", NINE), ("1.3.2026, 9:00:00", NINE), ("01.03.2026", datetime(2026, 3, 1)),
        ("2026/03/01 09:00:00.000", NINE), ("2026/3/1", datetime(2026, 3, 1)), ("Mar 1, 2026 @ 09:00:00.000", NINE),
        ("2026-03-01 09:00:00.000000000", NINE), ("2026-03-01", datetime(2026, 3, 1)), (20260301, datetime(2026, 3, 1)),
        ("Sun, 01 Mar 2026 09:00:00 GMT", NINE), ("1 Mar 2026 10:00:00 +0100", NINE),
        ("Sun Mar 01 2026 10:00:00 GMT+0100 (Central European Standard Time)", NINE),
        (1772355600, NINE), (1772355600.0, NINE), ("1772355600", NINE), (1772355600000, NINE),
        (1772355600000000, NINE), (1772355600000000000, NINE), (Decimal("1772355600.5"), NINE + timedelta(seconds=0.5)),
        ("infinity", datetime.max), ("-infinity", datetime.min), ("", None), ("NaT", None), ("\\N", None),
        (float("nan"), None), (None, None),
    ],
)  # fmt: skip
def test_times_are_read_in_the_forms_that_exports_have(text: Any, expected: datetime | None) -> None:
    assert record_of({"timestamp": text}).timestamp == expected


@pytest.mark.parametrize(
    "value",
    ["3/1/2026", "31.02.2026", "03.2026", "2026/13/01", "soon", 46082.375, 12, -5, 10**25, "9999-99-99", True, [1],
     {"a": 1}, "10000-01-01 00:00:00", "0044-03-15T00:00:00 BC", "1e400", "\ud83d"],
)  # fmt: skip
def test_a_time_that_could_mean_something_else_is_not_guessed(value: Any) -> None:
    with pytest.raises(FieldProblem, match="timestamp"):
        record_of({"timestamp": value})


def test_a_time_that_is_refused_is_shown() -> None:
    with pytest.raises(FieldProblem, match=r"'03/01/2026 09:14:00'"):
        record_of({"timestamp": "03/01/2026 09:14:00"})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("success", 1, True), ("success", 0.0, False), ("success", Decimal("1.0"), True), ("success", " TRUE ", True),
        ("success", "ok", True), ("success", "None", None), ("success", float("nan"), None), ("success", "off", False),
        ("success", "WAHR", True), ("success", "FALSCH", False), ("success", "Vrai", True), ("success", "\x00", False),
        ("success", "-", None), ("error", "-", None), ("error", "--", "--"),
        ("quality", "0,85", 0.85), ("quality", "85%", 0.85), ("quality", "$0.85", 0.85), ("quality", "NaN", None),
        ("quality", ".5", 0.5), ("quality", "5e-1", 0.5), ("quality", 4, 4.0), ("quality", "1", 1.0),
        ("session", 7.0, "7"), ("session", "7.0", "7"), ("session", float("nan"), None), ("session", "null", None),
        ("tool", '"web"', "web"), ("tool", " web ", "web"), ("tool", "NULL", None),
        ("query", "none", "none"), ("query", "NULL", None), ("query", "\\x6869", "hi"), ("query", b"hi", "hi"),
        ("query", 17, "17"), ("query", "\\x", "\\x"),
        ("error", {}, None), ("error", [], None), ("error", "\\N", None), ("error", False, None), ("error", "0", None),
        ("error", " ", None), ("error", "timeout", "timeout"), ("error", {"a": 1}, "{'a': 1}"), ("error", True, "true"),
    ],
)  # fmt: skip
def test_values_are_read_as_what_they_mean(field: str, value: Any, expected: Any) -> None:
    assert getattr(record_of({field: value}), field) == expected


def test_no_value_of_any_field_ends_the_reading(config: Config) -> None:
    values: list[Any] = [
        None, True, 0, -1, 10**400, 1.5, float("nan"), float("inf"), Decimal("sNaN"), Decimal("Infinity"), "", " ",
        "\x00", "\ud83d", "\\x", "\\xzz", "\\xff", b"\xff", b"", [], [1], {}, {"a": [None]}, "9" * 5000, "١٢", "1_0",
        "%", "$", "€ ", "0,", ",5", "1,234", "1e999", "-", "+", "2026-W01-1", "24:00", "2026-03-01T25:00:00",
        "0000-00-00 00:00:00", "Thu, 99 Foo 2026 00:00:00 +0000", "1 Jan 20260 00:00:00 +9999",
        datetime.max.replace(tzinfo=UTC), "a" * 10**6,
    ]  # fmt: skip
    fields = ("query", "tool", "success", "quality", "timestamp", "session", "error")
    for field in fields:
        for value in values:
            findings = LogFindings("log")
            list(kept_records([LoggedRow(1, {field: value})], config.database, findings))
            assert findings.read == 1
            assert all(len(message) < 300 for message in findings.messages(config.database.filters))
