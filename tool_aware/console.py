"""What every script shares at its edge: errors for people, exit codes, tables, progress.

stdout carries results, stderr carries the story. Colour and carriage returns appear on a terminal only,
and never when NO_COLOR is set (https://no-color.org).
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NoReturn, TextIO

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_GATE = 3
EXIT_SIGHUP = 128 + signal.SIGHUP
EXIT_SIGINT = 128 + signal.SIGINT
EXIT_SIGTERM = 128 + signal.SIGTERM

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # a full disk, a quota, a terminal that was closed


class UserError(Exception):
    """Something the person at the keyboard can fix: what is wrong, where, and what to do about it."""

    exit_code = EXIT_USER
    is_silent = False  # another process of the run tells it

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class GateFailed(UserError):
    """The work was done and its result is below what was asked for."""

    exit_code = EXIT_GATE


class Interrupted(BaseException):
    """A signal asked the program to stop. `signum` decides the exit code, 128 + signum."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def run(main: Callable[[], int]) -> NoReturn:
    """Call `main` and leave the process with the exit code its outcome deserves."""
    _open_closed_streams()
    signal.signal(signal.SIGTERM, _raise_interrupted)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup has the run outlive its terminal
        signal.signal(signal.SIGHUP, _raise_interrupted)
    sys.exit(_flush(_outcome(main)))


def _outcome(main: Callable[[], int]) -> int:
    """Call `main`, tell of what ended it, and return the exit code."""
    try:
        return main()
    except UserError as error:
        if not error.is_silent:
            _complain(f"{style('error:', 'red')} {error}")
        return exit_code_of(error)
    except (KeyboardInterrupt, Interrupted) as stop:
        say(f"stopped by {signal.Signals(exit_code_of(stop) - 128).name}")
        return exit_code_of(stop)
    except BrokenPipeError:  # the reader (`| head`) has gone
        return EXIT_DONE
    except Exception as error:
        code = exit_code_of(error)
        if code == EXIT_USER and isinstance(error, OSError):
            _complain(f"{style('error:', 'red')} {error.filename or 'output'}: {error.strerror}")
        else:
            traceback.print_exc()
            _complain("this is a bug: please open an issue with the text above, your config.yaml and your GPU model")
        return code


def _open_closed_streams() -> None:
    """Let what is written to a stream that the caller has closed (`>&-`) go nowhere.

    Its number is taken as well: else the next file to be opened would have it, and children would write into that.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w"))


def _flush(code: int) -> int:
    """Write what is left and return the exit code: EXIT_USER instead of EXIT_DONE if the result cannot be written.

    The interpreter would complain again while closing a stream that fails, so such a one is led nowhere.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout and not isinstance(error, BrokenPipeError):
                _complain(f"{style('error:', 'red')} the output cannot be written: {error.strerror}")
                code = code or EXIT_USER
    return code


def exit_code_of(error: BaseException) -> int:
    """Return the exit code a script leaves with after `error`."""
    if isinstance(error, UserError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | Interrupted):
        return 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT)
    if not isinstance(error, OSError) or error.strerror is None:
        return EXIT_BUG
    # Read-only file system, full disk, permission: the path and the reason are the whole story. write(2) has no path.
    return EXIT_USER if error.filename or error.errno in _NO_ROOM else EXIT_BUG


def _raise_interrupted(signum: int, _frame: object) -> NoReturn:
    if signum == signal.SIGHUP:  # the kernel and the shell both send it; the second must not disturb the clearing up
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise Interrupted(signum)


def process_number() -> int:
    """Tell the rank of this process among those a launcher such as `torchrun` has started; 0 for one that is alone."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def say(message: str = "") -> None:
    """Tell the story: one line on stderr. Of several processes of one run, the first tells it."""
    if process_number() == 0:
        _tell(message)


def _complain(message: str) -> None:
    """Say what only this process knows, whichever it is."""
    number = process_number()
    _tell(f"[process {number}] {message}" if number else message)


def _tell(line: str) -> None:
    """Write to stderr. That its disk is full or its terminal was closed ends no work."""
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:
        raise
    except OSError:
        pass


def heading(title: str) -> None:
    """Announce the next step of the story."""
    say(f"\n{style(title, 'bold', stream=sys.stderr)}")


def warn(message: str, *, from_any_process: bool = False) -> None:
    """Tell of a fallback or a doubt; whoever calls this also notes it in the manifest.

    `from_any_process` is for what may happen to one process of several alone.
    """
    (_complain if from_any_process else say)(f"{style('warning:', 'yellow')} {message}")


class Fallbacks(Collection[str]):
    """What a run did in another way than asked for or planned, in order, each once, for the stage's manifest.

    One object per run, passed to what may fall back; `write_manifest(..., fallbacks=fallbacks)` takes it as it is.
    It can be pickled, so that one process can send it to others.
    """

    def __init__(self, messages: Iterable[str] = ()) -> None:
        self._messages = dict.fromkeys(messages)  # these have been told

    def add(self, message: str, *, from_any_process: bool = False) -> None:
        """Warn of a fallback and keep it; a repeated message is not told again."""
        if message not in self._messages:
            warn(message, from_any_process=from_any_process)
        self._messages[message] = None

    def extend(self, messages: Iterable[str]) -> None:
        """Keep fallbacks that have been told where they happened."""
        self._messages.update(dict.fromkeys(messages))

    def __iter__(self) -> Iterator[str]:
        return iter(self._messages)

    def __len__(self) -> int:
        return len(self._messages)

    def __contains__(self, message: object) -> bool:
        return message in self._messages


def style(text: str, *names: str, stream: TextIO | None = None) -> str:
    """Wrap `text` in ANSI styles if `stream` (stderr by default) is a terminal that wants them."""
    stream = sys.stderr if stream is None else stream
    if os.environ.get("NO_COLOR") or not stream.isatty():
        return text
    return f"\x1b[{';'.join(_STYLES[name] for name in names)}m{text}\x1b[0m"


def table(headers: Sequence[str], rows: Sequence[Sequence[object]], align: str = "") -> str:
    """Lay out rows as text columns. `align` has one of `<` `>` per column; the default is text left, then right."""
    cells = [[str(cell) for cell in row] for row in [headers, *rows]]
    align = align or "<" + ">" * (len(headers) - 1)
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Format seconds for reading: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


PROBLEMS_SHOWN = 20


def listing(problems: Sequence[str], noun: str) -> str:
    """Count the problems and show the first 20, one a line."""
    lines = [
        f"{len(problems)} {noun}{'s' if len(problems) > 1 else ''}:",
        *(f"  {problem}" for problem in problems[:PROBLEMS_SHOWN]),
    ]
    if len(problems) > PROBLEMS_SHOWN:
        lines.append(f"  ... and {len(problems) - PROBLEMS_SHOWN} more")
    return "\n".join(lines)


class Progress:
    """A line that says how far a loop is and when it will end.

    On a terminal the line is redrawn in place, at most ten times a second; elsewhere a new line is written
    at most every `plain_interval_s` seconds, so that logs stay short.
    """

    def __init__(self, label: str, total: int, *, plain_interval_s: float = 15.0) -> None:
        self.label, self.total, self.done = label, total, 0
        self._started_s = self._drawn_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._interval_s = 0.1 if self._is_terminal else plain_interval_s

    def update(self, done: int, note: str = "") -> None:
        """Report that `done` of `total` are finished."""
        self.done = done
        now_s = time.monotonic()
        if now_s - self._drawn_s < self._interval_s:
            return
        self._drawn_s = now_s
        elapsed_s = now_s - self._started_s
        left_s = elapsed_s / done * (self.total - done) if done else 0.0
        line = f"{self.label} {done}/{self.total}  {duration(left_s)} left  {note}".rstrip()
        if self._is_terminal:
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
        else:
            say(line)

    def close(self) -> None:
        """Clear the redrawn line; a plain log keeps what it has."""
        if self._is_terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
