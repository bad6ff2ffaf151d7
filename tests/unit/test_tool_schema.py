"""Schemas as people have them: one plain form, or what keeps them from being used, with the place."""

import datetime
import json

import pytest
import yaml

from tests.fixtures.repository import REPOSITORY
from tool_aware.tool_schema import SchemaError, normalised_schema, schema_problems
from tool_aware.tools import Tool


def of(schema, **others):
    """A tool's parameters with one parameter `a`."""
    return {"type": "object", "properties": {"a": schema}, **others}


def plain(schema, **others):
    """The plain form of the parameter `a`."""
    assert schema_problems("f", of(schema, **others)) == []
    return normalised_schema(of(schema, **others))["properties"]["a"]


def test_the_tools_of_config_yaml_are_plain_already():
    for tool in yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))["tools"]:
        assert json.dumps(normalised_schema(tool["parameters"])) == json.dumps(tool["parameters"])
        assert schema_problems(tool["name"], tool["parameters"]) == []


NOTHING = {"type": "object", "properties": {}}


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        (None, NOTHING),
        ({}, NOTHING),
        (NOTHING, NOTHING),
        ({"properties": {"a": {}}}, of({})),
        ({"type": ["object", "null"], "properties": {"a": {}}}, of({})),
        ({"$schema": "x", "$id": "y", **of({})}, of({})),
        ({"allOf": [of({}), {"required": ["a"]}]}, of({}, required=["a"])),
        ({"$ref": "#/$defs/A", "$defs": {"A": of({}, title="A")}}, of({})),
        (of({"type": "string", "required": True}), of({"type": "string"}, required=["a"])),
        (
            {"$id": "https://x/y", "$defs": {"S": {"type": "string"}}, **of({"$ref": "https://x/y#/$defs/S"})},
            of({"type": "string"}),
        ),
        (
            {"anyOf": [of({"const": 1}, required=["a"]), of({"const": 2}, required=["a"])]},
            {
                "type": "object",
                "properties": {"a": {"anyOf": [{"const": 1}, {"const": 2}]}},
                "required": ["a"],
                "anyOf": [of({"const": 1}, required=["a"]), of({"const": 2}, required=["a"])],
            },
        ),
    ],
)
def test_parameters_become_the_schema_of_an_object(parameters, wanted):
    assert schema_problems("f", parameters) == []
    assert normalised_schema(parameters) == wanted


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (True, {}),
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        ({"type": "string", "nullable": True, "enum": ["x"]}, {"type": ["string", "null"], "enum": ["x", None]}),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}], "nullable": True},
         {"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}),
        ({"type": ["string", None]}, {"type": ["string", "null"]}),
        ({"type": "string", "enum": None, "description": None, "items": None}, {"type": "string"}),
        ({"type": "string", "default": None}, {"type": "string"}),
        ({"type": ["string", "null"], "default": None}, {"type": ["string", "null"], "default": None}),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, {"type": "integer", "exclusiveMinimum": 0}),
        ({"type": "integer", "maximum": 9, "exclusiveMaximum": False}, {"type": "integer", "maximum": 9}),
        ({"items": {"type": "string"}}, {"type": "array", "items": {"type": "string"}}),
        ({"properties": {"b": {}}}, {"type": "object", "properties": {"b": {}}}),
        ({"type": "array", "items": [{"type": "string"}], "additionalItems": False},
         {"type": "array", "prefixItems": [{"type": "string"}], "items": False}),
        ({"allOf": [{"type": "string"}], "description": "d"}, {"type": "string", "description": "d"}),
        ({"allOf": [{"type": "number", "minimum": 1}, {"type": "integer", "minimum": 3}]},
         {"type": "integer", "minimum": 3}),
        ({"anyOf": [{"type": "string"}]}, {"type": "string"}),
        ({"anyOf": [{"type": "string"}, False]}, {"type": "string"}),
        ({"not": {"properties": {"b": {"const": 1}}}}, {"not": {"properties": {"b": {"const": 1}}}}),
        ({"const": None}, {"const": None}),
        ({"type": "object", "propertyNames": {"enum": ["b", "c"]}, "additionalProperties": {"type": "integer"}},
         {"type": "object", "properties": {"b": {"type": "integer"}, "c": {"type": "integer"}},
          "additionalProperties": False}),
        ({"type": "object", "propertyNames": {"type": "string"}}, {"type": "object"}),
        ({"type": "object", "propertyNames": {"minLength": 2}}, {"type": "object", "propertyNames": {"minLength": 2}}),
        ({"type": "string", "title": "A"}, {"type": "string", "title": "A"}),
    ],
)  # fmt: skip
def test_other_spellings_become_one(schema, wanted):
    assert plain(schema) == wanted
    assert plain(wanted) == wanted


def test_references_are_written_out_with_what_stands_beside_them():
    definitions = {"Item": {"type": "object", "title": "Item", "properties": {"b": {"$ref": "#/$defs/Kind"}}},
                   "Kind": {"enum": ["x", "y"], "title": "Kind"}, "a/b~c": {"type": "null"}}  # fmt: skip
    item = {"type": "object", "properties": {"b": {"enum": ["x", "y"]}}}
    for schema, wanted in (
        ({"$ref": "#/$defs/Item"}, item),
        ({"type": "array", "items": {"$ref": "#/$defs/Item"}}, {"type": "array", "items": item}),
        ({"$ref": "#/$defs/Kind", "default": "x"}, {"enum": ["x", "y"], "default": "x"}),
        ({"$ref": "#/$defs/Kind", "nullable": True}, {"enum": ["x", "y", None]}),
        ({"$ref": "#/$defs/a~1b~0c"}, {"type": "null"}),
    ):
        assert plain(schema, **{"$defs": definitions}) == wanted


def test_patterns_in_the_spelling_of_javascript_can_be_used():
    words = {"type": "string", "pattern": r"^\p{L}+(?<year>\d{4})$"}
    tool = Tool("f", "does", {"type": "object", "properties": {"a": words}})
    assert schema_problems("f", tool.parameters) == []
    assert tool.parameter_problems({"a": "März2026"}) == []
    assert tool.parameter_problems({"a": "März26"})


def test_two_schemas_that_cannot_be_one_stay_two():
    closed = {"type": "object", "properties": {"x": {}}, "additionalProperties": False}
    both = {"allOf": [closed, {"type": "object", "properties": {"y": {}}}]}
    assert plain(both) == both


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ([], "f: parameters are a list"),
        ("x", "f: parameters are text"),
        ({"type": "string"}, 'f: is not a JSON Schema of an object: its type is "string"'),
        (of(None), "f.a: is null, not a schema; write {}"),
        (of([1]), "f.a: is a list, not a schema"),
        ({"type": "object", "properties": [1]}, "f.properties: is a list, not a mapping"),
        (of({"type": "float"}), "f.a.type: is not a JSON Schema: 'float' is no type of JSON Schema; did you mean"),
        (of({"enum": "abc"}), "f.a.enum: is not a JSON Schema"),
        (of({"type": "array", "items": {"type": "string", "minLength": -1}}), "f.a.items.minLength"),
        (of({"enum": []}), "f.a.enum: is empty"),
        (of({"type": "integer", "enum": [1, "2"]}), 'f.a.enum: "2"'),
        (of({"type": "string", "enum": ["a", False]}), "put quotes around what is meant as text"),
        (of({"type": "integer", "default": "3"}), 'f.a.default: "3"'),
        (of({"enum": ["x", "y"], "default": "z"}), "is not one of ['x', 'y']"),
        (of({"type": "object", "properties": {"b": {"type": "string", "default": 1}}}), "f.a.b.default"),
        (of({}, required=["b"]), "f.required: 'b' is not among the properties a"),
        ({"type": "object", "properties": {True: {}}}, "the name True is true or false, not text"),
        ({"type": "object", "properties": {630: {}}}, "the name 630 is an int, not text"),
        (of({"enum": [datetime.date(2026, 1, 31)]}), "2026-01-31 is a date, which JSON does not have"),
        (of({"default": float("nan")}), "nan is not a number that JSON has"),
        (of({"description": "\ud800"}), "half of a surrogate pair"),
        (of({"$ref": "#/$defs/X"}), "names nothing in this schema"),
        (of({"$ref": "https://x/y.json"}), "is not inside this schema"),
        ({"$ref": "#"}, "f: # refers to itself"),
        (of({"$ref": "#/$defs/N"}, **{"$defs": {"N": {"anyOf": [{"$ref": "#/$defs/N"}, {}]}}}), "refers to itself"),
        (of({"not": {"$ref": "#/$defs/N"}}, **{"$defs": {"N": {"items": {"$ref": "#/$defs/N"}}}}), "inside `not`"),
        (of({"$dynamicRef": "#x"}), "$dynamicRef cannot be used"),
        (of({"pattern": "["}), "is not a regular expression"),
        (of({"minimum": 3, "maximum": 1}), "minimum 3 is more than maximum 1"),
        (of(False, required=["a"]), "f.a: is required, and its schema (false) allows no value"),
        ({"type": "object", "anyOf": [{"properties": {"b": {}}}, {"properties": {"c": {}}}],
          "additionalProperties": False}, "'b' must also be"),
    ],
)  # fmt: skip
def test_what_keeps_a_schema_from_being_used_is_said_with_its_place(parameters, words):
    assert words in "; ".join(schema_problems("f", parameters))


def test_a_definition_inside_itself_is_written_out_twice_and_below_only_its_type():
    tree = {"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}}}  # fmt: skip
    within = {"type": "array", "items": {"type": "object"}}
    written = {**tree, "properties": {"name": {"type": "string"}, "children": within}}
    outer = {**tree, "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": written}}}
    assert plain({"$ref": "#/$defs/Tree"}, **{"$defs": {"Tree": tree}}) == outer
    whole = normalised_schema({"type": "object", "properties": {"x": {"type": "string"}, "inner": {"$ref": "#"}}})
    assert whole["properties"]["inner"]["properties"]["inner"] == {"type": "object"}


def test_values_of_a_definition_inside_itself_fit_however_deep():
    group = {"properties": {"all": {"type": "array", "items": {"$ref": "#/$defs/Node"}}}, "required": ["all"]}
    leaf = {"type": "object", "properties": {"field": {"type": "string"}}, "required": ["field"]}
    node = {"oneOf": [{"type": "object", **group}, leaf]}
    tool = Tool("f", "does", of({"$ref": "#/$defs/Node"}, **{"$defs": {"Node": node}}))
    value = {"field": "x"}
    for _ in range(6):
        assert tool.parameter_problems({"a": value}) == []
        value = {"all": [value]}
    assert tool.parameter_problems({"a": {"all": [{"all": 1}]}})


def test_many_definitions_inside_one_another_are_written_out_once():
    names = [f"D{n}" for n in range(3)]
    around = {"type": "object", "properties": {name: {"$ref": f"#/$defs/{name}"} for name in names}}
    kept = plain({"$ref": "#/$defs/D0"}, **{"$defs": dict.fromkeys(names, around)})
    assert kept["properties"]["D0"] == {"type": "object"}
    assert kept["properties"]["D1"]["properties"]["D2"]["properties"]["D1"] == {"type": "object"}


def test_references_that_grow_without_bound_are_refused_at_once():
    doubling = {f"D{n}": {"properties": {k: {"$ref": f"#/$defs/D{n + 1}"} for k in "xy"}} for n in range(30)}
    bomb = of({"$ref": "#/$defs/D0"}, **{"$defs": {**doubling, "D30": {}}})
    assert "more than 5000 parts" in schema_problems("f", bomb)[0]
    deep: dict = {}
    for _ in range(5000):
        deep = {"items": deep}
    assert "too deeply" in schema_problems("f", of(deep))[0]
    with pytest.raises(SchemaError, match="levels deep"):
        normalised_schema(of(deep))
    circle: dict = {"type": "array"}
    circle["items"] = circle  # a YAML alias can do this
    assert "too deeply" in schema_problems("f", of(circle))[0]


@pytest.mark.parametrize("parameters", [{"q": "x"}, {"q": "x", "r": "y"}, {"r": "y"}, {"q": 1}, {"q": "x", "z": "y"}])
def test_calls_of_plain_texts_are_judged_as_the_validator_judges_them(parameters):
    text = {"type": "string", "description": "any"}
    schema = {"type": "object", "properties": {"q": text, "r": text}, "required": ["q"]}
    plain, asks_the_validator = Tool("f", "f", schema), Tool("f", "f", {**schema, "minProperties": 0})
    assert plain._plain
    assert not asks_the_validator._plain
    assert plain.parameter_problems(parameters) == asks_the_validator.parameter_problems(parameters)


@pytest.mark.parametrize("bounds", [{}, {"minimum": 1}, {"minimum": 1, "maximum": 5.5}, {"multipleOf": 2}])
@pytest.mark.parametrize("value", [0, 1, 5, 6, 2.0, 2.5, True, "2", None, 10**30])
def test_whole_numbers_are_judged_as_the_validator_judges_them(bounds, value):
    schema = {"type": "object", "properties": {"n": {"type": "integer", "default": 2, **bounds}}}
    plain, asks_the_validator = Tool("f", "f", schema), Tool("f", "f", {**schema, "minProperties": 0})
    assert bool(plain._plain) == ("multipleOf" not in bounds)
    assert plain.parameter_problems({"n": value}) == asks_the_validator.parameter_problems({"n": value})


def test_a_text_that_must_fit_a_pattern_is_no_plain_text():
    tool = Tool("f", "f", {"type": "object", "properties": {"q": {"type": "string", "pattern": "^a"}}})
    assert tool.parameter_problems({"q": "b"})
