"""The answers that are allowed, as a grammar made from the tools' schemas, in the dialects that engines read.

- `lark`: for llguidance (used here; vLLM and SGLang take it too); enforces every bound of the schemas
- `gbnf`: for llama.cpp (`--grammar-file`) and Ollama
- `regex`: for vLLM's `structured_outputs: {"regex": ...}` and for checks with any regular-expression library

GBNF and regex do not enforce numeric bounds, string lengths and patterns; a value without a schema may be nested
`FREE_DEPTH` deep in the regex.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tool_aware.tools import Tool, Toolbox

REASONING_CHARS = 300
FREE_DEPTH = 2

_STRING = r'"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"'
_INTEGER = r"-?(?:0|[1-9][0-9]*)"
_NUMBER = _INTEGER + r"(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_GBNF_BASE = r'''string ::= "\"" ([^"\\\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4}))* "\""
integer ::= "-"? ("0" | [1-9] [0-9]*)
number ::= integer ("." [0-9]+)? ([eE] [+-]? [0-9]+)?
boolean ::= "true" | "false"
null ::= "null"
value ::= string | number | boolean | null | array | object
array ::= "[" (value (", " value)*)? "]"
object ::= "{" (string ": " value (", " string ": " value)*)? "}"'''


# ---- Lark, for llguidance ---------------------------------------------------------------------------------


def lark(tools: Toolbox, *, begins_with: str = "") -> str:
    """Write llguidance's Lark; `begins_with` is the space that some tokenizers put before an answer."""
    calls = " | ".join(
        f"{json.dumps(f'{begins_with}Tool: {tool.name}')} parameters_{index}" for index, tool in enumerate(tools)
    )
    layout = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
    rules = [
        f'parameters_{index}: "\\nParameters: " %json '
        + json.dumps({**tool.parameters, "additionalProperties": False, "x-guidance": layout})
        for index, tool in enumerate(tools)
    ]
    reasoning = rf"REASONING: /[^ \n][^\n]{{0,{REASONING_CHARS - 1}}}/"
    return "\n".join([f'start: ({calls}) "\\nReasoning: " REASONING', *rules, reasoning, ""])


# ---- regex ------------------------------------------------------------------------------------------------


def regex(tools: Toolbox) -> str:
    """Write the grammar as one regular expression; it matches a whole answer."""
    calls = "|".join(rf"{re.escape(tool.name)}\nParameters: {_object_regex(tool.parameters)}" for tool in tools)
    return rf"Tool: (?:{calls})\nReasoning: [^ \n][^\n]{{0,{REASONING_CHARS - 1}}}"


def _regex_of(schema: Mapping[str, Any], depth: int = FREE_DEPTH) -> str:
    if "enum" in schema or "const" in schema:
        return _any_of([re.escape(_json(value)) for value in schema.get("enum", [schema.get("const")])])
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return _any_of([_typed_regex(kind, schema, depth) for kind in kinds]) if kinds else _free_regex(depth)


def _typed_regex(kind: str, schema: Mapping[str, Any], depth: int) -> str:
    if kind in ("integer", "number"):
        pattern = _INTEGER if kind == "integer" else _NUMBER
        return pattern.removeprefix("-?") if schema.get("minimum", -1) >= 0 else pattern
    if kind == "array":
        item = _regex_of(schema.get("items", {}), depth - 1) if schema.get("items") or depth > 0 else _scalar_regex()
        return rf"\[(?:{item}(?:, {item})*)?\]"
    if kind == "object":
        return _object_regex(schema) if schema.get("properties") else _free_object_regex(depth)
    return {"string": _STRING, "boolean": "(?:true|false)", "null": "null"}[kind]


def _object_regex(schema: Mapping[str, Any]) -> str:
    """Properties in the schema's order; the optional ones may be left out."""
    properties = list(schema.get("properties", {}).items())
    required = set(schema.get("required", ()))

    def rest(index: int, is_first: bool) -> str:
        if index == len(properties):
            return ""
        name, details = properties[index]
        present = ("" if is_first else ", ") + re.escape(_json(name)) + ": " + _regex_of(details)
        if name in required:
            return present + rest(index + 1, False)
        if not is_first:
            return f"(?:{present})?" + rest(index + 1, False)
        return _any_of([present + rest(index + 1, False), rest(index + 1, True)])

    return r"\{" + rest(0, True) + r"\}"


def _scalar_regex() -> str:
    return f"(?:{_STRING}|{_NUMBER}|true|false|null)"


def _free_regex(depth: int) -> str:
    if depth <= 0:
        return _scalar_regex()
    item = _free_regex(depth - 1)
    return rf"(?:{_scalar_regex()}|\[(?:{item}(?:, {item})*)?\]|{_free_object_regex(depth)})"


def _free_object_regex(depth: int) -> str:
    item = f"{_STRING}: {_free_regex(depth - 1)}"
    return rf"\{{(?:{item}(?:, {item})*)?\}}"


def _any_of(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"(?:{'|'.join(choices)})"


# ---- GBNF -------------------------------------------------------------------------------------------------


def gbnf(tools: Toolbox) -> str:
    """Write the grammar for llama.cpp."""
    calls = " | ".join(f"{_literal(f'Tool: {tool.name}')} {_rule_name(tool)}" for tool in tools)
    reasoning = rf"[^ \n] [^\n]{{0,{REASONING_CHARS - 1}}}"
    rules = [f'{_rule_name(tool)} ::= "\\nParameters: " {_object_gbnf(tool.parameters)}' for tool in tools]
    return "\n".join([f'root ::= ({calls}) "\\nReasoning: " {reasoning}', *rules, _GBNF_BASE, ""])


def _rule_name(tool: Tool) -> str:
    return "call-" + re.sub(r"[^a-zA-Z0-9]+", "-", tool.name)  # GBNF allows letters, digits and dashes


def _gbnf_of(schema: Mapping[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return _group([_literal(_json(value)) for value in schema.get("enum", [schema.get("const")])])
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return _group([_typed_gbnf(kind, schema) for kind in kinds]) if kinds else "value"


def _typed_gbnf(kind: str, schema: Mapping[str, Any]) -> str:
    if kind == "array" and schema.get("items"):
        item = _gbnf_of(schema["items"])
        return f'("[" ({item} (", " {item})*)? "]")'
    if kind == "object" and schema.get("properties"):
        return _object_gbnf(schema)
    return kind


def _object_gbnf(schema: Mapping[str, Any]) -> str:
    properties = list(schema.get("properties", {}).items())
    required = set(schema.get("required", ()))

    def rest(index: int, is_first: bool) -> str:
        if index == len(properties):
            return ""
        name, details = properties[index]
        present = _literal(("" if is_first else ", ") + _json(name) + ": ") + " " + _gbnf_of(details)
        if name in required:
            return f"{present} {rest(index + 1, False)}"
        if not is_first:
            return f"({present})? {rest(index + 1, False)}"
        return f"({present} {rest(index + 1, False)} | {rest(index + 1, True) or _literal('')})"

    return f'"{{" {rest(0, True)} "}}"'


def _group(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"({' | '.join(choices)})"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
