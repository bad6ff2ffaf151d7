"""Reads BFCL: questions with functions, and the accepted values of each parameter in a second file.

Files as published in ShishirPatil/gorilla, berkeley-function-call-leaderboard, versions 3 and 4: Python, Java and
JavaScript, simple and multiple, live ones included. Irrelevance, parallel and multi-turn files hold no single calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tool_aware.dataset.imports.foreign_files import Item
from tool_aware.dataset.imports.foreign_tools import ForeignTools, tools_of
from tool_aware.dataset.imports.left_out import Call, Candidate, LeftOut, decoded, in_words, usable_name
from tool_aware.rows import OPTIONAL
from tool_aware.text import shortened

_TRUTHS = ("ground_truth", "possible_answer")


@dataclass
class Answers:
    """The accepted answers by id, the ids that have several, and the lines of their file that could not be read."""

    by_id: dict[str, Any] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    unreadable: int = 0


def is_question(item: Mapping[str, Any]) -> bool:
    """Check for BFCL's form by the item's keys."""
    return "question" in item and "function" in item


def read_answers(items: Iterable[Item]) -> Answers:
    """Return the answers of a BFCL file. Items that are none are counted."""
    answers = Answers()
    for item in items:
        value = item.value
        key = _id(value.get("id")) if isinstance(value, Mapping) else None
        if item.problem or key is None:
            answers.unreadable += 1
            continue
        truth = next((value[name] for name in _TRUTHS if name in value), None)
        if answers.by_id.setdefault(key, truth) != truth:
            answers.repeated.add(key)
    return answers


def _id(value: Any) -> str | None:
    is_usable = isinstance(value, str | int) and not isinstance(value, bool) and value != ""
    return str(value) if is_usable else None


def bfcl_candidate(item: Mapping[str, Any], answers: Answers | None) -> tuple[Candidate, ForeignTools]:
    """Return a question, the first of the accepted calls, and its functions.

    Raises LeftOut for no or several calls, for several turns, and for what is not as BFCL writes it.
    """
    truth = _truth(item, answers)
    own = tools_of(item["function"], "function")
    if own is None:
        raise LeftOut("no functions", "function", in_words(item["function"]))
    query = _query(item["question"])
    name, accepted = _only_call(truth)
    for parameter, values in accepted.items():
        if not isinstance(values, list):
            raise LeftOut("accepted values that are not a list", f"ground_truth.{parameter}", in_words(values))
        if not values:
            raise LeftOut("a parameter without an accepted value", f"ground_truth.{parameter}", in_words(values))
    tool = next((tool for tool in own.toolbox if tool.name == usable_name(name)), None)
    if tool:  # what the function lacks and may be left out is never given
        accepted = {key: item for key, item in accepted.items() if key in tool.properties or not _may_be_absent(item)}
    required = tool.required if tool else frozenset()
    arguments = {
        parameter: _plain(_first(values), is_outermost=True)
        for parameter, values in accepted.items()
        if parameter in required or not _may_be_absent(values)
    }
    details = {"accepted_parameters": accepted} | ({"bfcl_id": item["id"]} if _id(item.get("id")) else {})
    return Candidate(query, Call(usable_name(name), arguments), own.toolbox, "bfcl", details=details), own


def _query(question: Any) -> str:
    question = decoded(question)
    if isinstance(question, str):
        return question.strip()
    turns = question if isinstance(question, list) else [question]
    if turns and isinstance(turns[0], list):
        if len(turns) > 1:
            raise LeftOut("several turns", "question", f"{len(turns)} turns")
        turns = turns[0]
    if not all(isinstance(turn, Mapping) for turn in turns):
        raise LeftOut("a question that is not text or messages", "question", in_words(question))
    spoken = [turn for turn in turns if turn.get("role") != "system"]
    if any(turn.get("role") != "user" for turn in spoken):
        raise LeftOut("several turns", "question", ", ".join(str(turn.get("role")) for turn in spoken))
    texts = [turn.get("content") for turn in spoken]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise LeftOut("no user message", "question", in_words(question))
    return "\n".join(str(text).strip() for text in texts)


def _truth(item: Mapping[str, Any], answers: Answers | None) -> Any:
    own = next((item[name] for name in _TRUTHS if item.get(name) is not None), None)
    if own is not None:
        return decoded(own)
    key = _id(item.get("id"))
    if key is None:
        raise LeftOut("no id, which the answer would be found by", "id", in_words(item.get("id")))
    if answers is None:
        raise LeftOut("a BFCL question without a file of answers")
    if key in answers.repeated:
        raise LeftOut("several answers with one id", "id", key)
    if key not in answers.by_id:
        raise LeftOut("no answer", "id", key)
    return decoded(answers.by_id[key])


def _only_call(truth: Any) -> tuple[str, Mapping[str, Any]]:
    calls = [truth] if isinstance(truth, Mapping) else truth
    if not calls:
        raise LeftOut("no answer", "ground_truth", in_words(truth))
    if not isinstance(calls, list):
        raise LeftOut("an answer that is no call", "ground_truth", in_words(truth))
    if len(calls) > 1 or (isinstance(calls[0], Mapping) and len(calls[0]) > 1):
        raise LeftOut("several calls", "ground_truth", in_words(truth))
    if not isinstance(calls[0], Mapping) or not calls[0]:
        raise LeftOut("an answer that is no call", "ground_truth", in_words(calls[0]))
    name, accepted = next(iter(calls[0].items()))
    if not isinstance(accepted, Mapping):
        raise LeftOut("an answer that is no call", f"ground_truth.{shortened(name, 40)}", in_words(accepted))
    return name, accepted


def _may_be_absent(values: list[Any]) -> bool:
    """Check for BFCL's mark of an optional parameter; null alone says the same in the live files."""
    return OPTIONAL in values or all(value is None for value in values)


def _first(values: list[Any]) -> Any:
    """Return the first accepted value; the mark of an optional parameter is the empty text where nothing else is."""
    return next((value for value in values if value != OPTIONAL and value is not None), values[0])


def _plain(value: Any, *, is_outermost: bool) -> Any:
    """Return an accepted value with the first choice of each key of a dict.

    BFCL lists choices inside a dict, or inside the dicts of a list, one level deep (dict_checker, list_dict_checker
    in bfcl_eval/eval_checker/ast_eval/ast_checker.py); what lies deeper is compared as it stands.
    """
    if not is_outermost:
        return value
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return [_plain(item, is_outermost=True) for item in value]
    if isinstance(value, Mapping):
        return {
            key: _first(choices) if isinstance(choices, list) else choices
            for key, choices in value.items()
            if not (isinstance(choices, list) and (not choices or _may_be_absent(choices)))
        }
    return value
