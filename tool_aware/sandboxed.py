"""The child of sandbox.py: gives up everything it can, then executes the program that stands on its standard input.

Started as a script in isolated mode; it imports nothing of this package, so that no more code than this page is in the
process. Arguments: seconds, bytes of memory, bytes of output, 1 for isolation or 0 for the limits alone, and the number
of a pipe on which it says that it is ready. The pipe is closed before the program begins, which so cannot say anything.

With a sixth argument there are several programs on standard input, each behind its length in 8 bytes. Each is executed
in a copy of this process (fork) that then goes the same way; its exit code follows on the pipe, between line breaks.
With `numpy` as that argument, NumPy is loaded once for all of them.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import ctypes
import errno
import gc
import importlib
import os
import platform
import re
import resource
import select
import signal
import sys

READY = b"ready"  # as in sandbox.py

# Modules a program may import. They are loaded before the process is sealed, as no file can be opened afterwards.
MODULES = frozenset(
    (
        *("abc", "array", "base64", "binascii", "bisect", "calendar", "cmath", "collections", "contextlib", "copy"),
        *("csv", "dataclasses", "datetime", "decimal", "difflib", "enum", "fractions", "functools", "hashlib"),
        *("heapq", "hmac", "html", "io", "itertools", "json", "keyword", "locale", "math", "numbers", "numpy"),
        *("operator", "os", "pprint", "queue", "random", "re", "secrets", "shlex", "statistics", "string", "struct"),
        *("sys", "textwrap", "time", "timeit", "traceback", "types", "typing", "unicodedata", "urllib", "uuid"),
        *("warnings", "zlib"),
    )
)
# What these load when they are first used.
LOADED_LATER = (
    *("_strptime", "copy", "decimal", "functools", "hashlib", "heapq", "linecache", "random", "re", "traceback"),
    *("tracemalloc", "types", "typing", "unicodedata", "warnings", "weakref", "urllib.parse"),
    *("encodings.ascii", "encodings.cp1252", "encodings.hex_codec", "encodings.idna", "encodings.latin_1"),
    *("encodings.rot_13", "encodings.utf_16", "encodings.utf_32"),
    *("numpy.fft", "numpy.linalg", "numpy.random"),
)

# Programs with such a word may leave objects that an interpreter takes apart in an order of its own, or files that only
# it closes: they end with it. It takes four times as long as all else that a short program needs.
NEEDS_AN_ENDING = re.compile(
    rb"\b(__del__|builtins|codecs|ctypes|detach|fdopen|gc|modules|open|setattr|setprofile|settrace|signal)\b"
    rb"|\b(BufferedWriter|FileIO|TextIOWrapper)\b|\bstd(out|err)\s*[=,]|\bdel\s+sys\b"
)

# Parts of packages that do something when they are imported, or read files; no program of use needs them.
_NOT_IMPORTED = ("conftest", "distutils", "f2py", "testing", "tests")

NOBODY = 65534

# linux/seccomp.h, linux/filter.h, linux/audit.h
_SET_MODE_FILTER, _FLAG_TSYNC = 1, 1
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4
_LOAD_WORD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4
_X32_BIT = 0x40000000

# System calls for computing, memory, clocks, and for reading and writing what is open: stdin, stdout and stderr.
# name: (x86-64, arm64); numbers of arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h
SYSTEM_CALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "fstat": (5, 80), "lseek": (8, 62),
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216),
    "madvise": (28, 233), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "futex": (202, 98), "sched_yield": (24, 124), "restart_syscall": (219, 128),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "times": (100, 153), "getrusage": (98, 165), "getrandom": (318, 278),
    "getpid": (39, 172), "gettid": (186, 178), "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip
_ARCHITECTURES = {"x86_64": (0xC000003E, 0, 317), "aarch64": (0xC00000B7, 1, 277)}  # audit number, column, seccomp(2)


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("if_true", ctypes.c_ubyte), ("if_false", ctypes.c_ubyte),
                ("value", ctypes.c_uint32)]  # fmt: skip


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction))]


def main() -> None:
    """Limit this process, load what the program imports, seal the process, and execute the program."""
    time_s, memory_bytes, output_bytes, is_isolated, parent = map(int, sys.argv[1:6])
    code = next_program(parent, sys.argv[6]) if len(sys.argv) > 6 else sys.stdin.buffer.read()
    give_up_stdin()
    sys.argv = ["program"]
    limit(time_s, memory_bytes, output_bytes)
    program = compile(code, "program", "exec")
    load_imports(code)
    signal.setitimer(signal.ITIMER_REAL, time_s)  # sleeping takes no processor time
    become_nobody()
    if is_isolated:
        reason = seal()
        if reason:
            os.write(parent, reason.encode(errors="replace"))
            os._exit(1)
    os.write(parent, READY)
    os.close(parent)
    namespace: dict[str, object] = {"__name__": "__main__"}
    if not is_isolated or NEEDS_AN_ENDING.search(code):  # without isolation it may have threads to wait for
        exec(program, namespace)
        return
    gc.freeze()  # what is collected from here on is the program's
    run_exit_functions, collect, leave = atexit._run_exitfuncs, gc.collect, os._exit  # whatever it makes of them
    exec(program, namespace)
    # From here on as the interpreter ends, but that it takes all of itself apart, four times the work of all else.
    run_exit_functions()
    exit_code = flush()
    del namespace  # what it holds has its last words, and what they are about is still there
    collect()
    flush()
    leave(exit_code)


def give_up_stdin() -> None:
    """Make `input()` and descriptor 0 meet the end of the file: the pipe is where later programs come from."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115


def flush() -> int:
    """Write out what was printed; return the exit code of an interpreter that does so: 120 if it fails."""
    exit_code = 0
    for stream in (getattr(sys, "stdout", None), getattr(sys, "stderr", None)):
        try:
            if stream is not None and not stream.closed:
                stream.flush()
        except Exception:
            exit_code = 120
    return exit_code


def next_program(parent: int, module: str) -> bytes:
    """Copy this process for each program on standard input; return the program, in the copy alone.

    This process never holds a program, which later copies could find in its memory.
    """
    for name in LOADED_LATER:
        if not name.startswith("numpy") or module == "numpy":
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    waiting = select.poll()
    waiting.register(0, select.POLLIN)
    while True:
        if not any(event & select.POLLIN for _, event in waiting.poll()):
            os._exit(0)  # there will be no more
        process = os.fork()
        if not process:
            if "numpy.random" in sys.modules:
                sys.modules["numpy.random"].seed()  # else all copies draw alike
            return read_bytes(int.from_bytes(read_bytes(8), "big"))
        _, status = os.waitpid(process, 0)
        os.write(parent, b"\n%d\n" % os.waitstatus_to_exitcode(status))


def read_bytes(count: int) -> bytes:
    """Read as many bytes from standard input, unbuffered; end the process if there are no more."""
    found = b""
    while len(found) < count:
        part = os.read(0, count - len(found))
        if not part:
            os._exit(0)
        found += part
    return found


def limit(time_s: int, memory_bytes: int, output_bytes: int) -> None:
    """Limit processor time, address space, the size of each file, core dumps and processes."""
    for what, most in (
        (resource.RLIMIT_CPU, time_s),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def load_imports(code: bytes) -> None:
    """Import the modules that the program imports, as far as they are on the list."""
    names = imported(ast.parse(code))
    roots = {name.partition(".")[0] for name in names} & MODULES
    names = {name for name in names if not any(map(_is_left_out, name.split(".")))}
    later = [name for name in LOADED_LATER if not name.startswith("numpy") or "numpy" in roots]
    for name in [*sorted(name for name in names if name.partition(".")[0] in roots), *later]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def imported(tree: ast.Module) -> set[str]:
    """Return the names of the modules that a program imports."""
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def _is_left_out(part: str) -> bool:
    return part.startswith("_") or part in _NOT_IMPORTED


def become_nobody() -> None:
    """Drop the rights of root, if the process has them."""
    if os.getuid() == 0:
        for drop in (
            lambda: os.setgroups([]),
            lambda: os.setresgid(NOBODY, NOBODY, NOBODY),
            lambda: os.setresuid(NOBODY, NOBODY, NOBODY),
        ):
            with contextlib.suppress(OSError):  # without the right to, as in some containers: the filter stands alone
                drop()


def seal() -> str | None:
    """Drop all system calls but `SYSTEM_CALLS`; return why that is impossible here."""
    machine = platform.machine().replace("arm64", "aarch64")
    if sys.platform != "linux" or machine not in _ARCHITECTURES or sys.maxsize < 2**32:
        return f"no filter of system calls for {sys.platform} on {machine}"
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return f"prctl: {os.strerror(ctypes.get_errno())}"
    architecture, column, seccomp = _ARCHITECTURES[machine]
    instructions = filter_program(architecture, [numbers[column] for numbers in SYSTEM_CALLS.values()])
    loaded = _Filter(len(instructions), (_Instruction * len(instructions))(*instructions))
    if libc.syscall(seccomp, _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(loaded)):
        return f"seccomp: {os.strerror(ctypes.get_errno())}"
    try:
        os.open("/", os.O_RDONLY)
    except PermissionError:
        return None
    return "the filter of system calls has no effect"


def filter_program(architecture: int, allowed: list[int]) -> list[_Instruction]:
    """Return the BPF program that allows these system calls, answers EPERM to others, and kills another architecture.

    The 32-bit calls of x86-64 (x32) have the same numbers and one more bit, and are refused.
    """
    end = len(allowed)
    return [
        _Instruction(_LOAD_WORD, 0, 0, _ARCHITECTURE_OFFSET),
        _Instruction(_JUMP_EQUAL, 1, 0, architecture),
        _Instruction(_RETURN, 0, 0, _KILL),
        _Instruction(_LOAD_WORD, 0, 0, _NUMBER_OFFSET),
        _Instruction(_JUMP_GREATER_EQUAL, end, 0, _X32_BIT),
        *(_Instruction(_JUMP_EQUAL, end - index, 0, number) for index, number in enumerate(allowed)),
        _Instruction(_RETURN, 0, 0, _REFUSE),
        _Instruction(_RETURN, 0, 0, _ALLOW),
    ]


if __name__ == "__main__":
    main()
