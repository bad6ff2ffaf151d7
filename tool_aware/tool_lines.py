"""A tool as the one line of a prompt: its name, its parameters with all types, its description.

Types are written as in TypeScript, which models have read a lot of: `string`, `"a" | "b"`, `integer[]`,
`{lat: number, lon?: number}`. Nothing that says which type a value has is left out, however deep it is nested. What
only narrows a type is not shown: bounds, lengths, patterns, conditions, descriptions of parameters.
docs/FORMATS.md has the table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tool_aware.tools import Tool

_INST_TEXT = re.compile(r"\[(/?INST)\]")
_CONTROL = re.compile(r"[\x00-\x08\n-\x1f\x7f-\x9f\u2028\u2029]")  # all that some reader takes for the end of a line
_LINE_ENDS = re.compile(rf"\s*{_CONTROL.pattern}[\s{_CONTROL.pattern[1:]}*")
_PLAIN_NAME = re.compile(r"[\w$@][\w$@.-]*")  # other names are written as JSON, so that one sees where they end
_FORMAT = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,30}")  # `date-time`, `uri`: how a text has to be written
_SCALARS = {"string", "integer", "number", "boolean", "null"}
_FIXED = re.compile(r'["\d-]|(?:true|false|null)\Z')  # the beginning of a value as JSON, no object and no array
_ANY = "any"


def tool_line(tool: Tool) -> str:
    """Write a tool on one line, whatever its texts contain."""
    return f"- {tool.name}({tool.signature}): {one_line(tool.description)}"


def signature_of(parameters: Mapping[str, Any]) -> str:
    """Write the parameters of a call on one line."""
    return _escaped(", ".join(_members(parameters)))


def one_line(text: str) -> str:
    """Return a text on one line, without what ends a turn: a line more would look like another tool or turn."""
    return without_inst(_LINE_ENDS.sub(" ", text).strip())


def without_inst(text: str) -> str:
    """Return a text with `(INST)` and `(/INST)` for what are control tokens to some tokenizers."""
    return _INST_TEXT.sub(lambda found: f"({found[1]})", text)


def _escaped(text: str) -> str:
    """Return text of names and JSON without anything that ends a line or a turn, as JSON would escape it."""
    return without_inst(_CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


# ---- types ----------------------------------------------------------------------------------------------


def type_text(schema: Any) -> str:
    """Write which values a schema allows, as a type."""
    return " | ".join(_alternatives(schema))


def _alternatives(schema: Any) -> list[str]:
    """Return the parts of a schema's union, each once; one part for what is no union."""
    if not isinstance(schema, Mapping):
        return [_ANY if schema else "none"]
    if "enum" in schema or "const" in schema:
        return list(dict.fromkeys(map(_json, schema.get("enum", [schema.get("const")]))))
    factors = [_of_types(schema)] if "type" in schema else []
    for key in ("anyOf", "oneOf"):
        factors += [_union(schema[key])] if key in schema else []
    factors += [_alternatives(part) for part in schema.get("allOf", ())]
    factors = [factor for at, factor in enumerate(factors) if factor != [_ANY] and factor not in factors[:at]]
    if len(factors) > 1 and _is_said_by(factors[0], factors[1:]):
        del factors[0]
    if len(factors) == 1:
        return factors[0]
    if factors:
        return [" & ".join(_in_brackets(factor) for factor in factors)]
    return [_json({"not": schema["not"]}) if "not" in schema else _ANY]


def _is_said_by(types: list[str], others: list[list[str]]) -> bool:
    """Check that scalar types need no mention beside fixed values, as in `{type: string, oneOf: [{const: a}, ...]}`."""
    return set(types) <= _SCALARS and any(all(_FIXED.match(text) for text in texts) for texts in others)


def _union(parts: list[Any]) -> list[str]:
    return list(dict.fromkeys(text for part in parts for text in _alternatives(part)))


def _of_types(schema: Mapping[str, Any]) -> list[str]:
    kinds = schema["type"]
    return [_of_type(kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds)]


def _of_type(kind: str, schema: Mapping[str, Any]) -> str:
    if kind == "object":
        members = ", ".join(_members(schema))
        is_closed = not members and schema.get("additionalProperties", True) is False
        return "{" + members + "}" if members not in ("", "...: any") or is_closed else "object"
    if kind == "array":
        return _array(schema)
    form = schema.get("format")
    if kind == "string" and isinstance(form, str) and _FORMAT.fullmatch(form):
        return f"string({form})"
    return kind


def _array(schema: Mapping[str, Any]) -> str:
    items = schema.get("items", True)
    if "prefixItems" in schema:
        parts = [type_text(part) for part in schema["prefixItems"]]
        parts += [f"...: {type_text(items)}"] if isinstance(items, Mapping) else []
        return f"[{', '.join(parts)}]"
    if items is False:
        return "[]"
    inner = _alternatives(items)
    return "array" if inner == [_ANY] else f"{_in_brackets(inner)}[]"


def _in_brackets(alternatives: list[str]) -> str:
    """Write a union, or a type of several parts, so that what follows belongs to the whole."""
    text = " | ".join(alternatives)
    return f"({text})" if len(alternatives) > 1 or " & " in text else text


def _members(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parameters of a call, or the properties of an object inside one."""
    needed = schema.get("required", ())
    for name, item in schema.get("properties", {}).items():
        shown = name if _PLAIN_NAME.fullmatch(name) else _json(name)
        if isinstance(item, Mapping) and "default" in item:
            yield f"{shown}: {type_text(item)} = {_json(item['default'])}"
        else:
            yield f"{shown}: {type_text(item)}" if name in needed else f"{shown}?: {type_text(item)}"
    others = schema.get("additionalProperties", False)
    if others is not False:
        yield f"...: {type_text(others)}"
    for pattern, item in schema.get("patternProperties", {}).items():
        yield f"/{pattern}/: {type_text(item)}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
