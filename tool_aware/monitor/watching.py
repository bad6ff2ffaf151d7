"""Watch GPUs: take samples at a steady pace and hand each to whoever shows, records, serves or checks it."""

from __future__ import annotations

import functools
import os
import select
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol, TextIO

from tool_aware.console import UserError, say, style, warn
from tool_aware.gpu.nvml import Driver
from tool_aware.monitor import display
from tool_aware.monitor.alerts import Alerts
from tool_aware.monitor.sampling import Sample, Statistics, TrainingProgress
from tool_aware.monitor.training_run import find_training
from tool_aware.streams import lost_output, unguarded, without_controls

HISTORY_SAMPLES = 600  # of the sparkline; more than any terminal is wide
LONGEST_READ_S = 1.0  # a GPU that takes longer is shown as not answering; the others are not kept waiting again
SEARCH_INTERVAL_S = 2.0  # between looks for a training run: /proc and metrics.jsonl are not read at every sample


SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 1e-6, 1e6  # what fractions and sleep(3) take; 1e6 s are 11 days


class Consumer(Protocol):
    """Takes samples, one after the other."""

    def take(self, sample: Sample) -> None:
        """Take one sample."""

    def close(self) -> None:
        """End the output; no more samples follow."""


@dataclass(frozen=True)
class Pace:
    """Interval and duration of a watch. `process_id` ends the watch when that process does.

    Raises UserError if there is no such process, or if nobody can wait that long.
    """

    interval_s: float
    count: int | None = None
    duration_s: float | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        if not SHORTEST_INTERVAL_S <= self.interval_s <= LONGEST_INTERVAL_S:
            limits = f"{SHORTEST_INTERVAL_S:g} to {LONGEST_INTERVAL_S:,.0f} s"
            raise UserError(f"is not within {limits}", where=f"--interval {self.interval_s:g}")
        if self.process_id is not None:
            os.close(open_process(self.process_id))


class ReaderGone(Exception):
    """Nobody reads what a consumer prints any more."""


class Consumers:
    """All consumers as one. One that fails, as on a full disk, is warned of and left out; the others continue."""

    def __init__(self, *consumers: Consumer) -> None:
        self._consumers = list(consumers)
        self.has_lost = False
        self.is_unread = False  # the reader of the view has gone

    def add(self, consumer: Consumer) -> None:
        """Add one consumer."""
        self._consumers.append(consumer)

    def take(self, sample: Sample) -> None:
        """Pass a sample to each."""
        for consumer in list(self._consumers):
            try:
                if not self._survives(functools.partial(consumer.take, sample)):
                    self._consumers.remove(consumer)
            except ReaderGone:
                self._consumers.remove(consumer)
                self.is_unread = True

    def close(self) -> None:
        """Close each."""
        for consumer in self._consumers:
            self._survives(consumer.close)

    def _survives(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except UserError as error:
            warn(str(error))
            self.has_lost = True
            return False
        return True


def watch(driver: Driver, pace: Pace, consumer: Consumer, output_dir: Path | None) -> Iterator[Sample]:
    """Yield samples, each after the consumer has it, until the pace says that it is over."""
    search = TrainingSearch(output_dir) if output_dir else None
    for seconds in ticks(pace):
        gpus = driver.read(LONGEST_READ_S)
        sample = Sample(seconds, datetime.now().astimezone(), gpus)
        if search:
            sample = replace(sample, training=search.progress())
        consumer.take(sample)
        yield sample


def ticks(pace: Pace) -> Iterator[float]:
    """Yield seconds since the start, every `interval_s` of them, without drift.

    The n-th tick is due at n x interval whatever the loop's body takes; ticks that were missed are skipped.
    """
    wait = _waiter(pace.process_id)
    start_s = time.monotonic()
    number = done = 0
    while pace.count is None or done < pace.count:
        due_s = number * pace.interval_s
        if pace.duration_s is not None and due_s > pace.duration_s:
            return
        if wait(max(0.0, start_s + due_s - time.monotonic())):
            return
        yield time.monotonic() - start_s
        done += 1
        number = max(number + 1, int((time.monotonic() - start_s) / pace.interval_s))


def _waiter(process_id: int | None) -> Callable[[float], bool]:
    """Make a function that sleeps; it returns early, and then True, if the process ends."""
    if process_id is None:
        return _sleep
    handle = open_process(process_id)
    return lambda seconds: bool(select.select([handle], [], [], seconds)[0])


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def open_process(process_id: int) -> int:
    """Open a file descriptor that can be read once the process has ended. Raises UserError if there is none."""
    where = f"--until-exit {process_id}"
    try:
        return os.pidfd_open(process_id)
    except (ProcessLookupError, OverflowError):
        raise UserError("no such process", where=where) from None
    except OSError as error:
        is_thread = Path(f"/proc/{process_id}").exists()
        what = "is a thread, not a process" if is_thread else f"cannot be waited for: {error.strerror}"
        raise UserError(what, where=where, fix="name the process: see `ps -e`") from error


class TrainingSearch:
    """Looks for a training run now and then, and remembers what it found in between."""

    def __init__(self, output_dir: Path) -> None:
        self._output_dir = output_dir
        self._found: TrainingProgress | None = None
        self._next_s = 0.0

    def progress(self) -> TrainingProgress | None:
        """Return the newest step of the run beside the monitor, at most SEARCH_INTERVAL_S old."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._found = find_training(self._output_dir)
            self._next_s = now_s + SEARCH_INTERVAL_S
        return self._found


# ---- who takes samples -----------------------------------------------------------------------------------


class Lines:
    """Plain lines, for pipes and logs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def take(self, sample: Sample) -> None:
        """Print a line per GPU."""
        for line in display.plain_lines(sample):
            print(line, file=self._stream)
        if lost_output(self._stream):
            raise ReaderGone

    def close(self) -> None:
        """Do nothing: nothing is held."""


class Screen:
    """A live view that is redrawn in place, as wide as the terminal is at that moment."""

    def __init__(self, stream: TextIO, mark_bytes: float | None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(file=unguarded(stream), highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
        self._glyphs = display.glyphs_for(stream.encoding)
        self._mark_bytes = mark_bytes
        self._histories: dict[int, deque[float | None]] = defaultdict(lambda: deque(maxlen=HISTORY_SAMPLES))
        self._live.start()

    def take(self, sample: Sample) -> None:
        """Draw the view anew with the sample."""
        from rich.text import Text

        for gpu in sample.gpus:
            self._histories[gpu.index].append(gpu.utilization_percent)
        text = Text(no_wrap=True)
        for line, look in display.screen(
            sample, self._console.width, self._glyphs, mark_bytes=self._mark_bytes, histories=self._histories
        ):
            text.append(f"{without_controls(line)}\n", style=look)  # rich leaves escape sequences in
        text.right_crop(1)
        self._live.update(text, refresh=True)

    def close(self) -> None:
        """Leave the last view on the screen."""
        self._live.stop()


class StatisticsKeeper:
    """Keeps the statistics."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def take(self, sample: Sample) -> None:
        """Count one sample."""
        self._statistics.add(sample)

    def close(self) -> None:
        """Do nothing: nothing is held."""


class AlertPrinter:
    """Prints alerts on stderr."""

    def __init__(self, alerts: Alerts) -> None:
        self._alerts = alerts

    def take(self, sample: Sample) -> None:
        """Print the conditions that have just been met."""
        for line in self._alerts.check(sample.gpus):
            say(f"{sample.at:%H:%M:%S}  {style('alert:', 'red')} {line}")

    def close(self) -> None:
        """Do nothing: nothing is held."""


def wants_screen(stream: TextIO) -> bool:
    """Return whether a live view can be drawn: on a terminal that knows how to move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def open_view(mark_bytes: float | None) -> Consumer:
    """Return the live view on a terminal, plain lines elsewhere."""
    return Screen(sys.stdout, mark_bytes) if wants_screen(sys.stdout) else Lines(sys.stdout)
