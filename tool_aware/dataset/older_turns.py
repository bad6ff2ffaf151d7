"""Reads a log on beyond the last row that is used, for the turns before it in its session."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import datetime

from tool_aware.config.data_sections import DatabaseSection
from tool_aware.dataset.log_records import LoggedRow, LogRecord, id_of, in_utc, record_of
from tool_aware.dataset.session_turns import SessionTurns


def with_older_turns(
    records: Iterable[LogRecord], rows: Iterable[LoggedRow], settings: DatabaseSection, turns: SessionTurns
) -> Iterator[LogRecord]:
    """Yield the records, then read on for the turns before the oldest of them."""
    oldest = None
    for record in records:
        if record.timestamp is not None:
            oldest = min(oldest or record.timestamp, record.timestamp)
        yield record
    if oldest is not None:
        _add_older_turns(turns, rows, settings, oldest)


def _add_older_turns(
    turns: SessionTurns, rows: Iterable[LoggedRow], settings: DatabaseSection, oldest: datetime
) -> None:
    """Add the turns that records as old as `oldest` may show; `rows` are read on, newest first, as far as needed."""
    since = max(turns.earliest_needed(oldest), in_utc(settings.filters.since or datetime.min))
    for row in rows:
        if row.problem:
            continue
        with contextlib.suppress(ValueError, ArithmeticError):
            record = record_of(row.values, settings.tool_names)
            if record.timestamp is not None and record.timestamp < since:
                return
            identity = id_of(row.values.get("id"))
            turns.add(record.session, record.timestamp, record.query, record.tool, identity)
