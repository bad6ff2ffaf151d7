"""Shared by the benchmarks of quality: hand-written conversations, checked, and what becomes of a second request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.config.settings import Config
from tool_aware.console import UserError, listing
from tool_aware.evaluation.scoring.judgement import Judgement, Prediction
from tool_aware.evaluation.scoring.two_requests import (
    has_several_calls,
    names_rest,
    rest_of,
    then_tool,
    words_of_the_rest,
)
from tool_aware.history import shown_turns
from tool_aware.prompt import Turn, parse_response, render_instruction, render_response
from tool_aware.rows import Row
from tool_aware.tools import PYTHON_MEDIA_TYPE, Toolbox, ToolCall

if TYPE_CHECKING:
    from _real_model import Answerer

FOLDER = Path(__file__).resolve().parent / "follow_ups"
CONVERSATIONS, TWO_REQUESTS = FOLDER / "conversations.yaml", FOLDER / "two_requests.yaml"
KINDS = ("ellipsis", "pronoun", "correction", "topic_change", "thanks", "retry", "other_tool")
LANGUAGES = ("en", "de", "es", "fr", "it", "ja", "nl", "pl", "pt", "tr")
SOURCE = "hand-written"
_KEYS = {"query", "parameters", "reasoning", "language"}
Item = Mapping[str, Any]


# ---- the hand-written rows ------------------------------------------------------------------------------


def load_conversations(config: Config, path: Path = CONVERSATIONS) -> list[Row]:
    """Read the conversations as rows that show as many earlier turns as config.yaml allows.

    Raises UserError with all that is wrong.
    """
    tools = config.toolbox
    rows = []
    for item in _checked(path, tools, _conversation_problems):
        turns = [Turn(turn["query"], turn["tool"]) for turn in item["history"]]
        history = shown_turns(turns, config.conversation)
        rows.append(_row(item, item["tool"], tools, history, slice="follow-up", follow_up=item["kind"]))
    return rows


def load_two_requests(config: Config, path: Path = TWO_REQUESTS) -> list[Row]:
    """Read the queries that ask for two things; right is the call of the first. Raises UserError with all mistakes."""
    tools = config.toolbox
    return [
        _row(item, item["tools"][0], tools, slice="two requests", then_tool=item["tools"][1])
        for item in _checked(path, tools, _two_request_problems)
    ]


def _row(item: Item, tool: str, tools: Toolbox, history: Sequence[Turn] = (), **details: str) -> Row:
    known = {"source": SOURCE, "tool": tool, "language": item["language"], "group": item["query"]}
    call = ToolCall(tool, item["parameters"], item["reasoning"])
    return Row(render_instruction(item["query"], tools, history), render_response(call), {**known, **details})


def _checked(path: Path, tools: Toolbox, problems_of: Any) -> list[Item]:
    import yaml

    items = yaml.safe_load(path.read_text(encoding="utf-8"))
    problems = [
        f"{path.name}: item {n}: {problem}" for n, item in enumerate(items, 1) for problem in problems_of(item, tools)
    ]
    if problems:
        raise UserError(listing(problems, "problem"), where=str(path), fix="correct these items")
    return list(items)


def _conversation_problems(item: Item, tools: Toolbox) -> Iterator[str]:
    if item.keys() != _KEYS | {"tool", "kind", "history"}:
        yield f"keys are {', '.join(sorted(item))}"
        return
    if item["kind"] not in KINDS:
        yield f"kind {item['kind']!r} is none of {', '.join(KINDS)}"
    if not item["history"]:
        yield "history: has no turn"
    for turn in item["history"]:
        if turn.keys() != {"query", "tool"} or turn["tool"] not in tools:
            yield f"history: {turn} has no query and known tool"
    yield from _call_problems(item, item["tool"], tools)


def _two_request_problems(item: Item, tools: Toolbox) -> Iterator[str]:
    if item.keys() != _KEYS | {"tools"}:
        yield f"keys are {', '.join(sorted(item))}"
        return
    if len(set(item["tools"])) != 2 or not set(item["tools"]) <= set(tools.names):
        yield f"tools {item['tools']}: must be two known ones"
    if not rest_of(item["reasoning"]):
        yield "reasoning: names nothing behind a semicolon"
    yield from _call_problems(item, item["tools"][0], tools)


def _call_problems(item: Item, tool: str, tools: Toolbox) -> Iterator[str]:
    if item["language"] not in LANGUAGES:
        yield f"language {item['language']!r} is none of {', '.join(LANGUAGES)}"
    try:
        yield from tools.problems(ToolCall(tool, item["parameters"], item["reasoning"]))
    except ValueError as error:
        yield str(error)


def programs(rows: Sequence[Row], tools: Toolbox) -> list[str]:
    """Return the programs among the parameters of the rows' calls."""
    found = []
    for row in rows:
        call = row.answer.call
        schemas = tools[row.tool].properties
        given = call.parameters.items() if call else ()
        found += [value for name, value in given if schemas[name].get("contentMediaType") == PYTHON_MEDIA_TYPE]
    return found


# ---- the second request ---------------------------------------------------------------------------------


def chose_second(rows: Sequence[Row], judged: Sequence[Judgement]) -> dict[str, str]:
    """Return a flag a row, whether the tool of the request that remains was chosen; nothing if no row asks for two."""
    if not any(map(then_tool, rows)):
        return {}
    return {"second": _flags(bool(then_tool(rows[j.row])) and j.chosen == then_tool(rows[j.row]) for j in judged)}


def what_remains(answerer: Answerer, rows: Sequence[Row], answers: Sequence[Prediction]) -> dict[str, str]:
    """Return flags on what an agent can do for the second request with the answer to the first.

    several: more than one `Tool:` line, so malformed. named: Reasoning has the words of the request that remains.
    rerouted: what Reasoning says behind its last semicolon, put to the model as a query of its own, gets the right
    tool; reference_rerouted: the same with the row's own Reasoning, the most that can be reached.
    """
    asked = {number: row for number, row in enumerate(rows) if then_tool(row)}
    if not asked:
        return {}
    words = words_of_the_rest(asked)
    texts = [answer.text or "" for answer in answers]
    rests = [rest_of(call.reasoning) if (call := parse_response(text).call) else "" for text in texts]
    references = [rest_of(row.answer.reasoning or "") for row in rows]
    return {
        "several": _flags(number in asked and has_several_calls(text) for number, text in enumerate(texts)),
        "named": _flags(number in asked and names_rest(text, words[number]) for number, text in enumerate(texts)),
        "rerouted": _rerouted(answerer, asked, rests),
        "reference_rerouted": _rerouted(answerer, asked, references),
    }


def _rerouted(answerer: Answerer, asked: Mapping[int, Row], rests: Sequence[str]) -> str:
    tools = answerer.config.toolbox
    numbers = [number for number in asked if rests[number]]
    queries = [replace(asked[number], instruction=render_instruction(rests[number], tools)) for number in numbers]
    chosen = answerer.choices(queries) if queries else []
    right = {number for number, found in zip(numbers, chosen, strict=True) if found.tool == then_tool(asked[number])}
    return _flags(number in right for number in range(len(rests)))


def _flags(answers: Any) -> str:
    return "".join("01"[bool(answer)] for answer in answers)
