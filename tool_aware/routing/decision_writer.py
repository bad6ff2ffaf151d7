"""Writes decisions and their outcomes to the agent's query log, in batches, over one connection that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from tool_aware.config.data_sections import DatabaseSection
from tool_aware.config.environment import Environment
from tool_aware.console import UserError
from tool_aware.database import begin, close_quietly, connect_to_database, identifier

Value = str | float | bool | None

WRITE_TIMEOUT_S = 10  # for one batch, which takes milliseconds unless the table is locked or the server overloaded


@dataclass(frozen=True)
class Entry:
    """A new row of the log, or values for the row of a decision that was logged; values are by column."""

    decision_id: str
    values: Mapping[str, Value]
    is_new: bool


@dataclass(frozen=True)
class Written:
    """Counts of rows written, outcomes written, entries that the server refused, and outcomes without a row."""

    rows: int = 0
    outcomes: int = 0
    refused: int = 0
    unknown: int = 0
    reason: str = ""
    """Why the first was refused."""

    def __add__(self, other: Written) -> Written:
        return Written(
            self.rows + other.rows,
            self.outcomes + other.outcomes,
            self.refused + other.refused,
            self.unknown + other.unknown,
            self.reason or other.reason,
        )


class DecisionWriter:
    """Writes to one table; not for several threads at once."""

    def __init__(self, settings: DatabaseSection, environment: Environment) -> None:
        seconds = min(settings.statement_timeout_s, WRITE_TIMEOUT_S)
        self._settings = settings.model_copy(update={"statement_timeout_s": seconds})
        self._environment = environment
        self._connection: Any = None

    def write(self, entries: Sequence[Entry]) -> Written:
        """Write new rows, then outcomes; an entry that the server refuses does not keep the others from being written.

        Raises UserError or psycopg2.Error if nothing can be written now. Writing the same rows again does no harm where
        the column of their ids is unique.
        """
        import psycopg2

        was_connected = self._connection is not None
        try:
            return self._write_all(entries)
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            if not was_connected or not self._connection.closed:
                raise
        self.disconnect()  # closed by the server, or by what is in between, since the last batch
        return self._write_all(entries)

    def check(self) -> None:
        """Write a decision and its outcome and take both back. Raises UserError for a table that cannot take them."""
        import psycopg2

        columns = self._settings.columns.model_dump()
        outcome: dict[str, Value] = {columns["success"]: True, columns["quality"]: 1.0, columns["error"]: ""}
        values = {columns["query"]: "check", columns["tool"]: "check", **self.details(None, 0.5)}
        outcome = {name: value for name, value in outcome.items() if name}
        one = str(uuid4())
        entries = [Entry(one, values, is_new=True), *([Entry(one, outcome, is_new=False)] if outcome else [])]
        name = f"{self._settings.schema_name}.{self._settings.table}"
        try:
            self._execute(entries)
            self._connection.rollback()
        except psycopg2.Error as error:
            code, what = error.pgcode, (str(error).strip() or type(error).__name__).splitlines()[0]
            fix = "compare database.columns and database.router_columns with the table"
            if code == "42501":
                fix = f"GRANT SELECT, INSERT, UPDATE ON {name} (and USAGE on its id's sequence) to POSTGRES_USER"
            elif code == "42P01":
                fix = "name your query log's schema_name and table under database"
            raise UserError(f"decisions cannot be written: {what}", where=name, fix=fix) from None
        finally:
            self.disconnect()

    def details(self, session: str | None, confidence: float | None) -> dict[str, Value]:
        """Return the values of a new row that a table may have a column for: time, session, confidence."""
        columns = self._settings.columns
        found = {
            columns.timestamp: datetime.now(UTC).isoformat(),
            columns.session: session,
            self._settings.router_columns.confidence: confidence,
        }
        return {name: value for name, value in found.items() if name}

    def disconnect(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection = self._connection, None
        close_quietly(connection)

    def _write_all(self, entries: Sequence[Entry]) -> Written:
        """Write entries in one transaction; if the server refuses a value, each half of them in its own."""
        import psycopg2

        try:
            written = self._execute(entries)
            self._connection.commit()
        except (psycopg2.DataError, psycopg2.IntegrityError) as error:
            self._connection.rollback()
            if len(entries) == 1:
                return Written(refused=1, reason=str(error).strip().splitlines()[0])
            middle = len(entries) // 2
            return self._write_all(entries[:middle]) + self._write_all(entries[middle:])
        return written

    def _execute(self, entries: Sequence[Entry]) -> Written:
        from psycopg2 import sql
        from psycopg2.extras import execute_values

        if self._connection is None:
            self._connection = connect_to_database(self._settings, self._environment, writes=True)
            self._connection.set_client_encoding("UTF8")
        begin(self._connection, self._settings)
        table = sql.SQL(".").join([identifier(self._settings.schema_name), identifier(self._settings.table)])
        key = self._settings.router_columns.decision_id
        rows, outcomes, unknown = [entry for entry in entries if entry.is_new], 0, 0
        with self._connection.cursor() as cursor:
            if rows:
                names = [key, *rows[0].values]  # the same in every row of one log
                insert = sql.SQL("INSERT INTO {} ({}) VALUES %s ON CONFLICT DO NOTHING")
                query = insert.format(table, sql.SQL(", ").join(map(identifier, names)))
                sent = [[entry.decision_id, *map(_as_text, entry.values.values())] for entry in rows]
                execute_values(cursor, query, sent, page_size=len(sent))
            for entry in entries:
                if entry.is_new:
                    continue
                changes = sql.SQL(", ").join(sql.SQL("{} = %s").format(identifier(name)) for name in entry.values)
                query = sql.SQL("UPDATE {} SET {} WHERE {} = %s").format(table, changes, identifier(key))
                cursor.execute(query, [*map(_as_text, entry.values.values()), entry.decision_id])
                outcomes, unknown = outcomes + min(cursor.rowcount, 1), unknown + (cursor.rowcount == 0)
        return Written(len(rows), outcomes, unknown=unknown)


def _as_text(value: Value) -> str | None:
    """Return a value as a literal without a type, which the server reads as what the column holds.

    A character that PostgreSQL cannot store (U+0000, half a surrogate pair) becomes a replacement character.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # stars in a column of whole numbers
    return str(value).replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
