"""The edge of every script: errors for people, exit codes, messages, fallbacks, tables, progress.

Results go to stdout, messages to stderr. Colour and carriage returns are written to a terminal only,
and never when NO_COLOR is set (https://no-color.org).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib.util
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NoReturn, TextIO

from tool_aware.secret_values import redacted
from tool_aware.streams import guard_streams, lost_output

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_GATE = 3
EXIT_SIGHUP = 128 + signal.SIGHUP
EXIT_SIGINT = 128 + signal.SIGINT
EXIT_SIGTERM = 128 + signal.SIGTERM

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

# Names under which pip installs what is imported under another name.
_DISTRIBUTIONS = {
    "dotenv": "python-dotenv",
    "google": "protobuf",
    "psycopg2": "psycopg2-binary",
    "pynvml": "nvidia-ml-py",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # a full disk, a quota, a terminal that was closed


class UserError(Exception):
    """A mistake that the user can fix: what is wrong, where, and how to fix it."""

    exit_code = EXIT_USER
    is_silent = False  # True where another process of the run reports it

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class GateFailed(UserError):
    """A result below what was asked for; the work itself was done."""

    exit_code = EXIT_GATE


class Interrupted(BaseException):
    """A signal that stops the program with exit code 128 + `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def run(main: Callable[[], int]) -> NoReturn:
    """Call `main`, report its outcome and exit with the code for it."""
    guard_streams()
    signal.signal(signal.SIGTERM, _raise_interrupted)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # under nohup a run continues after its terminal closes
        signal.signal(signal.SIGHUP, _raise_interrupted)
    try:
        code = _outcome(main)
        _ignore_signals()
    except (KeyboardInterrupt, Interrupted) as stop:  # between the end of the work and here
        code = exit_code_of(stop)
        _ignore_signals()
    code = _after_flush(code)
    if main.__module__ == "__main__" and not _is_watched():
        _end(code or EXIT_DONE)
    sys.exit(code)


def _is_watched() -> bool:
    """Return whether a debugger or a profiler runs the script, which goes on after it."""
    if sys.gettrace() or sys.getprofile():
        return True
    monitoring = getattr(sys, "monitoring", None)  # of Python 3.12, whose profilers set no function
    return monitoring is not None and any(map(monitoring.get_tool, range(6)))  # as many as it has places for


def _end(code: int) -> NoReturn:
    """End the process as the interpreter does, but without taking apart what it holds.

    With torch and transformers that takes half a second, and the system takes back the memory all the same.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    lost_output(sys.stdout)  # of these functions and threads
    lost_output(sys.stderr)
    os._exit(code)


def _ignore_signals() -> None:
    """Ignore signals from now on: the process is about to end, and one would be a traceback."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)


def _outcome(main: Callable[[], int]) -> int:
    """Call `main`, report the error that ended it, if any, and return the exit code."""
    try:
        return main()
    except (KeyboardInterrupt, Interrupted) as stop:
        say(f"stopped by {signal.Signals(exit_code_of(stop) - 128).name}")
        return exit_code_of(stop)
    except Exception as error:
        mistake = _as_user_error(error)
        if mistake is None:
            _report_bug()
        elif not mistake.is_silent:
            _complain(f"{style('error:', 'red')} {mistake}")
        return exit_code_of(error)


def _as_user_error(error: BaseException) -> UserError | None:
    """Return what the user can fix about `error`; None if it is a bug."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError):
        return _missing_package(error)
    if not isinstance(error, OSError) or error.strerror is None:
        return None
    # A full disk, a read-only file system, a permission: path and reason say it all. A failed write(2) has no path.
    if error.filename or error.errno in _NO_ROOM:
        return UserError(error.strerror, where=str(error.filename or "output"))
    return None


def _missing_package(error: ModuleNotFoundError) -> UserError | None:
    """Return the pip line for a package that is not installed; None for a module of this toolkit or of Python."""
    package = (error.name or "").partition(".")[0]
    if not package or package == "tool_aware" or package in sys.stdlib_module_names:
        return None
    name = distribution_of(package)
    if package in sys.modules or importlib.util.find_spec(package):
        what = f"the installed {name} has no {error.name}: another version is needed"
    else:
        what = f"{name} is not installed for {sys.executable}"
    fix = f"{sys.executable} -m pip install {name}, or everything at once: pip install -r requirements.txt"
    return UserError(what, fix=fix)


def distribution_of(package: str) -> str:
    """Return the name under which pip installs the package that is imported as `package`."""
    return _DISTRIBUTIONS.get(package, package)


def require_packages(*packages: str) -> None:
    """Exit with an error that has the pip line unless these can be imported.

    For what modules import at their top: that fails before `run` is called, so nobody else reports it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            _complain(f"{style('error:', 'red')} {_missing_package(ModuleNotFoundError(name=package))}")
            raise SystemExit(EXIT_USER)


def _report_bug() -> None:
    """Print the traceback, the versions it occurred with, and what to do with them."""
    from tool_aware.versions import versions_in_words

    traceback.print_exc()
    _complain(
        f"{versions_in_words()}\n"
        "this is a bug: please open an issue with all of the text above, your config.yaml, your GPU model\n"
        "and what `python monitor_gpu.py check` prints"
    )


def _after_flush(code: int) -> int:
    """Flush both streams and return the exit code: EXIT_USER instead of EXIT_DONE if the result could not be written.

    A reader that has seen enough (`| head`) is no fault.
    """
    error = lost_output(sys.stdout)
    if error and not isinstance(error, BrokenPipeError):
        _complain(f"{style('error:', 'red')} the output cannot be written: {error.strerror}")
        code = code or EXIT_USER
    lost_output(sys.stderr)
    return code


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a script that `error` ended."""
    if isinstance(error, KeyboardInterrupt | Interrupted):
        return 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT)
    mistake = _as_user_error(error)
    return mistake.exit_code if mistake else EXIT_BUG


def _raise_interrupted(signum: int, _frame: object) -> NoReturn:
    if signum == signal.SIGHUP:  # the kernel and the shell both send it; the second must not interrupt the cleanup
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise Interrupted(signum)


def process_number() -> int:
    """Return the rank of this process among those that a launcher such as `torchrun` started; 0 for a single one."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if process_count() > 1 and rank.isdecimal() else 0


def process_count() -> int:
    """Return the number of processes that a launcher started; 1 where the environment does not say a number."""
    count = os.environ.get("WORLD_SIZE", "1")
    return max(1, int(count)) if count.isdecimal() else 1


def say(message: str = "") -> None:
    """Print a message to stderr; of several processes of one run only the first does."""
    if process_number() == 0:
        _write(message)


def _complain(message: str) -> None:
    """Print a message to stderr from whichever process this is, with its number."""
    number = process_number()
    _write(f"[process {number}] {message}" if number else message)


def _write(line: str) -> None:
    """Write a line to stderr. A full disk or a closed terminal behind it does not end the work."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def heading(title: str) -> None:
    """Print the title of the next step."""
    say(f"\n{style(title, 'bold', stream=sys.stderr)}")


def warn(message: str, *, from_any_process: bool = False) -> None:
    """Print a warning to stderr. For a fallback call `Fallbacks.add`, which also keeps it for the manifest.

    `from_any_process` is for what can happen to one process of several only.
    """
    (_complain if from_any_process else say)(f"{style('warning:', 'yellow')} {message}")


class Fallbacks(Collection[str]):
    """Messages on what a run did differently than asked for or planned, in order, each once, for the stage's manifest.

    One object per run, passed to the functions that may fall back. It can be pickled to send it to other processes.
    """

    def __init__(self, messages: Iterable[str] = ()) -> None:
        self._messages = dict.fromkeys(messages)  # already reported

    def add(self, message: str, *, from_any_process: bool = False) -> None:
        """Warn of a fallback and keep it; a repeated message is not printed again."""
        message = redacted(message)  # it is also written to the manifest
        if message not in self._messages:
            warn(message, from_any_process=from_any_process)
        self._messages[message] = None

    def extend(self, messages: Iterable[str]) -> None:
        """Keep fallbacks that were reported where they happened."""
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
    """Return rows as text columns. `align` has one of `<` `>` per column; the default is text left, then right."""
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
    """Return seconds as people read them: `42 s`, `3 min 05 s`, `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


PROBLEMS_SHOWN = 20


def listing(problems: Sequence[str], noun: str) -> str:
    """Return the number of problems and the first 20 of them, one a line."""
    lines = [
        f"{len(problems)} {noun}{'s' if len(problems) > 1 else ''}:",
        *(f"  {problem}" for problem in problems[:PROBLEMS_SHOWN]),
    ]
    if len(problems) > PROBLEMS_SHOWN:
        lines.append(f"  ... and {len(problems) - PROBLEMS_SHOWN} more")
    return "\n".join(lines)


class Progress:
    """A line that shows how far a loop is and when it will end.

    On a terminal the line is redrawn in place, at most ten times a second; elsewhere a new line is written
    at most every `plain_interval_s` seconds, so that logs stay short.
    """

    def __init__(self, label: str, total: int, *, plain_interval_s: float = 15.0) -> None:
        self.label, self.total, self.done = label, total, 0
        self._started_s = self._drawn_s = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._interval_s = 0.1 if self._is_terminal else plain_interval_s

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of `total` are finished."""
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
