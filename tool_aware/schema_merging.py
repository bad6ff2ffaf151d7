"""Find the schemas inside a JSON schema, and write two that both hold as one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
)  # they allow and forbid nothing
# Keywords whose value is one schema, a list of schemas, or names with schemas.
ONE_SCHEMA = ("items", "contains", "not", "if", "then", "else", "propertyNames", "additionalProperties",
               "unevaluatedItems", "unevaluatedProperties", "contentSchema")  # fmt: skip
SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SCHEMA_MAPS = ("properties", "patternProperties", "dependentSchemas")
_LARGER_HOLDS = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_SMALLER_HOLDS = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
_CLOSED_BY = {"additionalProperties", "unevaluatedProperties"}
# Keywords whose meaning depends on a neighbour: they cannot be taken from two schemas and put into one.
_TOGETHER = (
    {"if", "then", "else"},
    {"contains", "minContains", "maxContains", "unevaluatedItems"},
    {"items", "prefixItems", "unevaluatedItems"},
)


def merged(one: Any, other: Any) -> dict[str, Any] | None:
    """Return one schema for values that fit both; None where two are needed to say it.

    Of annotations, those of `other` stay.
    """
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return None
    if _depend_on_each_other(one, other):
        return None
    together = dict(one)
    for key, value in other.items():
        if key not in together or key in ANNOTATIONS or _is_same(together[key], value):
            together[key] = value
            continue
        both = _both(key, together[key], value)
        if both is None:
            return None
        together[key] = both
    return together


def _depend_on_each_other(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    for first, second in ((one, other), (other, one)):
        is_closed = any(first.get(key, True) not in (True, {}) for key in _CLOSED_BY)
        names = {*second.get("properties", ()), *second.get("patternProperties", ())}
        if is_closed and names - set(first.get("properties", ())):
            return True
    return any(
        one.keys() & group and other.keys() & group and not all(_is_same(one.get(k), other.get(k)) for k in group)
        for group in _TOGETHER
    )


def _both(key: str, one: Any, other: Any) -> Any:
    """Return the value of a keyword that both schemas have; None if one value cannot say it."""
    if key == "properties":
        names = {name: merged(one[name], other[name]) for name in one.keys() & other.keys()}
        return None if None in names.values() else {**one, **other, **names}
    if key == "required" and isinstance(one, list) and isinstance(other, list):
        return [*one, *(name for name in other if name not in one)]
    if key == "enum" and isinstance(one, list) and isinstance(other, list):
        return [value for value in one if any(_is_same(value, item) for item in other)] or None
    if key == "type":
        return _type_of_both(one, other)
    if key == "allOf":
        return [*one, *other]
    if key in _LARGER_HOLDS and _are_numbers(one, other):
        return max(one, other)
    if key in _SMALLER_HOLDS and _are_numbers(one, other):
        return min(one, other)
    return None


def _type_of_both(one: Any, other: Any) -> Any:
    first, second = ([kinds] if isinstance(kinds, str) else list(kinds) for kinds in (one, other))
    kinds = [kind for kind in first if kind in second or (kind == "integer" and "number" in second)]
    kinds += [kind for kind in second if kind == "integer" and "number" in first and kind not in kinds]
    return None if not kinds else kinds[0] if len(kinds) == 1 else kinds


def _are_numbers(one: Any, other: Any) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in (one, other))


def _is_same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)
