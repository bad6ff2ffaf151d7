"""Equality of two Python programs: by syntax tree, or, when asked for, by what they print."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
import tempfile

from tool_aware.units import MIB

RUN_TIMEOUT_S = 5
RUN_MEMORY_BYTES = 512 * MIB
RUN_FILE_BYTES = MIB
_OUTPUT_CHARS = 100_000


def same_syntax(one: str, other: str) -> bool:
    """Return whether two programs have one syntax tree, whatever their layout, comments, docstrings and own names.

    Text that is not Python equals only itself, apart from surrounding whitespace.
    """
    first, second = _canonical(one), _canonical(other)
    if first is None or second is None:
        return one.strip() == other.strip()
    return first == second


def same_output(one: str, other: str) -> bool:
    """Run both programs and compare what they print; a program that fails, hangs or prints nothing equals none.

    Each runs in a subprocess of its own: isolated mode, empty environment, scratch directory, limits on time, memory,
    file size and processes. That stops accidents, not attacks: run it on code you would run anyway, or in a container.
    """
    printed = _run(one)
    return bool(printed) and printed == _run(other)


def same_syntax_or_output(one: str, other: str) -> bool:
    """Return whether two programs have one syntax tree or, if not, print the same; runs them then."""
    return same_syntax(one, other) or same_output(one, other)


def _canonical(code: str) -> str | None:
    try:
        tree = ast.parse(code.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return ast.dump(_Renamer(_own_names(tree)).visit(tree))


def _own_names(tree: ast.AST) -> dict[str, str]:
    """Number the names that the program itself binds, in order of appearance; imported names keep theirs."""
    bound = [
        name
        for node in ast.walk(tree)
        for name in (
            [node.id]
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else [node.arg]
            if isinstance(node, ast.arg)
            else [node.name]
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
            else []
        )
    ]
    return {name: f"v{index}" for index, name in enumerate(dict.fromkeys(bound))}


class _Renamer(ast.NodeTransformer):
    """Replace the program's own names by numbers and drop docstrings."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for attribute in ("id", "arg", "name"):
            name = getattr(node, attribute, None)
            is_keyword = isinstance(node, ast.keyword | ast.alias)
            if isinstance(name, str) and not is_keyword:
                setattr(node, attribute, self.names.get(name, name))
        body = getattr(node, "body", None)
        if isinstance(body, list) and len(body) > 1 and isinstance(body[0], ast.Expr):
            first = body[0].value
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                del body[0]
        return super().generic_visit(node)


def _run(code: str) -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = subprocess.run(
                [sys.executable, "-I", "-c", code],
                cwd=folder,
                env={},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=RUN_TIMEOUT_S,
                preexec_fn=_limit_resources,
                start_new_session=True,
                check=False,
            )
        except (subprocess.TimeoutExpired, OSError, ValueError):
            return None
    return result.stdout[:_OUTPUT_CHARS].strip() if result.returncode == 0 else None


def _limit_resources() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (RUN_TIMEOUT_S, RUN_TIMEOUT_S))
    resource.setrlimit(resource.RLIMIT_AS, (RUN_MEMORY_BYTES, RUN_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (RUN_FILE_BYTES, RUN_FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
