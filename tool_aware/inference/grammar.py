"""Grammars of the allowed answers, made from the tools' schemas, in the dialects that engines read.

- `lark`: for llguidance (used here; vLLM and SGLang take it too); enforces every bound of the schemas
- `gbnf`: for llama.cpp (`--grammar-file`) and Ollama
- `regex`: for vLLM's `structured_outputs: {"regex": ...}` and for checks with any regular-expression library

GBNF and regex do not enforce numeric bounds, string lengths and patterns; a value without a schema may be nested
`FREE_DEPTH` deep in the regex.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
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


# ---- regex and GBNF: one walk over the schemas, two notations ------------------------------------------------


def regex(tools: Toolbox) -> str:
    """Write the grammar as one regular expression; it matches a whole answer."""
    notation = _Regex()
    calls = "|".join(rf"{re.escape(tool.name)}\nParameters: {notation.object_of(tool.parameters)}" for tool in tools)
    return rf"Tool: (?:{calls})\nReasoning: [^ \n][^\n]{{0,{REASONING_CHARS - 1}}}"


def gbnf(tools: Toolbox) -> str:
    """Write the grammar for llama.cpp."""
    notation = _Gbnf()
    calls = " | ".join(f"{notation.literal(f'Tool: {tool.name}')} {_rule_name(tool)}" for tool in tools)
    reasoning = rf"[^ \n] [^\n]{{0,{REASONING_CHARS - 1}}}"
    rules = [f'{_rule_name(tool)} ::= "\\nParameters: " {notation.object_of(tool.parameters)}' for tool in tools]
    return "\n".join([f'root ::= ({calls}) "\\nReasoning: " {reasoning}', *rules, _GBNF_BASE, ""])


def _rule_name(tool: Tool) -> str:
    return "call-" + re.sub(r"[^a-zA-Z0-9]+", "-", tool.name)  # GBNF allows letters, digits and dashes


class _Notation(ABC):
    """A dialect's way to write the values of a JSON schema; `depth` is how deep one without a schema may be nested."""

    group: str  # opens one
    bar: str  # between alternatives
    space: str  # between what follows one another

    @abstractmethod
    def literal(self, text: str) -> str:
        """Write `text` as it is."""

    @abstractmethod
    def typed(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        """Write any value of a JSON type."""

    @abstractmethod
    def free(self, depth: int) -> str:
        """Write any value."""

    def value_of(self, schema: Mapping[str, Any], depth: int = FREE_DEPTH) -> str:
        """Write the values that fit `schema`."""
        if "enum" in schema or "const" in schema:
            return self._any_of([self.literal(_json(value)) for value in schema.get("enum", [schema.get("const")])])
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        return self._any_of([self.typed(kind, schema, depth) for kind in kinds]) if kinds else self.free(depth)

    def object_of(self, schema: Mapping[str, Any]) -> str:
        """Write an object: properties in the schema's order; the optional ones may be left out."""
        properties = list(schema.get("properties", {}).items())
        required = set(schema.get("required", ()))

        def rest(index: int, *, is_first: bool) -> str:
            if index == len(properties):
                return ""
            name, details = properties[index]
            key = ("" if is_first else ", ") + _json(name) + ": "
            present, others = self._joined(self.literal(key), self.value_of(details)), rest(index + 1, is_first=False)
            if name in required:
                return self._joined(present, others)
            if not is_first:
                return self._joined(f"{self.group}{present})?", others)
            without = rest(index + 1, is_first=True) or self.literal("")
            return self._any_of([self._joined(present, others), without])

        return self._joined(self.literal("{"), rest(0, is_first=True), self.literal("}"))

    def _any_of(self, choices: Sequence[str]) -> str:
        return choices[0] if len(choices) == 1 else f"{self.group}{self.bar.join(choices)})"

    def _joined(self, *parts: str) -> str:
        return self.space.join(filter(None, parts))


class _Regex(_Notation):
    group, bar, space = "(?:", "|", ""

    def literal(self, text: str) -> str:
        return re.escape(text).replace(r"\ ", " ")  # not every engine knows an escaped space

    def typed(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        if kind in ("integer", "number"):
            pattern = _INTEGER if kind == "integer" else _NUMBER
            return pattern.removeprefix("-?") if schema.get("minimum", -1) >= 0 else pattern
        if kind == "array":
            items = schema.get("items")
            return self._array(self.value_of(items or {}, depth - 1) if items or depth > 0 else self._scalar())
        if kind == "object":
            return self.object_of(schema) if schema.get("properties") else self._free_object(depth)
        return {"string": _STRING, "boolean": "(?:true|false)", "null": "null"}[kind]

    def free(self, depth: int) -> str:
        if depth <= 0:
            return self._scalar()
        return self._any_of([self._scalar(), self._array(self.free(depth - 1)), self._free_object(depth)])

    def _scalar(self) -> str:
        return self._any_of([_STRING, _NUMBER, "true", "false", "null"])

    def _array(self, item: str) -> str:
        return rf"\[(?:{item}(?:, {item})*)?\]"

    def _free_object(self, depth: int) -> str:
        item = f"{_STRING}: {self.free(depth - 1)}"
        return rf"\{{(?:{item}(?:, {item})*)?\}}"


class _Gbnf(_Notation):
    group, bar, space = "(", " | ", " "

    def literal(self, text: str) -> str:
        return _json(text)

    def typed(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        if kind == "array" and schema.get("items"):
            item = self.value_of(schema["items"])
            return f'("[" ({item} (", " {item})*)? "]")'
        if kind == "object" and schema.get("properties"):
            return self.object_of(schema)
        return kind

    def free(self, depth: int) -> str:
        return "value"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
