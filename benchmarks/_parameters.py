"""Shared by benchmarks/parameters.py and its tests: the hand-written calls, answers under the right tool, verdicts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.config.settings import Config
from tool_aware.console import UserError, listing
from tool_aware.evaluation.scoring.bfcl import accepted_values
from tool_aware.evaluation.scoring.judgement import Prediction, judge
from tool_aware.evaluation.scoring.parameter_kinds import CODE
from tool_aware.evaluation.scoring.reasoning import Reader, judge_reasonings
from tool_aware.evaluation.scoring.usable import ParameterJudge
from tool_aware.prompt import Turn, parse_response, render_instruction, render_response
from tool_aware.rows import Row
from tool_aware.tools import PYTHON_MEDIA_TYPE, Toolbox, ToolCall

if TYPE_CHECKING:
    from _real_model import Answerer, Material, Outcome

PROBE_FILE = Path(__file__).resolve().parent / "probe" / "parameters_probe.yaml"
FRESH_FILE = PROBE_FILE.with_name("fresh_probe.yaml")  # by a person who had seen neither the generator nor the probe
SOURCE = "hand-written"
REASONING = "Only tool and parameters are compared."
LANGUAGES = ("en", "de", "es", "fr", "it", "nl", "pl", "pt", "tr")
TOPICS = ("money", "dates", "units", "statistics", "text", "simulation", "table", "numbers")
# Questions that `verdicts` answers for every row; `-` where a row does not ask it (runs and value: rows without code).
QUESTIONS = ("tool", "readable", "schema", "usable", "bfcl", "strict", "runs", "value")
Item = Mapping[str, Any]


# ---- the hand-written rows ------------------------------------------------------------------------------


def load_parameters_probe(config: Config, path: Path = PROBE_FILE) -> list[Row]:
    """Read the hand-written calls as rows. Raises UserError with all that is wrong."""
    import yaml

    tools = config.toolbox
    by_tool = yaml.safe_load(path.read_text(encoding="utf-8"))
    items = [(tool, number, item) for tool, items in by_tool.items() for number, item in enumerate(items, 1)]
    problems = [
        f"{path.name}: {tool}: item {number}: {problem}"
        for tool, number, item in items
        for problem in _problems(tool, item, tools)
    ]
    if problems:
        raise UserError(listing(problems, "problem"), where=str(path), fix="correct these items")
    return [_row(tool, item, tools) for tool, _, item in items]


def _row(tool: str, item: Item, tools: Toolbox) -> Row:
    call = ToolCall(tool, item["parameters"], REASONING)
    details = {key: item[key] for key in ("language", "topic", "taught_by", "prints") if key in item}
    metadata = {"source": SOURCE, "tool": tool, "group": item["query"], **details}
    return Row(render_instruction(item["query"], tools), render_response(call), metadata)


def _problems(tool: str, item: Item, tools: Toolbox) -> Iterator[str]:
    if tool not in tools:
        yield f"is for an unknown tool; known: {', '.join(tools.names)}"
        return
    is_code = any("contentMediaType" in schema for schema in tools[tool].properties.values())
    if item.keys() != {"query", "language", "parameters"} | ({"topic", "taught_by", "prints"} if is_code else set()):
        yield f"keys are {', '.join(sorted(item))}"
        return
    if item["language"] not in LANGUAGES:
        yield f"language {item['language']!r} is none of {', '.join(LANGUAGES)}"
    if is_code and item["topic"] not in TOPICS:
        yield f"topic {item['topic']!r} is none of {', '.join(TOPICS)}"
    try:
        yield from tools.problems(ToolCall(tool, item["parameters"], REASONING))
    except ValueError as error:
        yield str(error)


# ---- what the training rows teach of them ---------------------------------------------------------------


def without_kinds(train: Sequence[Row], probe: Sequence[Row], tools: Toolbox) -> list[Row]:
    """Return the rows without those whose program does what a hand-written row asks for, whatever their query.

    `taught_by` names these programs of the content; a row is left out if its program is one of them but for the values
    in it. So the model has to put together a program that it has not seen.
    """
    known = taught_by(probe)
    shapes = {shape(code) for row in train if row.metadata.get("program") in known for code in programs_of(row, tools)}
    return [row for row in train if not any(shape(code) in shapes for code in programs_of(row, tools))]


def taught_by(probe: Sequence[Row]) -> set[str]:
    """Return the names of the programs that do what a hand-written row asks for."""
    return {name for row in probe for name in row.metadata.get("taught_by", ())}


def shape(code: str) -> str:
    """Return a program without its values: texts, lists, dates and numbers."""
    code = re.sub(r"'''.*?'''|'[^'\n]*'|\"[^\"\n]*\"", "_", code, flags=re.DOTALL)
    return re.sub(r"\[[\s\d._,+*/-]*\]|\d+(?:\.\d+)?", "_", code)


# ---- rows in the results --------------------------------------------------------------------------------


def stored(row: Row) -> dict[str, Any]:
    """Return a row as the results hold it: enough to judge its answers again."""
    history = [[turn.query, turn.tool] for turn in row.history]
    known = {key: value for key, value in row.metadata.items() if value not in ("", None)}
    return {
        "query": row.query,
        **({"history": history} if history else {}),
        "response": row.response,
        "metadata": known,
    }


def restored(item: Item, tools: Toolbox) -> Row:
    """Return the row that `stored` was given."""
    history = [Turn(query, tool) for query, tool in item.get("history", ())]
    return Row(render_instruction(item["query"], tools, history), item["response"], item["metadata"])


# ---- answers --------------------------------------------------------------------------------------------


def answer_under_right_tool(answerer: Answerer, material: Material, outcome: Outcome) -> None:
    """Write the answer to every row, and where another tool was chosen, the one that begins with the right tool.

    The model first answers freely. A free answer that names the right tool is the answer that follows from its first
    line, as decoding is greedy. For the others, `Tool: <right tool>` is put in front, and the model continues with
    parameters and reasoning. `chosen` says what the free answer named instead.
    """
    for name, rows in material.tests.items():
        free = answerer.answers(rows)
        judged = [judge(found, rows[found.row], answerer.config.toolbox) for found in free]
        kept: list[dict[str, Any]] = [_kept(found) for found in free]
        wrong = [verdict.row for verdict in judged if not verdict.names_right_tool]
        if wrong:
            asked = [rows[number] for number in wrong]
            for number, found in zip(wrong, answerer.answers(asked, [row.tool for row in asked]), strict=True):
                chosen = (free[number].text or "").split("\n", 1)[0][:80]
                kept[number] = {**_kept(found), "chosen": chosen.removeprefix("Tool:").strip()}
        outcome.answers[name] = kept
        outcome.sets[name] = {"tool": "".join("01"[not item.get("chosen") and "chosen" not in item] for item in kept)}


def copied(rows: Sequence[Row], tools: Toolbox) -> list[dict[str, Any]]:
    """Return the answers of who knows the right tool and hands over the query as it stands, a rival without a model."""
    answers = []
    for row in rows:
        tool = tools[row.tool]
        texts = (name for name, schema in tool.properties.items() if schema.get("type") == "string")
        name = next(name for name in texts if name in tool.required)
        answers.append({"text": render_response(ToolCall(row.tool, {name: row.query}, REASONING))})
    return answers


def _kept(found: Prediction) -> dict[str, Any]:
    return {"text": found.text, **({"is_truncated": True} if found.is_truncated else {})}


# ---- verdicts -------------------------------------------------------------------------------------------


def verdicts(rows: Sequence[Row], answers: Sequence[Item], by: ParameterJudge, tools: Toolbox) -> dict[str, Any]:
    """Judge the answers under the right tool.

    Returns a flag a row for each of QUESTIONS, `why` each call is not usable, and `kinds`: of each row's parameters
    the kind and whether it is usable.
    """
    calls = [_right_call(row, item["text"]) for row, item in zip(rows, answers, strict=True)]
    accepted = [accepted_values(row, tools[row.tool]) for row in rows]
    by.run_programs(
        (tools[row.tool], call.parameters, values)
        for row, call, values in zip(rows, calls, accepted, strict=True)
        if call
    )
    found: dict[str, Any] = dict.fromkeys(QUESTIONS, "") | {"why": [], "kinds": []}
    for number, (row, item) in enumerate(zip(rows, answers, strict=True)):
        tool, call = tools[row.tool], calls[number]
        strict = judge(Prediction(number, item["text"], is_truncated=item.get("is_truncated", False)), row, tools)
        use = by.judge_call(
            tool,
            call.parameters if call else {},
            accepted[number],
            asked=row.query,
            earlier="\n".join(turn.query for turn in row.history),
        )
        programs = [parameter for parameter in use.parameters if parameter.kind == CODE]
        is_run = by.programs is not None and bool(programs_of(row, tools))
        flags = {
            "tool": "chosen" not in item,
            "readable": bool(strict.is_parsed),
            "schema": bool(strict.fits_schema),
            "usable": bool(call) and use.is_usable,
            "bfcl": bool(strict.is_bfcl_valid),
            "strict": bool(strict.is_call_correct),
            "runs": _all(parameter.is_same or parameter.runs for parameter in programs) if is_run else None,
            "value": _all(parameter.is_usable for parameter in programs) if is_run else None,
        }
        for question, flag in flags.items():
            found[question] += "-" if flag is None else "01"[flag]
        found["why"].append("" if flags["usable"] else (use.reason if call else strict.error) or strict.detail or "?")
        found["kinds"].append(
            [[parameter.kind, int(bool(call) and parameter.is_usable)] for parameter in use.parameters]
        )
    return found


def reasoning_flags(
    rows: Sequence[Row], answers: Sequence[dict[str, Any]], tools: Toolbox, read: Reader | None
) -> dict[str, str]:
    """Judge the reasonings of the answers; `leads_to` is kept in each, so that later no training rows are needed.

    Returns a flag a row for `evidence` (what it quotes stands in the query or an earlier turn) and `leads` (somebody
    who reads nothing else chooses the right tool); 0 where the answer cannot be read.
    """
    predictions = [Prediction(number, item["text"]) for number, item in enumerate(answers)]
    found = [judge(prediction, rows[prediction.row], tools) for prediction in predictions]
    judge_reasonings({"": found}, {"": predictions}, dict(enumerate(rows)), read)
    for item, verdict in zip(answers, found, strict=True):
        if verdict.reasoning_leads_to:
            item["leads_to"] = verdict.reasoning_leads_to
    return {
        "evidence": "".join("01"[bool(verdict.is_evidence_in_query)] for verdict in found),
        "leads": "".join("01"[item.get("leads_to") == row.tool] for item, row in zip(answers, rows, strict=True)),
    }


def _right_call(row: Row, text: str) -> ToolCall | None:
    """Return the call of an answer under the right tool; None if it cannot be read."""
    call = parse_response(text).call
    return call if call and call.tool == row.tool else None


def _all(answers: Iterable[Any]) -> bool:
    found = list(answers)
    return bool(found) and all(found)


def programs_of(row: Row, tools: Toolbox) -> list[str]:
    """Return the programs that the row's own call hands over."""
    call, schemas = row.answer.call, tools[row.tool].properties
    given = call.parameters.items() if call else ()
    return [value for name, value in given if schemas.get(name, {}).get("contentMediaType") == PYTHON_MEDIA_TYPE]
