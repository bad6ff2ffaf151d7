"""BFCL's published rules for matching a call with its function document and the accepted answers.

The rules are those of the Berkeley Function-Calling Leaderboard's AST evaluation for Python
(https://gorilla.cs.berkeley.edu/blogs/8_berkeley_function_calling_leaderboard.html; `ast_checker.py` of
ShishirPatil/gorilla at a6da28e), written anew. Their odd corners are kept where they decide a verdict, because a figure
called `bfcl_strict` must mean what BFCL's means:

- types are strict (`True` is no integer, `5.0` is no integer); only an integer given for a float is converted,
  and only at the top level: inside a list `[5]` is not a list of floats
- a value whose type is not the schema's but that of the first accepted value stands for a variable and must be
  literally among the accepted values
- strings are compared without spaces and `, . / - _ * ^`, in lower case, with one kind of quote
- `""` among a parameter's accepted values means that it may be left out
- a list is compared in order and item by item, a dict key by key, one level deep; what is deeper has to be equal

BFCL's documents give each parameter one type. A schema that has several (`anyOf`, a list of types) is judged by the
type of the accepted value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

from tool_aware.rows import OPTIONAL, Row
from tool_aware.tools import Tool

_PYTHON_TYPES: Mapping[str, type] = {
    "string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
    "any": str,
    "number": float, "object": dict,  # JSON Schema's names for two of them
}  # fmt: skip
_MOST_CHOICES = 100  # combinations of a dict's accepted values that are compared one by one
_IGNORED_IN_STRINGS = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True)
class Verdict:
    """The verdict on a call; if it does not pass, `error_type` is the rule it broke, by BFCL's name."""

    valid: bool
    error_type: str | None = None


_PASS = Verdict(True)


def bfcl_verdict(call: Mapping[str, Any], expected: Mapping[str, Any], function: Mapping[str, Any]) -> Verdict:
    """Judge one call.

    `call` is `{"name", "arguments"}`, `expected` is `{name: {parameter: [accepted, ...]}}`, `function` a BFCL function
    document: `{"name", "parameters": {"properties": {parameter: {"type", ...}}, "required": [...]}}`.
    """
    arguments = call.get("arguments")
    if call.get("name") != function["name"]:
        return Verdict(False, "simple_function_checker:wrong_func_name")
    if not isinstance(arguments, Mapping):
        return Verdict(False, "simple_function_checker:wrong_arguments")
    accepted: Mapping[str, list[Any]] = next(iter(expected.values()))
    properties = function["parameters"].get("properties", {})
    if any(name not in arguments for name in function["parameters"].get("required", ())):
        return Verdict(False, "simple_function_checker:missing_required")
    for name, value in arguments.items():
        if name not in properties or name not in accepted:
            return Verdict(False, "simple_function_checker:unexpected_param")
        verdict = _value_verdict(value, accepted[name], properties[name])
        if not verdict.valid:
            return verdict
    if any(name not in arguments and OPTIONAL not in values for name, values in accepted.items()):
        return Verdict(False, "simple_function_checker:missing_optional")
    return _PASS


def _value_verdict(value: Any, accepted: list[Any], schema: Mapping[str, Any]) -> Verdict:
    """Judge one argument against its accepted values."""
    kind = schema["type"]
    wanted = _PYTHON_TYPES[kind]
    item_kind = schema.get("items", {}).get("type") if kind in ("array", "tuple") else None
    item_type = _PYTHON_TYPES[item_kind] if item_kind else None
    if kind == "tuple" and isinstance(value, tuple):
        value = list(value)
    if wanted is float and type(value) is int:
        value = float(value)

    given_type, accepted_type = type(value), _type_of_accepted(accepted)
    if given_type is wanted:
        if item_type and not any(_items_fit(value, item_type, answer) for answer in accepted):
            return Verdict(False, "type_error:nested")
        is_variable = accepted_type not in (None, wanted)
    elif given_type is accepted_type:
        is_variable = True
    else:
        return Verdict(False, "type_error:simple")

    if is_variable or wanted not in (str, list, dict):
        return _PASS if value in accepted else Verdict(False, "value_error:others")
    if wanted is dict:
        return _dict_verdict(value, accepted)
    if item_type is dict:
        return _list_of_dicts_verdict(value, accepted)
    if wanted is str:
        answers = [_plain(answer) for answer in accepted if type(answer) is str]
        return _PASS if _plain(value) in answers else Verdict(False, "value_error:string")
    # "" becomes [], so an optional list may also be given empty.
    answers = [[_plain(item) for item in answer] for answer in accepted if isinstance(answer, Collection)]
    return _PASS if [_plain(item) for item in value] in answers else Verdict(False, "value_error:list/tuple")


def _type_of_accepted(accepted: Sequence[Any]) -> type | None:
    """Return the type of the first accepted value that is not the mark of an optional parameter."""
    return next((type(answer) for answer in accepted if answer != OPTIONAL), None)


def _items_fit(value: list[Any], item_type: type, answer: Any) -> bool:
    """Check that each item has the schema's item type or that of the answer's own items, one level deep."""
    return not isinstance(answer, list) or all(type(item) in (item_type, _type_of_accepted(answer)) for item in value)


def _dict_verdict(value: Mapping[str, Any], accepted: Sequence[Any]) -> Verdict:
    """Judge a dict by the first accepted dict that it equals; a dict's own values are lists of accepted values."""
    verdict = Verdict(False, "dict_checker:unclear")
    for answer in accepted:
        if not isinstance(answer, Mapping) or not isinstance(value, Mapping):
            continue  # the mark of an optional parameter
        verdict = _one_dict_verdict(value, answer)
        if verdict.valid:
            break
    return verdict


def _one_dict_verdict(value: Mapping[str, Any], answer: Mapping[str, list[Any]]) -> Verdict:
    choices = {key: values if isinstance(values, list) else [values] for key, values in answer.items()}
    if any(key not in value and OPTIONAL not in values for key, values in choices.items()):
        return Verdict(False, "value_error:dict_key")
    for key, item in value.items():
        if key not in choices:
            return Verdict(False, "value_error:dict_key")
        if _plain(item) not in [_plain(choice) for choice in choices[key]]:
            return Verdict(False, "value_error:dict_value")
    return _PASS


def _list_of_dicts_verdict(value: list[Any], accepted: Sequence[Any]) -> Verdict:
    verdict = Verdict(False, "list_dict_checker:unclear")
    for answer in accepted:
        if not isinstance(answer, list | str):
            continue
        if len(value) != len(answer):
            verdict = Verdict(False, "value_error:list_dict_count")
            continue
        verdicts = [_dict_verdict(item, [choice]) for item, choice in zip(value, answer, strict=True)]
        verdict = next((item for item in verdicts if not item.valid), _PASS)
        if verdict.valid:
            break
    return verdict


def _plain(value: Any) -> Any:
    """Return a string without the differences that BFCL ignores; anything else as it is."""
    if not isinstance(value, str):
        return value
    return _IGNORED_IN_STRINGS.sub("", value).lower().replace("'", '"')


# ---- our tools and rows in BFCL's terms -------------------------------------------------------------------


@dataclass(frozen=True)
class Accepted:
    """The values that a parameter of a row's call may have, as JSON and as BFCL writes them; or it may be left out."""

    values: tuple[Any, ...]
    in_bfcl_form: tuple[Any, ...]
    may_be_absent: bool


def accepted_values(row: Row, tool: Tool) -> dict[str, Accepted]:
    """List what each parameter of the row's call may be; leaving out a parameter equals giving its default.

    `metadata.accepted_parameters` (`{parameter: [value, ...]}`) widens what the response alone says. In rows that were
    imported from BFCL, the values inside its dicts are lists of accepted values.
    """
    call = row.answer.call
    assert call is not None, "load_rows lets no row pass without a whole call"
    also_accepted = row.metadata.get("accepted_parameters") or {}
    accepted = {}
    for name in dict.fromkeys([*tool.properties, *call.parameters]):
        schema = tool.properties.get(name, {})
        own = [call.parameters[name]] if name in call.parameters else []
        more = [value for value in also_accepted.get(name, ()) if value != OPTIONAL]
        values = own + [
            choice for value in more for choice in (_choices(value) if "bfcl_id" in row.metadata else [value])
        ]
        forms = [_with_choices(value, schema) for value in values]
        forms += more if "bfcl_id" in row.metadata else []
        may_be_absent = name not in call.parameters and name not in tool.defaults
        may_be_absent |= OPTIONAL in also_accepted.get(name, ())
        if name in tool.defaults:
            default = tool.defaults[name]
            if name not in call.parameters or any(same_json(default, value) for value in values):
                may_be_absent = True
                values.append(default)
                forms.append(_with_choices(default, schema))
        accepted[name] = Accepted(_distinct(values), _distinct(forms), may_be_absent)
    return accepted


def call_verdict(parameters: Mapping[str, Any], accepted: Mapping[str, Accepted], tool: Tool) -> Verdict:
    """Judge the parameters of a call of `tool` by BFCL's rules, as far as those know its schema.

    A value that is an accepted one, its type included, is right under any schema. The rest is judged by BFCL. A value
    that is no string, where BFCL knows no type (unions, null, any), has to be an accepted one.
    """
    settled = {
        name
        for name, value in parameters.items()
        if name in accepted and any(_same_text(value, answer) for answer in accepted[name].values)
    }
    if len(settled) == len(parameters) and settled >= tool.required:  # as most do: BFCL's rules have no more to say
        left_out = (answers for name, answers in accepted.items() if name not in settled)
        if all(answers.may_be_absent or OPTIONAL in answers.in_bfcl_form for answers in left_out):
            return _PASS
    function, expected = bfcl_function(tool, accepted), bfcl_expected(tool, accepted)
    properties = function["parameters"]["properties"]
    rest = {name: value for name, value in parameters.items() if name not in settled}
    for name, value in rest.items():
        if name in properties and properties[name]["type"] == "any" and not isinstance(value, str):
            return Verdict(False, "value_error:others")
    required = [name for name in function["parameters"]["required"] if name not in settled]
    document = {"name": tool.name, "parameters": {"properties": properties, "required": required}}
    open_answers = {name: values for name, values in expected[tool.name].items() if name not in settled}
    return bfcl_verdict({"name": tool.name, "arguments": rest}, {tool.name: open_answers}, document)


def bfcl_function(tool: Tool, accepted: Mapping[str, Accepted] | None = None) -> dict[str, Any]:
    """Describe a tool as a BFCL function document; `accepted` decides which type of a union a parameter has."""
    properties = {}
    for name, schema in tool.properties.items():
        values = accepted[name].values if accepted and name in accepted else ()
        properties[name] = {**schema, **_bfcl_type(schema, *values[:1])}
    return {"name": tool.name, "parameters": {"properties": properties, "required": sorted(tool.required)}}


def _bfcl_type(schema: Any, *example: Any) -> dict[str, Any]:
    """Return `type` and `items` in BFCL's terms, which has no unions: of one, the type that an accepted value has.

    Without such a value it is the first that is not null; `any` where there are several schemas to choose from.
    """
    choices = list(_typed(schema))
    fitting = [part for part in choices if example and type(example[0]) in _types_of(part["type"])]
    if not fitting and len(choices) != 1 and not (isinstance(schema, Mapping) and "type" in schema):
        return {"type": "any", "items": {}}
    widest = [part for part in fitting if part["type"] == "number"]  # 2 and 2.0 are the same to a union with it
    chosen = [*widest, *fitting, *choices, {"type": "any"}][0]
    items = chosen.get("items")
    if chosen["type"] != "array" or not isinstance(items, Mapping):
        return {"type": chosen["type"], "items": {}}
    inside = example[0] if example and isinstance(example[0], list) else []
    kinds = {"any" if item is None else _bfcl_type(items, item)["type"] for item in inside}
    kinds = kinds or {_bfcl_type(items)["type"]}
    return {"type": "array", "items": {"type": kinds.pop()} if len(kinds) == 1 and kinds != {"any"} else {}}


def _typed(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the schemas of one type each that a union consists of, without null; none for what says no type."""
    if not isinstance(schema, Mapping):
        return
    if "type" in schema:
        kinds = schema["type"]
        known = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind in _PYTHON_TYPES]
        yield from ({**schema, "type": kind} for kind in known)
        return
    for key in ("anyOf", "oneOf"):
        for part in schema.get(key, ()):
            yield from _typed(part)


def _types_of(kind: str) -> tuple[type, ...]:
    return (int, float) if kind == "number" else (_PYTHON_TYPES[kind],)


def bfcl_expected(tool: Tool, accepted: Mapping[str, Accepted]) -> dict[str, dict[str, list[Any]]]:
    """Write accepted values as BFCL does, where the values inside an accepted dict are lists of accepted values."""
    return {
        tool.name: {
            name: [*answers.in_bfcl_form, *([OPTIONAL] if answers.may_be_absent else [])]
            for name, answers in accepted.items()
        }
    }


def _with_choices(value: Any, schema: Mapping[str, Any]) -> Any:
    """Write an accepted value as BFCL does: values inside a dict, or a list's dicts, are lists of accepted ones."""
    if not isinstance(value, Mapping | list):
        return value
    bfcl = _bfcl_type(schema, value)
    if bfcl["type"] == "object" and isinstance(value, Mapping):
        return {key: [item] for key, item in value.items()}
    if bfcl["type"] == "array" and bfcl["items"].get("type") == "object" and isinstance(value, list):
        return [_with_choices(item, {"type": "object"}) for item in value]
    return value


def _choices(value: Any) -> list[Any]:
    """Return the values that a BFCL answer stands for: a dict's values are lists of accepted ones."""
    if not isinstance(value, Mapping):
        return [value]
    options = [
        [(key, item) for item in (items if isinstance(items, list) else [items])] for key, items in value.items()
    ]
    every = islice(product(*options), _MOST_CHOICES)
    return [{key: item for key, item in chosen if item != OPTIONAL} for chosen in every]


def same_json(one: Any, other: Any) -> bool:
    """Check that two values are the same JSON: 1 and 1.0 are, true and 1 are not, at any depth."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


def _text(value: Any) -> str:
    """Return a value as text that differs where value or type does, 5 and 5.0 included."""
    return json.dumps(value, sort_keys=True)


def _same_text(one: Any, other: Any) -> bool:
    if type(one) is str and type(other) is str:
        return one == other
    return _text(one) == _text(other)


def _distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    if len(values) < 2:
        return tuple(values)
    return tuple({_text(value): value for value in values}.values())
