"""Reads tools of another project: OpenAI's, Mistral's, Anthropic's, Gemini's, Bedrock's, BFCL's, xLAM's, or as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator, SchemaError
from pydantic import ValidationError

from tool_aware.config.data_sections import ToolSection
from tool_aware.dataset.imports.foreign_types import json_schema
from tool_aware.dataset.imports.left_out import LeftOut, decoded, in_words, is_nothing, usable_name
from tool_aware.text_files import parse_json
from tool_aware.tools import TOOL_NAME, Tool, Toolbox
from tool_aware.validator import validator_of

MOST_TOOLS = 128  # of one request, as OpenAI has it; a prompt with more does not fit into model.max_seq_length
_SCHEMAS = ("parameters", "input_schema", "inputSchema", "parametersJsonSchema", "args")
_DECLARATIONS = ("functionDeclarations", "function_declarations")
_MAY_BE_SCHEMA = re.compile(
    r"(?!output|return|response)\w*(?:param|arg|schema|propert|input)(?!.*example)", re.IGNORECASE
)
_FUNCTION_TYPES = (None, "function", "custom", "dict", "object")


@dataclass(frozen=True)
class ForeignTools:
    """The tools of one item, and those of its names that had to be spelled in other letters: theirs -> ours."""

    toolbox: Toolbox
    renamed: Mapping[str, str]


def tools_of(value: Any, field: str = "tools") -> ForeignTools | None:
    """Return the tools of a field that holds a list of them, one, a mapping of names to them, or any as JSON.

    None for an empty field. Raises LeftOut for tools that cannot be taken over exactly.
    """
    if is_nothing(value):
        return None
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except (TypeError, RecursionError):
            raise LeftOut("tools that are not JSON", field, in_words(value)) from None
    return _tools(value, field)


@lru_cache(maxsize=4096)  # most data repeats its tools in every row; so their validators are built once
def _tools(text: str, field: str) -> ForeignTools:
    value = decoded(text)
    if isinstance(value, Mapping):
        value = value["tools"] if isinstance(value.get("tools"), list) else _listed(value, field)
    if not isinstance(value, list):
        raise LeftOut("tools that are not a list of objects", field, in_words(value))
    items = [part for at, item in enumerate(value) for part in _declared(decoded(item), f"{field}[{at}]")]
    if len(items) > MOST_TOOLS:
        raise LeftOut(f"more than {MOST_TOOLS} tools", field, f"{len(items)} tools")
    tools: dict[str, Tool] = {}
    renamed = {}
    for item, place in items:
        original, tool = _tool(json.dumps(item, ensure_ascii=False), place)
        if tools.setdefault(tool.name, tool) != tool:
            raise LeftOut("two tools of one name", place, original)
        if original != tool.name:
            renamed[original] = tool.name
    return ForeignTools(Toolbox(tools.values()), renamed)


def _listed(value: Mapping[str, Any], field: str) -> list[Any]:
    """Return the tools of an object: itself, if it is one, or its values, named by their keys."""
    if isinstance(value.get("name"), str) or {"function", "toolSpec", *_DECLARATIONS} & value.keys():
        return [value]
    if not all(isinstance(item, Mapping) for item in value.values()):
        raise LeftOut("tools that are not a list of objects", field, in_words(value))
    return [
        item if {"function", "name", "toolSpec"} & item.keys() else {"name": name, **item}
        for name, item in value.items()
    ]


def _declared(item: Any, place: str) -> list[tuple[Mapping[str, Any], str]]:
    """Return a tool with its place; several for Gemini's declarations."""
    if not isinstance(item, Mapping):
        raise LeftOut("a tool that is not an object", place, in_words(item))
    for key in _DECLARATIONS:
        if isinstance(item.get(key), list):
            return [part for at, each in enumerate(item[key]) for part in _declared(each, f"{place}.{key}[{at}]")]
    return [(item, place)]


@lru_cache(maxsize=16384)
def _tool(text: str, place: str) -> tuple[str, Tool]:
    """Return a tool's original name, and the tool in our form. Raises LeftOut."""
    item = parse_json(text)
    body = next((item[key] for key in ("function", "toolSpec") if isinstance(item.get(key), Mapping)), item)
    name = body.get("name")
    kind = item.get("type")
    if body is item and kind not in _FUNCTION_TYPES and not any(isinstance(item.get(key), Mapping) for key in _SCHEMAS):
        raise LeftOut("a tool that is no function", f"{place}.type", in_words(kind))
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(usable_name(name)):
        raise LeftOut("a tool without a usable name", f"{place}.name", in_words(name))
    description = body.get("description")
    if description is not None and not isinstance(description, str):
        raise LeftOut("a description that is not text", f"{place}.description", in_words(description))
    parameters = decoded(next((body[key] for key in _SCHEMAS if body.get(key) is not None), None))
    if parameters is None:
        _refuse_unread_schema(body, place)
    if isinstance(parameters, Mapping) and parameters.keys() == {"json"}:  # Bedrock
        parameters = decoded(parameters["json"])
    parameters = {} if is_nothing(parameters) else parameters
    schema = json_schema(parameters, f"{place}.parameters") or {"type": "object", "properties": {}}
    section = {"name": usable_name(name), "description": (description or "").strip() or name}
    return name, _checked({**section, "parameters": _with_fitting_defaults(schema)}, place)


def _refuse_unread_schema(body: Mapping[str, Any], place: str) -> None:
    """Raise LeftOut if a tool without parameters has them elsewhere, such as Cohere's `parameter_definitions`."""
    for key, value in body.items():
        if key not in _SCHEMAS and _MAY_BE_SCHEMA.match(str(key)) and not is_nothing(value):
            raise LeftOut("a tool with parameters in a field that is not read", f"{place}.{key}", in_words(value))


def _checked(section: Mapping[str, Any], place: str) -> Tool:
    """Return the tool that config.yaml would hold, so that the next stages take what this one writes."""
    try:
        json.dumps(section, allow_nan=False).encode("ascii")
        json.dumps(section, ensure_ascii=False).encode()
        return ToolSection.model_validate(section).as_tool()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([place, *map(str, first["loc"])])
        raise LeftOut("a tool that cannot be used", where, first["msg"].removeprefix("Value error, ")) from None
    except (ValueError, RecursionError, TypeError, AttributeError) as error:
        raise LeftOut("a tool that cannot be used", place, str(error)[:120]) from None


def _with_fitting_defaults(schema: Any) -> Any:
    """Return a schema without defaults that its own type refuses, such as null or "" for a number.

    Such a default says that the parameter may be left out, which `required` says already.
    """
    if isinstance(schema, list):
        return [_with_fitting_defaults(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {
        key: {name: _with_fitting_defaults(item) for name, item in value.items()}
        if key == "properties" and isinstance(value, Mapping)
        else _with_fitting_defaults(value)
        if key in ("items", "anyOf", "oneOf")
        else value
        for key, value in schema.items()
    }
    if "default" in kept and not _fits(kept["default"], kept):
        del kept["default"]
    return kept


def _fits(default: Any, schema: Mapping[str, Any]) -> bool:
    try:
        Draft202012Validator.check_schema(schema)
        return "$ref" in (text := json.dumps(schema)) or "$dynamicRef" in text or validator_of(schema).is_valid(default)
    except (SchemaError, ValueError, TypeError, RecursionError):
        return True  # the whole schema is checked later, and refused with its reason
