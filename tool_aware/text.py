"""Text as rows are compared: one spelling for what differs in case, width, punctuation or spaces; shared beginnings."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")

EVIDENCE_CHARACTERS = 70

_NOT_WORD = re.compile(r"[^\w%+*/=<>-]+")


def normalised(text: str) -> str:
    """Return text without differences in width, case, punctuation and spacing: equal results are the same query.

    Operators stay, as `3 + 4` and `3 * 4` are different questions.
    """
    if text.isascii():  # in a third of the time
        return b" ".join(text.encode().translate(_ASCII).split()).decode()
    return _normalised(text)


def _normalised(text: str) -> str:
    return _NOT_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


_ASCII = bytes(ord(_normalised(character) or " ") for character in map(chr, range(128))).ljust(256)


def one_line(text: str) -> str:
    """Replace every run of white space by one space."""
    return " ".join(text.split())


def one_line_if_short(text: str) -> str:
    """Return a query trimmed, and on one line; line breaks stay where the text is code or a list."""
    return text.strip() if "\n" in text.strip() else one_line(text)


MOST_SHOWN = 12  # names of a list that is shown whole


def shortlist(items: Sequence[str], most: int = MOST_SHOWN) -> str:
    """Write items with commas; of more than `most`, their number and the first few."""
    if len(items) <= most:
        return ", ".join(items)
    return f"{len(items)}: {', '.join(items[: most // 2])} and {len(items) - most // 2} more"


def spread_evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most so many items, in order and spread evenly over all of them."""
    count = min(most, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def shortened(text: str, limit: int = EVIDENCE_CHARACTERS) -> str:
    """Return text cut at a word, short enough to be quoted in a sentence, with `...` where something is missing."""
    text = one_line(text).strip(" .?!")
    if len(text) <= limit:
        return text or "the query"
    return text[: limit - 3].rsplit(" ", 1)[0].rstrip(" ,;:") + "..."


def common_prefix_length(sequences: Sequence[list[int]] | Sequence[list[str]] | Sequence[str]) -> int:
    """Count the token ids, words or characters with which all sequences begin."""
    first, last = min(sequences), max(sequences)  # in lexicographic order; what these two share, all in between share
    same, end = 0, min(len(first), len(last)) + 1  # how many are known to be the same, and how many cannot be
    while end - same > 1:  # whole slices are compared: a thousand ids one by one take a hundred times as long
        middle = (same + end) // 2
        if first[same:middle] == last[same:middle]:
            same = middle
        else:
            end = middle
    return same
