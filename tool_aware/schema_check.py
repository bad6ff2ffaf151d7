"""Check that a tool can be called by its schema: values that JSON has, valid keywords, demands that a call can meet."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tool_aware.schema_merging import ONE_SCHEMA, SCHEMA_LISTS, SCHEMA_MAPS
from tool_aware.validator import pattern_problem, validator_of

MOST_LEVELS = 40

_QUOTE_IT = 'in YAML, put quotes around what is meant as text, as in "true" or "630"'
_MOST_VALUES = 200_000
_MEANT = {
    "str": "string", "text": "string", "int": "integer", "long": "integer", "float": "number", "double": "number",
    "bool": "boolean", "list": "array", "tuple": "array", "dict": "object", "map": "object", "none": "null",
}  # fmt: skip
_BOUNDS = (
    ("minimum", "maximum"),
    ("minLength", "maxLength"),
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
)


def not_json(value: object, place: str) -> Iterator[str]:
    """Yield what JSON cannot hold, which YAML can: names that are no text, dates, infinite numbers."""
    waiting: list[tuple[object, str, int]] = [(value, place, 0)]
    seen = 0
    while waiting:
        item, where, level = waiting.pop()
        seen += 1
        if level > 2 * MOST_LEVELS or seen > _MOST_VALUES:
            yield f"{place}: is nested too deeply, or too large"
            return
        if isinstance(item, Mapping):
            for key, below in item.items():
                if isinstance(key, str):
                    waiting.append((below, f"{where}.{key}" if key != "properties" else where, level + 1))
                else:
                    yield f"{where}: the name {key!r} is {in_words(key)}, not text; {_QUOTE_IT}"
        elif isinstance(item, list):
            waiting += [(below, f"{where}.{at}", level + 1) for at, below in enumerate(item)]
        elif isinstance(item, float) and not math.isfinite(item):
            yield f"{where}: {item} is not a number that JSON has"
        elif not isinstance(item, str | int | float | None):
            yield f"{where}: {item!s} is {in_words(item)}, which JSON does not have; {_QUOTE_IT}"
        if isinstance(item, str) and _has_lone_surrogate(item):
            yield f"{where}: holds half of a surrogate pair, which no file can hold"


def _has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def against_metaschema(plain: Mapping[str, Any], name: str) -> list[str]:
    """Return where a schema breaks the rules of draft 2020-12."""
    return list(_against_metaschema(json.dumps(plain), name))


@functools.lru_cache(maxsize=256)  # a millisecond each, of tools that a process meets in several configs and lists
def _against_metaschema(plain: str, name: str) -> tuple[str, ...]:
    from jsonschema import Draft202012Validator

    metaschema = Draft202012Validator(Draft202012Validator.META_SCHEMA)
    errors = sorted(metaschema.iter_errors(json.loads(plain)), key=lambda e: list(map(str, e.path)))
    found = []
    for error in errors[:5]:
        path = [str(part) for part in error.absolute_path]
        place = ".".join([name, *(part for part in path if part != "properties")])
        value = error.instance
        if path and path[-1] == "type":
            meant = _MEANT.get(str(value).lower())
            why = f"{value!r} is no type of JSON Schema" + (f"; did you mean {meant}?" if meant else "")
        else:
            why = error.message if len(error.message) < 200 else error.message[:200] + "..."
        found.append(f"{place}: is not a JSON Schema: {why}")
    return tuple(dict.fromkeys(found))


def contradictions(plain: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield what makes a valid schema one that no call, or not every call it describes, can fit."""
    yield from _of_the_call(plain, name)
    for schema, place in _inside(plain, name):
        yield from _of_one_schema(schema, place)


def _inside(schema: Any, place: str) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yield a schema and all that it contains, each with its place."""
    if not isinstance(schema, Mapping):
        return
    yield schema, place
    for key, value in schema.items():
        if key in SCHEMA_MAPS:
            for name, item in value.items():
                yield from _inside(item, f"{place}.{name}" if key == "properties" else f"{place}.{key}.{name}")
        elif key in SCHEMA_LISTS:
            for at, item in enumerate(value):
                yield from _inside(item, f"{place}.{key}.{at}")
        elif key in ONE_SCHEMA:
            yield from _inside(value, f"{place}.{key}")


def _of_the_call(plain: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yield what contradicts that a call has the declared parameters and no others, unless the schema says so."""
    if plain.get("additionalProperties", False) is not False or plain.get("patternProperties"):
        return
    declared = plain.get("properties", {})
    for parameter in plain.get("required", ()):
        if parameter not in declared:
            yield f"{name}.required: {parameter!r} is not among the properties {', '.join(declared) or '(none)'}"
    for key in ("anyOf", "oneOf", "allOf", "if", "then", "else", "dependentSchemas"):
        for part, _ in _inside({key: plain[key]} if key in plain else {}, name):
            for parameter in part.get("properties", {}) if part.keys() != {key} else ():
                if parameter not in declared:
                    yield f"{name}.{key}: {parameter!r} must also be listed in properties, where a prompt shows it"
                    return


def _of_one_schema(schema: Mapping[str, Any], place: str) -> Iterator[str]:
    for pattern in [schema["pattern"]] if "pattern" in schema else [*schema.get("patternProperties", ())]:
        problem = pattern_problem(pattern)
        if problem:
            yield f"{place}.pattern: {pattern!r} {problem}"
            return
    for low, high in _BOUNDS:
        if low in schema and high in schema and schema[low] > schema[high]:
            yield f"{place}: {low} {schema[low]} is more than {high} {schema[high]}"
    if schema.get("enum") == []:
        yield f"{place}.enum: is empty, so that no value fits"
        return
    for key in ("enum", "const", "default"):
        if key in schema:
            others = {name: value for name, value in schema.items() if name != key or key == "default"}
            yield from _unfit(schema[key] if key == "enum" else [schema[key]], others, f"{place}.{key}")


def _unfit(values: Sequence[Any], schema: Mapping[str, Any], place: str) -> Iterator[str]:
    validator = validator_of(dict(schema))
    for value in values:
        error = next(iter(validator.iter_errors(value)), None)
        if error:
            hint = f"; {_QUOTE_IT}" if isinstance(value, bool) and _takes_text(schema) else ""
            yield f"{place}: {json.dumps(value, ensure_ascii=False)}: {error.message}{hint}"[:400]


def _takes_text(schema: Mapping[str, Any]) -> bool:
    kinds = schema.get("type", [])
    return "string" in ([kinds] if isinstance(kinds, str) else kinds) or any(
        isinstance(value, str) for value in schema.get("enum", ())
    )


def in_words(value: object) -> str:
    """Return what kind of value something is, as JSON and YAML call it."""
    names = {bool: "true or false", dict: "a mapping", list: "a list", str: "text", type(None): "null"}
    return names.get(type(value)) or f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"
