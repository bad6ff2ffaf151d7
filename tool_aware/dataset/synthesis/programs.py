"""Checks that a program is harmless and runs, before it is put into a row as a code parameter.

Programs that a remote model wrote are not trusted: they may import a short list of modules only, may not touch files,
dunder names or the interpreter, and run in a process of their own with limits on time, memory and output.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tempfile

from tool_aware.units import MIB

ALLOWED_MODULES = frozenset(
    [
        "base64",
        "bisect",
        "calendar",
        "cmath",
        "collections",
        "csv",
        "dataclasses",
        "datetime",
        "decimal",
        "difflib",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "io",
        "itertools",
        "json",
        "math",
        "numbers",
        "operator",
        "random",
        "re",
        "secrets",
        "statistics",
        "string",
        "textwrap",
        "time",
        "timeit",
        "typing",
        "unicodedata",
        "zlib",
    ]
)
FORBIDDEN_NAMES = frozenset(
    [
        "open",
        "exec",
        "eval",
        "compile",
        "input",
        "breakpoint",
        "globals",
        "locals",
        "vars",
        "getattr",
        "setattr",
        "delattr",
        "__import__",
        "help",
        "exit",
        "quit",
    ]
)
TIMEOUT_S = 5.0
MEMORY_BYTES = 512 * MIB
OUTPUT_BYTES = 100_000

_RUNNER = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({int(TIMEOUT_S)}, {int(TIMEOUT_S)}))
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
resource.setrlimit(resource.RLIMIT_FSIZE, ({OUTPUT_BYTES}, {OUTPUT_BYTES}))
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
exec(compile(sys.stdin.read(), "program", "exec"), {{"__name__": "__main__"}})
"""


def problem_of_program(code: str) -> str | None:
    """Return why `code` may not be used, in words; None for a program that is allowed, runs, and prints something."""
    return problem_of_source(code) or _problem_of_run(code)


def problem_of_source(code: str) -> str | None:
    """Return what a program's text does that it may not; None if there is nothing."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError) as error:
        return f"is not Python: {error}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "."]
        else:
            modules = []
        foreign = [name for name in modules if name.split(".")[0] not in ALLOWED_MODULES]
        if foreign:
            return f"imports {foreign[0]}"
        name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
        if name in FORBIDDEN_NAMES or (name.startswith("__") and name.endswith("__")):
            return f"uses {name}"
    return None


def _problem_of_run(code: str) -> str | None:
    with tempfile.TemporaryDirectory(prefix="tool-aware-") as folder:
        try:
            result = subprocess.run(
                [sys.executable, "-I", "-c", _RUNNER],
                input=code,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                cwd=folder,
                env={},
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"runs longer than {TIMEOUT_S:g} s"
    if result.returncode:
        return (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
    return None if result.stdout.strip() else "prints nothing"
