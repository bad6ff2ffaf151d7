"""A tool's JSON Schema: what keeps it from being used, and one plain form of what can be.

Schemas come from config.yaml, OpenAPI, pydantic, BFCL and older drafts. `normalised_schema()` writes all of them in
the terms of draft 2020-12 without references, so that prompt, validator, grammars and scoring read the same one.
A schema that is already plain comes back equal, in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from tool_aware.schema_check import MOST_LEVELS, against_metaschema, contradictions, in_words, not_json
from tool_aware.schema_merging import ANNOTATIONS, ONE_SCHEMA, SCHEMA_LISTS, SCHEMA_MAPS, merged

MOST_PARTS = 5000  # parts of a schema after its references are written out; a prompt could not hold more
TIMES_WRITTEN = 2  # of a definition on one way down: itself, and once inside itself; below that only its type is kept
MOST_RECURSIVE_PARTS = 100  # of a schema that is written so; beyond, a definition is not written inside itself

_DROPPED = ("$defs", "definitions", "$schema", "$id", "$anchor", "$comment", "nullable")
_INSIDE = ""  # among the references followed so far: from here on it is about a part of the value
_KEYWORDS_OF_OBJECTS = ("properties",)
_KEYWORDS_OF_ARRAYS = ("items", "prefixItems")
_OF_PARTS = {"properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames",
             "items", "prefixItems", "additionalItems", "contains", "unevaluatedItems"}  # fmt: skip


class SchemaError(ValueError):
    """A schema that cannot be used; the text says where in it and why."""


class _TooLarge(SchemaError):
    """A schema of too many parts."""


def schema_problems(name: str, parameters: object) -> list[str]:
    """Return what keeps a tool's schema from being used, each with its place: `tool.parameter.keyword: why`."""
    found = list(not_json(parameters, name))
    if found:
        return found
    try:
        plain = normalised_schema(parameters, name)
        found = against_metaschema(plain, name)
        return found or list(contradictions(plain, name))
    except SchemaError as error:
        return [str(error)]


def normalised_schema(parameters: object, name: str = "parameters") -> dict[str, Any]:
    """Return a schema in plain draft 2020-12: an object, without references, with one spelling for the same thing.

    References inside the schema are written out; `allOf` is merged where that is the same; OpenAPI's `nullable`,
    draft 4's boolean bounds, lists of `items` and boolean `required` are translated; keywords whose value is null are
    absent. Nothing at all (null, {}) stands for a tool without parameters. Titles and descriptions stay, except the
    titles of written-out definitions, which are class names. A definition that contains itself, as a tree does, is
    written out `TIMES_WRITTEN` times, or once if that is much; what is deeper may be any value of its type.

    Raises SchemaError (a ValueError) for what cannot be written so: references elsewhere, to nothing, or to itself
    without a value between.
    """
    normaliser = _Normaliser(parameters, name, TIMES_WRITTEN)
    try:
        plain = normaliser.root()
    except _TooLarge:
        return _Normaliser(parameters, name, 1).root()
    is_much = normaliser.widened and normaliser.parts > MOST_RECURSIVE_PARTS
    return _Normaliser(parameters, name, 1).root() if is_much else plain


# ---- normalising ----------------------------------------------------------------------------------------


class _Normaliser:
    """Writes one schema anew; `place` is where in it, in words, and `behind` the references followed so far.

    `times_written` is how often a definition may stand on one way down; `parts` and `widened` count the schemas
    written, and those of them that only say the type of a definition.
    """

    def __init__(self, parameters: object, name: str, times_written: int) -> None:
        self._whole = parameters
        self._name = name
        self._times_written = times_written
        self.parts = 0
        self.widened = 0

    def root(self) -> dict[str, Any]:
        """Return the schema of the whole parameters object."""
        whole, name = self._whole, self._name
        if whole is None or whole == {}:
            return {"type": "object", "properties": {}}
        if not isinstance(whole, Mapping):
            raise SchemaError(f"{name}: parameters are {in_words(whole)}, not a JSON Schema of an object")
        plain = self._schema(whole, name, ("#",), is_demand=True)
        if not isinstance(plain, dict):
            raise SchemaError(f"{name}: parameters are {in_words(plain)}, not a JSON Schema of an object")
        kinds = plain.get("type", "object")
        kinds = kinds if isinstance(kinds, list) else [kinds]
        if "object" in kinds:
            return _with_union_listed({**({} if "type" in plain else {"type": "object"}), **plain} | {"type": "object"})
        raise SchemaError(
            f'{name}: is not a JSON Schema of an object: its type is {json.dumps(plain["type"])}, not "object"'
        )

    def _schema(self, schema: Any, place: str, behind: tuple[str, ...], *, is_demand: bool) -> Any:
        """Return a schema at any depth; `is_demand` is False where one says what must not be (`not`, `if`)."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise SchemaError(f"{place}: is {in_words(schema)}, not a schema; write {{}} for any value")
        self.parts += 1
        if self.parts > MOST_PARTS:
            raise _TooLarge(f"{self._name}: has more than {MOST_PARTS} parts with its references written out")
        if place.count(".") > MOST_LEVELS:
            raise SchemaError(f"{self._name}: is nested more than {MOST_LEVELS} levels deep")
        given = {key: value for key, value in schema.items() if _is_given(key, value, schema)}
        if "$ref" in given:
            return self._referred(given, place, behind, is_demand=is_demand)
        for key in ("$dynamicRef", "$recursiveRef"):
            if key in given:
                raise SchemaError(f"{place}: {key} cannot be used; write the schema out, or use $ref to #/$defs/...")
        given = _of_older_drafts(given)
        widened = self.widened
        plain = {
            key: self._keyword(key, value, place, behind, is_demand)
            for key, value in given.items()
            if key not in _DROPPED
        }
        if "oneOf" in plain and "anyOf" not in plain and self.widened > widened:  # wider ones may overlap
            plain = {"anyOf" if key == "oneOf" else key: value for key, value in plain.items()}
        plain = _with_booleans_resolved(plain, place)
        plain = _with_names_listed(self._with_choices_merged(plain))
        if given.get("nullable") is True:
            plain = _or_null(plain)
        return _with_type(plain) if is_demand else plain

    def _keyword(self, key: str, value: Any, place: str, behind: tuple[str, ...], is_demand: bool) -> Any:
        below = f"{place}.{key}"
        behind = (*behind, _INSIDE) if key in _OF_PARTS else behind
        if key in SCHEMA_MAPS:
            if not isinstance(value, Mapping):
                raise SchemaError(f"{below}: is {in_words(value)}, not a mapping of names to schemas")
            inside = place if key == "properties" else below
            return {
                name: self._schema(item, f"{inside}.{name}", behind, is_demand=is_demand)
                for name, item in value.items()
            }
        if key in SCHEMA_LISTS:
            if not isinstance(value, list) or not value:
                raise SchemaError(f"{below}: is {in_words(value)}, not a list of schemas")
            return [self._schema(item, f"{below}.{at}", behind, is_demand=is_demand) for at, item in enumerate(value)]
        if key in ONE_SCHEMA:
            return self._schema(value, below, behind, is_demand=is_demand and key not in ("not", "if", "then", "else"))
        return value

    def _referred(self, given: dict[str, Any], place: str, behind: tuple[str, ...], *, is_demand: bool) -> Any:
        """Return what `$ref` names, together with the keywords beside it."""
        reference = given["$ref"]
        target = self._target(reference, place)
        if isinstance(target, Mapping):
            target = {key: value for key, value in target.items() if key != "title"}
        if reference in behind:
            target = self._within_itself(reference, target, place, behind, is_demand)
        found = self._schema(target, place, (*behind, reference), is_demand=is_demand)
        beside = {key: value for key, value in given.items() if key != "$ref"}
        if not set(beside) - set(_DROPPED) - {"title"} and beside.get("nullable") is not True:
            return found
        beside.pop("title", None)
        if isinstance(found, bool):
            found = {} if found else {"not": {}}
        own = self._schema(
            {key: value for key, value in beside.items() if key != "nullable"}, place, behind, is_demand=False
        )
        together = merged(found, own)
        if together is None:
            together = {"allOf": [found, own]}
        if beside.get("nullable") is True:
            together = _or_null(together)
        return together

    def _within_itself(self, reference: str, target: Any, place: str, behind: tuple[str, ...], is_demand: bool) -> Any:
        """Return a definition that is met inside itself: whole, or its type alone where it stood often enough."""
        last = len(behind) - 1 - behind[::-1].index(reference)
        if _INSIDE not in behind[last:]:
            raise SchemaError(f"{place}: {reference} refers to itself; a schema without end cannot be shown or checked")
        if behind.count(reference) < self._times_written:
            return target
        if not is_demand:  # a wider schema there forbids more
            raise SchemaError(f"{place}: {reference} refers to itself inside `not` or `if`; write that part out")
        self.widened += 1
        plain = _with_type(dict(target)) if isinstance(target, Mapping) else {}
        return {key: plain[key] for key in ("type", "nullable") if "type" in plain and key in plain}

    def _target(self, reference: object, place: str) -> Any:
        if isinstance(reference, str) and isinstance(self._whole, Mapping) and self._whole.get("$id"):
            reference = reference.removeprefix(str(self._whole["$id"]).rstrip("#")) or "#"
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise SchemaError(
                f"{place}: $ref {reference!r} is not inside this schema; write it out, or put it in $defs"
            )
        node = self._whole
        for part in reference.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
                node = node[int(key)]
            else:
                raise SchemaError(f"{place}: $ref {reference!r} names nothing in this schema; its $defs are missing")
        return node

    def _with_choices_merged(self, plain: dict[str, Any]) -> dict[str, Any]:
        """Merge `allOf`, and an `anyOf` or `oneOf` of one, into the keywords beside them where that is the same."""
        for key in ("allOf", "anyOf", "oneOf"):
            if key not in plain or (key != "allOf" and len(plain[key]) > 1):
                continue
            together: dict[str, Any] | None = {k: v for k, v in plain.items() if k != key}
            for part in plain[key]:
                together = merged(together, {} if part is True else part) if together is not None else None
            if together is not None:
                plain = together
        return plain


def _is_given(key: str, value: object, schema: Mapping[Any, Any]) -> bool:
    """Check that a keyword says something: null does only as a default or constant that the type allows."""
    if value is not None:
        return True
    if key not in ("default", "const"):
        return False
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    is_untyped = kinds == [None]
    if key == "const":
        return (is_untyped and "enum" not in schema) or "null" in kinds
    takes_null = None in schema["enum"] if isinstance(schema.get("enum"), list) else True
    return schema.get("nullable") is True or ((is_untyped or "null" in kinds or (None in kinds)) and takes_null)


def _of_older_drafts(given: dict[str, Any]) -> dict[str, Any]:
    """Translate draft 3 to 7, and YAML's bare null among types, to draft 2020-12."""
    kinds = given.get("type")
    if isinstance(kinds, list):
        given = {**given, "type": ["null" if kind is None else kind for kind in kinds]}
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if isinstance(given.get(exclusive), bool):
            is_exclusive = given[exclusive]
            given = {key: value for key, value in given.items() if key != exclusive}
            if is_exclusive and bound in given:
                given = {exclusive if key == bound else key: value for key, value in given.items()}
    if isinstance(given.get("items"), list):
        rest = given.get("additionalItems")
        given = {"prefixItems" if key == "items" else key: v for key, v in given.items() if key != "additionalItems"}
        if rest is not None:
            given["items"] = rest
    if isinstance(given.get("required"), bool):  # draft 3: read by the object above
        given = {key: value for key, value in given.items() if key != "required"}
    properties = given.get("properties")
    if isinstance(properties, Mapping):
        needed = [
            name for name, item in properties.items() if isinstance(item, Mapping) and item.get("required") is True
        ]
        known = given.get("required", [])
        if needed and isinstance(known, list):
            given = {**given, "required": [*known, *(name for name in needed if name not in known)]}
    return given


def _with_booleans_resolved(plain: dict[str, Any], place: str) -> dict[str, Any]:
    """Write `true` as {} and leave out what `false` says can never be."""
    if "properties" in plain:
        never = [name for name, item in plain["properties"].items() if item is False]
        needed = plain.get("required", [])
        for name in never:
            if isinstance(needed, list) and name in needed:
                raise SchemaError(f"{place}.{name}: is required, and its schema (false) allows no value")
        plain["properties"] = {
            name: ({} if item is True else {"not": {}} if item is False else item)
            for name, item in plain["properties"].items()
            if item is not False or plain.get("additionalProperties", False) is not False
        }
    if plain.get("items") is True:
        del plain["items"]
    if "prefixItems" in plain:
        plain["prefixItems"] = [{} if item is True else item for item in plain["prefixItems"]]
    for key in ("anyOf", "oneOf"):
        if key in plain:
            kept = [{} if item is True else item for item in plain[key] if item is not False]
            if not kept:
                raise SchemaError(f"{place}.{key}: allows no value")
            if key == "anyOf":  # one union inside another is one union
                kept = [part for item in kept for part in (item["anyOf"] if item.keys() == {"anyOf"} else [item])]
            plain[key] = kept
    return plain


def _with_names_listed(plain: dict[str, Any]) -> dict[str, Any]:
    """Write an object of a few names, as pydantic does `dict[Literal["a", "b"], int]`, as one with these properties."""
    names = plain.get("propertyNames")
    if not isinstance(names, Mapping):
        return plain
    rest = {key: value for key, value in plain.items() if key != "propertyNames"}
    if names.get("type", "string") == "string" and not names.keys() - {"type"} - ANNOTATIONS:
        return rest
    few, item = names.get("enum", [names.get("const")]), plain.get("additionalProperties", {})
    is_listed = all(isinstance(name, str) for name in few) and item is not False
    if not is_listed or plain.keys() & {"properties", "patternProperties", "unevaluatedProperties"}:
        return plain
    item = {} if item is True else item
    return {**rest, "properties": dict.fromkeys(few, item), "additionalProperties": False}


def _with_union_listed(plain: dict[str, Any]) -> dict[str, Any]:
    """List the parameters of a union of whole calls among the properties too, where prompts and grammars find them."""
    if plain.keys() & {"additionalProperties", "patternProperties"}:
        return plain
    properties, required = dict(plain.get("properties", {})), list(plain.get("required", ()))
    for key in ("anyOf", "oneOf"):
        parts = [part for part in plain.get(key, ()) if isinstance(part, Mapping)]
        for name in dict.fromkeys(name for part in parts for name in part.get("properties", {})):
            kinds = [part["properties"][name] for part in parts if name in part.get("properties", {})]
            kinds = [kind for at, kind in enumerate(kinds) if kind not in kinds[:at]]
            properties.setdefault(name, kinds[0] if len(kinds) == 1 else {"anyOf": kinds})
            if name not in required and all(name in part.get("required", ()) for part in parts):
                required.append(name)
    listed = {**plain, **({"properties": properties} if properties else {})}
    return {**listed, "required": required} if required != plain.get("required", []) else listed


def _or_null(plain: dict[str, Any]) -> dict[str, Any]:
    """Return the schema that also takes null, OpenAPI 3.0's `nullable: true`."""
    kinds = plain.get("type")
    if "const" in plain:
        plain = {("enum" if key == "const" else key): [v] if key == "const" else v for key, v in plain.items()}
    if isinstance(plain.get("enum"), list) and None not in plain["enum"]:
        plain = {**plain, "enum": [*plain["enum"], None]}
    if isinstance(kinds, str) and kinds != "null":
        return {**plain, "type": [kinds, "null"]}
    if isinstance(kinds, list):
        return {**plain, "type": kinds if "null" in kinds else [*kinds, "null"]}
    for key in ("anyOf", "oneOf"):
        if key in plain and {"type": "null"} not in plain[key]:
            return {**plain, key: [*plain[key], {"type": "null"}]}
    if "allOf" in plain or "not" in plain:
        return {"anyOf": [plain, {"type": "null"}]}
    return plain


def _with_type(plain: dict[str, Any]) -> dict[str, Any]:
    """Add the type that `properties` or `items` imply, as people who leave it out mean it."""
    if "type" in plain or any(key in plain for key in ("enum", "const", "anyOf", "oneOf", "allOf", "not")):
        return plain
    if any(key in plain for key in _KEYWORDS_OF_OBJECTS):
        return {"type": "object", **plain}
    if any(key in plain for key in _KEYWORDS_OF_ARRAYS):
        return {"type": "array", **plain}
    return plain
