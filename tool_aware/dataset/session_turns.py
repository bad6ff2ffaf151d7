"""Keeps the turns of logged sessions, also those whose rows are not kept, and finds what came before a row.

The user said them, and a tool was chosen, however it ended. In memory a turn takes some 30 bytes; its text waits in a
temporary file, so that a log of a million rows is not held as objects.
"""

from __future__ import annotations

import marshal
import os
import re
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import numpy as np

from tool_aware.config.data_sections import ConversationSection
from tool_aware.dataset.quarantine import reason_to_quarantine
from tool_aware.dataset.redaction import Redactor
from tool_aware.history import shown_turns
from tool_aware.prompt import Turn
from tool_aware.text import one_line_if_short
from tool_aware.tools import Toolbox

_LOOKED_AT = 50  # turns before a row; more than a prompt shows, as some are left out
_TURNS_CACHED = 10_000
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_WHOLE_NUMBER = re.compile(r"-?\d{1,40}")
_UNKNOWN, _CLEAN, _HAS_SECRETS, _HOSTILE = range(4)


@dataclass(frozen=True, slots=True)
class LoggedTurn:
    """A turn as the log has it; `number` counts turns in the order in which they were read."""

    number: int
    session: str
    query: str
    tool: str | None
    identity: str | None  # the row's id


class SessionTurns:
    """The turns of a log, added one by one, then looked up."""

    def __init__(self, limits: ConversationSection) -> None:
        self.limits = limits
        self._max_gap = round(limits.max_gap_minutes * 60_000_000)  # microseconds, as all times here
        self._sessions, self._times, self._starts = array("q"), array("q"), array("q")
        self._end = 0
        self._file: Any = tempfile.TemporaryFile(prefix="tool-aware-log-")  # noqa: SIM115 - lives as long as this
        self._order = self._place = np.zeros(0, np.uint32)
        self._turn = lru_cache(_TURNS_CACHED)(self._read)

    def __len__(self) -> int:
        return len(self._times)

    def add(
        self, session: str | None, time: datetime | None, query: str | None, tool: str | None, row_id: str | None
    ) -> int | None:
        """Keep a turn and return its number; None for one without session or time, which belongs to no conversation."""
        if session is None or time is None or query is None:
            return None
        stored = marshal.dumps((session, query, tool, row_id))
        self._file.write(stored)
        self._sessions.append(hash(session))
        self._times.append((time - _EPOCH) // _MICROSECOND)
        self._starts.append(self._end)
        self._end += len(stored)
        return len(self._times) - 1

    def earliest_needed(self, oldest: datetime) -> datetime:
        """Return the time before which no turn belongs to the history of a row as old as `oldest`."""
        try:
            return oldest - self.limits.max_turns * timedelta(microseconds=self._max_gap)
        except OverflowError:
            return datetime.min

    def before(self, number: int) -> Iterator[LoggedTurn]:
        """Yield the turns before a turn in its conversation, the newest first.

        The same words at the same time are one turn: a row that was logged or exported twice. A pause of more than
        max_gap_minutes ends the search.
        """
        self._sort()
        session, time, place = self._sessions[number], self._times[number], int(self._place[number])
        if not place or not self._follows(session, time, int(self._order[place - 1])):
            return  # as most do; the texts are not read
        own = self._turn(number)
        said = {own.query}
        for other in self._order[max(0, place - _LOOKED_AT) : place][::-1].tolist():
            if not self._follows(session, time, other):
                return
            turn = self._turn(other)
            if turn.session != own.session:  # of the same hash
                continue
            if self._times[other] != time:
                said = set()
            time = self._times[other]
            if turn.query not in said:
                said.add(turn.query)
                yield turn

    def _follows(self, session: int, time: int, other: int) -> bool:
        return self._sessions[other] == session and time - self._times[other] <= self._max_gap

    def _sort(self) -> None:
        """Order the turns by session and time, and those of one time by id."""
        if len(self._order) == len(self):
            return
        self._file.flush()
        sessions, times = np.frombuffer(self._sessions, np.int64), np.frombuffer(self._times, np.int64)
        order = np.lexsort((times, sessions)).astype(np.uint32)
        same = (np.diff(sessions[order]) == 0) & (np.diff(times[order]) == 0)
        edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]]).astype(np.int8)))
        for start, end in edges.reshape(-1, 2).tolist():
            run = order[start : end + 1].tolist()
            order[start : end + 1] = sorted(run, key=lambda number: _by_id(self._read(number).identity))
        place = np.empty_like(order)
        place[order] = np.arange(len(order), dtype=np.uint32)
        self._order, self._place = order, place

    def _read(self, number: int) -> LoggedTurn:
        start = self._starts[number]
        end = self._starts[number + 1] if number + 1 < len(self) else self._end
        return LoggedTurn(number, *marshal.loads(os.pread(self._file.fileno(), end - start, start)))


def _by_id(identity: str | None) -> tuple[int, int, str]:
    if identity is None:
        return 0, 0, ""
    return (1, int(identity), "") if _WHOLE_NUMBER.fullmatch(identity) else (2, 0, identity)


class Histories:
    """Looks up what rows show of the turns before them: no hostile texts, secrets replaced as in queries."""

    def __init__(self, turns: SessionTurns, tools: Toolbox, redactor: Redactor) -> None:
        self._turns, self._tools, self._redactor = turns, tools, redactor
        self._states = bytearray()  # of each turn, once it was looked at

    def of(self, number: int | None, query: str) -> tuple[str, tuple[Turn, ...]]:
        """Return the query of the turn `number`, redacted, and the turns that its row shows, the newest last.

        A secret has the same placeholder in all of them.
        """
        if number is None:
            return self._redactor.redact(query), ()
        if len(self._states) < len(self._turns):
            self._states.extend(bytes(len(self._turns) - len(self._states)))
        earlier = []
        for turn in self._turns.before(number):
            text = one_line_if_short(turn.query)
            state = self._state(turn.number, text)
            if state != _HOSTILE:
                earlier.append((text, turn.tool if turn.tool in self._tools else None, state))
            if len(earlier) == self._turns.limits.max_turns:
                break
        if not earlier:
            redacted = self._redactor.redact(query)
            self._states[number] = _CLEAN if redacted == query else _HAS_SECRETS  # its own row is not hostile
            return redacted, ()
        texts = [query, *(text for text, _, _ in earlier)]
        if _HAS_SECRETS in (self._state(number, query), *(state for _, _, state in earlier)):
            texts = self._redactor.redact_row(texts)
        newest_first = [Turn(text, tool) for text, (_, tool, _) in zip(texts[1:], earlier, strict=True)]
        return texts[0], shown_turns(newest_first[::-1], self._turns.limits)

    def _state(self, number: int, text: str) -> int:
        if self._states[number] == _UNKNOWN:
            if reason_to_quarantine(text):
                self._states[number] = _HOSTILE
            else:
                self._states[number] = _CLEAN if Redactor().redact(text) == text else _HAS_SECRETS
        return self._states[number]
