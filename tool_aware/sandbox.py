"""Runs Python programs that nobody has read, without letting them touch files, the network or other processes.

A program runs in an interpreter of its own that gives up everything before the first foreign line is executed
(sandboxed.py): the kernel then refuses all system calls but a short list for computing and printing (seccomp), the
user is nobody where the parent is root, the environment and the working directory are empty, and time, memory and
output are limited. Linux on x86-64 or arm64; elsewhere `run_program` refuses unless told to do without isolation.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
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
        printed, complaint = _start_of(output, limits.output_bytes), _start_of(errors, _ERROR_BYTES)
        is_full = any(os.fstat(file.fileno()).st_size >= limits.output_bytes for file in (output, errors))
    if said and said != _READY:
        raise NotIsolated(
            f"programs cannot be isolated on this machine: {said.decode(errors='replace')}",
            fix="use Linux on x86-64 or arm64, or a container with seccomp",
        )
    return ProgramRun(printed, _problem(returncode, complaint, limits, is_late=is_late, is_full=is_full))


def check_isolation() -> None:
    """Raise NotIsolated if programs cannot be isolated on this machine."""
    run_program("")


def _run(
    code: str, limits: Limits, files: tuple[IO[bytes], IO[bytes]], folder: str, *, is_isolated: bool
) -> tuple[int, bytes, bool]:
    """Run a program; return its exit code, what the child said before it began, and whether it had to be killed."""
    from_child, to_parent = os.pipe()
    arguments = (limits.time_s, limits.memory_bytes, limits.output_bytes, int(is_isolated), to_parent)
    with os.fdopen(from_child, "rb") as pipe:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", str(_CHILD), *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=files[0],
                stderr=files[1],
                cwd=folder,
                env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,
                pass_fds=[to_parent],
            )
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
