"""The judgement of one answer by its row: the tool, the parameters, and the first error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tool_aware.evaluation.scoring.bfcl import Accepted, accepted_values, call_verdict, same_json
from tool_aware.evaluation.scoring.code_equality import same_syntax
from tool_aware.evaluation.scoring.parameter_kinds import (
    CallUse,
    ParameterVerdict,
    alternatives_for_text,
)
from tool_aware.prompt import ParsedAnswer, read_response
from tool_aware.rows import Row
from tool_aware.tools import PYTHON_MEDIA_TYPE, Tool, Toolbox, ToolCall

INVALID = "invalid"  # the confusion matrix's column for answers that name no tool an agent could call
ERRORS = (
    "no parseable call",
    "truncated",
    "unknown tool",
    "wrong tool",
    "missing parameter",
    "extra parameter",
    "wrong-type parameter",
    "wrong-value parameter",
)

Wanted = Mapping[str, Accepted]  # by parameter
NOT_ASKED_FOR = Accepted((), (), may_be_absent=True)
SameCode = Callable[[str, str], bool]
# What a call of the right tool is worth to an agent: by the accepted values, the query, and the queries before it.
JudgeUse = Callable[[Tool, Mapping[str, Any], Mapping[str, Accepted], str, str], CallUse]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A system's answer for one row of the test file.

    A system that only chooses (a classifier, choice-only scoring) fills `tool` and leaves `text` None.
    `scores` are probabilities per tool, or natural log-probabilities of the tools' full names behind the prompt
    (choice-only scoring). `seconds` is the row's share of its batch's time.
    """

    row: int
    text: str | None = None
    tool: str | None = None
    new_tokens: int = 0
    is_truncated: bool = False
    scores: Mapping[str, float] | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ParameterMatch:
    """One parameter of a row: asked for, given, matching, and the overlap of words (0-1)."""

    name: str
    is_expected: bool
    is_given: bool
    is_match: bool
    token_f1: float | None = None


@dataclass(slots=True)
class Judgement:
    """The verdict on one prediction.

    `credited` is the row's own tool if an acceptable one was chosen, else the chosen tool, else INVALID: the cell of
    the confusion matrix. `names_right_tool` asks only what the first line says, whether or not the rest can be read.
    What concerns answers is None where a system only chooses. `parameters` compares with the row's own call: with
    another tool, all that it asked for is missing. `uses` says of each parameter of a call of the row's own tool
    whether the call does its job with it; `is_call_usable` is None where that was not judged.
    The three about the reasoning's evidence are set by `judge_reasonings`, which is why this is not frozen: copies take
    three seconds of an evaluation of 100,000 rows.
    """

    row: int
    expected: str
    chosen: str | None
    credited: str
    group: str
    names_right_tool: bool | None = None
    is_parsed: bool | None = None
    fits_schema: bool | None = None
    is_bfcl_valid: bool | None = None
    is_call_correct: bool | None = None
    is_call_usable: bool | None = None
    is_truncated: bool = False
    parameters: tuple[ParameterMatch, ...] = ()
    uses: tuple[ParameterVerdict, ...] = ()
    is_reasoning_sound: bool | None = None
    quotes_evidence: bool | None = None
    is_evidence_in_query: bool | None = None
    reasoning_leads_to: str | None = None
    error: str | None = None
    detail: str = ""

    @property
    def is_tool_right(self) -> bool:
        """Return whether an acceptable tool was chosen."""
        return self.credited == self.expected


def judge(
    prediction: Prediction,
    row: Row,
    tools: Toolbox,
    *,
    same_code: SameCode = same_syntax,
    judge_use: JudgeUse | None = None,
    accepted: Mapping[str, Accepted] | None = None,
) -> Judgement:
    """Judge one prediction by its row; whether its call is usable, only with `judge_use`.

    `accepted` are the row's `accepted_values`, for those who judge several answers to it.
    """
    group = group_of(prediction.row, row)
    if prediction.text is None:
        return _judge_choice(prediction, row, tools, group)
    answer = read_response(prediction.text)
    call = answer.call
    chosen = answer.tool if call and answer.tool in tools else None
    if accepted is None:
        accepted = accepted_values(row, tools[row.tool]) if row.tool in tools and not row.is_choice_only else {}
    problems = tools.problems(call) if call else []
    verdict = _judge_call(answer, call, row, tools, same_code, accepted=accepted, problems=problems)
    use = _use(call, verdict, row, tools, judge_use, accepted=accepted) if judge_use else None
    is_cut_off = prediction.is_truncated and call is None
    return Judgement(
        row=prediction.row,
        expected=row.tool,
        chosen=chosen,
        credited=_credited(chosen, row),
        group=group,
        names_right_tool=answer.tool in row.acceptable_tools,
        is_parsed=call is not None,
        fits_schema=call is not None and not problems,
        is_bfcl_valid=verdict.is_bfcl_valid,
        is_call_correct=verdict.is_call_correct,
        is_call_usable=use.is_usable if use else None,
        is_truncated=prediction.is_truncated,
        parameters=_once(verdict.parameters),
        uses=_once(use.parameters) if use else (),
        is_reasoning_sound=is_reasoning_sound(answer, tools),
        error="truncated" if is_cut_off else verdict.error,
        detail=verdict.detail,
    )


def group_of(index: int, row: Row) -> str:
    """Return the name of the group of rows that stand or fall together, which may be the row alone.

    Rows that ask for one program in other words are a group here, although a split may divide them.
    """
    known = (row.metadata.get(key) for key in ("program", "group", "template"))
    return str(next(filter(None, known), f"row {index}"))


@lru_cache(maxsize=16_384)
def _once(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return of equal verdicts the same object: most rows have the few of right answers."""
    return parts


def _judge_choice(prediction: Prediction, row: Row, tools: Toolbox, group: str) -> Judgement:
    chosen = prediction.tool if prediction.tool in tools else None
    credited = _credited(chosen, row)
    error = None if credited == row.tool else "wrong tool" if chosen else "unknown tool"
    detail = f"{row.tool} -> {chosen}" if error else ""
    return Judgement(prediction.row, row.tool, chosen, credited, group, error=error, detail=detail)


def _credited(chosen: str | None, row: Row) -> str:
    return row.tool if chosen in row.acceptable_tools else chosen or INVALID


@dataclass(frozen=True)
class CallVerdict:
    """The verdict on one call: the first of ERRORS that applies, and which of its parameters match."""

    error: str | None
    detail: str
    parameters: tuple[ParameterMatch, ...]
    is_call_correct: bool = False
    is_bfcl_valid: bool | None = False


def _judge_call(
    answer: ParsedAnswer,
    call: ToolCall | None,
    row: Row,
    tools: Toolbox,
    same_code: SameCode,
    *,
    accepted: Wanted,
    problems: Sequence[str],
) -> CallVerdict:
    """Judge a call, whose parameters have `problems` with their schema, by the row's own."""
    if call is None:
        return _no_match("no parseable call", answer.problem or "", row, tools, accepted)
    if call.tool not in tools:
        return _no_match("unknown tool", call.tool, row, tools, accepted)
    if call.tool not in row.acceptable_tools:
        return _no_match("wrong tool", f"{row.tool} -> {call.tool}", row, tools, accepted)
    if call.tool != row.tool or row.is_choice_only:  # the parameters have no reference, only their schema
        error = "wrong-type parameter" if problems else None
        return CallVerdict(error, problems[0] if problems else "", (), not problems, is_bfcl_valid=None)
    tool = tools[call.tool]
    matches = match_parameters(call.parameters, tool, accepted, same_code)
    bfcl = call_verdict(call.parameters, accepted, tool)
    if all(match.is_match for match in matches) and not problems:
        return CallVerdict(None, "", matches, is_call_correct=True, is_bfcl_valid=bfcl.valid)
    error, detail = _parameter_error(call, matches, tool)
    return CallVerdict(error, detail, matches, is_bfcl_valid=bfcl.valid)


def _use(
    call: ToolCall | None, verdict: CallVerdict, row: Row, tools: Toolbox, judge_use: JudgeUse, *, accepted: Wanted
) -> CallUse:
    """Judge whether a call does the job; where its parameters have no reference, whether it fits the schema."""
    if call is None or call.tool != row.tool or row.is_choice_only or call.tool not in tools:
        return CallUse(verdict.is_call_correct)
    tool = tools[call.tool]
    query, history = row.question
    return judge_use(tool, call.parameters, accepted, query, "\n".join(turn.query for turn in history))


def _no_match(error: str, detail: str, row: Row, tools: Toolbox, accepted: Wanted) -> CallVerdict:
    """Return the verdict on an answer without an acceptable tool: all parameters that the row asks for are missing."""
    tool = tools[row.tool]
    if row.is_choice_only:
        return CallVerdict(error, detail, (), is_bfcl_valid=None)
    return CallVerdict(error, detail, match_parameters({}, tool, accepted))


def _parameter_error(call: ToolCall, matches: tuple[ParameterMatch, ...], tool: Tool) -> tuple[str, str]:
    """Return the kind of error and its detail."""
    missing = [match.name for match in matches if match.is_expected and not match.is_given]
    if missing:
        return "missing parameter", ", ".join(missing)
    extra = [match.name for match in matches if match.name not in tool.properties and not match.is_expected]
    if extra:
        return "extra parameter", ", ".join(extra)
    problems = tool.parameter_problems(call.parameters)
    if problems:
        return "wrong-type parameter", problems[0]
    wrong = [match for match in matches if not match.is_match]
    unasked = [match.name for match in wrong if not match.is_expected]
    if len(unasked) == len(wrong):
        return "extra parameter", ", ".join(unasked)
    return "wrong-value parameter", ", ".join(match.name for match in wrong)


# ---- parameters under the router's policy ----------------------------------------------------------------------


def match_parameters(
    parameters: Mapping[str, Any], tool: Tool, accepted: Mapping[str, Accepted], same_code: SameCode = same_syntax
) -> tuple[ParameterMatch, ...]:
    """Compare a call's parameters under the router's policy, by schema type.

    numbers, booleans, null   equal, and a boolean is no number
    enums                     equal
    strings                   equal after case folding and without punctuation at the ends or doubled spaces
    programs                  `same_code`: equal syntax trees (or equal output with --run-code)
    arrays, objects           equal as JSON
    defaults                  leaving a parameter out equals giving its default

    Parameters that neither side gives (or both leave at the default) are not listed. `token_f1` is given for strings.
    """
    given = {name: value for name, value in parameters.items() if not _is_default(tool, name, value)}
    matches = []
    for name in dict.fromkeys([*tool.properties, *accepted, *parameters]):
        asked_for = accepted.get(name, NOT_ASKED_FOR)
        answers = [value for value in asked_for.values if not _is_default(tool, name, value)]
        may_be_absent = asked_for.may_be_absent
        if name not in given:
            if not may_be_absent:
                matches.append(ParameterMatch(name, is_expected=True, is_given=False, is_match=False))
            continue
        schema = tool.properties.get(name, {})
        is_match = any(same_value(given[name], answer, schema, same_code) for answer in answers)
        texts = [answer for answer in answers if isinstance(answer, str)] if isinstance(given[name], str) else []
        overlap = max((token_f1(given[name], answer) for answer in texts), default=None)
        matches.append(ParameterMatch(name, not may_be_absent, True, is_match, overlap))
    return tuple(matches)


def _is_default(tool: Tool, name: str, value: Any) -> bool:
    return name in tool.defaults and same_json(tool.defaults[name], value)


def same_value(value: Any, answer: Any, schema: Mapping[str, Any], same_code: SameCode) -> bool:
    """Return whether a value equals an accepted one under the router's policy: see `match_parameters`."""
    if not (isinstance(value, str) and isinstance(answer, str)):
        return same_json(value, answer)
    if value == answer:
        return True
    parts = list(alternatives_for_text(schema))
    if any(answer in part.get("enum", [part.get("const")]) for part in parts):
        return False
    if any(part.get("contentMediaType") == PYTHON_MEDIA_TYPE for part in parts):
        return same_code(value, answer)
    words, wanted = _words(value), _words(answer)
    return words == wanted if words or wanted else value.split() == answer.split()  # nothing but punctuation


@lru_cache(maxsize=8_192)  # a row at a time is judged, whose accepted texts all answers are compared with
def _words(text: str) -> tuple[str, ...]:
    """Split into case-folded words without the punctuation around them."""
    stripped = (word.strip(".,;:!?\"'()[]{}…“”‘’«»¿¡。，！？") for word in text.casefold().split())
    return tuple(word for word in stripped if word)


def token_f1(one: str, other: str) -> float:
    """Return the overlap of two texts' words as F1, SQuAD's measure (Rajpurkar et al. 2016); 1 if both are empty."""
    if one == other:
        return 1.0
    ours, theirs = Counter(_words(one)), Counter(_words(other))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


# ---- reasoning --------------------------------------------------------------------------------------------


def is_reasoning_sound(answer: ParsedAnswer, tools: Toolbox) -> bool:
    """Check the form of the reasoning: present, one sentence, naming no other tool. Its truth is not graded."""
    if not answer.reasoning:
        return False
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-ZÀ-ÞА-Я])", answer.reasoning)
    names_another = any(name in answer.reasoning for name in tools.names if name != answer.tool)
    return len(sentences) == 1 and not names_another
