"""Programs in the sandbox print, draw and end as under an interpreter of their own, also one after another in one."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tool_aware.sandbox import Limits, ProgramRun, WarmInterpreter, run_program

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


def test_a_warm_interpreter_runs_programs_as_one_of_their_own_does():
    last = ["1 / 0", "def (", "raise SystemExit(3)", "import time\ntime.sleep(60)", "print('x' * 10**6)", "print(7)"]
    limits = Limits(time_s=1)
    with WarmInterpreter(limits) as warm:
        for code in [*PRINTS, *last]:
            assert warm.run(code) == (ProgramRun(PRINTS[code]) if code in PRINTS else run_program(code, limits))


SAYS_AT_ITS_END = (
    "class Last:\n    def __init__(self, word): self.word = word\n    def __del__(self): print(self.word)\n"
)
AT_THEIR_END = [
    SAYS_AT_ITS_END + "a, b = Last('a'), Last('b')\nprint('end')",
    SAYS_AT_ITS_END + "a = Last('in a ring')\na.self = a\nprint('end')",
    SAYS_AT_ITS_END + "def use(): return held\nheld = Last('in use')\nprint(use().word)",
    "import atexit\natexit.register(print, 'first')\natexit.register(print, 'last')",
    "import weakref\nclass A: pass\na = A()\nweakref.finalize(a, print, 'gone')",
    "print('no line break', end='')",
    "import sys\nsys.stdout.write('written')",
    "import io, sys\nsys.stdout = io.StringIO()\nprint('nowhere')",
    "import sys\nprint('before')\nsys.stdout = None",
    "import sys\nprint('before')\nsys.stdout.close()",
    "import sys\nprint('before')\nsys.stdout = 3",
    "import sys\nprint('to stderr', file=sys.stderr)",
    "import sys\nprint('left')\nsys.exit()",
    "import sys\nsys.exit('words')",
    "raise SystemExit(4)",
    "def f():\n    yield 1\n    print('never')\ng = f()\nprint(next(g))",
    "x = 'hi'\nclass A:\n    def __del__(self): print('bye', x)\na = A()",
    "class A:\n    count = 0\n    def __init__(self): A.count += 1\n    def __del__(self): A.count -= 1\n"
    "held = [A() for _ in range(1000)]\nprint(A.count)",
    "word = 'closed'\ndef f():\n    try:\n        yield 1\n    finally:\n        print(word)\ng = f()\nprint(next(g))",
    "import os, sys\nclass Fast:\n    def __init__(self): self.parts = []\n"
    "    def write(self, text): self.parts.append(text)\n"
    "    def flush(self): os.write(1, ''.join(self.parts).encode()); self.parts = []\n"
    "sys.stdout = Fast()\nprint('fast')",
    "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.detach(), encoding='utf-8')\nprint('again')",
    "import sys\nprint('before')\ndel sys.stdout",
    "import atexit, sys\natexit.register(sys.exit, 3)\nprint('left')",
    "import gc\ngc.collect = None\nprint('kept')",
    "import sys\ncalls = []\nsys.setprofile(lambda *_: calls.append(1))\nprint(len(calls) > 0)",
    "import builtins, functools\nbuiltins.print = functools.partial(print, file=open(1, 'w', closefd=False))\nprint(2)",
    "data = open(0).read()\nprint(len(data), len({1, 2}))",
    "def f():\n    try:\n        yield 1\n    finally:\n        print('closed')\ng = f()\nprint(next(g))",
]


@pytest.mark.parametrize("code", AT_THEIR_END)
def test_a_program_ends_as_under_an_interpreter_of_its_own(code):
    plain = subprocess.run(
        [sys.executable, "-I", "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    for run in (run_program(code), _run_warm(code)):
        assert run.printed == plain.stdout
        assert (run.problem is None) == (plain.returncode == 0)


def test_a_warm_interpreter_with_numpy_runs_the_same():
    with WarmInterpreter(has_numpy=True) as warm:
        for code, printed in PRINTS.items():
            assert warm.run(code) == ProgramRun(printed)


def test_draws_of_numpy_differ_in_each_copy_of_an_interpreter_that_has_it():
    with WarmInterpreter(has_numpy=True) as warm:
        assert len({warm.run("import numpy as np\nprint(np.random.rand())").printed for _ in range(4)}) == 4


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of a system call of x86-64")
def test_no_program_finds_an_earlier_one_in_its_memory():
    """It looks through its heap by way of libc, which answers EFAULT (14) for a page that is not there."""
    secret = "# " + "x" * 9000 + "\nword = 'Reference' 'Program'\nprint(1)"
    looks = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nlibc.sbrk.restype = ctypes.c_void_p\n"
        "page, seen = libc.sbrk(0), 0\n"
        "while True:\n"
        "    page -= 4096\n    ctypes.set_errno(0)\n    libc.syscall(14, 99, ctypes.c_void_p(page), None, 8)\n"
        "    if ctypes.get_errno() == 14: break\n"
        "    seen += 1\n"
        "    if b\"'Reference' 'Prog\" + b\"ram'\" in ctypes.string_at(page, 4096): print('ESCAPED')\n"
        "print(seen > 100)"
    )
    with WarmInterpreter() as warm:
        warm.run(secret)
        assert warm.run(looks) == ProgramRun("True\n")


def test_the_order_of_a_set_is_one_in_an_interpreter_and_another_in_the_next():
    code = "print({'lime', 'plum', 'kiwi', 'fig', 'pear', 'nut', 'date', 'sloe'})"
    with WarmInterpreter() as warm:
        assert warm.run(code) == warm.run(code)
    assert len({_run_warm(code).printed for _ in range(5)}) > 1


def _run_warm(code: str) -> ProgramRun:
    with WarmInterpreter() as warm:
        return warm.run(code)


def test_what_a_program_leaves_in_a_warm_interpreter_reaches_no_other():
    with WarmInterpreter() as warm:
        warm.run("import json, math\nmath.pi = 3\njson.mark = 1\nprint('x' * 5000)")
        assert warm.run("import json, math\nprint(math.pi > 3, hasattr(json, 'mark'))").printed == "True False\n"


def test_chance_differs_in_each_copy_of_a_warm_interpreter():
    with WarmInterpreter() as warm:
        drawn = [warm.run("import random, uuid\nprint(random.random(), uuid.uuid4())").printed for _ in range(3)]
        assert len({text.split()[0] for text in drawn}) == len({text.split()[1] for text in drawn}) == 3
