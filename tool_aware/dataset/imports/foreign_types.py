"""Translates other projects' type names to JSON Schema: Python's, Java's and JavaScript's, at every depth."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from tool_aware.dataset.imports.left_out import LeftOut, in_words

# Lower-cased. BFCL's table is GORILLA_TO_OPENAPI in bfcl_eval/constants/type_mappings.py; its `any` is a string there,
# while here a schema without a type says the same as `any`.
_JSON_TYPES = {
    **{name: name for name in ("object", "array", "string", "number", "integer", "boolean", "null")},
    **dict.fromkeys(("dict", "hashmap", "hashtable", "map", "mapping", "struct"), "object"),
    **dict.fromkeys(("float", "double", "decimal", "float32", "float64"), "number"),
    **dict.fromkeys(("int", "long", "short", "byte", "bigint", "int8", "int16", "int32", "int64"), "integer"),
    **dict.fromkeys(("list", "tuple", "set", "arraylist", "queue", "stack", "sequence", "iterable"), "array"),
    **dict.fromkeys(("str", "char", "character"), "string"),
    **dict.fromkeys(("bool",), "boolean"),
    **dict.fromkeys(("none", "nonetype"), "null"),
}
_ANY = ("any", "typing.any")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "additionalItems")
_OURS_NOT = ("optional",)  # BFCL's list of names that `required` lacks
_FLAT_KEYS = {
    "type",
    "description",
    "default",
    "required",
    "enum",
    "items",
    "properties",
    "optional",
    "format",
    "title",
}


def json_schema(parameters: Any, place: str) -> Any:
    """Return a tool's parameters as JSON Schema. Raises LeftOut for a type that has no counterpart.

    xLAM's form, `{parameter: {"type": "str, optional", "description", "default"}}`, becomes properties.
    """
    if not isinstance(parameters, Mapping):
        return parameters
    if _is_flat(parameters):
        return _of_flat(parameters, place)
    schema = _translated(parameters, place)
    return schema if schema.get("type") or not schema else {"type": "object", **schema}


def _is_flat(parameters: Mapping[str, Any]) -> bool:
    """Check for a mapping of parameter names to what they are, where JSON Schema would have `properties`."""
    return (
        bool(parameters)
        and not {"properties", "$ref", "anyOf", "oneOf", "allOf"} & parameters.keys()
        and all(
            isinstance(item, Mapping) and isinstance(item.get("type"), str) and item.keys() <= _FLAT_KEYS
            for item in parameters.values()
        )
    )


def _of_flat(parameters: Mapping[str, Any], place: str) -> dict[str, Any]:
    properties, required = {}, []
    for name, item in parameters.items():
        kind, _, mark = item["type"].rpartition(",") if "optional" in item["type"].lower() else (item["type"], "", "")
        is_marked = mark.strip().lower() == "optional"
        schema = {key: value for key, value in item.items() if key not in ("required", "optional")}
        schema["type"] = kind if is_marked else item["type"]
        properties[name] = _translated(schema, f"{place}.{name}")
        says = item.get("required")
        has_default = item.get("default") is not None
        if says is True or (
            says is not False and not is_marked and item.get("optional") is not True and not has_default
        ):
            required.append(name)
    return {"type": "object", "properties": properties, "required": required}


def _translated(schema: Any, place: str) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    translated: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _OURS_NOT or (value is None and key != "default"):  # Arrow writes other rows' keys as null
            continue
        if key == "type":
            translated |= _type(value, place)
        else:
            translated.setdefault(key, _keyword(key, value, place))
    return translated


def _keyword(key: str, value: Any, place: str) -> Any:
    """Return the value of a keyword with the schemas in it translated."""
    if key in _MAPS and isinstance(value, Mapping):
        inside = place if key == "properties" else f"{place}.{key}"
        return {name: _translated(item, f"{inside}.{name}") for name, item in value.items() if item is not None}
    if key in (*_LISTS, *_SCHEMAS) and isinstance(value, list):
        return [_translated(item, f"{place}.{key}.{at}") for at, item in enumerate(value)]
    return _translated(value, f"{place}.{key}") if key in _SCHEMAS else value


def _type(value: Any, place: str) -> dict[str, Any]:
    """Return the keywords that stand for a type's name, for example `{"type": "array", "items": {...}}`."""
    if isinstance(value, list):
        parts = [_type(item, place) for item in value if item is not None]
        return _either(parts, place)
    if not isinstance(value, str):
        raise LeftOut("a type that JSON Schema does not have", f"{place}.type", in_words(value))
    known = _JSON_TYPES.get(value.strip().lower())
    if known:
        return {"type": known}
    if value.strip().lower() in _ANY or not value.strip():
        return {}
    try:
        return _annotation(ast.parse(value.strip(), mode="eval").body, place)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise LeftOut("a type that JSON Schema does not have", f"{place}.type", in_words(value)) from None


def _annotation(node: ast.expr, place: str) -> dict[str, Any]:
    """Return the keywords for a Python annotation such as `Optional[List[int]]`."""
    if isinstance(node, ast.Constant) and node.value is None:
        return {"type": "null"}
    if isinstance(node, ast.Name | ast.Attribute):
        name = ast.unparse(node)
        if name.lower() in _ANY:
            return {}
        known = _JSON_TYPES.get(name.removeprefix("typing.").lower())
        if known:
            return {"type": known}
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _either([_annotation(node.left, place), _annotation(node.right, place)], place)
    if isinstance(node, ast.Subscript):
        name = ast.unparse(node.value).removeprefix("typing.").lower()
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name == "literal" and all(isinstance(item, ast.Constant) for item in inner):
            return {"enum": [item.value for item in inner if isinstance(item, ast.Constant)]}
        if name == "optional" and len(inner) == 1:
            return _either([_annotation(inner[0], place), {"type": "null"}], place)
        if name == "union":
            return _either([_annotation(item, place) for item in inner], place)
        kind = _JSON_TYPES.get(name)
        if kind == "array" and len(inner) == 1:
            return {"type": "array", "items": _annotation(inner[0], place)}
        if kind in ("array", "object"):  # tuples and maps: what they hold is not said
            return {"type": kind}
    raise ValueError(ast.unparse(node))


def _either(parts: list[dict[str, Any]], place: str) -> dict[str, Any]:
    if not parts:
        raise LeftOut("a type that JSON Schema does not have", f"{place}.type", "an empty list")
    if any(not part for part in parts):
        return {}
    unique = [part for at, part in enumerate(parts) if part not in parts[:at]]
    if len(unique) == 1:
        return unique[0]
    if all(part.keys() == {"type"} and isinstance(part["type"], str) for part in unique):
        return {"type": [part["type"] for part in unique]}
    return {"anyOf": unique}
