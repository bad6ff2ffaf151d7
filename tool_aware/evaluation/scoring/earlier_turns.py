"""Rows of a conversation, chosen for with their earlier turns and without: how much these decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tool_aware.evaluation.scoring.intervals import Figure, share
from tool_aware.evaluation.scoring.judgement import Judgement
from tool_aware.prompt import with_history
from tool_aware.rows import Row

LEFT_OUT = "earlier turns left out"  # the variant of the rows
ALL_KINDS = "all"


@dataclass(frozen=True)
class EarlierTurns:
    """Right choices for the same rows with their earlier turns and without, of one kind of follow-up or of all.

    `only_with` and `only_without` count rows that are right in one of the two prompts alone.
    """

    kind: str
    with_turns: Figure
    without_turns: Figure
    only_with: int
    only_without: int


def without_earlier_turns(rows: Mapping[int, Row]) -> dict[int, Row]:
    """Return the rows that show earlier turns, without them: the prompt of a query that nothing preceded."""
    return {
        index: replace(row, instruction=with_history(row.instruction, ())) for index, row in rows.items() if row.history
    }


def with_and_without(
    rows: Mapping[int, Row], with_turns: Sequence[Judgement], without_turns: Sequence[Judgement], *, seed: int
) -> list[EarlierTurns]:
    """Compare the choices for the same rows in the same order: of all rows first, then by metadata.follow_up."""
    members: dict[str, list[tuple[Judgement, Judgement]]] = {}
    for pair in zip(with_turns, without_turns, strict=True):
        kind = rows[pair[0].row].metadata.get("follow_up")
        for name in (ALL_KINDS, *([str(kind)] if kind else [])):
            members.setdefault(name, []).append(pair)
    return [_compared(kind, pairs, seed) for kind, pairs in members.items()]


def _compared(kind: str, pairs: Sequence[tuple[Judgement, Judgement]], seed: int) -> EarlierTurns:
    groups = [one.group for one, _ in pairs]
    right = [(one.is_tool_right, other.is_tool_right) for one, other in pairs]
    return EarlierTurns(
        kind=kind,
        with_turns=share([one for one, _ in right], groups, seed=seed),
        without_turns=share([other for _, other in right], groups, seed=seed),
        only_with=sum(one and not other for one, other in right),
        only_without=sum(other and not one for one, other in right),
    )
