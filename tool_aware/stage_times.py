"""Where the time of a run went: its seconds by stage, for its last lines and its manifest.

A stage inside another one is not counted in the outer one, so that the stages add up to the run. On a GPU the work that
is still queued when a stage ends counts to the stage that waits for it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tool_aware.console import duration

IMPORTS = "imports"
_ELSEWHERE = "all else"
_SHOWN_SHARE = 0.02  # of the run: shorter stages are shown together


@dataclass(frozen=True)
class Spent:
    """The time of a stage: on the clock, and that of all processors in this process."""

    seconds: float
    processor_seconds: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.seconds + other.seconds, self.processor_seconds + other.processor_seconds)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.seconds - other.seconds, self.processor_seconds - other.processor_seconds)


_NOTHING = Spent(0.0, 0.0)


def _now() -> Spent:
    return Spent(time.perf_counter(), time.process_time())


@dataclass
class _Running:
    """A stage that runs, and what finished stages inside it took."""

    name: str
    begun: Spent
    inside: Spent = _NOTHING


class StageTimes:
    """The stages of one run, in the order in which they began."""

    def __init__(self, before: Spent = _NOTHING, clock: Callable[[], Spent] = _now) -> None:
        """Begin now; `before` is what the process had spent by then, which was on imports."""
        self._clock, self._begun = clock, clock() - before
        self._spent: dict[str, Spent] = {IMPORTS: before}
        self._running: list[_Running] = []  # each inside the one before

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time until the end of the block to `name`, stages inside it left out."""
        self._spent.setdefault(name, _NOTHING)
        self._running.append(_Running(name, self._clock()))
        try:
            yield
        finally:
            ended = self._running.pop()
            took = self._clock() - ended.begun
            self._spent[name] += took - ended.inside
            if self._running:
                self._running[-1].inside += took

    def all(self) -> dict[str, Spent]:
        """Return the stages so far, by name, those that still run included, and last what belongs to none."""
        now, spent, inside = self._clock(), dict(self._spent), _NOTHING
        for running in reversed(self._running):
            took = now - running.begun
            spent[running.name] += took - running.inside - inside
            inside = took
        left = now - self._begun
        for one in spent.values():
            left -= one
        return {**spent, _ELSEWHERE: left}


_run = StageTimes()  # of this process; a script's `main` begins a new one
_is_first = True


def begin_run() -> float:
    """Begin to count the stages of a run, and return the `time.monotonic()` at which it began.

    What the process has done before its first run is starting and importing.
    """
    global _run, _is_first
    before = Spent(_seconds_since_start(), time.process_time()) if _is_first else _NOTHING
    _run, _is_first = StageTimes(before), False
    return time.monotonic() - before.seconds


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the time until the end of the block to a stage of the run; as a decorator, that of each call."""
    with _run.stage(name):
        yield


def stages_as_dict() -> dict[str, dict[str, float]]:
    """Return the stages of the run so far as plain values, for a manifest."""
    return {
        name: {"seconds": round(spent.seconds, 2), "processor_seconds": round(spent.processor_seconds, 2)}
        for name, spent in _run.all().items()
    }


def stages_in_words() -> str:
    """Return where the time of the run went in one line, the longest stage first."""
    spent = {name: of.seconds for name, of in _run.all().items()}
    whole = sum(spent.values())
    shown = {name: seconds for name, seconds in spent.items() if seconds >= _SHOWN_SHARE * whole and name != _ELSEWHERE}
    parts = [f"{name} {duration(seconds)}" for name, seconds in sorted(shown.items(), key=lambda item: -item[1])]
    return ", ".join([*parts, f"{_ELSEWHERE} {duration(max(0.0, whole - sum(shown.values())))}"])


def _seconds_since_start() -> float:
    """Return how long this process has been running; its processor time where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        begun_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # proc(5): starttime, in ticks since the machine began
        return time.clock_gettime(time.CLOCK_BOOTTIME) - begun_s
    except (OSError, AttributeError, IndexError, ValueError):
        return time.process_time()
