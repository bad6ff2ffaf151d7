"""The words that an answered text loses of the reference, and those that it has and nobody said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import product

from tool_aware.evaluation.scoring.key_terms import NEGATION, Terms, has_number, language_of, month_number, terms_of
from tool_aware.evaluation.scoring.passages import Passages

NOT_TYPED = 0.5  # the weight of a word of the reference that the user did not type, of that of one that he did
CLEARLY_RARER = math.log(2.5)  # two and a half times, as weights are logarithms
MOST_PAIRS = 2_000  # of words that are looked at for misread ones
LOOKS_ALIKE = 0.75  # share of equal characters, difflib's ratio


@dataclass(frozen=True)
class Said:
    """The words of the user: the query, and the earlier ones of the conversation."""

    query: str = ""
    earlier: str = ""


@dataclass(frozen=True)
class Comparison:
    """An answered text beside one accepted text.

    `lost` and `added` are words; the hard ones among them are names, numbers, words that say when, and the negation.
    Added is what neither an accepted text nor the query has; what only earlier turns have is added, too. `kept` is the
    share of the accepted text's content words that are kept, each weighed by how rare it is, and by half if the user
    did not type it: it is the writer's choice then. `lost_typed` are words that he typed.
    """

    kept: float
    lost: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    hard_lost: tuple[str, ...] = ()
    hard_added: tuple[str, ...] = ()
    lost_typed: tuple[str, ...] = ()
    lost_untyped: tuple[str, ...] = ()
    misread: tuple[str, str] | None = None  # a word that the user typed, and one that looks like it instead
    is_core_kept: bool = True  # no word that the user typed and that is lost is clearly rarer than all that are kept
    rarest_added: str = ""  # a word that nobody said and that is rarer than all that are kept

    @property
    def hard_problem(self) -> str:
        """Return what no text may do, in words; empty if this one does not."""
        if self.hard_lost:
            return f"loses {', '.join(self.hard_lost)}"
        if self.hard_added:
            return f"invents {', '.join(self.hard_added)}"
        return f"has {self.misread[1]} instead of {self.misread[0]}" if self.misread else ""


def compare_words(value: str, text: str, texts: Sequence[str], said: Said, passages: Passages) -> Comparison:
    """Compare an answered text with one of the accepted `texts`; the passages say how rare a word is."""
    allowed_text, typed_text = "\n".join((*texts, said.query)), f"{said.earlier}\n{said.query}"
    language = language_of(f"{allowed_text}\n{said.earlier}")
    ours, theirs, allowed, typed = (
        terms_of(one, language) for one in (value, text, allowed_text, typed_text if typed_text.strip() else text)
    )
    not_typed = {*words_lost(theirs, typed)}
    lost = [word for word in words_lost(theirs, ours) if not _is_typing_mistake(word, not_typed, ours, theirs, typed)]
    added = words_lost(ours, allowed)
    lost_typed = [word for word in lost if word not in not_typed]
    weights = {word: passages.weight(word) for word in theirs.content}
    rarest_kept = max((weight for word, weight in weights.items() if word not in lost), default=0.0)
    weights |= {word: NOT_TYPED * weights[word] for word in not_typed}
    total = sum(weights.values())
    hard_lost = (*(word for word in lost if _is_hard(word, theirs, passages)), *_other_lost(theirs, ours))
    hard_added = (*(word for word in added if word in ours.names | ours.times), *_other_lost(ours, allowed))
    return Comparison(
        kept=1 - sum(weights[word] for word in lost) / total if total else 1.0,
        lost=tuple(dict.fromkeys((*lost, *hard_lost))),
        added=tuple(dict.fromkeys((*added, *hard_added))),
        hard_lost=hard_lost,
        hard_added=hard_added,
        lost_typed=tuple(lost_typed),
        lost_untyped=tuple(word for word in lost if word in not_typed),
        misread=_misread(lost_typed, added),
        is_core_kept=all(weights[word] <= rarest_kept + CLEARLY_RARER for word in lost_typed),
        rarest_added=next((word for word in added if passages.weight(word) > rarest_kept), ""),
    )


def _misread(lost: Sequence[str], added: Sequence[str]) -> tuple[str, str] | None:
    """Return a lost word and an added one that looks like it; of texts that share next to nothing, none."""
    pairs = product(lost, added) if len(lost) * len(added) <= MOST_PAIRS else ()
    return next(((word, other) for word, other in pairs if looks_like(word, other)), None)


def looks_like(one: str, other: str) -> bool:
    """Return whether a word is another one with a letter or two misread."""
    if min(len(one), len(other)) < 3 or not _may_look_like(one, other):
        return False
    return SequenceMatcher(None, one, other).ratio() >= LOOKS_ALIKE


def _may_look_like(one: str, other: str) -> bool:
    """Return whether two words have enough characters in common, whatever their order: difflib's ratio is no more."""
    length = len(one) + len(other)
    if 2 * min(len(one), len(other)) / length < LOOKS_ALIKE:
        return False
    return 2 * sum(min(one.count(c), other.count(c)) for c in {*one}) / length >= LOOKS_ALIKE


def words_lost(of: Terms, among: Terms) -> list[str]:
    """Return the content words of one text that another does not have in any form."""
    return [
        word
        for word in of.content
        if not (among.has_name(word) if word in of.names else among.has(word))
        and not has_number(month_number(word), among.numbers)
    ]


def _is_typing_mistake(word: str, not_typed: set[str], ours: Terms, theirs: Terms, typed: Terms) -> bool:
    """Return whether the answer has a word as the user mistyped it."""
    return (
        len(not_typed) * len(typed.content) <= MOST_PAIRS
        and word in not_typed
        and any(looks_like(word, other) and not theirs.has(other) and ours.has(other) for other in typed.content)
    )


def _is_hard(word: str, of: Terms, passages: Passages) -> bool:
    """Return whether a word is a name or says when; a capital makes a name of a German word that no passage has."""
    return word in of.names | of.times or (word in of.capitals and passages.weight(word) >= passages.most)


def _other_lost(of: Terms, among: Terms) -> list[str]:
    """Return the numbers of one text that another does not have in any reading, and the negation if it has none."""
    numbers = [*among.numbers, *filter(None, map(month_number, among.content))]
    lost = [_shortest(number) for number in of.numbers if not has_number(number, numbers)]
    is_reversed = of.is_negated and not (among.is_negated or among.is_free_of)
    return [*lost, *([NEGATION] if is_reversed else [])]


def _shortest(number: frozenset[str]) -> str:
    return min(number, key=lambda reading: (len(reading), reading))  # sets have another order in every process
