"""Reads decisions back from the agent's query log, the newest first, whatever became of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tool_aware.config.data_sections import DatabaseSection
from tool_aware.config.environment import Environment
from tool_aware.console import UserError
from tool_aware.database import connect_to_database, identifier
from tool_aware.dataset.log_records import FieldProblem, LogRecord, reason_to_leave_out, record_of

_FIELDS = ("query", "tool", "success", "quality", "timestamp", "session", "error")
_NUMBERS = frozenset((20, 21, 23, 1700))  # int8, int2, int4, numeric; pg_type.dat of PostgreSQL
_BAD_OUTCOMES = frozenset(("not_successful", "error", "low_quality"))


@dataclass(frozen=True)
class LoggedDecision:
    """A row of the log with a query and a tool."""

    id: str | None
    query: str
    tool: str
    timestamp: datetime | None
    confidence: float | None
    left_out: str | None
    """Why the next data set does not learn from it; None if it does."""

    @property
    def went_badly(self) -> bool:
        """Return whether an outcome was reported that keeps it from being learnt from."""
        return self.left_out in _BAD_OUTCOMES


@dataclass(frozen=True)
class LoggedDecisions:
    """Decisions, the newest first, and the number of rows that hold none."""

    found: list[LoggedDecision]
    unreadable: int


def read_decisions(
    settings: DatabaseSection, environment: Environment, *, most: int, since: datetime | None = None
) -> LoggedDecisions:
    """Return the newest decisions, `most` at most, from `since` on. Raises UserError if the log cannot be read."""
    import psycopg2

    if since and not settings.columns.timestamp:
        raise UserError("the log has no time", where="database.columns.timestamp", fix="ask for --last N instead")
    connection = connect_to_database(settings, environment)
    try:
        with connection.cursor() as cursor:
            cursor.execute(*_newest(settings, most, since, is_by_id=_has_numeric_id(settings, cursor)))
            rows = cursor.fetchall()
    except psycopg2.Error as error:
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = f"{settings.schema_name}.{settings.table}"
        fix = "compare database.table, database.columns and database.router_columns with the table"
        raise UserError(what, where=where, fix=fix) from None
    finally:
        connection.close()
    decisions = [_decision(row, settings) for row in rows]
    found = [decision for decision in decisions if decision]
    return LoggedDecisions(found, len(decisions) - len(found))


def _decision(row: tuple[str | None, ...], settings: DatabaseSection) -> LoggedDecision | None:
    *values, confidence, decision_id = row
    named = dict(zip(_FIELDS, values, strict=True))
    absent = {field for field in _FIELDS if not getattr(settings.columns, field)}
    try:
        record: LogRecord = record_of(named, settings.tool_names)
        probability = float(confidence) if confidence is not None else math.nan
    except (FieldProblem, ValueError, ArithmeticError):
        return None
    if record.query is None or record.tool is None:
        return None
    return LoggedDecision(
        decision_id,
        record.query,
        record.tool,
        record.timestamp,
        probability if 0 <= probability <= 1 else None,
        reason_to_leave_out(record, settings.filters.model_copy(update={"since": None}), absent),
    )


def _has_numeric_id(settings: DatabaseSection, cursor: Any) -> bool:
    from psycopg2 import sql

    if not settings.columns.id:
        return False
    query = sql.SQL("SELECT {} FROM {} LIMIT %s").format(identifier(settings.columns.id), _table(settings))
    cursor.execute(query, [0])
    return cursor.description[0].type_code in _NUMBERS


def _newest(settings: DatabaseSection, most: int, since: datetime | None, *, is_by_id: bool) -> tuple[Any, list[Any]]:
    """Return the SELECT and its values; values come as text, whatever the columns' types."""
    from psycopg2 import sql

    columns = settings.columns
    names = [*(getattr(columns, field) for field in _FIELDS), settings.router_columns.confidence]
    names.append(settings.router_columns.decision_id)
    selected = [sql.SQL("{}::text").format(identifier(name)) if name else sql.SQL("NULL::text") for name in names]
    query = sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(selected), _table(settings))
    values: list[Any] = []
    if since:
        query += sql.SQL(" WHERE {} >= %s").format(identifier(str(columns.timestamp)))
        values.append(since.isoformat())  # without a type: the server reads it as what the column holds
    order = columns.id if is_by_id else columns.timestamp
    if order:
        query += sql.SQL(" ORDER BY {} DESC NULLS LAST").format(identifier(order))
    return query + sql.SQL(" LIMIT %s"), [*values, most]


def _table(settings: DatabaseSection) -> Any:
    from psycopg2 import sql

    return sql.SQL(".").join([identifier(settings.schema_name), identifier(settings.table)])
