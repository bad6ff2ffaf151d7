"""Equality of two Python programs by syntax tree; program_output.py compares what they print."""

from __future__ import annotations

import ast
from functools import lru_cache


def same_syntax(one: str, other: str) -> bool:
    """Return whether two programs have one syntax tree, whatever their layout, comments, docstrings and own names.

    Text that is not Python equals only itself, apart from surrounding whitespace.
    """
    first, second = _canonical(one), _canonical(other)
    if first is None or second is None:
        return one.strip() == other.strip()
    return first == second


@lru_cache(maxsize=16_384)
def _canonical(code: str) -> str | None:
    try:
        tree = ast.parse(code.strip())
        return ast.dump(_Renamer(_own_names(tree)).visit(tree))
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
