"""Queries that ask for two things: the call is that of the first, and Reasoning names what remains.

What remains is written behind the last semicolon of the row's own Reasoning, `...; the rail strikes remain for a web
search.` An answer names it if its Reasoning has at least half of the words there, in any form of case. Words that more
than a tenth of the rows have there ("remain", "search") say nothing about the request and are not asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tool_aware.evaluation.scoring.intervals import Figure, share
from tool_aware.evaluation.scoring.judgement import Judgement, Prediction
from tool_aware.prompt import read_response
from tool_aware.rows import Row
from tool_aware.text import normalised

SHORTEST_WORD = 4  # letters; shorter ones are mostly articles and prepositions; numbers may be shorter
LEAST_OF_WORDS = 0.5
COMMON = 0.1  # share of rows; words of more of them belong to the form of the sentence
_TOOL_LINE = re.compile(r"^[ \t]*Tool:", re.MULTILINE)


@dataclass(frozen=True)
class TwoRequests:
    """Shares of the queries that ask for two things, by what a system does with them.

    `first` and `second` chose the tool of the request that stands first, and of the other one.
    `malformed`: no whole call; `several_calls` of these have more than one `Tool:` line. `names_rest`: the right tool,
    and Reasoning names the request that remains, of the rows whose own Reasoning has words for it. The last three are
    None where a system only chooses.
    """

    first: Figure
    second: Figure
    malformed: Figure | None
    several_calls: Figure | None
    names_rest: Figure | None


def then_tool(row: Row) -> str | None:
    """Return the tool of the request that remains; None for a row with one request."""
    name = row.metadata.get("then_tool")
    return str(name) if name else None


def two_requests(
    rows: Mapping[int, Row], predictions: Sequence[Prediction], judgements: Sequence[Judgement], *, seed: int
) -> TwoRequests | None:
    """Return what a system does with the rows that have `then_tool` in their metadata; None if there are none."""
    asked = {index: row for index, row in rows.items() if then_tool(row)}
    chosen = [pair for pair in zip(predictions, judgements, strict=True) if pair[0].row in asked]
    if not chosen:
        return None
    groups = [judgement.group for _, judgement in chosen]
    rest = words_of_the_rest(asked)

    def of(flags: Sequence[bool]) -> Figure:
        return share(flags, groups, seed=seed)

    texts = [prediction.text for prediction, _ in chosen]
    is_answered = all(text is not None for text in texts)
    is_malformed = [not judgement.is_parsed for _, judgement in chosen]
    nameable = [(p, j) for p, j in chosen if rest[p.row]]
    named = [j.is_tool_right and names_rest(p.text or "", rest[p.row]) for p, j in nameable]
    several = [bad and has_several_calls(text or "") for bad, text in zip(is_malformed, texts, strict=True)]
    return TwoRequests(
        first=of([judgement.is_tool_right for _, judgement in chosen]),
        second=of([judgement.chosen == then_tool(asked[judgement.row]) for _, judgement in chosen]),
        malformed=of(is_malformed) if is_answered else None,
        several_calls=of(several) if is_answered else None,
        names_rest=share(named, [j.group for _, j in nameable], seed=seed) if is_answered and nameable else None,
    )


def has_several_calls(text: str) -> bool:
    """Return whether an answer has more than one `Tool:` line; such an answer is always malformed."""
    return len(_TOOL_LINE.findall(text)) > 1


def rest_of(reasoning: str) -> str:
    """Return what Reasoning says about the request that remains: the text behind its last semicolon, if it has one."""
    return reasoning.rpartition(";")[2].strip() if ";" in reasoning else ""


def words_of_the_rest(rows: Mapping[Any, Row]) -> dict[Any, frozenset[str]]:
    """Return for each row the words by which its own Reasoning names the remaining request; none if it does not."""
    words = {key: _words(rest_of(row.answer.reasoning or "")) for key, row in rows.items()}
    found = Counter(word for each in words.values() for word in each)
    most = max(1, COMMON * len(words))
    return {key: frozenset(word for word in each if found[word] <= most) for key, each in words.items()}


def names_rest(text: str, words: frozenset[str]) -> bool:
    """Return whether an answer can be read and its Reasoning has at least half of the words."""
    call = read_response(text).call
    if not call or not words:
        return False
    return len(words & _words(call.reasoning)) >= LEAST_OF_WORDS * len(words)


def _words(text: str) -> frozenset[str]:
    return frozenset(
        word for word in normalised(text).split() if len(word) >= SHORTEST_WORD or any(map(str.isdigit, word))
    )
