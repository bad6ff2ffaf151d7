"""Runs Python programs that nobody has read, without letting them touch files, the network or other processes.

A program runs in an interpreter of its own (or in a copy of one that waits for programs), which gives up everything
before the first foreign line is executed (sandboxed.py): the kernel then refuses all system calls but a short list for
computing and printing (seccomp), the user is nobody where the parent is root, the environment and the working directory
are empty, and time, memory and output are limited. Linux on x86-64 or arm64; elsewhere `run_program` refuses unless
told to do without isolation.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tool_aware.console import UserError
from tool_aware.units import MIB

_CHILD = Path(__file__).with_name("sandboxed.py")
_READY = b"ready"  # as in sandboxed.py
_STARTUP_S = 5.0  # on a busy machine, beside the program's own time
_ERROR_BYTES = 100_000
_REASON_BYTES = 1000


class NotIsolated(UserError):
    """The kernel does not isolate programs here, so none was run."""


@dataclass(frozen=True)
class Limits:
    """Bounds of a program: seconds of processor and of wall time, bytes of address space, bytes it may print."""

    time_s: int = 5
    memory_bytes: int = 512 * MIB
    output_bytes: int = 100_000


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class ProgramRun:
    """The output of a program, and why it failed; None if it ended well."""

    printed: str
    problem: str | None = None


def run_program(code: str, limits: Limits = DEFAULT_LIMITS, *, is_isolated: bool = True) -> ProgramRun:
    """Run a program and return what it printed. It can import a list of modules only (sandboxed.py), start no thread,
    and read nothing.

    Raises NotIsolated if this machine's kernel cannot isolate it; with `is_isolated=False` it then runs all the same,
    with the limits alone.
    """
    with (
        tempfile.TemporaryDirectory(prefix="tool-aware-") as folder,
        tempfile.TemporaryFile() as output,  # a file, not a pipe: its size is limited by the kernel
        tempfile.TemporaryFile() as errors,
    ):
        returncode, said, is_late = _run(code, limits, (output, errors), folder, is_isolated=is_isolated)
        return _as_run(said, returncode, (output, errors), limits, is_late=is_late)


def _as_run(
    said: bytes, returncode: int, files: tuple[IO[bytes], IO[bytes]], limits: Limits, *, is_late: bool
) -> ProgramRun:
    """Return what a program printed and why it failed. Raises NotIsolated if that is what the child said."""
    printed, complaint = _start_of(files[0], limits.output_bytes), _start_of(files[1], _ERROR_BYTES)
    is_full = any(os.fstat(file.fileno()).st_size >= limits.output_bytes for file in files)
    if said and said != _READY:
        raise NotIsolated(
            f"programs cannot be isolated on this machine: {said.decode(errors='replace')}",
            fix="use Linux on x86-64 or arm64, or a container with seccomp",
        )
    return ProgramRun(printed, _problem(returncode, complaint, limits, is_late=is_late, is_full=is_full))


class WarmInterpreter:
    """An interpreter that has loaded what programs import, and runs one after another, each in a copy of itself (fork).

    Starting an interpreter takes ten times as long as most programs. All that `run_program` says of isolation holds for
    each program; only the seed of hashes is the same for all: programs that print sets in their order do so otherwise
    in another one. NumPy is loaded if `has_numpy`, else in each copy that needs it, which takes ten times as long as
    the copy. One program at a time; a context, which ends the process.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, *, has_numpy: bool = False) -> None:
        self._limits, self._has_numpy = limits, has_numpy
        self._process: subprocess.Popen[bytes] | None = None
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> WarmInterpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def run(self, code: str) -> ProgramRun:
        """Run a program as `run_program` does."""
        process = self._process or self._start()
        for file in (self._output, self._errors):
            file.seek(0)
            file.truncate()
        program, limits = code.encode("utf-8", errors="replace"), self._limits
        said, is_late, returncode = b"", False, 0
        try:
            assert process.stdin, "a pipe"
            process.stdin.write(len(program).to_bytes(8, "big") + program)
            process.stdin.flush()
            said, returncode, is_late = self._answer(limits.time_s + _STARTUP_S)
        except (OSError, ValueError, EOFError):  # it was killed, for memory or by a user: the program has had no chance
            self._end()
            return run_program(code, limits)
        run = _as_run(said, returncode, (self._output, self._errors), limits, is_late=is_late)
        if is_late:
            self._end()
        return run

    def _start(self) -> subprocess.Popen[bytes]:
        enter = self._opened.enter_context
        folder = enter(tempfile.TemporaryDirectory(prefix="tool-aware-"))
        self._output = enter(tempfile.TemporaryFile())  # noqa: SIM115
        self._errors = enter(tempfile.TemporaryFile())  # noqa: SIM115
        from_child, to_parent = os.pipe()
        self._pipe = from_child
        self._opened.callback(os.close, from_child)
        try:
            self._process = _popen(
                *(self._limits, (self._output, self._errors), folder, to_parent),
                is_isolated=True,
                warm="numpy" if self._has_numpy else "none",
            )
        finally:
            os.close(to_parent)
        return self._process

    def _answer(self, timeout_s: float) -> tuple[bytes, int, bool]:
        """Return what the copy said before it began, its exit code, and whether it is late.

        Raises EOFError if the interpreter ends.
        """
        said, until_s = b"", time.monotonic() + timeout_s
        while said.count(b"\n") < 2:
            if not select.select([self._pipe], [], [], max(0.0, until_s - time.monotonic()))[0]:
                return said.partition(b"\n")[0], -signal.SIGKILL, True
            part = os.read(self._pipe, _REASON_BYTES)
            if not part:
                raise EOFError
            said += part
        reason, code, _ = said.split(b"\n")
        return reason, int(code), False

    def _end(self) -> None:
        process, self._process = self._process, None
        if process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if process.stdin:
                with contextlib.suppress(OSError):
                    process.stdin.close()
            process.wait()
        self._opened.close()


def check_isolation() -> None:
    """Raise NotIsolated if programs cannot be isolated on this machine."""
    run_program("")


def _run(
    code: str, limits: Limits, files: tuple[IO[bytes], IO[bytes]], folder: str, *, is_isolated: bool
) -> tuple[int, bytes, bool]:
    """Run a program; return its exit code, what the child said before it began, and whether it had to be killed."""
    from_child, to_parent = os.pipe()
    with os.fdopen(from_child, "rb") as pipe:
        try:
            process = _popen(limits, files, folder, to_parent, is_isolated=is_isolated)
        finally:
            os.close(to_parent)
        is_late = False
        try:
            process.communicate(code.encode("utf-8", errors="replace"), timeout=limits.time_s + _STARTUP_S)
        except subprocess.TimeoutExpired:
            is_late = True
        finally:
            if process.returncode is None or not is_isolated:  # it may have started others, where nothing keeps it
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.set_blocking(from_child, False)
        return process.returncode, pipe.read(_REASON_BYTES) or b"", is_late


def _popen(
    limits: Limits,
    files: tuple[IO[bytes], IO[bytes]],
    folder: str,
    to_parent: int,
    *,
    is_isolated: bool,
    warm: str | None = None,
) -> subprocess.Popen[bytes]:
    """Start the child, for one program or, warm with a module, for one after another."""
    arguments = (limits.time_s, limits.memory_bytes, limits.output_bytes, int(is_isolated), to_parent)
    return subprocess.Popen(
        [sys.executable, "-I", "-X", "utf8", str(_CHILD), *map(str, arguments), *([warm] if warm else [])],
        stdin=subprocess.PIPE,
        stdout=files[0],
        stderr=files[1],
        cwd=folder,
        env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
        pass_fds=[to_parent],
    )


def _start_of(file: IO[bytes], limit: int) -> str:
    file.seek(0)
    return file.read(limit).decode("utf-8", errors="replace")


def _problem(returncode: int, complaint: str, limits: Limits, *, is_late: bool, is_full: bool) -> str | None:
    if is_full:
        return "prints too much"
    if is_late or -returncode in (signal.SIGALRM, signal.SIGXCPU, signal.SIGKILL):
        return f"runs longer than {limits.time_s} s"
    if returncode < 0:
        return f"ended by signal {-returncode}, {signal.strsignal(-returncode)}"
    if returncode == 0:
        return None
    return (complaint.strip().splitlines() or [f"exit code {returncode}"])[-1][:300]
