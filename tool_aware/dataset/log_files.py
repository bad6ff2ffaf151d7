"""Reads a query log from a file, one row at a time: JSON Lines, CSV or Parquet with the columns of the table."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tool_aware.config.data_sections import DatabaseSection
from tool_aware.console import UserError
from tool_aware.dataset.query_log import LogRecord

_TRUE, _FALSE = {"true", "t", "1", "yes"}, {"false", "f", "0", "no"}
_BATCH_ROWS = 10_000


def read_log_file(path: Path, settings: DatabaseSection) -> Iterator[LogRecord]:
    """Yield the records of an export, newest first where it was exported that way; filters are those of the database.

    Raises UserError for a missing file, an unknown ending, a missing column, or a line that cannot be read.
    """
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if not path.is_file():
        raise UserError("not found", where=str(path), fix="name an export with --logs FILE")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path.suffix or 'no ending'} is not a known kind of file",
            where=str(path),
            fix=f"use one of {', '.join(readers)}",
        )
    names = {field: column for field, column in settings.columns.model_dump().items() if column and field != "id"}
    filters, kept = settings.filters, 0
    for number, item in enumerate(reader(path), start=1):
        record = _record(item, names, f"{path}: row {number}")
        if filters.since and (record.timestamp is None or record.timestamp < filters.since.replace(tzinfo=None)):
            continue
        if filters.limit is not None and kept >= filters.limit:
            return
        kept += 1
        yield record


def _record(item: Mapping[str, Any], names: Mapping[str, str], where: str) -> LogRecord:
    missing = [names[field] for field in ("query", "tool") if names[field] not in item]
    if missing:
        raise UserError(f"no column {', '.join(missing)}", where=where, fix="name your columns in database.columns")
    values = {field: item.get(column) for field, column in names.items()}
    try:
        return LogRecord(
            query=_text(values["query"]),
            tool=_text(values["tool"]),
            success=_flag(values.get("success")),
            quality=_number(values.get("quality")),
            timestamp=_time(values.get("timestamp")),
            session=_text(values.get("session")),
            error=_text(values.get("error")),
        )
    except ValueError as error:
        raise UserError(str(error), where=where, fix="export the table again, or drop the row") from error


def _text(value: object) -> str | None:
    return None if value in (None, "") else str(value)


def _flag(value: object) -> bool | None:
    if value in (None, "") or isinstance(value, bool):
        return value if isinstance(value, bool) else None
    word = str(value).strip().lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"{value!r} is neither true nor false")
    return word in _TRUE


def _number(value: object) -> float | None:
    return None if value in (None, "") else float(str(value))


def _time(value: object) -> datetime | None:
    if value in (None, ""):
        return None
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"is not JSON: {error}", where=f"{path}:{number}", fix="one JSON object a line"
                ) from error
            if not isinstance(item, dict):
                raise UserError(
                    f"is {type(item).__name__}, not an object", where=f"{path}:{number}", fix="one JSON object a line"
                )
            yield item


def _csv(path: Path) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(10_000_000)
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError("reading Parquet needs pyarrow", where=str(path), fix="pip install pyarrow") from error
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise UserError(f"is not Parquet: {error}", where=str(path)) from error
