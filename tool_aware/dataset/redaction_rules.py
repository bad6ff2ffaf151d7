"""Defines what the rules of redaction share: where a secret stands, what a rule is, when a text looks random.

No rule takes more than linear time. A repeated part is bounded, or cannot begin within itself: in front of `[\\w-]+`
stands `(?<![\\w-])`, so that a run of 200,000 characters is read once and not from each of its characters.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple


class Found(NamedTuple):
    """A secret at text[start:end]."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Rule:
    """Finds secrets. It is only asked about a text that may have some: `is_possible` is cheap, `find` is not."""

    is_possible: Callable[[str, str], bool]
    """Of a text and the same text in lower case."""
    find: Callable[[str], Iterator[Found]]


def has_any(*words: str) -> Callable[[str, str], bool]:
    """Return a check of whether a text, in lower case, has one of the words."""
    return lambda _, lower: any(word in lower for word in words)


def matches_of(
    kind: str, pattern: re.Pattern[str], real_part: Callable[[str], str | None] = lambda text: text
) -> Callable[[str], Iterator[Found]]:
    """Return a finder of what a pattern matches: its group `secret` if it has one.

    `real_part` returns the secret at the start of the match, or None for a look-alike (an order number, a version).
    """
    group = "secret" if "secret" in pattern.groupindex else 0

    def find(text: str) -> Iterator[Found]:
        for match in pattern.finditer(text):
            if match[group] and (secret := real_part(match[group])):
                yield Found(kind, match.start(group), match.start(group) + len(secret))

    return find


def entropy_bits(text: str) -> float:
    """Return Shannon's entropy of the characters of a text, in bits for each."""
    counts = Counter(text).values()
    return -sum(count / len(text) * math.log2(count / len(text)) for count in counts)


_PART = re.compile(r"[A-Z]?[a-z]*\d{0,3}|[A-Z]+\d{0,3}|\d{1,4}[a-z]{0,2}|\d+(?=$)")
_SEPARATORS = re.compile(r"[-_./:+]")
_HEX = re.compile(r"[0-9a-fA-F]+")
_UUID = re.compile(r"(?i)[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_CASE_CHANGE = re.compile(r"[a-z][A-Z]|[A-Z]{2}[a-z]|\d[a-zA-Z]|[a-zA-Z]\d")


def is_uuid(text: str) -> bool:
    """Return whether a text is a UUID."""
    return bool(_UUID.fullmatch(text))


def is_random(text: str, least: int = 16) -> bool:
    """Return whether a text of at least `least` characters was drawn and not written: a key, not a name or a path."""
    if len(text) < least or len(set(text)) < min(8, least):
        return False
    has_digit, has_letter = any(map(str.isdigit, text)), any(map(str.isalpha, text))
    if all(_PART.fullmatch(part) for part in _SEPARATORS.split(text)):
        return False
    if not has_letter:
        return False
    if _HEX.fullmatch(text):
        return has_digit and entropy_bits(text) >= 2.6
    changes = len(_CASE_CHANGE.findall(text))
    return entropy_bits(text) >= 2.8 and changes >= (2 if has_digit else max(4, len(text) // 8))
