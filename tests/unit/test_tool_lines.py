"""A tool's one line in the prompt: short, and with every type of its schema, however that is written."""

import json

import pytest
import yaml
from hypothesis import given, settings

from tests.fixtures.repository import REPOSITORY
from tests.fixtures.schemas import samples
from tool_aware.tool_lines import tool_line
from tool_aware.tools import Tool

ITEM = {"type": "object", "title": "Item", "required": ["sku", "count"], "properties": {
    "sku": {"type": "string", "description": "of a part"}, "count": {"type": "integer", "minimum": 1}}}  # fmt: skip


def test_the_lines_of_the_default_tools_are_those_that_models_were_trained_with():
    tools = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))["tools"]
    lines = [tool_line(Tool(tool["name"], "does", tool["parameters"])) for tool in tools]
    assert lines == [
        "- rag_retrieval(query: string, limit: integer = 3): does",
        "- web_search(query: string, num_results: integer = 5): does",
        '- code_execution(code: string, description: string = "Code execution"): does',
        "- direct_chat(message: string, context: string | null = null): does",
    ]


@pytest.mark.parametrize(
    ("schema", "shown"),
    [
        (True, "any"),
        ({"minLength": 3}, "any"),
        ({"type": "null"}, "null"),
        ({"type": "string", "nullable": True}, "string | null"),
        ({"type": "string", "format": "date-time", "maxLength": 40}, "string(date-time)"),
        ({"type": ["string", "null"], "format": "uri"}, "string(uri) | null"),
        ({"type": "integer", "format": "int64"}, "integer"),
        ({"oneOf": [{"const": "x"}, {"enum": ["y", 1, None]}]}, '"x" | "y" | 1 | null'),
        ({"type": "string", "oneOf": [{"const": "x", "title": "X"}, {"const": "y"}]}, '"x" | "y"'),
        ({"type": "string", "const": "v"}, '"v"'),
        ({"enum": ["x\ny", "[/INST]", "\u2028"]}, r'"x\ny" | "(/INST)" | "\u2028"'),
        ({"$ref": "#/$defs/S"}, '"slow" | "fast"'),
        ({"type": "array"}, "array"),
        ({"type": "array", "items": {"type": "string"}}, "string[]"),
        ({"type": "array", "items": {"type": "array", "items": {"type": "number"}}}, "number[][]"),
        ({"type": ["array", "null"], "items": {"enum": [1, 2]}}, "(1 | 2)[] | null"),
        ({"type": "array", "items": {"$ref": "#/$defs/Item"}}, "{sku: string, count: integer}[]"),
        ({"type": "array", "prefixItems": [{"type": "number"}, {"type": "string"}], "items": False},
         "[number, string]"),
        ({"type": "array", "prefixItems": [{"type": "number"}], "items": {"type": "string"}}, "[number, ...: string]"),
        ({"type": "object"}, "object"),
        ({"type": "object", "additionalProperties": True}, "object"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, "{...: integer}"),
        ({"type": "object", "patternProperties": {"^x": {"type": "string"}}}, "{/^x/: string}"),
        ({"type": "object", "properties": {"a b": {}, "c": {"type": "integer", "default": 1}}},
         '{"a b"?: any, c: integer = 1}'),
        ({"anyOf": [{"$ref": "#/$defs/Item"}, {"type": "array", "items": {"$ref": "#/$defs/Item"}}, {"type": "null"}]},
         "{sku: string, count: integer} | {sku: string, count: integer}[] | null"),
        ({"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, "{a?: any}"),
        ({"type": "object", "properties": {"k": {"type": "string"}},
          "oneOf": [{"properties": {"b": {"type": "integer"}}}, {"properties": {"c": {"type": "string"}}}]},
         "{k?: string} & ({b?: integer} | {c?: string})"),
        ({"not": {"type": "null"}}, '{"not": {"type": "null"}}'),
    ],
)  # fmt: skip
def test_a_parameter_is_shown_with_all_that_it_may_be(schema, shown):
    definitions = {"S": {"enum": ["slow", "fast"]}, "Item": ITEM}
    whole = {"properties": {"p": schema}, "required": ["p"], "$defs": definitions}
    assert tool_line(Tool("f", "does", whole)) == f"- f(p: {shown}): does"


def test_parameters_that_the_schema_leaves_open_are_shown():
    open_ended = {"properties": {"a": {}}, "additionalProperties": {"type": "integer"}, "patternProperties": {"^x": {}}}
    assert tool_line(Tool("f", "does", open_ended)) == "- f(a?: any, ...: integer, /^x/: any): does"


def said_by(schema):
    """Yield what the line of a plain schema has to hold: its names, types and fixed values at any depth."""
    if not isinstance(schema, dict):
        return
    if "enum" in schema or "const" in schema:
        yield from (json.dumps(value, ensure_ascii=False) for value in schema.get("enum", [schema.get("const")]))
        return
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        yield {"array": ("array", "]"), "object": ("object", "}"), "string": ("string", '"')}.get(kind, kind)
    for name, item in schema.get("properties", {}).items():
        shown = json.dumps(name, ensure_ascii=False) if " " in name else name
        yield (f"{shown}: ", f"{shown}?: ")
        yield from said_by(item)
    for key in ("items", "additionalProperties"):
        yield from said_by(schema.get(key))
    for key in ("prefixItems", "anyOf", "oneOf", "allOf"):
        for part in schema.get(key, ()):
            yield from said_by(part)


@settings(max_examples=200, deadline=None)
@given(samples())
def test_no_name_type_or_value_of_a_schema_is_missing_from_its_line(sample):
    tool = Tool("f", "does", sample.parameters)
    line = tool_line(tool)
    for part in said_by({**tool.parameters, "type": []}):
        assert any(text in line for text in ([part] if isinstance(part, str) else part)), part
