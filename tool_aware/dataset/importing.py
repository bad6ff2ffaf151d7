"""Converts tool-calling data of others into rows: chat messages with tool calls, BFCL questions with answers.

    messages   {"messages": [...], "tools": [...]} a line, as OpenAI and Mistral fine-tuning take it
    BFCL       {"id", "question", "function"} a line, and {"id", "ground_truth"} a line in a second file

A row may bring its own tools; then its instruction shows those and not config.yaml's. Rows that our format cannot hold
(several calls, no call, a call that does not fit its schema) are counted by reason and left out.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.prompt import render_instruction, render_response
from tool_aware.rows import OPTIONAL, Row
from tool_aware.text import shortened
from tool_aware.tools import TOOL_NAME, Tool, Toolbox, ToolCall

# BFCL writes Python's and Java's names for types; JSON Schema has its own.
_TYPES = {
    "dict": "object", "float": "number", "double": "number", "long": "integer", "int": "integer", "list": "array",
    "tuple": "array", "bool": "boolean", "str": "string", "any": "string", "String": "string", "char": "string",
}  # fmt: skip
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class Imported:
    """Rows, reasons and counts of what could not be taken over, and the tools that config.yaml lacks."""

    rows: list[Row]
    skipped: Mapping[str, int]
    foreign_tools: tuple[Tool, ...]


class _Skip(ValueError):
    """A row that our format cannot hold; the text is the reason that is counted."""


def import_file(path: Path, tools: Toolbox, answers: Path | None = None) -> Imported:
    """Read a JSONL file of chat messages, or BFCL questions together with their `answers`.

    Raises UserError for a file that is neither.
    """
    items = list(_lines(path))
    if not items:
        raise UserError("has no rows", where=str(path))
    is_bfcl = "question" in items[0] and "function" in items[0]
    if not is_bfcl and "messages" not in items[0]:
        raise UserError(
            f"rows have {', '.join(sorted(items[0]))}; expected messages (and tools), or BFCL's id, question, function",
            where=str(path),
            fix="see docs/FORMATS.md",
        )
    truths = _bfcl_answers(path, answers) if is_bfcl else {}
    rows: list[Row] = []
    skipped: Counter[str] = Counter()
    known = {tool.name: tool for tool in tools}
    for item in items:
        try:
            row, offered = _bfcl_row(item, truths) if is_bfcl else _chat_row(item, tools)
        except _Skip as reason:
            skipped[str(reason)] += 1
            continue
        known = {**{tool.name: tool for tool in offered}, **known}  # the first definition of a name stays
        if known[row.tool].parameter_problems(row.answer.parameters):
            skipped["the same tool name with another schema"] += 1
        else:
            rows.append(row)
    return Imported(rows, dict(skipped), tuple(tool for name, tool in known.items() if name not in tools))


def config_with_tools(config: Config, base: Path, foreign: Sequence[Tool], folder: Path) -> str:
    """Return the text of a config file in `folder` that extends `base` by the `foreign` tools of an import."""
    tools = [tool.model_dump(exclude_defaults=True) for tool in config.tools] + [
        {"name": tool.name, "description": tool.description or tool.name, "parameters": dict(tool.parameters)}
        for tool in foreign
    ]
    extended = {"extends": os.path.relpath(base, folder), "tools": tools}
    return yaml.safe_dump(extended, sort_keys=False, allow_unicode=True)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        raise UserError("not found", where=str(path))
    text = path.read_text(encoding="utf-8")
    try:  # one array, or one object a line
        items = (
            json.loads(text)
            if text.lstrip().startswith("[")
            else [json.loads(x) for x in text.splitlines() if x.strip()]
        )
    except ValueError as error:
        raise UserError(f"is not JSON Lines: {error}", where=str(path)) from error
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise UserError(f"row {number} is {type(item).__name__}, not an object", where=str(path))
        yield item


# ---- chat messages --------------------------------------------------------------------------------------


def _chat_row(item: Mapping[str, Any], tools: Toolbox) -> tuple[Row, Toolbox]:
    messages = item["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _Skip("messages is not a list of objects")
    offered = Toolbox(map(_openai_tool, item["tools"])) if item.get("tools") else tools
    at = next((at for at, message in enumerate(messages) if message.get("role") == "assistant"), None)
    if at is None:
        raise _Skip("no assistant message")
    users = [message for message in messages[:at] if message.get("role") == "user"]
    if not users:
        raise _Skip("no user message before the first answer")
    query = _content(users[-1])
    calls = messages[at].get("tool_calls") or []
    if len(calls) > 1:
        raise _Skip("several tool calls")
    if calls:
        name, parameters = _openai_call(calls[0])
    elif "direct_chat" in offered or "direct_chat" in tools:
        offered = offered if "direct_chat" in offered else Toolbox([*offered, tools["direct_chat"]])
        name, parameters = "direct_chat", {"message": query}
    else:
        raise _Skip("no tool call and no direct_chat to stand for it")
    return _row(query, name, parameters, offered, source="messages", said=_content(messages[at])), offered


def _openai_tool(item: Mapping[str, Any]) -> Tool:
    function = item.get("function", item)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise _Skip("a tool without a usable name")
    return Tool(
        name, str(function.get("description", "")), function.get("parameters") or {"type": "object", "properties": {}}
    )


def _openai_call(call: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    function = call.get("function", {})
    arguments = function.get("arguments", {})
    try:
        parameters = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        raise _Skip("arguments are not JSON") from None
    if not isinstance(parameters, dict):
        raise _Skip("arguments are not an object")
    return str(function.get("name", "")), parameters


def _content(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, list):  # parts, as vision models have them
        content = "\n".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return str(content).strip()


# ---- BFCL -----------------------------------------------------------------------------------------------


def _bfcl_answers(path: Path, answers: Path | None) -> dict[str, Any]:
    place = answers or path.parent / "possible_answer" / path.name
    if not place.is_file():
        raise UserError("BFCL questions need their answers", where=str(place), fix="name the file with --answers FILE")
    return {item["id"]: item.get("ground_truth") for item in _lines(place) if "id" in item}


def _bfcl_row(item: Mapping[str, Any], truths: Mapping[str, Any]) -> tuple[Row, Toolbox]:
    truth = truths.get(item["id"])
    if not isinstance(truth, list) or len(truth) != 1:
        raise _Skip("no answer" if not truth else "several calls")
    question = item["question"]
    turns = question[0] if question and isinstance(question[0], list) else question
    users = [_content(turn) for turn in turns if turn.get("role") == "user"]
    if not users:
        raise _Skip("no user message")
    functions = item["function"] if isinstance(item["function"], list) else [item["function"]]
    offered = Toolbox(_bfcl_tool(function) for function in functions)
    original_name, accepted = next(iter(truth[0].items()))
    parameters = {
        key: _plain(next(value for value in values if value != OPTIONAL))
        for key, values in accepted.items()
        if OPTIONAL not in values
    }
    name = _NOT_IN_NAMES.sub("_", original_name)
    details = {"accepted_parameters": accepted, "bfcl_id": item["id"]}
    return _row(users[-1], name, parameters, offered, source="bfcl", **details), offered


def _bfcl_tool(function: Mapping[str, Any]) -> Tool:
    name = _NOT_IN_NAMES.sub("_", str(function.get("name", "")))
    if not TOOL_NAME.fullmatch(name):
        raise _Skip("a tool without a usable name")
    return Tool(name, str(function.get("description", "")), _schema(function.get("parameters", {})))


def _schema(schema: Any) -> Any:
    """Return BFCL's schema with the type names of JSON Schema, at every depth."""
    if not isinstance(schema, Mapping):
        return schema
    converted = {key: value for key, value in schema.items() if key not in ("properties", "items", "optional")}
    if isinstance(converted.get("type"), str):
        converted["type"] = _TYPES.get(converted["type"], converted["type"])
    if "properties" in schema:
        converted["properties"] = {name: _schema(value) for name, value in schema["properties"].items()}
    if "items" in schema:
        converted["items"] = _schema(schema["items"])
    return converted


def _plain(value: Any) -> Any:
    """Return a value with the first of the accepted values that BFCL lists inside dicts as well."""
    if isinstance(value, dict):
        return {
            key: _plain(next((item for item in options if item != OPTIONAL), OPTIONAL))
            if isinstance(options, list)
            else options
            for key, options in value.items()
            if not (isinstance(options, list) and OPTIONAL in options)
        }
    return value


# ---- both -----------------------------------------------------------------------------------------------


def _row(
    query: str,
    name: str,
    parameters: Mapping[str, Any],
    offered: Toolbox,
    *,
    source: str,
    said: str = "",
    **details: Any,
) -> Row:
    if not query:
        raise _Skip("an empty query")
    reasoning = shortened(said, 200) if said else f'"{shortened(query)}" is what {name} is there for.'
    try:
        call = ToolCall(name, parameters, reasoning)
    except ValueError:
        raise _Skip("a call that cannot be written down") from None
    if offered.problems(call):
        raise _Skip("unknown tool" if name not in offered else "parameters against the schema")
    return Row(
        render_instruction(query, offered),
        render_response(call),
        {"source": source, "tool": name, "slice": "imported", **details},
    )
