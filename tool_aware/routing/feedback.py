"""The router's decisions and their outcomes as rows of the agent's query log, which the next data set is made from.

log = DecisionLog.open("config.yaml")
with Router.load("output/lora_adapters", log=log) as router:
    decision = router.route(query, session=conversation_id)
    ...  # the agent calls the tool
    log.report(decision.query_id, success=True, quality=0.9)
log.close()
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from tool_aware.config.data_sections import DatabaseSection
from tool_aware.config.environment import Environment, read_environment
from tool_aware.config.settings import load_config
from tool_aware.console import UserError, say, warn
from tool_aware.database import DatabaseUnreachable
from tool_aware.routing.decision import Decision
from tool_aware.routing.decision_writer import DecisionWriter, Entry, Value, Written
from tool_aware.secret_values import redacted

BATCH_ROWS = 500
GATHER_S = 0.2  # that a batch is waited for, so that a busy agent sends one statement and not hundreds
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0  # before another try in an outage; doubled each time
MOST_CHARACTERS = 32_000_000  # of all texts that wait: queries may be long


@dataclass(frozen=True)
class LogCounts:
    """Counts of decisions and outcomes so far, by what has become of them."""

    rows: int
    """Decisions written."""
    outcomes: int
    """Outcomes written."""
    dropped: int
    """Decisions and outcomes that found no room to wait, or waited when the log was closed."""
    refused: int
    """Those with a value that the table cannot hold."""
    unknown: int
    """Outcomes whose decision is not in the table."""
    waiting: int


class DecisionLog:
    """Writes decisions to `database.table` from one background thread; no call waits for the database.

    While the database is down or slow, up to `most_waiting` entries wait for it; later ones are dropped and counted. An
    outage is told of once on stderr, and its end too. Queries are written as they were typed: stage 1 redacts them.
    The id of a decision is a random UUID in `database.router_columns.decision_id`, so an outcome can be reported before
    its row is written, by another process, or days later. A forked process has its own queue, thread and connection.
    """

    def __init__(
        self,
        settings: DatabaseSection | None = None,
        environment: Environment | None = None,
        *,
        most_waiting: int = 10_000,
    ) -> None:
        """Start nothing and connect to nothing yet; `open` also checks the table."""
        settings = settings or DatabaseSection()
        self._columns = settings.columns
        self._make_writer = partial(DecisionWriter, settings, environment or read_environment())
        self._most_waiting = most_waiting
        self._begin()
        begin_again = weakref.WeakMethod(self._begin)
        os.register_at_fork(after_in_child=lambda: (begin := begin_again()) and begin())

    def _begin(self) -> None:
        """Begin with an empty queue; a forked process leaves its parent's queue and connection to the parent."""
        self._writer = self._make_writer()
        self._waiting: deque[Entry] = deque()
        self._characters = 0  # of what waits
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._done, self._dropped = Written(), 0
        self._is_down = self._is_dropping = False  # told of

    @classmethod
    def open(cls, config: str | Path | None = None, *, most_waiting: int = 10_000) -> DecisionLog:
        """Return a log for the table that a config.yaml names; without one, for `query_logs` of the default config.

        Raises UserError for a table, column or login that does not fit. A server that does not answer is an outage,
        which keeps no agent from starting.
        """
        settings = load_config(Path(config)).database if config else DatabaseSection()
        environment = read_environment()
        try:
            DecisionWriter(settings, environment).check()
        except DatabaseUnreachable as error:
            warn(f"the query log cannot be checked: {error}")
        return cls(settings, environment, most_waiting=most_waiting)

    # ---- what an agent calls --------------------------------------------------------------------------------

    def record(self, decision: Decision, query: str, session: object = None) -> Decision:
        """Log a decision; return it with its `query_id`. The router does so for every decision if it has a log."""
        query_id = str(uuid4())
        values: dict[str, Value] = {
            self._columns.query: query,
            self._columns.tool: decision.tool,
            **self._writer.details(None if session is None else str(session), decision.confidence),
        }
        self._add(Entry(query_id, values, is_new=True))
        return replace(decision, query_id=query_id)

    def report(
        self,
        query_id: str | None,
        *,
        success: bool | None = None,
        quality: float | None = None,
        tool: str | None = None,
        error: str | None = None,
    ) -> bool:
        """Log how a decision turned out: any of success, quality (of your log's unit), the tool called instead, error.

        Return whether it waits to be written; False if it was dropped, for want of room or after the end. Raises
        UserError for a value that cannot be written: no number, or one that the table has no column for.
        """
        values = {"success": success, "quality": quality, "tool": tool, "error": error}
        given = {field: value for field, value in values.items() if value is not None}
        where = f"report({query_id!r})"
        if not query_id or not isinstance(query_id, str):
            raise UserError("there is no such decision", where=where, fix="pass decision.query_id of a router with log")
        if not given:
            raise UserError("says nothing", where=where, fix="pass success, quality, tool or error")
        if success is not None and not isinstance(success, bool):
            raise UserError(f"success is {success!r}", where=where, fix="pass True or False")
        if quality is not None and (isinstance(quality, bool) or not math.isfinite(quality)):
            raise UserError(f"quality is {quality!r}", where=where, fix="pass a finite number")
        columns = self._columns.model_dump()
        if absent := [field for field in given if not columns[field]]:
            settings = " and ".join(f"database.columns.{field}" for field in absent)
            raise UserError(f"the log has no column for {', '.join(absent)}", where=where, fix=f"name it in {settings}")
        return self._add(Entry(query_id, {columns[field]: value for field, value in given.items()}, is_new=False))

    @property
    def counts(self) -> LogCounts:
        """Return the counts of decisions and outcomes so far."""
        with self._changed:
            done = self._done
            return LogCounts(done.rows, done.outcomes, self._dropped, done.refused, done.unknown, len(self._waiting))

    def flush(self, limit_s: float = 5.0) -> bool:
        """Wait until all that was logged before is written; return False if it takes longer than `limit_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, limit_s)

    def close(self, limit_s: float = 5.0) -> None:
        """Write what waits, for `limit_s` at most; the rest is dropped, counted and told of."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            atexit.unregister(self.close)
            self._thread.join(limit_s)
        with self._changed:
            left = len(self._waiting)
            self._dropped += left
            self._waiting.clear()
            self._changed.notify_all()
        if left:
            warn(f"{left} decisions and outcomes were not written to the query log before it was closed")

    def __enter__(self) -> DecisionLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- the queue ------------------------------------------------------------------------------------------

    def _add(self, entry: Entry) -> bool:
        """Put an entry into the queue; return False if it is dropped."""
        characters = _characters(entry)
        with self._changed:
            is_full = len(self._waiting) >= self._most_waiting or self._characters + characters > MOST_CHARACTERS
            is_first_dropped = is_full and not self._is_dropping
            is_dropped = is_full or self._is_closing
            if is_dropped:
                self._dropped += 1
                self._is_dropping |= is_full
            else:
                self._waiting.append(entry)
                self._characters += characters
                self._start()
                self._changed.notify_all()
        if is_first_dropped:
            warn(f"{self._most_waiting} entries wait for the query log; further ones are dropped until it catches up")
        return not is_dropped

    def _start(self) -> None:
        """Start the thread with the first entry."""
        if self._thread is None:
            atexit.register(self.close)
            self._thread = threading.Thread(target=self._write, name="decision log", daemon=True)
            self._thread.start()

    def _write(self) -> None:
        """Write batches until the log is closed and nothing waits, or nothing can be written."""
        pause_s = FIRST_PAUSE_S
        while batch := self._batch():
            try:
                self._keep(batch, self._writer.write(batch))
                pause_s = FIRST_PAUSE_S
            except Exception as error:  # of any kind: the thread has to live for as long as the agent
                self._writer.disconnect()
                if not self._has_waited_out(error, pause_s):
                    return
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        self._writer.disconnect()

    def _batch(self) -> list[Entry]:
        """Return the oldest entries, which stay in the queue until they are written; none when the log is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            self._changed.wait_for(lambda: len(self._waiting) >= BATCH_ROWS or self._is_closing, GATHER_S)
            return list(islice(self._waiting, BATCH_ROWS))

    def _keep(self, batch: list[Entry], written: Written) -> None:
        with self._changed:
            for _ in range(min(len(batch), len(self._waiting))):
                self._characters -= _characters(self._waiting.popleft())
            is_first_refused = written.refused and not self._done.refused
            is_first_unknown = written.unknown and not self._done.unknown
            self._done += written
            is_over, self._is_down = self._is_down, False
            if len(self._waiting) < self._most_waiting // 2:
                self._is_dropping = False
            dropped = self._dropped
            self._changed.notify_all()
        if is_over:
            say(f"the query log is written again; {dropped} entries were dropped so far")
        if is_first_refused:
            warn(f"the query log refuses a value, that entry is left out: {redacted(written.reason)}")
        if is_first_unknown:
            warn("an outcome was reported for a decision that is not in the query log; it is left out")

    def _has_waited_out(self, error: Exception, pause_s: float) -> bool:
        """Warn of an outage that begins, and wait before the next try; return False if the log closes in it."""
        with self._changed:
            is_first, self._is_down = not self._is_down, True
            had_last_chance = self._is_closing
        if is_first:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            waiting = f"{self._most_waiting} entries wait for it, later ones are dropped"
            warn(f"the query log cannot be written: {redacted(reason)}; up to {waiting}")
        if had_last_chance:
            return False
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, pause_s)
        return True


def _characters(entry: Entry) -> int:
    return sum(len(value) for value in entry.values.values() if isinstance(value, str))
