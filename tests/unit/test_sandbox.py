"""Foreign programs compute and print; everything else is refused by the kernel."""

from __future__ import annotations

import os
import socket
import sys
import time

import pytest

from tool_aware import sandboxed
from tool_aware.sandbox import Limits, NotIsolated, run_program

PRINTS = {
    "print(1 + 1)": "2\n",
    "import statistics\nprint(statistics.mean([1, 2, 6]))": "3\n",
    "import datetime\nprint(datetime.datetime.strptime('2024-02-29', '%Y-%m-%d').date())": "2024-02-29\n",
    "import random\nrandom.seed(1)\nprint(random.randint(1, 6))": "2\n",
    "from collections import Counter\nprint(Counter('abca').most_common(1))": "[('a', 2)]\n",
    "import re, json\nprint(json.dumps(re.findall(r'\\d+', 'a1b22')))": '["1", "22"]\n',
    "import hashlib\nprint(hashlib.sha256(b'x').hexdigest()[:8])": "2d711642\n",
    "import numpy as np\nprint(float(np.linalg.norm([3, 4])))": "5.0\n",
    "from urllib.parse import quote\nprint(quote('a b'))": "a%20b\n",
    "import time\ntime.sleep(0.01)\nprint('Größe 😀')": "Größe 😀\n",
    "import uuid\nprint(len(str(uuid.uuid4())))": "36\n",
    "if __name__ == '__main__':\n    print('main')": "main\n",
}


@pytest.mark.parametrize("code", PRINTS)
def test_a_program_that_computes_and_prints_runs(code):
    run = run_program(code)
    assert (run.printed, run.problem) == (PRINTS[code], None)


# Ways to a file, the parent's secrets, another program or the network. Each prints ESCAPED if it succeeds.
READ = "print('ESCAPED', {})"
PARENT = "'/proc/%s/environ' % {}"
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
    "a file that is open in the parent": (
        "import os\nfor n in range(3, 200):\n    try:\n        print('ESCAPED' if os.read(n, 100) else '')\n"
        "    except OSError:\n        pass\nraise SystemExit(1)"
    ),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_no_way_out_is_open(name, monkeypatch):
    monkeypatch.setenv("POSTGRES_PASSWORD", "a secret")
    with open(__file__, encoding="utf-8") as inherited, socket.socket() as listening:
        os.set_inheritable(inherited.fileno(), True)
        os.set_inheritable(listening.fileno(), True)
        run = run_program(ESCAPES[name])
    assert "ESCAPED" not in run.printed
    assert "a secret" not in run.printed


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
def test_what_goes_wrong_is_said(code, problem):
    started = time.monotonic()
    run = run_program(code, Limits(time_s=1))
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
