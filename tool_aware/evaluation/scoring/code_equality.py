"""Equality of two Python programs by syntax tree; program_output.py compares what they print."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any


def same_syntax(one: str, other: str) -> bool:
    """Return whether two programs have one syntax tree, whatever their layout, comments, docstrings and own names.

    Text that is not Python equals only itself, apart from surrounding whitespace.
    """
    if one == other:
        return True
    first, second = _canonical(one), _canonical(other)
    if first is None or second is None:
        return one.strip() == other.strip()
    return first == second


@lru_cache(maxsize=16_384)
def _canonical(code: str) -> str | None:
    try:
        tree = ast.parse(code.strip())
        return _written(tree, _own_names(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # a model's answer can be nested to any depth
        return None


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


def _written(value: Any, names: Mapping[str, str]) -> str:
    """Write a syntax tree as `ast.dump` does, without docstrings, and numbers for the program's own names."""
    if isinstance(value, list):
        return f"[{', '.join([_written(item, names) for item in value])}]"
    if not isinstance(value, ast.AST):
        return repr(value)
    has_names = not isinstance(value, ast.keyword | ast.alias)
    parts = []
    for field in value._fields:
        part = getattr(value, field, None)
        if type(part) is str and has_names and field in ("id", "arg", "name"):
            part = names.get(part, part)
        elif field == "body" and isinstance(part, list) and _begins_with_docstring(part):
            part = part[1:]
        parts.append(_written(part, names))
    return f"{type(value).__name__}({', '.join(parts)})"


def _begins_with_docstring(body: Sequence[ast.AST]) -> bool:
    """Return whether a block begins with a text that is not all of it."""
    first = body[0].value if len(body) > 1 and isinstance(body[0], ast.Expr) else None
    return isinstance(first, ast.Constant) and isinstance(first.value, str)
