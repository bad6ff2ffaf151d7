"""The small language that frames are written in, and its expansion.

    (where is|show me) *our {document}* (please|)
    the pipe on floor {number} leaks. *where is our {document}*? => {document} floor {number}

`(a|b|)`   one of the alternatives; parentheses without `|` are literal text
`{slot}`   a filler; the same slot keeps its value within one expansion
`*text*`   the evidence: the words that decide which tool is right; the reasoning quotes them
`=> text`  the words of the sentence that a search or message is about, in its order, where that is not all of them
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache

_ALTERNATIVES = re.compile(r"\(([^()|]*(?:\|[^()|]*)+)\)")
_SLOT = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_EVIDENCE = re.compile(r"\*(\S(?:[^*]*\S)?)\*")
_SPACES = re.compile(r" {2,}")
_ARROW = " => "


@dataclass(frozen=True)
class Expansion:
    """One sentence, the words in it that decide the tool, and what to send to the tool."""

    text: str
    evidence: str | None
    argument: str | None
    search: str | None = None  # what a search for it gets, once qualified_requests.py has made it


@cache
def slots_of(pattern: str) -> tuple[str, ...]:
    """Return the names of the slots in `pattern`, each once, in order of appearance."""
    return tuple(dict.fromkeys(_SLOT.findall(pattern)))


def expand(pattern: str, values: Mapping[str, str], random_: random.Random) -> Expansion:
    """Return one expansion of a frame with the given slot values.

    Marks and alternatives are resolved before slots are filled, so a filler may hold `*`, `(a|b)` or braces.
    Raises KeyError naming a slot without a value.
    """
    said, arrow, argument = pattern.partition(_ARROW)
    said = _tidy(choose(said, random_))
    match = _EVIDENCE.search(said)
    return Expansion(
        text=fill(_EVIDENCE.sub(lambda marked: marked[1], said) if match else said, values),
        evidence=fill(match[1], values) if match else None,
        argument=fill(_tidy(choose(argument, random_)), values) if arrow else None,
    )


def choose(pattern: str, random_: random.Random) -> str:
    """Return the pattern with every `(a|b|c)`, innermost first, replaced by one of its alternatives."""
    while "|" in pattern and _ALTERNATIVES.search(pattern):
        pattern = _ALTERNATIVES.sub(lambda match: random_.choice(match[1].split("|")), pattern)
    return pattern


def fill(pattern: str, values: Mapping[str, str]) -> str:
    """Return the pattern with every `{slot}` replaced by its value. Raises KeyError for a slot without one."""
    return _SLOT.sub(lambda match: values[match[1]], pattern)


def fill_known(pattern: str, values: Mapping[str, str]) -> str:
    """Replace the slots that have a value and keep other braces, as in a program with f-strings."""
    return _SLOT.sub(lambda match: values.get(match[1], match[0]), pattern)


def problems_of(pattern: str, known_slots: Collection[str]) -> list[str]:
    """Return what is wrong with a frame, in words; an empty list means that it expands."""
    problems = [f"unknown slot {{{slot}}}" for slot in slots_of(pattern) if slot not in known_slots]
    if pattern.count("*") % 2:
        problems.append("an odd number of * marks")
    if pattern.count(_ARROW) > 1:
        problems.append("more than one =>")
    if not pattern.partition(_ARROW)[0].strip():
        problems.append("no text")
    return problems


def _tidy(text: str) -> str:
    return _SPACES.sub(" ", text).strip()
