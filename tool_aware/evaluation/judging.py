"""The judgement of all systems' answers, row by row, and beside them the reasonings of the rows' own answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tool_aware.evaluation.scoring.bfcl import Accepted, accepted_values
from tool_aware.evaluation.scoring.judgement import Judgement, Prediction, SameCode, group_of, judge
from tool_aware.evaluation.scoring.reasoning import Reader, judge_reasonings
from tool_aware.evaluation.scoring.usable import ParameterJudge
from tool_aware.prompt import read_response
from tool_aware.rows import Row
from tool_aware.stage_times import stage
from tool_aware.tools import Tool, Toolbox

ROWS_AT_ONCE = 1_000  # that are judged, whose parsed answers are kept meanwhile
REFERENCES = "the rows' own"  # answers, which stand beside the systems where reasonings are judged


def judge_all(
    systems: Mapping[str, Sequence[Prediction]],
    rows: Mapping[int, Row],
    tools: Toolbox,
    *,
    same_code: SameCode,
    parameter_judge: ParameterJudge | None,
    read: Reader | None,
) -> dict[str, list[Judgement]]:
    """Return the judgements of all answers by system, and under REFERENCES what is found of the rows' own reasonings.

    Systems answer the same rows in the same order. Many give a row's own answer, whose reasoning is judged once.
    """
    judgements: dict[str, list[Judgement]] = {name: [] for name in (*systems, REFERENCES)}
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = {name: answers[start : start + ROWS_AT_ONCE] for name, answers in systems.items()}
        judged = judge_row_by_row(part, rows, tools, same_code, parameter_judge)
        is_answered = any(answers[0].text is not None for answers in part.values())
        asked = [answer.row for answer in next(iter(part.values()))] if is_answered else []
        part[REFERENCES] = reference_answers(asked, rows)
        judged[REFERENCES] = [_of_reference(answer.row, rows[answer.row], tools) for answer in part[REFERENCES]]
        with stage("reading reasonings"):
            judge_reasonings(judged, part, rows, read)
        for name in judgements:
            judgements[name] += judged[name]
    return judgements


def judge_row_by_row(
    systems: Mapping[str, Sequence[Prediction]],
    rows: Mapping[int, Row],
    tools: Toolbox,
    same_code: SameCode,
    parameter_judge: ParameterJudge | None = None,
) -> dict[str, list[Judgement]]:
    """Judge the answers of systems that answered the same rows in the same order.

    Row by row: what is worked out for the row is then still there, and an answer that several systems give is judged
    once. Their judgement is then the same object.
    """
    use = parameter_judge.judge_call if parameter_judge else None
    judged: dict[str, list[Judgement]] = {name: [] for name in systems}
    for answers in zip(*systems.values(), strict=True):
        row = rows[answers[0].row]
        is_asked = any(given.text is not None for given in answers) and not row.is_choice_only and row.tool in tools
        accepted = accepted_values(row, tools[row.tool]) if is_asked else None
        verdicts: dict[tuple[str | None, str | None, bool], Judgement] = {}
        for given, kept in zip(answers, judged.values(), strict=True):
            answer = given.text, given.tool, given.is_truncated
            if answer not in verdicts:
                verdicts[answer] = judge(given, row, tools, same_code=same_code, judge_use=use, accepted=accepted)
            kept.append(verdicts[answer])
    return judged


def calls_of_own_tool(
    systems: Iterable[Sequence[Prediction]], rows: Mapping[int, Row], tools: Toolbox, among: Collection[str]
) -> Iterator[tuple[Tool, Mapping[str, Any], Mapping[str, Accepted]]]:
    """Yield the calls of their rows' own tools, as far as these are `among` some, with the accepted values."""
    for prediction in (prediction for answers in zip(*systems, strict=True) for prediction in answers):
        row = rows[prediction.row]
        if not prediction.text or row.tool not in among or row.is_choice_only:
            continue
        call = read_response(prediction.text).call
        if call and call.tool == row.tool:
            yield tools[call.tool], call.parameters, accepted_values(row, tools[call.tool])


def reference_answers(indices: Iterable[int], rows: Mapping[int, Row]) -> list[Prediction]:
    """Return the rows' own answers as if a system had given them; none of rows that only have a tool."""
    return [Prediction(index, rows[index].response) for index in indices if not rows[index].is_choice_only]


def _of_reference(index: int, row: Row, tools: Toolbox) -> Judgement:
    """Return of the judgement of a row's own answer what the figures of reasonings are made of."""
    call = row.answer.call
    chosen = call.tool if call and call.tool in tools else None
    return Judgement(index, row.tool, chosen, row.tool, group_of(index, row), is_parsed=call is not None)
