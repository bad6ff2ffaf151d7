"""Reads a tool call of another project as JSON: OpenAI's old and new form, Anthropic's, Mistral's, xLAM's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tool_aware.dataset.imports.left_out import Call, LeftOut, decoded, in_words, is_nothing, usable_name
from tool_aware.text_files import parse_unambiguous_json

_ARGUMENTS = ("arguments", "parameters", "args", "input")  # OpenAI and Mistral; Llama; Gemini; Anthropic
_NAMES = ("name", "tool_name", "toolName")
_ENCODED_AT_MOST = 3


def calls_of(value: Any, field: str) -> list[Call]:
    """Return the calls of a field that holds one, a list of them, or either as JSON; [] for an empty field.

    Raises LeftOut for what is not a call, or not a whole one.
    """
    if is_nothing(value):
        return []
    value = decoded(value)
    if isinstance(value, list):
        return [_call(item, f"{field}[{at}]") for at, item in enumerate(value)]
    return [_call(value, field)]


def _call(item: Any, field: str) -> Call:
    item = decoded(item)
    if isinstance(item, str):
        raise LeftOut("a tool call that is only a text", field, in_words(item))
    if not isinstance(item, Mapping):
        raise LeftOut("a tool call that is not an object", field, in_words(item))
    body = item.get("function", item)
    if isinstance(body, str) and not item.get("name"):  # {"function": "get_weather", "arguments": {...}}
        body = {**item, "name": body}
    if body is None:
        body = item
        if not item.get("name"):
            raise LeftOut("a tool call without a function", f"{field}.function", in_words(None))
    if not isinstance(body, Mapping):
        raise LeftOut("a tool call without a function", f"{field}.function", in_words(body))
    name = next((body[key] for key in _NAMES if body.get(key)), None)
    if not isinstance(name, str):
        raise LeftOut("a tool call without a name", field, in_words(name if name is not None else item))
    given = [(key, body[key]) for key in _ARGUMENTS if body.get(key) is not None]
    if len(given) > 1 and len({str(decoded(value)) for _, value in given}) > 1:
        raise LeftOut("arguments in two fields", field, " and ".join(key for key, _ in given))
    key, value = given[0] if given else (_ARGUMENTS[0], None)
    return Call(usable_name(name), arguments_of(value, f"{field}.{key}"))


def arguments_of(value: Any, field: str) -> dict[str, Any]:
    """Return a call's arguments: an object, or one as JSON, however often encoded. Nothing stands for no arguments."""
    for _ in range(_ENCODED_AT_MOST):
        if not isinstance(value, str):
            break
        if not value.strip():
            return {}
        try:
            value = parse_unambiguous_json(value)
        except ValueError as error:
            is_twice = str(error).endswith("twice")
            reason = "an argument that is given twice" if is_twice else "arguments are not JSON"
            raise LeftOut(reason, field, in_words(value)) from None
    if value is None or value == []:  # PHP writes an empty object as []
        return {}
    if not isinstance(value, dict):
        raise LeftOut("arguments are not an object", field, in_words(value))
    return value
