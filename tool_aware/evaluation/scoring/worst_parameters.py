"""The parameters that a reader of the report should look at: of each kind the worst, with what they rest on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tool_aware.evaluation.scoring.judgement import Judgement, Prediction
from tool_aware.evaluation.scoring.parameter_kinds import CODE, KINDS, SEARCH, ParameterVerdict
from tool_aware.evaluation.scoring.passages import Passages
from tool_aware.prompt import read_response
from tool_aware.rows import Row

MOST_OF_A_KIND = 6
MOST_PASSAGES = 3


@dataclass(frozen=True)
class WorstParameter:
    """One parameter of a call that is not usable: what was wanted and what was given, as text.

    `missed` are passages that the reference finds and the answer does not; `only_found` the other way round.
    """

    row: int
    query: str
    parameter: str
    verdict: ParameterVerdict
    wanted: str
    given: str
    missed: tuple[str, ...] = ()
    only_found: tuple[str, ...] = ()


def worst_parameters(
    predictions: Sequence[Prediction], judgements: Sequence[Judgement], rows: Mapping[int, Row], passages: Passages
) -> list[WorstParameter]:
    """Return, kind by kind, the parameters that are farthest from usable; the most telling first.

    Of search texts and messages those that keep least; of programs first those that print something else.
    """
    every = list(_not_usable(predictions, judgements, rows))
    return [
        _with_passages(found, passages)
        for kind in KINDS
        for found in sorted((found for found in every if found.verdict.kind == kind), key=_order)[:MOST_OF_A_KIND]
    ]


def _not_usable(
    predictions: Sequence[Prediction], judgements: Sequence[Judgement], rows: Mapping[int, Row]
) -> Iterator[WorstParameter]:
    for prediction, judgement in zip(predictions, judgements, strict=True):
        wrong = [use for use in judgement.uses if not use.is_usable]
        if not wrong:
            continue
        row = rows[judgement.row]
        answered, reference = read_response(prediction.text or "").call, row.answer.call
        if answered is None or reference is None:
            continue
        for use in wrong:
            name = use.name.partition(".")[0] if use.name not in reference.parameters else use.name
            wanted, given = _shown(reference.parameters, name), _shown(answered.parameters, name)
            yield WorstParameter(judgement.row, row.query, f"{judgement.expected}.{use.name}", use, wanted, given)


def _shown(parameters: Mapping[str, Any], name: str) -> str:
    """Return a parameter's value as text; empty where there is none."""
    value = parameters.get(name, "")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _order(found: WorstParameter) -> tuple[float, float, int]:
    verdict = found.verdict
    fails = float(not verdict.runs) if verdict.kind == CODE else 0.0
    return (verdict.kept if verdict.kept is not None else fails, verdict.found or 0.0, found.row)


def _with_passages(found: WorstParameter, passages: Passages) -> WorstParameter:
    if found.verdict.kind != SEARCH or not found.given:
        return found
    ours, theirs = passages.top(found.given), passages.top(found.wanted)

    def only(these: Mapping[int, float], those: Mapping[int, float]) -> tuple[str, ...]:
        return tuple(passages.texts[number] for number in these if number not in those)[:MOST_PASSAGES]

    return WorstParameter(
        found.row,
        found.query,
        found.parameter,
        found.verdict,
        found.wanted,
        found.given,
        missed=only(theirs, ours),
        only_found=only(ours, theirs),
    )
