"""Checks of JSON values: what in one can be neither written as JSON nor trained on, and where."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

MAX_NESTING = 100  # json's own limit is Python's for recursion; copying and writing a value use more of it than reading


def lone_surrogate(value: object, place: str = "") -> str | None:
    r"""Return where in a JSON value a text has half a surrogate pair (`"\ud83d"` alone), dotted; None if nowhere.

    JSON can spell it, but it is no character: it can be neither written as UTF-8 nor tokenised.
    """
    found = (where for where, leaf, _ in _leaves(value, place) if isinstance(leaf, str) and not _is_encodable(leaf))
    return next(found, None)


def unusable(value: object, place: str = "") -> str | None:
    """Return what in a JSON value can be neither written as JSON nor trained on, behind its place; None if nothing.

    Half a surrogate pair, NaN and infinite numbers, and nesting deeper than MAX_NESTING.
    """
    if _is_usable(value, 0):
        return None
    for where, leaf, depth in _leaves(value, place):
        if depth > MAX_NESTING:
            return f"{place or 'it'}: nested deeper than {MAX_NESTING} levels"
        if isinstance(leaf, str) and not _is_encodable(leaf):
            return f"{where}: half a surrogate pair, which is no character (an emoji that was cut in two?)"
        if isinstance(leaf, float) and not math.isfinite(leaf):
            return f"{where}: {leaf} is no JSON value; write null"
    return None


def _is_usable(value: object, depth: int) -> bool:
    """Return whether `unusable` finds nothing, in a fifth of its time as no places are written down."""
    if isinstance(value, str):
        return _is_encodable(value)
    if isinstance(value, float):
        return math.isfinite(value)
    if depth >= MAX_NESTING:
        return not isinstance(value, Mapping | list | tuple)
    if isinstance(value, dict) or isinstance(value, Mapping):  # noqa: SIM101 - the first is much the faster
        for key, inside in value.items():
            if isinstance(key, str) and not (key.isascii() or _is_encodable(key)):
                return False
            kind = type(inside)
            if math.isfinite(inside) if kind is float else kind is str and inside.isascii():  # as most are
                continue
            if not (inside is None or kind is int or kind is bool or _is_usable(inside, depth + 1)):
                return False
        return True
    return not isinstance(value, list | tuple) or all(_is_usable(inside, depth + 1) for inside in value)


def _leaves(value: object, place: str) -> Iterator[tuple[str, object, int]]:
    """Yield the texts, keys among them, and numbers of a JSON value with place and depth, without recursion."""
    stack: list[tuple[str, object, int]] = [(place, value, 0)]
    while stack:
        where, item, depth = stack.pop()
        if depth > MAX_NESTING + 1:  # reported at the level above
            continue
        if isinstance(item, Mapping):
            keys = [(f"a key of {where}" if where else "a key", key, depth) for key in item if isinstance(key, str)]
            yield from keys
            inner = [(f"{where}.{key}" if where else str(key), inside, depth + 1) for key, inside in item.items()]
            stack += reversed(inner)
        elif isinstance(item, list | tuple):
            stack += reversed([(f"{where}[{index}]", inside, depth + 1) for index, inside in enumerate(item)])
        yield where or "the text", item, depth


def _is_encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
