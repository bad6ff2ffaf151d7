"""The texts of Reasoning lines: what they quote, whether it stands in a query, and the sentence without its slots.

The evidence of a reasoning is what stands in quotation marks. The skeleton is the sentence with one mark for each
slot: quoted evidence, numbers, and names (words that begin with a capital, the first word aside). Two reasonings with
one skeleton are the same sentence but for what fills its slots.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tool_aware.text import normalised, spread_evenly

SAMPLE = 1000  # reasonings; the more there are, the more sentences come twice, so sets are compared at this number
SLOT = "…"
MOST_EDITS = 1  # by which a quoted word may differ from the typed one: a reasoning may correct a typing error
SHORTEST_MISSPELT = 3  # letters, of the shorter one

_DOUBLE = re.compile(r'"([^"]*)"|“([^”]*)”|„([^“”]*)[“”]|«([^»]*)»|「([^」]*)」')
_SINGLE = re.compile(r"(?<!\w)(?:'([^']+(?:'\w[^']*)*)'|‘([^’]+(?:’\w[^’]*)*)’)(?!\w)")
_GAP = re.compile(r"\.\.\.|…")  # where a quote leaves out words
_NUMBER = re.compile(r"\d[\d.,:]*\w*")


# ---- evidence -------------------------------------------------------------------------------------------


def quoted(reasoning: str) -> list[str]:
    """Return what stands in quotation marks; in single ones only where there are no double ones (`don't`)."""
    for pattern in (_DOUBLE, _SINGLE):
        if found := [text for match in pattern.finditer(reasoning) for text in match.groups() if text]:
            return found
    return []


def stands_in(quote: str, text: str) -> bool:
    """Return whether a quote stands in a text, whatever its case, punctuation and spaces.

    What a quote leaves out with `...` may be anything. Each word may differ by one letter from the typed one.
    """
    typed = _normalised(text)
    parts = [part for piece in _GAP.split(quote) if (part := _normalised(piece))]
    return bool(parts) and all(_is_part(part, typed) for part in parts)


@lru_cache(maxsize=8_192)  # several systems quote one query
def _normalised(text: str) -> str:
    return normalised(text)


def _is_part(part: str, typed: str) -> bool:
    if part in typed:
        return True
    words, wanted = typed.split(), part.split()
    return any(
        all(map(_is_spelling, wanted, words[start : start + len(wanted)]))
        for start in range(len(words) - len(wanted) + 1)
    )


def _is_spelling(word: str, typed: str) -> bool:
    """Return whether a word is the typed one, or differs from it by one letter, or two that changed places."""
    if word == typed:
        return True
    if not (word.isalpha() and typed.isalpha()):  # another number is another thing
        return False
    if min(len(word), len(typed)) < SHORTEST_MISSPELT or abs(len(word) - len(typed)) > MOST_EDITS:
        return False
    first = next((i for i, (a, b) in enumerate(zip(word, typed, strict=False)) if a != b), min(len(word), len(typed)))
    ours, theirs = word[first:], typed[first:]
    swapped = ours[1:2] + ours[:1] + ours[2:]
    return ours[1:] == theirs[1:] or ours[1:] == theirs or ours == theirs[1:] or swapped == theirs


# ---- boilerplate ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boilerplate:
    """Counts of reasonings that are the same sentence but for a slot, in at most SAMPLE of them, spread over all.

    `share` of them have the skeleton of another one. `sentences` is the number of different skeletons, `commonest`
    lists the most frequent with their counts.
    """

    share: float
    reasonings: int
    sentences: int
    commonest: tuple[tuple[str, int], ...]


def boilerplate(reasonings: Sequence[str], *, most_shown: int = 8) -> Boilerplate | None:
    """Return how much of the reasonings is boilerplate; None if there are none."""
    counts = Counter(map(skeleton, spread_evenly(reasonings, SAMPLE)))
    total = counts.total()
    if not total:
        return None
    repeated = sum(count for count in counts.values() if count > 1)
    return Boilerplate(repeated / total, total, len(counts), tuple(counts.most_common(most_shown)))


def skeleton(reasoning: str) -> str:
    """Return a reasoning without its evidence, names and numbers, each of them, or several in a row, marked by SLOT."""
    bare = _DOUBLE.sub(f" {SLOT} ", reasoning)
    if bare == reasoning:
        bare = _SINGLE.sub(f" {SLOT} ", reasoning)
    words: list[str] = []
    for place, word in enumerate(_NUMBER.sub(SLOT, bare).split()):
        is_slot = word.startswith(SLOT) or (place > 0 and word[:1].isupper())
        if not is_slot:
            words.append(word.casefold().strip(".,;:!?"))
        elif not (words and words[-1] == SLOT):
            words.append(SLOT)
    return " ".join(word for word in words if word)
