"""The rule for search texts: what has to be kept of an accepted text, and when retrieval decides.

It was made on calls labelled by hand (tests/unit/evaluation/scoring/labelled_calls.jsonl); so were its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tool_aware.evaluation.scoring.key_terms import language_of, terms_of
from tool_aware.evaluation.scoring.parameter_kinds import ParameterVerdict
from tool_aware.evaluation.scoring.passages import Passages
from tool_aware.evaluation.scoring.word_comparison import Comparison, Said, compare_words

FEWEST_KEPT = 0.55  # of the content words of one accepted text, each weighed by how rare it is
FEWEST_KEPT_ELSEWHERE = 0.7  # of another accepted text, where the answer finds other passages than the reference
FOUND_WITHOUT_UNTYPED = 0.65  # of the reference's top passages, where words are lost by which it says what is meant
FOUND_WITH_ADDED = 0.3  # where the answer adds words
NEARLY_FIRST = 0.8  # of the score of the first passage


def search_verdict(
    verdict: ParameterVerdict, value: str, texts: Sequence[str], said: Said, passages: Passages
) -> ParameterVerdict:
    """Judge an answered search text by the accepted ones, the reference first; it has to hold beside one of them."""
    every = [(compare_words(value, text, texts, said, passages), _found(value, text, passages)) for text in texts]
    reference, found_of_reference = every[0]
    is_elsewhere = bool(reference.lost_untyped) and found_of_reference < FOUND_WITHOUT_UNTYPED
    outcomes = []
    for text, (compared, found) in zip(texts, every, strict=True):
        problem = compared.hard_problem or _lost_problem(compared, is_elsewhere=is_elsewhere)
        problem = problem or _added_problem(compared, found, finds_first=_finds_first(value, text, passages))
        outcomes.append((compared, found, problem))
    compared, found, problem = max(outcomes, key=lambda one: (not one[2], one[0].kept, one[1]))
    return replace(
        verdict,
        is_usable=not problem,
        reason=problem,
        kept=compared.kept,
        found=found,
        lost=compared.lost,
        added=compared.added,
        filler=filler_left_in(value, texts),
    )


def _lost_problem(compared: Comparison, *, is_elsewhere: bool) -> str:
    """Return what an answer loses too much of, in words; empty if it keeps enough.

    `is_elsewhere`: it finds other passages than the reference, and lacks words that the user did not type and that the
    reference says it with (`weather` for "do I need a coat?"). Then it has to keep more of what the user typed.
    """
    fewest = FEWEST_KEPT_ELSEWHERE if is_elsewhere else FEWEST_KEPT
    if compared.kept < fewest or not compared.is_core_kept or (is_elsewhere and compared.lost_untyped):
        return f"loses {', '.join(compared.lost)}{' and finds other passages' if is_elsewhere else ''}"
    return ""


def _added_problem(compared: Comparison, found: float, *, finds_first: bool) -> str:
    """Return what the words that nobody said do to the search, in words; empty if they do no harm."""
    added = ", ".join(compared.added)
    if compared.rarest_added or (added and found < FOUND_WITH_ADDED):
        return f"adds {compared.rarest_added or added} and so finds other passages"
    if added and compared.lost_typed and not finds_first:
        return f"has {added} instead of {', '.join(compared.lost_typed)}"
    return ""


def filler_left_in(value: str, texts: Sequence[str]) -> int:
    """Count the function words that an answer has more than the first accepted text."""
    if value == texts[0]:
        return 0
    language = language_of("\n".join(texts))
    return max(0, terms_of(value, language).filler - terms_of(texts[0], language).filler)


def _found(value: str, text: str, passages: Passages) -> float:
    """Return the share of an accepted text's top passages that the answer finds as well; 1 if that finds none."""
    wanted = passages.top(text)
    return len(passages.top(value).keys() & wanted.keys()) / len(wanted) if wanted else 1.0


def _finds_first(value: str, text: str, passages: Passages) -> bool:
    """Return whether what an accepted text finds first is among what the answer finds first, or nearly."""
    ours, first = passages.top(value), next(iter(passages.top(text)), None)
    return first is None or ours.get(first, 0.0) >= NEARLY_FIRST * max(ours.values(), default=0.0)
