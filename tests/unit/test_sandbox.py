"""Foreign programs compute and print; everything else is refused by the kernel."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import sys
import time

import pytest

from tool_aware import sandboxed
from tool_aware.sandbox import Limits, NotIsolated, WarmInterpreter, run_program

IS_X86 = platform.machine() == "x86_64"

# Ways to a file, the parent's secrets, another program or the network. Each prints ESCAPED if it succeeds.
READ = "print('ESCAPED', {})"
PARENT = "'/proc/%s/environ' % {}"
# A system call made through libc, and machine code in memory that may be executed, for x86-64. B is a buffer.
SYSTEM_CALL = (
    "import os, sys\nctypes = sys.modules['ctypes']\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "B = ctypes.create_string_buffer(4096)\n"
    "n = libc.syscall({}, {})\nassert n >= 0, ctypes.get_errno()\nprint('ESCAPED', n)"
)
MACHINE_CODE = (
    "import os, sys\nctypes = sys.modules['ctypes']\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "PATH_TEXT = ctypes.create_string_buffer(b'/etc/passwd')\n"
    "PATH = ctypes.addressof(PATH_TEXT).to_bytes(8, 'little')\n"
    "libc.mmap.restype = ctypes.c_void_p\n"
    "page = libc.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, 0)\n"
    "code = bytes({})\nctypes.memmove(page, code, len(code))\n"
    "n = ctypes.CFUNCTYPE(ctypes.c_long)(page)()\nassert n >= 0, n\nprint('ESCAPED', n)"
)
ESCAPES = {
    "open": READ.format("open('/etc/passwd').read()"),
    "FileIO": "import io\n" + READ.format("io.FileIO('/etc/passwd').read()"),
    "open under another name": "from io import open as o\n" + READ.format("o('/etc/passwd').read()"),
    "os of another module": "import random\n" + READ.format("random._os.listdir('/')"),
    "os.open": "import os\n" + READ.format("os.read(os.open('/etc/passwd', 0), 100)"),
    "importlib of another module": (
        "import dataclasses\nos = dataclasses.inspect.importlib.import_module('os')\n" + READ.format("os.listdir('/')")
    ),
    "subprocess of another module": (
        "import dataclasses\ns = dataclasses.sys.modules.get('subprocess') or "
        "dataclasses.inspect.importlib.import_module('subprocess')\n" + READ.format("s.check_output('id')")
    ),
    "the loader": (
        "import sys\nloader = sys.modules['__main__'].__loader__\n" + READ.format("loader.get_data('/etc/passwd')")
    ),
    "subclasses of object": (
        "for c in object.__subclasses__():\n"
        "    if c.__name__ == '_wrap_close':\n"
        "        print('ESCAPED', c.__init__.__globals__['listdir']('/'))\n"
    ),
    "codecs": "import sys\n" + READ.format("sys.modules['codecs'].open('/etc/passwd').read()"),
    "the parent's environment": "import os\n" + READ.format("open('/proc/%d/environ' % os.getppid(), 'rb').read()"),
    "any process's environment": "for n in range(1, 60000):\n    try:\n"
    "        print('ESCAPED', open('/proc/%d/environ' % n, 'rb').read())\n    except FileNotFoundError:\n        pass",
    "a shell": "import os\nos.system('echo ESCAPED')",
    "popen": "import os\n" + READ.format("os.popen('id').read()"),
    "fork": "import os\n" + READ.format("os.fork()"),
    "exec": "import os\nos.execv('/bin/echo', ['echo', 'ESCAPED'])",
    "posix_spawn": "import os\nos.posix_spawn('/bin/echo', ['echo', 'ESCAPED'], {})\nprint('ESCAPED')",
    "a socket": "import sys, os\n" + READ.format("__import__('_socket').socket(2, 1, 0)"),
    "a thread": "print('ESCAPED', __import__('_thread').start_new_thread(print, ()))",
    "a signal to the parent": "import os, signal\nos.kill(os.getppid(), 0)\nprint('ESCAPED')",
    "a signal to all": "import os\nos.kill(-1, 0)\nprint('ESCAPED')",
    "a written file": "import os\nos.mkdir('x')\nprint('ESCAPED')",
    "a link": "import os\nos.symlink('/etc/passwd', 'x')\nprint('ESCAPED')",
    "a file without a name": "import os\nprint('ESCAPED', os.memfd_create('x'))",
    "more memory for itself": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nprint('ESCAPED')",
    "becoming root again": "import os\nos.setuid(0)\nprint('ESCAPED')",
    "ctypes": "import ctypes\nassert ctypes.CDLL(None).system(b'id') == 0\nprint('ESCAPED')",
    "a system call by its number": (
        "import sys\nctypes = sys.modules['ctypes']\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "n = libc.syscall(257, -100, b'/etc/passwd', 0)\nassert n >= 0, ctypes.get_errno()\nprint('ESCAPED', n)"
    ),
    "a system call of x32": (
        "import sys\nctypes = sys.modules['ctypes']\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "n = libc.syscall(0x40000000 + 2, b'/etc/passwd', 0)\nassert n >= 0, ctypes.get_errno()\nprint('ESCAPED', n)"
    ),
    "io_uring": (
        "import sys\nctypes = sys.modules['ctypes']\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "b = ctypes.create_string_buffer(120)\nn = libc.syscall(425, 4, b)\nassert n >= 0\nprint('ESCAPED', n)"
    ),
    "another process's memory": (
        "import sys, os\nctypes = sys.modules['ctypes']\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "n = libc.syscall(101, 16, os.getppid(), 0, 0)\nassert n >= 0\nprint('ESCAPED', n)"
    ),
    "machine code that opens a file": MACHINE_CODE.format(
        "[0x48, 0xBF, *PATH, 0x31, 0xF6, 0xB8, 2, 0, 0, 0, 0x0F, 5, 0xC3]"
    ),
    "machine code that calls the 32-bit kernel": MACHINE_CODE.format("[0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3]"),
    "machine code that forks": MACHINE_CODE.format("[0xB8, 58, 0, 0, 0, 0x0F, 5, 0xC3]"),
    **{
        f"system call {number}, {name}": SYSTEM_CALL.format(number, arguments)
        for name, number, arguments in (
            ("vfork", 58, "0"),
            ("clone3", 435, "B, 88"),
            ("userfaultfd", 323, "0"),
            ("bpf", 321, "0, B, 48"),
            ("personality", 135, "0x0040000"),
            ("pidfd_getfd", 438, "0, 1, 0"),
            ("process_vm_readv", 310, "os.getppid(), B, 1, B, 1, 0"),
            ("ptrace of the parent", 101, "16, os.getppid(), 0, 0"),
            ("prctl", 157, "4, 1, 0, 0, 0"),
            ("seccomp", 317, "0, 0, 0"),
            ("openat2", 437, "-100, b'/etc/passwd', B, 24"),
            ("open_by_handle_at", 304, "-100, B, 0"),
            ("name_to_handle_at", 303, "-100, b'/', B, B, 0"),
            ("shmget", 29, "0, 4096, 0o1600"),
            ("msgget", 68, "0, 0o1600"),
            ("mq_open", 240, "b'x', 0o102, 0o600, 0"),
            ("keyctl", 250, "0, -3, 1"),
            ("perf_event_open", 298, "B, 0, -1, -1, 0"),
            ("io_uring_setup", 425, "4, B"),
            ("unshare", 272, "0x10000000"),
            ("setns", 308, "0, 0"),
            ("mount", 165, "b'x', b'/', b'tmpfs', 0, 0"),
            ("chroot", 161, "b'/'"),
            ("socketpair", 53, "1, 1, 0, B"),
            ("inotify_init", 253, "0"),
            ("epoll_create1", 291, "0"),
            ("timerfd_create", 283, "1, 0"),
            ("signal of itself", 62, "os.getpid(), 0"),
            ("prlimit", 302, "0, 9, 0, B"),
            ("setpriority", 141, "0, 0, 19"),
            ("ioctl of what it prints to", 16, "1, 0x5413, B"),
            ("dup of what it prints to", 32, "1"),
            ("fchmod of what it prints to", 91, "1, 0o4777"),
            ("ftruncate of what it prints to", 77, "1, 10**9"),
            ("fallocate of what it prints to", 285, "1, 0, 0, 10**9"),
            ("sendfile", 40, "1, 0, 0, 100"),
            ("splice", 275, "0, 0, 1, 0, 100, 0"),
            ("kexec_load", 246, "0, 0, 0, 0"),
            ("reboot", 169, "0xfee1dead, 672274793, 0, 0"),
            ("iopl", 172, "3"),
        )
    },
    "numpy.load": "import numpy as np\n" + READ.format("np.load('/etc/passwd', allow_pickle=True)"),
    "numpy.fromfile": "import numpy as np\n" + READ.format("np.fromfile('/etc/passwd', dtype='u1')"),
    "numpy.genfromtxt": "import numpy as np\n" + READ.format("np.genfromtxt('/etc/passwd', dtype=str)"),
    "numpy.memmap": "import numpy as np\n" + READ.format("np.memmap('/etc/passwd', mode='r')[:9]"),
    "numpy.save": "import numpy as np\nnp.save('x.npy', np.ones(3))\nprint('ESCAPED')",
    "numpy.tofile": "import numpy as np\nnp.ones(3).tofile('x')\nprint('ESCAPED')",
    "a library of numpy": "import numpy as np\n" + READ.format("np.ctypeslib.load_library('libc.so.6', '/lib')"),
    "a part of numpy that runs when imported": "import numpy.f2py.__main__\nprint('ESCAPED')",
    "a pickle": "import copy\nimport sys\np = __import__('pickle')\n"
    + READ.format("p.loads(b'cos\\nlistdir\\n(S\\'/\\'\\ntR.')"),
    "a pickle that runs a program": "p = __import__('pickle')\n"
    "assert p.loads(b'cos\\nsystem\\n(S\\'id\\'\\ntR.') == 0\n"
    "print('ESCAPED')",
    "its own memory": "import os\n" + READ.format("open('/proc/self/mem', 'rb').read(1)"),
    "its own environment": "import os\n" + READ.format("open('/proc/self/environ').read()"),
    "its own command line": READ.format("open('/proc/self/cmdline').read()"),
    "the terminal": "import os\n" + READ.format("os.open('/dev/tty', os.O_RDWR)"),
    "the terminal behind what it prints": "import os\n" + READ.format("os.get_terminal_size(2)"),
    "a file that stands for another": "# coding: utf-7\nimport os\n" + READ.format("os.readlink('/proc/self/exe')"),
    "shared memory": "import sys\nm = __import__('mmap')\n" + READ.format("m.mmap(0, 4096, m.MAP_PRIVATE)"),
    "a watcher of a file": "import os\n" + READ.format("os.stat('/etc/passwd')"),
    "a link to the parent": "import os\n" + READ.format("os.pidfd_open(os.getppid())"),
    "a process that stays": "import os\nif os.fork() == 0:\n    os.setsid()\n    print('ESCAPED')",
    "a handler that outlives the limit": "import resource\n"
    "resource.prlimit(0, resource.RLIMIT_CPU, (60, 60))\nprint('ESCAPED')",
    "a clock that is set": "import time\ntime.clock_settime(time.CLOCK_REALTIME, 0)\nprint('ESCAPED')",
    "a file that is open in the parent": (
        "import os\nfor n in range(3, 200):\n    try:\n        print('ESCAPED' if os.read(n, 100) else '')\n"
        "    except OSError:\n        pass\nraise SystemExit(1)"
    ),
}


@pytest.mark.parametrize(
    "name", [name for name in ESCAPES if IS_X86 or ("system call" not in name and "machine" not in name)]
)
def test_no_way_out_is_open(name, monkeypatch):
    monkeypatch.setenv("POSTGRES_PASSWORD", "a secret")
    with open(__file__, encoding="utf-8") as inherited, socket.socket() as listening:
        os.set_inheritable(inherited.fileno(), True)
        os.set_inheritable(listening.fileno(), True)
        run = run_program(ESCAPES[name])
    assert "ESCAPED" not in run.printed
    assert "a secret" not in run.printed


@pytest.mark.skipif(not IS_X86, reason="some are machine code for x86-64")
def test_no_way_out_of_a_warm_interpreter_is_open(monkeypatch):
    monkeypatch.setenv("POSTGRES_PASSWORD", "a secret")
    with open(__file__, encoding="utf-8") as inherited, socket.socket() as listening, WarmInterpreter() as warm:
        os.set_inheritable(inherited.fileno(), True)
        os.set_inheritable(listening.fileno(), True)
        runs = {name: warm.run(code).printed for name, code in ESCAPES.items()}
    assert not [name for name, printed in runs.items() if "ESCAPED" in printed or "a secret" in printed]


def test_machine_code_can_be_executed_at_all_so_that_its_refusal_says_something():
    program = MACHINE_CODE.format("[0xB8, 39, 0, 0, 0, 0x0F, 5, 0xC3]")  # getpid, which is allowed
    if IS_X86:
        assert "ESCAPED" in run_program(program).printed


@pytest.mark.parametrize("code", [0, 1, 97, 255])
def test_no_program_can_say_that_it_was_not_isolated(code):
    """The child says so before the program begins, on a pipe that is closed then."""
    program = "import os, sys\nfor n in range(3, 99):\n    try:\n        os.write(n, b'no filter')\n    except OSError:"
    program += f"\n        pass\nsys.stderr.write('no filter')\nsys.stderr.flush()\nos._exit({code})"
    assert run_program(program).problem == (None if code == 0 else "no filter")


def test_its_own_memory_holds_no_secret(monkeypatch):
    """Arguments and environment, which are on the stack of each process, and what its interpreter has read."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-very-secret-key")
    program = (
        "import sys, os\nctypes = sys.modules['ctypes']\n"
        "environ = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')\n"
        "i = 0\nwhile environ[i]:\n    start = ctypes.cast(environ, ctypes.POINTER(ctypes.c_void_p))[i]\n"
        "    print(environ[i])\n    i += 1\n"
        "print(ctypes.string_at(start - 3000, 4000))\nprint(sys.argv, sys.orig_argv)"
    )
    run = run_program(program)
    assert run.problem is None
    assert b"OPENBLAS_NUM_THREADS".decode() in run.printed
    assert "secret" not in run.printed


def test_a_program_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    writes = "for name in ('x', '../x', {!r}):\n    try:\n        open(name, 'w')\n    except OSError:\n        pass"
    assert run_program(writes.format(str(tmp_path / "x"))).problem is None
    assert not list(tmp_path.iterdir())
    forks = "import os\nprint(os.getpgid(0), flush=True)\nif os.fork() == 0:\n    import time\n    time.sleep(30)"
    group = int(run_program(forks, is_isolated=False).printed)  # the limits alone: what it started is ended with it
    ended_by = time.monotonic() + 10
    while time.monotonic() < ended_by:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, 0)
            time.sleep(0.05)
            continue
        return
    raise AssertionError("a process of the program is still there")


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("POSTGRES_PASSWORD", "a secret")
    run = run_program("import os\nprint(dict(os.environ))")
    assert "secret" not in run.printed
    assert "PASSWORD" not in run.printed


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("while True: pass", "runs longer than 1 s"),
        ("import time\ntime.sleep(60)", "runs longer than 1 s"),
        ("import signal, time\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\ntime.sleep(60)", "runs longer than 1 s"),
        ("print('x' * 10**6)", "prints too much"),
        ("import os\nwhile os.write(1, b'x' * 10**6): pass", "prints too much"),
        ("import os\nwhile True: os.write(2, b'x' * 10**6)", "prints too much"),
        ("x = 'x' * 10**10", "MemoryError"),
        ("x = []\nwhile True: x.append(bytearray(50_000))", "MemoryError"),
        ("x = ()\nwhile True: x = (x,)", None),
        ("import numpy as np\nx = np.ones((10**5, 10**5))", None),
        ("import os\nos.lseek(1, 10**9, 0)\nos.write(1, b'x')", "OSError: [Errno 27] File too large"),
        ("import os\nos.close(1); os.close(2); os.close(0)\nwhile True: pass", "runs longer than 1 s"),
        ("import sys\nsys.stdout = None\nraise KeyboardInterrupt", None),
        ("import sys, ctypes\nsys.modules['ctypes'].string_at(0)", None),
        ("print('\\x1b[2J\\x1b]0;title\\x07')", None),
        ("# coding: nonsense\nprint(1)", "SyntaxError: unknown encoding: nonsense"),
        ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
        ("print(" + "+".join(["1"] * 100_000) + ")", None),  # too deep for the compiler, or not: never a crash here
        ("raise SystemExit(3)", "exit code 3"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def (", "SyntaxError: invalid syntax"),
        ("import torch", "ModuleNotFoundError: No module named 'torch'"),
        ("input()", "EOFError: EOF when reading a line"),
        ("import os\nos.abort()", None),
        ("\x00", None),
        ("'\ud83d'", None),
    ],
)
def test_what_goes_wrong_is_said(code, problem, monkeypatch):
    if "SIG_IGN" in code:  # ended by nothing but its parent, after its time and what a start may take
        monkeypatch.setattr("tool_aware.sandbox._STARTUP_S", 1.0)
    started = time.monotonic()
    limits = Limits(time_s=5 if problem == "MemoryError" else 1)  # memory is filled within 2 s, on a busy machine
    run = run_program(code, limits)
    assert time.monotonic() - started < 20
    assert problem is None or run.problem == problem


def test_without_isolation_nothing_is_run_unless_asked(monkeypatch, tmp_path):
    """Another kind of processor: the child finds no filter for it."""
    child = tmp_path / "sandboxed.py"
    source = open(sandboxed.__file__, encoding="utf-8").read()  # noqa: SIM115
    child.write_text(source.replace('"x86_64": (', '"other": (').replace('"aarch64": (', '"another": ('))
    monkeypatch.setattr("tool_aware.sandbox._CHILD", child)
    with pytest.raises(NotIsolated, match="cannot be isolated on this machine: no filter of system calls"):
        run_program("print('ran')")
    assert run_program("print('ran')", is_isolated=False).printed == "ran\n"


@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="only root can become nobody")
def test_a_program_of_root_runs_as_nobody(tmp_path):
    code = "import sys\nprint(sys.modules['__main__'].uid)"
    child = tmp_path / "sandboxed.py"
    source = open(sandboxed.__file__, encoding="utf-8").read()  # noqa: SIM115
    assert source.count("    libc = ctypes.CDLL") == 1
    child.write_text(
        source.replace("    libc = ctypes.CDLL", "    globals()['uid'] = os.getuid()\n    libc = ctypes.CDLL")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tool_aware.sandbox._CHILD", child)
        assert run_program(code).printed == f"{sandboxed.NOBODY}\n"
    assert run_program("import os\nprint(os.getuid())", is_isolated=False).printed == f"{sandboxed.NOBODY}\n"


def test_every_system_call_has_its_number_for_both_processors():
    columns = list(zip(*sandboxed.SYSTEM_CALLS.values(), strict=True))
    assert all(len(set(column)) == len(sandboxed.SYSTEM_CALLS) for column in columns)
    forbidden = {
        "open",
        "openat",
        "socket",
        "connect",
        "clone",
        "clone3",
        "fork",
        "execve",
        "ptrace",
        "kill",
        "ioctl",
        "prctl",
    }
    assert not forbidden & sandboxed.SYSTEM_CALLS.keys()
