"""Reads the agent's query log from PostgreSQL; log_files.py reads one from a file with the same columns.

Reading is read-only and bounded: one page of rows in memory, a time limit for each page and for the whole. Where the
table has a number as its id, pages continue after the last id seen, so a lost connection costs one page and no row is
read twice or left out. Without one a server-side cursor is used, which cannot be resumed.

The server sends each row as a JSON array, so values of any type arrive as they would from a JSON Lines export, whatever
the session's time zone, date style or encoding.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tool_aware.config.data_sections import DatabaseSection
from tool_aware.config.environment import Environment
from tool_aware.console import UserError, warn
from tool_aware.database import DatabaseUnreachable, begin, close_quietly, connect_to_database, identifier
from tool_aware.dataset.log_findings import LogFindings, absent_fields, refuse_missing_columns
from tool_aware.dataset.log_records import (
    BLANKS,
    LONGEST_NO_ERROR,
    FieldProblem,
    LoggedRow,
    LogRecord,
    in_utc,
    kept_records,
)
from tool_aware.dataset.newest_first import newest_first, once_all_are_read
from tool_aware.dataset.older_turns import with_older_turns
from tool_aware.dataset.session_turns import SessionTurns

RECONNECTS = 5  # in a row without a page in between
RECONNECT_PAUSE_S = 0.5  # doubled each time

# SQLSTATE classes and codes, https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNDEFINED_TABLE, _UNDEFINED_COLUMN, _INVALID_SCHEMA = "42P01", "42703", "3F000"
_INSUFFICIENT_PRIVILEGE, _QUERY_CANCELED = "42501", "57014"

# Names of types as format_type() writes them.
_INTEGERS = frozenset(("smallint", "integer", "bigint", "numeric"))
_FLOATS = _INTEGERS | {"real", "double precision"}
_TEXTS = frozenset(("text", "character varying", "character"))
_LOCAL_TIMES, _ZONED_TIMES = "timestamp without time zone", "timestamp with time zone"
_TIMES = frozenset((_LOCAL_TIMES, _ZONED_TIMES, "date"))
_REAL_PRECISION = 1e-6  # relative: a quality of 0.7 is 0.69999999 as a real

_SELECTED = ("query", "tool", "success", "quality", "timestamp", "session", "error", "id")
_COLUMN_TYPES = """
SELECT attname, format_type(CASE typtype WHEN 'd' THEN typbasetype ELSE atttypid END, NULL), attnotnull
FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid
WHERE attrelid = to_regclass(quote_ident(%s) || '.' || quote_ident(%s)) AND attnum > 0 AND NOT attisdropped
"""
_HIDES_ROWS = "SELECT row_security_active(to_regclass(quote_ident(%s) || '.' || quote_ident(%s))::oid)"
_NAMESAKES = """
SELECT nspname, relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE lower(relname) = lower(%s) AND relkind IN ('r', 'v', 'm', 'f', 'p') ORDER BY 1, 2 LIMIT 3
"""


@dataclass(frozen=True)
class _Table:
    """The table as the server describes it: the type of each field's column, and how its text is encoded."""

    types: Mapping[str, str]
    id_may_be_null: bool
    is_sql_ascii: bool
    hides_rows: bool
    """Whether row-level security chooses the rows that this user sees."""

    @property
    def has_numeric_id(self) -> bool:
        return self.types.get("id") in _INTEGERS

    @property
    def is_ordered_by_server(self) -> bool:
        """Return whether the server can sort by what newest_first sorts by."""
        return self.has_numeric_id or self.types.get("timestamp", "date") in _TIMES


def read_query_log(
    settings: DatabaseSection,
    environment: Environment,
    findings: LogFindings | None = None,
    turns: SessionTurns | None = None,
    *,
    connect: Callable[[], Any] | None = None,
) -> Iterator[LogRecord]:
    """Yield the rows that pass `settings.filters`, newest first: by a number as id, else by time.

    `turns` are complete when the first record comes. Raises DatabaseUnreachable if no server answers, and UserError for
    a refused password, a missing table or column, missing rights, a time limit, or rows most of which cannot be read.
    No message holds the password. `connect` replaces the connection in tests.
    """
    findings = findings or LogFindings(f"{settings.schema_name}.{settings.table}")
    absent = absent_fields(settings)
    has_turns = turns is not None and not absent & {"session", "timestamp"}
    reader = _Reader(settings, connect or (lambda: connect_to_database(settings, environment)), has_turns=has_turns)
    try:
        rows = reader.rows()
        keyed = kept_records(rows, settings, findings, absent, turns)
        table = reader.described()
        if table.hides_rows:
            name = f"{settings.schema_name}.{settings.table}"
            findings.notes.append(f"{name} has row-level security: only the rows that POSTGRES_USER may see are read")
        records = (record for _, record in keyed) if table.is_ordered_by_server else newest_first(keyed)
        records = islice(records, settings.filters.limit)
        if turns is not None:
            records = once_all_are_read(with_older_turns(records, rows, settings, turns))
        yield from records
    except DatabaseUnreachable as error:
        if not reader.has_answered:
            raise
        fix = "run again when it is back"  # the log exists, so its rows must not be left out
        raise UserError(f"the server is gone: {error.what}", where=error.where, fix=fix) from None
    except UserError:
        raise
    except Exception as error:
        raise _explained(error, settings) from None
    finally:
        reader.close()
    findings.refuse_if_mostly_bad()


# ---- errors ---------------------------------------------------------------------------------------------


def _explained(error: Exception, settings: DatabaseSection) -> Exception:
    """Return the UserError that a server's error amounts to; other errors are returned as they are."""
    code = getattr(error, "pgcode", None)
    table = f"{settings.schema_name}.{settings.table}"
    what = (str(error).strip() or type(error).__name__).splitlines()[0]
    if code in (_UNDEFINED_TABLE, _INVALID_SCHEMA):
        return UserError(f"no table {table}", where="database.table", fix="name your query log's schema_name and table")
    if code == _UNDEFINED_COLUMN:
        return UserError(
            f"{table}: {what}",
            where="database.columns",
            fix="name your columns there; null for an optional one that is missing",
        )
    if code == _INSUFFICIENT_PRIVILEGE:
        grants = f"GRANT USAGE ON SCHEMA {settings.schema_name} and GRANT SELECT ON {table}"
        return UserError(what, where=table, fix=f"{grants} to the user in POSTGRES_USER, whichever is missing")
    if code == _QUERY_CANCELED:
        return UserError(
            "one page took longer than database.statement_timeout_s",
            where=table,
            fix="raise it, lower database.fetch_size, or index the id column",
        )
    if code is not None or _is_lost(error):
        return UserError(what, where=table, fix="look at the server's log, or run again")
    return error


# ---- pages ----------------------------------------------------------------------------------------------


class _Reader:
    """Reads one table over one connection at a time."""

    def __init__(self, settings: DatabaseSection, open_connection: Callable[[], Any], *, has_turns: bool) -> None:
        self._settings, self._open, self._has_turns = settings, open_connection, has_turns
        self._deadline_s = time.monotonic() + settings.deadline_s
        self._connection: Any = None
        self._table: _Table | None = None

    def described(self) -> _Table:
        """Return what the server says about the table. Raises UserError if it, or a column, does not exist."""
        if self._table is None:
            self._table = _describe(self._connected(), self._settings)
        return self._table

    @property
    def has_answered(self) -> bool:
        """Return whether the server has described the table."""
        return self._table is not None

    def rows(self) -> Iterator[LoggedRow]:
        """Yield all rows that may pass the filters."""
        table = self.described()
        if not table.has_numeric_id:
            yield from self._through_cursor()
            return
        yield from self._through_pages()
        if table.id_may_be_null:
            yield from self._through_cursor(without_id=True)

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        close_quietly(connection)

    def _connected(self) -> Any:
        """Return a connection in a transaction that has its time limit."""
        if self._connection is None:
            self._connection = self._open()
            encoding = self._connection.info.parameter_status("server_encoding")
            if encoding != "SQL_ASCII":  # the server cannot convert from that: it has bytes, not characters
                self._connection.set_client_encoding("UTF8")
        begin(self._connection, self._settings)
        return self._connection

    def _through_pages(self) -> Iterator[LoggedRow]:
        """Yield rows by descending id, in pages that are each requested by the last id of the page before.

        Ids may occur several times. So a full page is used only as far as its last id but one: rows with the last one
        may follow.
        """
        last_id, read, failures = None, 0, 0
        size = max(2, self._settings.fetch_size)
        while True:
            self._check_deadline()
            try:
                page = self._page(last_id, size)
            except Exception as error:
                failures += 1
                if not _is_lost(error) or last_id is None or failures > RECONNECTS:
                    raise
                warn(f"the connection was lost after {read} rows; reconnecting")
                self.close()
                pause_s = RECONNECT_PAUSE_S * 2 ** (failures - 1)
                time.sleep(min(pause_s, max(0.0, self._deadline_s - time.monotonic())))
                continue
            failures = 0
            is_last = len(page) < size
            whole = page if is_last else [row for row in page if row[1] != page[-1][1]]
            if whole:
                read, last_id = read + len(whole), whole[-1][1]
                yield from (_logged_row(row[0], f"id {row[1]}") for row in whole)
            else:
                size *= 2
            if is_last:
                return

    def _page(self, last_id: object, size: int) -> list[Any]:
        table, connection = self.described(), self._connected()
        with connection.cursor() as cursor:
            cursor.execute(*_page_query(self._settings, table, last_id=last_id, size=size, has_turns=self._has_turns))
            rows: list[Any] = cursor.fetchall()
        connection.rollback()
        return rows

    def _through_cursor(self, *, without_id: bool = False) -> Iterator[LoggedRow]:
        """Yield the rows of one server-side cursor: those without an id, or all of a table without numbers as ids."""
        table, connection = self.described(), self._connected()
        number = 0
        with connection.cursor(name="query_log") as cursor:
            cursor.execute(*_page_query(self._settings, table, without_id=without_id, has_turns=self._has_turns))
            while page := cursor.fetchmany(self._settings.fetch_size):
                self._check_deadline()
                for number, row in enumerate(page, start=number + 1):  # noqa: B020 - goes on counting
                    yield _logged_row(row[0], f"row {number}{' without an id' if without_id else ''}")

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline_s:
            raise UserError(
                f"reading took longer than {self._settings.deadline_s} s",
                where="database.deadline_s",
                fix="raise it, or read less: database.filters.since or .limit",
            )


def _describe(connection: Any, settings: DatabaseSection) -> _Table:
    columns = {field: column for field, column in settings.columns.model_dump().items() if column}
    name = f"{settings.schema_name}.{settings.table}"
    with connection.cursor() as cursor:
        cursor.execute(_COLUMN_TYPES, [settings.schema_name, settings.table])
        found = {column: (kind, is_never_null) for column, kind, is_never_null in cursor.fetchall()}
        cursor.execute(_NAMESAKES, [settings.table])
        namesakes = [f"{schema}.{table}" for schema, table in cursor.fetchall()]
        cursor.execute(_HIDES_ROWS, [settings.schema_name, settings.table])
        hides_rows = bool(cursor.fetchone()[0])
    connection.rollback()
    if not found:
        hint = f"there is {', '.join(namesakes)}; " if namesakes else ""
        if not namesakes and re.fullmatch(r"\w+\.\w+", settings.table):
            schema, _, table = settings.table.partition(".")
            hint = f"--set database.schema_name={schema} --set database.table={table}, if that is meant; else "
        fix = f"{hint}name your query log's schema_name and table"
        raise UserError(f"no table {name}", where="database.table", fix=fix)
    refuse_missing_columns(columns, list(found), f"{name}, database.columns", optional=False)
    return _Table(
        types={field: found[column][0] for field, column in columns.items()},
        id_may_be_null="id" in columns and not found[columns["id"]][1],
        is_sql_ascii=connection.info.parameter_status("server_encoding") == "SQL_ASCII",
        hides_rows=hides_rows,
    )


def _logged_row(sent: Any, place: str) -> LoggedRow:
    """Return a row as the server sent it: a JSON array, in bytes where the database does not know their encoding."""
    try:
        text = sent if isinstance(sent, str) else bytes(sent).decode()
        return LoggedRow(place, dict(zip(_SELECTED, json.loads(text), strict=True)))
    except UnicodeDecodeError:
        what = "has bytes that are not UTF-8, in a database of encoding SQL_ASCII"
        return LoggedRow(place, {}, FieldProblem("not_utf8", what))
    except (ValueError, RecursionError) as error:
        return LoggedRow(place, {}, FieldProblem("unreadable_row", f"cannot be read: {error}"))


# ---- queries --------------------------------------------------------------------------------------------


def _page_query(
    settings: DatabaseSection,
    table: _Table,
    *,
    last_id: object = None,
    size: int | None = None,
    without_id: bool = False,
    has_turns: bool = False,
) -> tuple[Any, list[Any]]:
    """Return the SELECT and its values. Names are quoted as identifiers and values bound, so neither can inject SQL."""
    from psycopg2 import sql

    columns = {field: identifier(column) for field, column in settings.columns.model_dump().items() if column}
    row = sql.SQL(", ").join(_sent(field, table, columns) for field in _SELECTED)
    sent = "textsend(json_build_array({})::text)" if table.is_sql_ascii else "json_build_array({})::text"
    selected: list[Any] = [sql.SQL(sent).format(row)]
    conditions, values = _reduced_transfer(settings, table, columns, has_turns=has_turns)
    order: list[Any] = []
    if table.has_numeric_id and not without_id:
        selected.append(columns["id"])
        conditions.append(sql.SQL("{} IS NOT NULL").format(columns["id"]))
        if last_id is not None:
            conditions.append(sql.SQL("{} < %s").format(columns["id"]))
            values.append(last_id)
        order.append(sql.SQL("{} DESC").format(columns["id"]))
    else:
        if without_id:
            conditions.append(sql.SQL("{} IS NULL").format(columns["id"]))
        if table.types.get("timestamp") in _TIMES:
            order.append(sql.SQL("{} DESC NULLS LAST").format(columns["timestamp"]))
        if "id" in columns and not without_id:
            order.append(sql.SQL('{}::text COLLATE "C" DESC NULLS LAST').format(columns["id"]))
    source = sql.SQL(".").join([identifier(settings.schema_name), identifier(settings.table)])
    query = sql.SQL("SELECT {} FROM {} WHERE {}").format(
        sql.SQL(", ").join(selected), source, sql.SQL(" AND ").join(conditions)
    )
    if order and table.is_ordered_by_server:
        query += sql.SQL(" ORDER BY ") + sql.SQL(", ").join(order)
    if size is not None:
        query += sql.SQL(" LIMIT %s")
        values.append(size)
    return query, values


def _sent(field: str, table: _Table, columns: Mapping[str, Any]) -> Any:
    """Return a field as the server is to send it: bytes in hexadecimal, whatever the session's bytea_output is."""
    from psycopg2 import sql

    if field not in columns:
        return sql.SQL("NULL::text")
    is_bytes = table.types[field] == "bytea"
    return sql.SQL("'\\x' || encode({}, 'hex')").format(columns[field]) if is_bytes else columns[field]


def _reduced_transfer(
    settings: DatabaseSection, table: _Table, columns: Mapping[str, Any], *, has_turns: bool
) -> tuple[list[Any], list[Any]]:
    """Return conditions, and their values, that keep rows on the server which `reason_to_leave_out` would leave out.

    They never leave out another: where the type of a column leaves doubt, Python decides alone. With `has_turns` rows
    with session and time are sent all the same.
    """
    from psycopg2 import sql

    filters, types = settings.filters, table.types
    conditions: list[Any] = []
    values: list[Any] = []
    if filters.only_success and types.get("success") == "boolean":
        conditions.append(columns["success"])
    if filters.min_result_quality is not None and types.get("quality") in _FLOATS:
        least = filters.min_result_quality
        conditions.append(sql.SQL("{} >= %s").format(columns["quality"]))
        values.append(least - abs(least) * _REAL_PRECISION)
    if types.get("error") in _TEXTS:
        short = sql.SQL("({0} IS NULL OR length(btrim({0}, %s)) <= %s)")
        conditions.append(short.format(columns["error"]))
        values += [BLANKS, LONGEST_NO_ERROR]
    if has_turns and conditions:
        is_turn = sql.SQL("{} IS NOT NULL AND {} IS NOT NULL").format(columns["session"], columns["timestamp"])
        conditions = [sql.SQL("({} OR {})").format(sql.SQL(" AND ").join(conditions), is_turn)]
    conditions.append(sql.SQL("{} IS NOT NULL").format(columns["query"]))
    if filters.since is not None and types.get("timestamp") in (_LOCAL_TIMES, _ZONED_TIMES):
        since = in_utc(filters.since)
        zone = "" if types["timestamp"] == _LOCAL_TIMES else "+00"
        conditions.append(sql.SQL("{} >= %s::" + types["timestamp"]).format(columns["timestamp"]))
        values.append(f"{since.isoformat()}{zone}")
    return conditions, values


def _is_lost(error: Exception) -> bool:
    import psycopg2

    if isinstance(error, DatabaseUnreachable):
        return True
    if not isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return False
    return error.pgcode in (None, "57P01", "57P02", "57P03", "08006", "08003", "08000")
