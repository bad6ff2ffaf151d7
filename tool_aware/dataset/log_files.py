"""Reads a query log from a file, one row at a time: JSON Lines, a JSON array, CSV or Parquet, with the table's columns.

What a file is, its content says, not its ending.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tool_aware.config.data_sections import DatabaseSection
from tool_aware.console import UserError
from tool_aware.dataset.csv_rows import DELIMITERS, CsvRow, csv_rows, has_escapes, is_text_format, text_format_rows
from tool_aware.dataset.log_findings import (
    LogFindings,
    absent_fields,
    refuse_missing_columns,
    refuse_since_without_time,
)
from tool_aware.dataset.log_records import (
    FieldProblem,
    LoggedRow,
    LogRecord,
    kept_records,
)
from tool_aware.dataset.newest_first import newest_first
from tool_aware.dataset.session_turns import SessionTurns
from tool_aware.text_files import JsonLine, json_items, lines_of, text_format

ENCODING_OPTION = "--encoding"
_ROWS_THAT_SHOW_COLUMNS = 1_000  # a key may be missing where it is null, so one object does not show them all
_LINES_ABOVE_HEADER = 20
_PARQUET_BATCH_ROWS = 10_000
_JSON_ENDINGS = (".json", ".jsonl", ".ndjson")
_COMPRESSED_ENDINGS = (".gz", ".bz2", ".xz")
# https://www.mongodb.com/docs/manual/reference/mongodb-extended-json/
_EXTENDED_JSON = ("$oid", "$date", "$numberLong", "$numberInt", "$numberDouble", "$numberDecimal", "$uuid")
_EXPORT_AGAIN = "export it as JSON Lines, CSV or Parquet"
_OTHER_KINDS = {  # first bytes, https://en.wikipedia.org/wiki/List_of_file_signatures
    b"SQLite format 3": "a SQLite database",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"PGDMP": "a dump of pg_dump",
}


@dataclass(frozen=True)
class _Source:
    """The columns of a file, its rows, and whether places are lines (`file:3`) or rows (`file: row 3`)."""

    columns: list[str]
    rows: Iterator[LoggedRow]  # values by column
    place: str


def read_log_file(
    path: Path,
    settings: DatabaseSection,
    findings: LogFindings | None = None,
    encoding: str | None = None,
    turns: SessionTurns | None = None,
) -> Iterator[LogRecord]:
    """Yield the records of an export that pass `settings.filters`, in the order in which a table is read: newest first.

    Raises UserError for a missing or empty file, one that is not a log, a missing column, or rows most of which cannot
    be read. `encoding` is that of text which is neither UTF-8 nor says what it is. `turns` are complete when the first
    record comes.
    """
    findings = findings or LogFindings(str(path))
    absent = absent_fields(settings)
    source = _open(path, settings, encoding, findings)
    findings.set_place(source.place)
    names = {field: column for field, column in settings.columns.model_dump().items() if column}
    missing = refuse_missing_columns(names, source.columns, str(path), optional=True)
    absent |= missing
    refuse_since_without_time(settings, absent)
    if told := [names[field] for field in names if field in missing - {"id"}]:
        findings.notes.append(f"{path} has no column {', '.join(told)}: nothing is filtered or grouped by it")
    keyed = kept_records(_by_field(source.rows, names), settings, findings, absent, turns)
    yield from islice(newest_first(keyed), settings.filters.limit)
    if not findings.read:
        raise UserError("has no rows", where=str(path), fix="name an export that has some")
    findings.refuse_if_mostly_bad()


def _by_field(rows: Iterable[LoggedRow], names: Mapping[str, str]) -> Iterator[LoggedRow]:
    for row in rows:
        yield LoggedRow(row.place, {field: row.values.get(column) for field, column in names.items()}, row.problem)


def _open(path: Path, settings: DatabaseSection, encoding: str | None, findings: LogFindings) -> _Source:
    if not path.is_file():
        raise UserError("is a folder" if path.is_dir() else "not found", where=str(path), fix="--logs names an export")
    with path.open("rb") as file:
        start = file.read(16)
    if not start.strip():
        raise UserError("is empty", where=str(path), fix="name an export that has rows")
    if start.startswith(b"PAR1"):
        return _parquet(path, settings)
    kind = next((name for magic, name in _OTHER_KINDS.items() if start.startswith(magic)), None)
    if start.startswith(b"PK\x03\x04") and path.suffix.lower() in (".xlsx", ".xlsm", ".ods"):
        kind = "a spreadsheet"
    if kind:
        raise UserError(f"is {kind}, which is not read", where=str(path), fix=_EXPORT_AGAIN)
    storage = text_format(path, encoding)
    if str(storage):
        findings.formats.append(f"{path} is read as {storage}")
    first = next((line for line in lines_of(path, encoding, option=ENCODING_OPTION) if line.strip()), "").lstrip()
    if not first:
        raise UserError("is empty", where=str(path), fix="name an export that has rows")
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _COMPRESSED_ENDINGS]
    if first[0] in "[{" or (endings and endings[-1] in _JSON_ENDINGS):
        return _json(path, settings.columns.query, encoding, is_array=first[0] == "[")
    if endings and endings[-1] == ".parquet":
        raise UserError("is not Parquet", where=str(path), fix="copy or download it again")
    return _csv(path, settings, encoding, findings, first)


# ---- JSON -----------------------------------------------------------------------------------------------


def _json(path: Path, wanted: str, encoding: str | None, *, is_array: bool) -> _Source:
    rows = map(_json_row, json_items(path, encoding, option=ENCODING_OPTION))
    shown = list(islice(rows, _ROWS_THAT_SHOW_COLUMNS))
    columns = list(dict.fromkeys(key for row in shown for key in row.values))
    if not columns:
        problem = next((row for row in shown if row.problem), None)
        what = f"{'item' if is_array else 'line'} {problem.place} {problem.problem}" if problem else "has no rows"
        raise UserError(what, where=str(path), fix="one JSON object a line (jq -c makes them), or an array of objects")
    if wanted not in columns and (inside := _path_within(shown[0].values, wanted)):
        inside = f".[]{inside}" if is_array else inside if inside.startswith(".") else f".{inside}"
        fix = f"write those rows alone: jq -c '{inside}' {path} > NEW"
        raise UserError(f"has the rows of the log within other objects, at {inside}", where=str(path), fix=fix)
    return _Source(columns, chain(shown, rows), "item " if is_array else ":")


def _path_within(value: Any, wanted: str, depth: int = 4) -> str | None:
    """Return the path, as jq has it, to the object, or the list of objects, with the key `wanted`; None without one."""
    if isinstance(value, Mapping) and wanted in value:
        return ""
    if not depth or not isinstance(value, Mapping | list) or not value:
        return None
    if isinstance(value, list):
        below = _path_within(value[0], wanted, depth - 1)
        return None if below is None else f"[]{below}"
    if len(value) > 1 and all(isinstance(item, Mapping) and wanted in item for item in value.values()):
        return "[]"
    for key, item in value.items():
        if (below := _path_within(item, wanted, depth - 1)) is not None:
            return f".{key if re.fullmatch(r'[A-Za-z_][A-Za-z0-9_]*', key) else json.dumps(key)}{below}"
    return None


def _plain(value: Any) -> Any:
    """Return what MongoDB's extended JSON stands for, `{"$date": {"$numberLong": "1772355600000"}}`."""
    while isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _EXTENDED_JSON:
        (value,) = value.values()
    return value


def _json_row(line: JsonLine) -> LoggedRow:
    if line.problem:
        return LoggedRow(line.number, {}, FieldProblem("not_json", line.problem))
    if not isinstance(line.value, dict):
        what = f"is {type(line.value).__name__}, not an object"
        return LoggedRow(line.number, {}, FieldProblem("not_an_object", what))
    if line.repeated:
        what = f"has {', '.join(map(repr, line.repeated))} twice: which one counts is not said"
        return LoggedRow(line.number, {}, FieldProblem("key_given_twice", what))
    values = {key: _plain(value) if isinstance(value, dict) else value for key, value in line.value.items()}
    return LoggedRow(line.number, values)


# ---- CSV ------------------------------------------------------------------------------------------------


def _csv(path: Path, settings: DatabaseSection, encoding: str | None, findings: LogFindings, first: str) -> _Source:
    if "\r" in first.rstrip("\r\n"):
        raise UserError("has lines that end in CR alone", where=str(path), fix=f"tr '\\r' '\\n' < {path} > NEW")
    lines = lines_of(path, encoding, option=ENCODING_OPTION)
    lines_before = 0
    if first.lower().startswith("sep="):  # Excel's
        lines_before = next(number for number, line in enumerate(lines, start=1) if line.strip())
        delimiter = first.rstrip("\r\n")[4:] or ","
    else:
        delimiter = _delimiter(first, [column for column in settings.columns.model_dump().values() if column])
    is_escaped = delimiter == "\t" and is_text_format(lines_of(path, encoding, option=ENCODING_OPTION))
    if is_escaped:
        findings.formats.append(
            f"{path} is read as PostgreSQL's and MySQL's text format: \\n, \\t and \\\\ are escapes"
        )
    elif delimiter == "\t" and has_escapes(lines_of(path, encoding, option=ENCODING_OPTION)):
        findings.notes.append(
            f"{path} has \\n or \\t spelled out in cells, which stay so; if `mysql --batch` wrote it, export with --raw"
        )
    elif delimiter != ",":
        findings.formats.append(f"{path} is read as CSV separated by {DELIMITERS.get(delimiter, repr(delimiter))}")
    rows = text_format_rows(lines) if is_escaped else csv_rows(lines, delimiter)
    header = next(rows, None)
    if not any(mark in first for mark in DELIMITERS) and path.suffix.lower() not in (".csv", ".tsv"):
        raise UserError("is not a known kind of file", where=str(path), fix=_EXPORT_AGAIN)
    if header is None or header.problem:
        what = f"has no header: it {header.problem}" if header else "has no header"
        raise UserError(what, where=str(path), fix=_EXPORT_AGAIN)
    twice = sorted({name for name in header.cells if header.cells.count(name) > 1} - {""})
    if twice:
        raise UserError(f"has two columns {', '.join(map(repr, twice))}", where=str(path), fix="rename one of them")
    columns = header.cells
    if settings.columns.query not in columns:
        _refuse_lines_above_header(path, [settings.columns.query, settings.columns.tool], encoding)
    return _Source(columns, (_csv_row(row, columns, lines_before) for row in rows), ":")


def _refuse_lines_above_header(path: Path, wanted: list[str], encoding: str | None) -> None:
    """Raise UserError if the columns are named further down: below a title or a comment, as reports have it."""
    beginning = islice(lines_of(path, encoding, option=ENCODING_OPTION), _LINES_ABOVE_HEADER)
    for number, line in enumerate(beginning, start=1):
        for delimiter in DELIMITERS:
            row = next(csv_rows([line], delimiter), None)
            if row and set(wanted) <= set(row.cells):
                what = f"names its columns on line {number}"
                raise UserError(what, where=str(path), fix="remove the lines above it")


def _delimiter(header: str, wanted: Iterable[str]) -> str:
    """Return the delimiter under which a header has most of the columns; of several the first."""
    names = {name.casefold() for name in wanted}

    def number_found(delimiter: str) -> int:
        row = next(csv_rows([header], delimiter), None)
        return len(names & {cell.strip().casefold() for cell in row.cells}) if row else 0

    return max(DELIMITERS, key=number_found)


def _csv_row(row: CsvRow, columns: list[str], lines_before: int) -> LoggedRow:
    place = row.line + lines_before
    if row.problem:
        return LoggedRow(place, {}, FieldProblem("not_csv", row.problem))
    return LoggedRow(place, dict(zip(columns, row.cells, strict=True)))


# ---- Parquet --------------------------------------------------------------------------------------------


def _parquet(path: Path, settings: DatabaseSection) -> _Source:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError("reading Parquet needs pyarrow", where=str(path), fix="pip install pyarrow") from error
    try:
        with ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"is not Parquet: {error}", where=str(path), fix="copy or export it again") from error
    wanted = [column for column in settings.columns.model_dump().values() if column in columns]
    return _Source(columns, _parquet_rows(path, wanted), "row ")


def _parquet_rows(path: Path, wanted: list[str]) -> Iterator[LoggedRow]:
    """Yield the rows of the wanted columns, a batch at a time."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_BATCH_ROWS, columns=wanted):
                columns = {name: _values(batch.column(name)) for name in wanted}
                for index in range(batch.num_rows):
                    number += 1
                    yield _parquet_row(number, {name: values[index] for name, values in columns.items()})
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        what = f"cannot be read behind row {number}: {error}"
        raise UserError(what, where=str(path), fix="copy or export it again") from error


def _parquet_row(number: int, values: Mapping[str, Any]) -> LoggedRow:
    broken = next((value for value in values.values() if isinstance(value, Exception)), None)
    if broken is not None:
        return LoggedRow(number, {}, FieldProblem("unreadable_row", f"cannot be read: {broken}"))
    return LoggedRow(number, values)


def _values(column: Any) -> list[Any]:
    """Return the values of a column as Python's; an exception in place of one that Python cannot hold."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_timestamp(column.type):  # nanoseconds need pandas, a zone's name the zone's rules
        zone = "UTC" if column.type.tz else None
        column = pc.cast(column, pa.timestamp("us", zone), safe=False)
    try:
        values = column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        values = [_value(scalar) for scalar in column]
    if pa.types.is_float32(column.type) or pa.types.is_float16(column.type):  # 0.7 is 0.699999988 there
        import numpy as np

        single = np.float32 if pa.types.is_float32(column.type) else np.float16
        values = [None if value is None else float(str(single(value))) for value in values]
    return list(values)


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:  # whatever a type's conversion raises costs this row only
        return error
