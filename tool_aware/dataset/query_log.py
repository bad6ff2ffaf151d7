"""Reads the agent's query log: from PostgreSQL in pages, or from a file with the same columns (log_files.py).

Reading is read-only and bounded: one page of rows in memory, a time limit for each page and for the whole. Where the
table has an indexed id, pages continue after the last id seen, so a lost connection costs one page and no row is read
twice or left out. Without an id a server-side cursor is used, which cannot be resumed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tool_aware.config.data_sections import DatabaseSection
from tool_aware.config.environment import Environment
from tool_aware.console import UserError, warn
from tool_aware.database import DatabaseUnreachable, begin, connect_to_database

RECONNECTS = 5  # in a row without a page in between
RECONNECT_PAUSE_S = 0.5  # doubled each time

# SQLSTATE classes and codes, https://www.postgresql.org/docs/current/errcodes-appendix.html
_UNDEFINED_TABLE, _UNDEFINED_COLUMN, _INVALID_SCHEMA = "42P01", "42703", "3F000"
_INSUFFICIENT_PRIVILEGE, _QUERY_CANCELED = "42501", "57014"


@dataclass(frozen=True)
class LogRecord:
    """One row of the query log. Columns the log does not have are None."""

    query: str | None
    tool: str | None
    success: bool | None = None
    quality: float | None = None
    timestamp: datetime | None = None
    session: str | None = None
    error: str | None = None


def read_query_log(
    settings: DatabaseSection, environment: Environment, *, connect: Callable[[], Any] | None = None
) -> Iterator[LogRecord]:
    """Yield the rows that pass `settings.filters`, newest first.

    Raises DatabaseUnreachable if no server answers, and UserError for a refused password, a missing table or column,
    missing rights, or a time limit. Neither message holds the password. `connect` replaces the connection in tests.
    """
    deadline_s = time.monotonic() + settings.deadline_s
    open_connection = connect or (lambda: connect_to_database(settings, environment))
    pages = _keyset_pages if settings.columns.id else _cursor_pages
    has_answered = False
    try:
        for page in pages(settings, open_connection, deadline_s):
            has_answered = True
            yield from page
    except DatabaseUnreachable as error:
        if not has_answered:
            raise
        fix = "run again when it is back"  # the log exists, so its rows must not be left out
        raise UserError(f"the server is gone: {error.what}", where=error.where, fix=fix) from None
    except UserError:
        raise
    except Exception as error:
        raise _explained(error, settings) from None


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
        return UserError(what, where=table, fix=f"GRANT SELECT ON {table} to the user in POSTGRES_USER")
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


def _keyset_pages(
    settings: DatabaseSection, open_connection: Callable[[], Any], deadline_s: float
) -> Iterator[list[LogRecord]]:
    """Yield pages by descending id, each requested by the last id of the page before."""
    connection, last_id, read, failures = None, None, 0, 0
    limit = settings.filters.limit
    try:
        while limit is None or read < limit:
            _check_deadline(deadline_s, settings)
            size = settings.fetch_size if limit is None else min(settings.fetch_size, limit - read)
            try:
                connection = connection or open_connection()
                begin(connection, settings)
                with connection.cursor() as cursor:
                    cursor.execute(*_page_query(settings, last_id, size))
                    rows = cursor.fetchall()
                connection.rollback()
            except Exception as error:
                failures += 1
                if not _is_lost(error) or last_id is None or failures > RECONNECTS:
                    raise
                warn(f"the connection was lost after {read} rows; reconnecting")
                connection = None
                time.sleep(min(RECONNECT_PAUSE_S * 2 ** (failures - 1), max(0.0, deadline_s - time.monotonic())))
                continue
            failures = 0
            if not rows:
                return
            read, last_id = read + len(rows), rows[-1][-1]
            yield [LogRecord(*row[:-1]) for row in rows]
    finally:
        _close(connection)


def _cursor_pages(
    settings: DatabaseSection, open_connection: Callable[[], Any], deadline_s: float
) -> Iterator[list[LogRecord]]:
    """Yield the pages of one server-side cursor, for a table without an id."""
    connection = open_connection()
    try:
        with connection.cursor(name="query_log") as cursor:
            cursor.execute(*_page_query(settings, None, settings.filters.limit))
            while rows := cursor.fetchmany(settings.fetch_size):
                _check_deadline(deadline_s, settings)
                yield [LogRecord(*row) for row in rows]
    finally:
        _close(connection)


def _page_query(settings: DatabaseSection, last_id: object, size: int | None) -> tuple[Any, list[Any]]:
    """Return the SELECT and its values. Names are quoted as identifiers and values bound, so neither can inject SQL."""
    from psycopg2 import sql

    columns, filters = settings.columns, settings.filters
    required, optional = (columns.query, columns.tool), (columns.success, columns.quality, columns.timestamp)
    names: list[str | None] = [*required, *optional, columns.session, columns.error]  # in the order of LogRecord
    selected = [sql.Identifier(name) if name else sql.SQL("NULL") for name in names]
    conditions: list[Any] = [sql.SQL("{} IS NOT NULL").format(sql.Identifier(columns.query))]
    values: list[Any] = []
    if filters.only_success and columns.success:
        conditions.append(sql.SQL("{}").format(sql.Identifier(columns.success)))
    if filters.min_result_quality is not None and columns.quality:
        conditions.append(sql.SQL("{} >= %s").format(sql.Identifier(columns.quality)))
        values.append(filters.min_result_quality)
    if columns.error:
        conditions.append(sql.SQL("COALESCE({}, '') = ''").format(sql.Identifier(columns.error)))
    if filters.since and columns.timestamp:
        conditions.append(sql.SQL("{} >= %s").format(sql.Identifier(columns.timestamp)))
        values.append(filters.since)
    order = columns.id or columns.timestamp
    if columns.id:
        selected.append(sql.Identifier(columns.id))
        if last_id is not None:
            conditions.append(sql.SQL("{} < %s").format(sql.Identifier(columns.id)))
            values.append(last_id)
    query = sql.SQL("SELECT {} FROM {} WHERE {}").format(
        sql.SQL(", ").join(selected),
        sql.Identifier(settings.schema_name, settings.table),
        sql.SQL(" AND ").join(conditions),
    )
    if order:
        query += sql.SQL(" ORDER BY {} DESC").format(sql.Identifier(order))
    if size is not None:
        query += sql.SQL(" LIMIT %s")
        values.append(size)
    return query, values


def _is_lost(error: Exception) -> bool:
    import psycopg2

    if isinstance(error, DatabaseUnreachable):
        return True
    if not isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError):
        return False
    return error.pgcode in (None, "57P01", "57P02", "57P03", "08006", "08003", "08000")


def _check_deadline(deadline_s: float, settings: DatabaseSection) -> None:
    if time.monotonic() > deadline_s:
        raise UserError(
            f"reading took longer than {settings.deadline_s} s",
            where="database.deadline_s",
            fix="raise it, or read less: database.filters.since or .limit",
        )


def _close(connection: Any) -> None:
    import psycopg2

    try:
        if connection is not None:
            connection.close()
    except psycopg2.Error:
        pass  # the server has closed it already
