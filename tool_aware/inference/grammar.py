"""Grammars of the allowed answers, made from the tools' schemas, in the dialects that engines read.

- `lark`: for llguidance (used here; vLLM and SGLang take it too); enforces every bound of the schemas
- `gbnf`: for llama.cpp (`--grammar-file`)
- `regex`: for vLLM's `structured_outputs: {"regex": ...}` and for checks with any regular-expression library

GBNF and regex do not enforce bounds, lengths, patterns, `not`, `if` and all but one part of `allOf`; inside objects
they take undeclared names only where the schema mentions some; of an object whose exact form would be longer than
`MOST_CHARACTERS`, they take the properties in any order. A value without a schema may be nested `FREE_DEPTH` deep in
the regex. All three want the properties in the schema's order. The space that some tokenizers put before an answer, as
Mistral's do in `▁Tool`, is a part of the text to an engine: all three take it or leave it.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tool_aware.schema_merging import ONE_SCHEMA, SCHEMA_LISTS, SCHEMA_MAPS
from tool_aware.tools import Tool, Toolbox

REASONING_CHARS = 300
FREE_DEPTH = 2
MOST_CHARACTERS = 20_000  # of the exact form of one object, which grows with the square of its optional properties

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


def lark(
    tools: Toolbox,
    *,
    begins_with: str | None = None,
    ends_with: str = "",
    schemas: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Write llguidance's Lark.

    `begins_with` is the white space before an answer, None for a space or nothing; `ends_with` is what the chat
    template writes between an answer and the token that ends it. `schemas` replaces the schemas of some tools: by name,
    in the form that llguidance can read.
    """
    label, first = (begins_with or "") + "Tool: ", '" "? ' if begins_with is None else ""
    calls = " | ".join(f"{json.dumps(label + tool.name)} parameters_{index}" for index, tool in enumerate(tools))
    rules = [
        f'parameters_{index}: "\\nParameters: " %json '
        + json.dumps(_for_llguidance((schemas or {}).get(tool.name, tool.parameters)))
        for index, tool in enumerate(tools)
    ]
    tail = re.escape(ends_with).replace("\n", "n").replace("/", r"\/")  # re.escape writes a line end as it is
    reasoning = rf"REASONING: /[^ \n][^\n]{{0,{REASONING_CHARS - 1}}}{tail}/"
    return "\n".join([f'start: {first}({calls}) "\\nReasoning: " REASONING', *rules, reasoning, ""])


def _for_llguidance(schema: Mapping[str, Any]) -> dict[str, Any]:
    layout = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
    return {
        **_without_formats(schema),
        "additionalProperties": schema.get("additionalProperties", False),
        "x-guidance": {**layout, **schema.get("x-guidance", {})},
    }


def _without_formats(schema: Any) -> Any:
    """Return a schema without `format`, which says how a text should look and, as in the check of a call, forbids none.

    llguidance would refuse a time without its zone, and the `<EMAIL_1>` of data from which addresses were removed.
    """
    if not isinstance(schema, Mapping):
        return schema
    kept: dict[str, Any] = {key: value for key, value in schema.items() if key != "format"}
    for key in kept.keys() & set(SCHEMA_MAPS):
        kept[key] = {name: _without_formats(item) for name, item in kept[key].items()}
    for key in kept.keys() & set(SCHEMA_LISTS):
        kept[key] = list(map(_without_formats, kept[key]))
    for key in kept.keys() & set(ONE_SCHEMA):
        kept[key] = _without_formats(kept[key])
    return kept


def lenient(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema of which llguidance leaves out the keywords that it does not know."""
    return {**schema, "x-guidance": {"lenient": True, "coerce_one_of": True}}


def shape_only(schema: Any) -> Any:
    """Return a schema without all that narrows a type: bounds, patterns, formats, conditions."""
    if not isinstance(schema, Mapping):
        return schema
    kept = {key: value for key, value in schema.items() if key in ("type", "enum", "const", "required")}
    for key in ("items", "additionalProperties"):
        if key in schema:
            kept[key] = shape_only(schema[key])
    if "properties" in schema:
        kept["properties"] = {name: shape_only(item) for name, item in schema["properties"].items()}
    if "patternProperties" in schema:
        kept["additionalProperties"] = True
    if "prefixItems" in schema:
        kept["prefixItems"] = [shape_only(item) for item in schema["prefixItems"]]
    for key in ("anyOf", "oneOf"):
        if key in schema and "type" not in schema:
            kept["anyOf"] = [shape_only(item) for item in schema[key]]
    return kept


# ---- regex and GBNF: one walk over the schemas, two notations ------------------------------------------------


def regex(tools: Toolbox) -> str:
    """Write the grammar as one regular expression; it matches a whole answer, with or without a space before it."""
    notation = _Regex()
    calls = "|".join(rf"{re.escape(tool.name)}\nParameters: {notation.object_of(tool.parameters)}" for tool in tools)
    return rf" ?Tool: (?:{calls})\nReasoning: [^ \n][^\n]{{0,{REASONING_CHARS - 1}}}"


def gbnf(tools: Toolbox) -> str:
    """Write the grammar for llama.cpp; a space may come before the answer."""
    notation = _Gbnf()
    names = _rule_names(tools)
    calls = " | ".join(f"{notation.literal(f'Tool: {tool.name}')} {names[tool.name]}" for tool in tools)
    reasoning = rf"[^ \n] [^\n]{{0,{REASONING_CHARS - 1}}}"
    rules = [f'{names[tool.name]} ::= "\\nParameters: " {notation.object_of(tool.parameters)}' for tool in tools]
    return "\n".join([f'root ::= " "? ({calls}) "\\nReasoning: " {reasoning}', *rules, _GBNF_BASE, ""])


def regex_behind_name(tool: Tool) -> str:
    """Write the part of a tool's answers that follows its name and the line end as a regular expression."""
    return rf"Parameters: {_Regex().object_of(tool.parameters)}\nReasoning: [^ \n][^\n]{{0,{REASONING_CHARS - 1}}}"


def gbnf_behind_name(tool: Tool) -> str:
    """Write the part of a tool's answers that follows its name and the line end for llama.cpp."""
    parameters = _Gbnf().object_of(tool.parameters)
    reasoning = rf"[^ \n] [^\n]{{0,{REASONING_CHARS - 1}}}"
    return "\n".join([f'root ::= "Parameters: " {parameters} "\\nReasoning: " {reasoning}', _GBNF_BASE, ""])


def _rule_names(tools: Toolbox) -> dict[str, str]:
    """Return tool name -> the name of its rule; GBNF allows letters, digits and dashes."""
    names: dict[str, str] = {}
    for index, tool in enumerate(tools):
        name = "call-" + re.sub(r"[^a-zA-Z0-9]+", "-", tool.name)
        names[tool.name] = f"{name}-{index}" if name in names.values() else name
    return names


@dataclass(frozen=True)
class _Member:
    """A property of an object: its name as JSON with the colon, its values as written, and whether it must be there."""

    key: str
    value: str
    is_required: bool


class _Notation(ABC):
    """A dialect's way to write the values of a JSON schema; `depth` is how deep one without a schema may be nested."""

    group: str  # opens one
    bar: str  # between alternatives
    space: str  # between what follows one another
    any_text: str  # any string

    @abstractmethod
    def literal(self, text: str) -> str:
        """Write `text` as it is."""

    @abstractmethod
    def typed(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        """Write any value of a JSON type."""

    @abstractmethod
    def free(self, depth: int) -> str:
        """Write any value."""

    def value_of(self, schema: Any, depth: int = FREE_DEPTH) -> str:
        """Write the values that fit `schema`."""
        if not isinstance(schema, Mapping):
            return self.free(depth)
        if "enum" in schema or "const" in schema:
            values = dict.fromkeys(map(_json, schema.get("enum", [schema.get("const")])))
            return self._any_of([self.literal(value) for value in values])
        kinds = schema.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if kinds:
            return self._any_of([self.typed(kind, schema, depth) for kind in kinds])
        alternatives = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf", [])[:1]
        if alternatives:
            return self._any_of(list(dict.fromkeys(self.value_of(part, depth) for part in alternatives)))
        return self.free(depth)

    def object_of(self, schema: Mapping[str, Any]) -> str:
        """Write an object: properties in the schema's order; the optional ones may be left out."""
        required = set(schema.get("required", ()))
        members = [
            _Member(_json(name) + ": ", self.value_of(item), name in required)
            for name, item in schema.get("properties", {}).items()
        ]
        others = self._undeclared(schema)
        alternatives = next((at for at, member in enumerate(members) if member.is_required), len(members))
        length = sum(len(member.value) for member in members) + len(others)
        if alternatives > 1 and length * alternatives > MOST_CHARACTERS:
            one = self._any_of([*(self._member(member) for member in members), *filter(None, [others])])
            inner = f"{self.group}{self._joined(one, self._repeated(one))})?"
        else:
            inner = self._in_order(members, others)
        return self._joined(self.literal("{"), inner, self.literal("}"))

    def _in_order(self, members: Sequence[_Member], others: str) -> str:
        """Write the members of an object; the first that is there has no comma before it."""
        tail = self._repeated(others) if others else ""  # what may follow a member
        first = f"{self.group}{self._joined(others, tail)})?" if others else ""  # what may follow none
        for member in reversed(members):
            present = self._joined(self._member(member), tail)
            first = present if member.is_required else self._any_of([present, first or self.literal("")])
            later = self._member(member, before=", ")
            tail = self._joined(later if member.is_required else f"{self.group}{later})?", tail)
        return first

    def _member(self, member: _Member, before: str = "") -> str:
        return self._joined(self.literal(before + member.key), member.value)

    def _undeclared(self, schema: Mapping[str, Any]) -> str:
        """Write a member of an object whose name the schema leaves open; empty if there can be none."""
        others = True if schema.get("patternProperties") else schema.get("additionalProperties", False)
        return self._joined(self.any_text, self.literal(": "), self.value_of(others)) if others is not False else ""

    def array_of(self, schema: Mapping[str, Any], depth: int) -> str:
        """Write an array: its first items by `prefixItems`, any number of others by `items`."""
        items = schema.get("items", True)
        other = "" if items is False else self.value_of(items) if "items" in schema else self.free(depth)
        tail = self._repeated(other) if other else ""
        leading = [self.value_of(item) for item in schema.get("prefixItems", ())]
        for item in reversed(leading[1:]):
            tail = f"{self.group}{self._joined(self.literal(', '), item, tail)})?"
        first = leading[0] if leading else other
        inner = f"{self.group}{self._joined(first, tail)})?" if first else ""
        return self._joined(self.literal("["), inner, self.literal("]"))

    def _repeated(self, item: str) -> str:
        return f"{self.group}{self._joined(self.literal(', '), item)})*"

    def _any_of(self, choices: Sequence[str]) -> str:
        return choices[0] if len(choices) == 1 else f"{self.group}{self.bar.join(choices)})"

    def _joined(self, *parts: str) -> str:
        return self.space.join(filter(None, parts))


class _Regex(_Notation):
    group, bar, space, any_text = "(?:", "|", "", _STRING

    def literal(self, text: str) -> str:
        return re.escape(text).replace(r"\ ", " ")  # not every engine knows an escaped space

    def typed(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        if kind in ("integer", "number"):
            pattern = _INTEGER if kind == "integer" else _NUMBER
            return pattern.removeprefix("-?") if schema.get("minimum", -1) >= 0 else pattern
        if kind == "array":
            return self.array_of(schema, depth)
        if kind == "object":
            return self.object_of(schema) if _says_what_is_inside(schema) else self._free_object(depth)
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
    group, bar, space, any_text = "(", " | ", " ", "string"

    def literal(self, text: str) -> str:
        return _json(text)

    def typed(self, kind: str, schema: Mapping[str, Any], depth: int) -> str:
        if kind == "array" and ("items" in schema or "prefixItems" in schema):
            return self.array_of(schema, depth)
        if kind == "object" and _says_what_is_inside(schema):
            return self.object_of(schema)
        return kind

    def free(self, depth: int) -> str:
        return "value"


def _says_what_is_inside(schema: Mapping[str, Any]) -> bool:
    return bool(schema.get("properties")) or "additionalProperties" in schema or "patternProperties" in schema


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
