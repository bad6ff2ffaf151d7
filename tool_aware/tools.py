"""The tools that an agent can call, one call, and the rules it is checked by.

A tool is a name, a description and a JSON Schema for its parameters, the same three things that
OpenAI-style function calling uses. They come from `config.yaml: tools`; no name of a tool is written here.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tool_aware.text import shortlist
from tool_aware.tool_lines import signature_of
from tool_aware.tool_schema import normalised_schema
from tool_aware.validator import validator_of

TOOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")  # the names OpenAI, Mistral and vLLM all accept

PYTHON_MEDIA_TYPE = "text/x-python"  # JSON Schema's contentMediaType of a parameter that holds a program
_OF_NO_QUERY = {"format", "pattern", "enum", "const", "contentMediaType"}  # an address, a key, one of a few, a program


# Keywords of a schema that leave it to `properties` and `required` what fits, those that allow any text, and those
# that allow any whole number between two.
_OF_PLAIN_OBJECTS = {"type", "properties", "required", "additionalProperties", "title", "description"}
_OF_ANY_TEXT = {"type", "title", "description", "default", "examples", "contentMediaType"}
_OF_WHOLE_NUMBERS = {"type", "title", "description", "default", "examples", "minimum", "maximum"}


@dataclass(frozen=True)
class ToolCall:
    """One decision: the tool, what to send it, and why, in one line.

    Raises ValueError for a call that could not be written and read back unchanged.
    """

    tool: str
    parameters: Mapping[str, Any]
    reasoning: str

    def __post_init__(self) -> None:
        if not TOOL_NAME.fullmatch(self.tool):
            raise ValueError(f"tool name {self.tool!r} does not match {TOOL_NAME.pattern}")
        if not self.reasoning or self.reasoning != self.reasoning.strip() or "\n" in self.reasoning:
            raise ValueError("reasoning must be one non-empty line without surrounding whitespace")
        parameters = self.parameters
        if type(parameters) is dict and _are_ascii(self.reasoning, *parameters, *parameters.values()):
            return  # as most calls are: writing and encoding them takes several times as long
        try:
            rendered = json.dumps(parameters, allow_nan=False, ensure_ascii=False)
        except TypeError as error:
            raise ValueError(f"parameters are not JSON: {error}") from error
        (rendered + self.reasoning).encode()  # UnicodeEncodeError is a ValueError: lone surrogates cannot be trained on


def _are_ascii(*parts: object) -> bool:
    """Return whether all parts are texts in ASCII."""
    return all(type(part) is str and part.isascii() for part in parts)


@dataclass(frozen=True)
class Tool:
    """A tool's name, what it is for, and the JSON Schema (draft 2020-12) of its parameters object.

    `parameters` may be written in any way that `normalised_schema` reads; the tool holds its plain form. A tool
    without a description is described by its name. Raises ValueError for a schema that cannot be brought to that form.
    """

    name: str
    description: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "parameters", normalised_schema(self.parameters, self.name))
        if not (self.description or "").strip():
            object.__setattr__(self, "description", self.name)

    def shown_as(self, *, name: str | None = None, description: str | None = None) -> Tool:
        """Return the same tool under another name or description; its schema is not read again."""
        other = copy.copy(self)
        object.__setattr__(other, "name", name or self.name)
        object.__setattr__(other, "description", description or self.description)
        return other

    def with_defaults(self, defaults: Mapping[str, Any]) -> Tool:
        """Return the tool with other values for defaults that it has; its schema is not read again."""
        if not defaults:
            return self
        changed = {name: {**self.properties[name], "default": value} for name, value in defaults.items()}
        other = object.__new__(Tool)  # without what this one has cached
        parameters = {**self.parameters, "properties": {**self.properties, **changed}}
        for name, value in (("name", self.name), ("description", self.description), ("parameters", parameters)):
            object.__setattr__(other, name, value)
        return other

    @cached_property
    def signature(self) -> str:
        """Return the parameters as the prompt shows them."""
        return signature_of(self.parameters)

    @cached_property
    def properties(self) -> Mapping[str, Mapping[str, Any]]:
        """Return parameter name -> its schema, in the order of config.yaml."""
        return self.parameters.get("properties", {})

    @cached_property
    def required(self) -> frozenset[str]:
        """Return the names of the parameters that every call must have."""
        return frozenset(self.parameters.get("required", ()))

    @cached_property
    def text_parameter(self) -> str | None:
        """Return the one required parameter if it is a text in words, as a query is; None if a call needs more."""
        needed = [name for name in self.properties if name in self.required]
        schema = self.properties[needed[0]] if len(needed) == 1 else {}
        return needed[0] if schema.get("type") == "string" and not _OF_NO_QUERY & schema.keys() else None

    @cached_property
    def takes_program(self) -> bool:
        """Return whether a call needs a Python program."""
        return any(self.properties.get(name, {}).get("contentMediaType") == PYTHON_MEDIA_TYPE for name in self.required)

    @cached_property
    def defaults(self) -> Mapping[str, Any]:
        """Return parameter name -> the value used where a call leaves it out."""
        return {name: schema["default"] for name, schema in self.properties.items() if "default" in schema}

    def in_order(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return a call's parameters with all names in the schema's order, which is the grammars'; others follow."""
        ordered = _in_order(parameters, self.parameters)
        assert isinstance(ordered, dict)
        return ordered

    @cached_property
    def _validator(self) -> Any:
        # Function calling treats an undeclared parameter as an error, JSON Schema does not by default.
        return validator_of({"additionalProperties": False, **self.parameters})

    @cached_property
    def _plain(self) -> Mapping[str, Callable[[object], bool]]:
        """Return a check of each parameter of which the schema says only that it is a text, or a whole number between
        two; of none if the schema of the object says more.
        """
        is_plain = self.parameters.keys() <= _OF_PLAIN_OBJECTS and self.parameters.get("type") == "object"
        checks = {name: _plain_check(part) for name, part in self.properties.items()} if is_plain else {}
        return {name: check for name, check in checks.items() if check}

    def _are_plain(self, parameters: object) -> bool:
        """Return whether a call's parameters fit for sure, as most do: the validator takes fifty times as long."""
        return (
            isinstance(parameters, dict)
            and self.required <= parameters.keys() <= self._plain.keys()
            and all(self._plain[name](value) for name, value in parameters.items())
        )

    def parameter_problems(self, parameters: object) -> list[str]:
        """Return what is wrong with a call's parameters, in words; an empty list if they fit the schema."""
        if self._are_plain(parameters):
            return []
        errors = sorted(self._validator.iter_errors(parameters), key=lambda error: list(map(str, error.absolute_path)))
        return [
            f"parameter {'.'.join(map(str, error.absolute_path))}: {error.message}"
            if error.absolute_path
            else error.message
            for error in errors
        ]


def _plain_check(schema: Mapping[str, Any]) -> Callable[[object], bool] | None:
    """Return a check that only values pass which fit the schema for sure; None if the schema says too much for that."""
    if schema.get("type") == "string" and schema.keys() <= _OF_ANY_TEXT:
        return lambda value: type(value) is str
    least, most = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if schema.get("type") == "integer" and schema.keys() <= _OF_WHOLE_NUMBERS:
        return lambda value: type(value) is int and least <= value <= most
    return None


def _in_order(value: Any, schema: Any) -> Any:
    """Return a value with the names of its objects, at any depth, in the order of the schema that it fits."""
    if not isinstance(value, dict | list) or not isinstance(schema, Mapping):
        return value
    if "type" not in schema:
        choices = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        return _in_order(value, next((part for part in choices if validator_of(part).is_valid(value)), None))
    if isinstance(value, list):
        first, rest = schema.get("prefixItems", []), schema.get("items")
        return [_in_order(item, first[at] if at < len(first) else rest) for at, item in enumerate(value)]
    known, others = schema.get("properties", {}), schema.get("additionalProperties")
    names = [*(name for name in known if name in value), *(name for name in value if name not in known)]
    return {name: _in_order(value[name], known.get(name, others)) for name in names}


class Toolbox:
    """The tools on offer, in order. Iterates over `Tool`s; `in` and `[]` take names."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._by_name = {tool.name: tool for tool in tools}

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Tool:
        return self._by_name[name]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the tools' names in the order of config.yaml."""
        return tuple(self._by_name)

    def problems(self, call: ToolCall) -> list[str]:
        """Return why `call` cannot be executed, in words; an empty list if it can."""
        if call.tool not in self:
            return [f"unknown tool {call.tool!r}; the tools are {shortlist(self.names)}"]
        return self[call.tool].parameter_problems(call.parameters)
