"""Verdicts under any valid schema: the reference's own call is right, one with another value is not."""

import json

import pytest
from hypothesis import given, settings

from tests.fixtures.schemas import samples
from tool_aware.evaluation.scoring.judgement import Prediction, judge
from tool_aware.prompt import render_response
from tool_aware.rows import Row
from tool_aware.tool_schema import schema_problems
from tool_aware.tools import Tool, Toolbox, ToolCall


def judged(parameters, reference, answer, **metadata):
    tools = Toolbox([Tool("f", "does", parameters), Tool("g", "other")])
    row = Row(
        "Do it.", render_response(ToolCall("f", reference, "It asks so.")), {"source": "t", "tool": "f", **metadata}
    )
    return judge(Prediction(0, render_response(ToolCall("f", answer, "It asks so."))), row, tools)


@settings(max_examples=200, deadline=None)
@given(samples())
def test_an_answer_is_right_if_it_equals_the_reference_and_wrong_if_a_value_differs(sample):
    assert schema_problems("f", sample.parameters) == []
    same = judged(sample.parameters, sample.call, sample.call)
    assert (same.is_call_correct, same.is_bfcl_valid, same.fits_schema, same.error) == (True, True, True, None)
    if sample.changed is not None:
        other = judged(sample.parameters, sample.call, sample.changed)
        assert other.fits_schema
        assert not other.is_call_correct
        assert judged(sample.parameters, sample.changed, sample.changed).is_call_correct


OBJECT = {"type": "object", "properties": {"a": {}}}
STRINGS = {"type": "array", "items": {"type": "string"}}


@pytest.mark.parametrize(
    ("schema", "reference", "answer", "is_correct", "is_bfcl_valid"),
    [
        ({"type": "string"}, "", "", True, True),  # an empty text is a value, not the mark of an optional parameter
        ({"type": "string"}, "...", "!!!", False, False),
        ({"type": "array"}, [True], [1], False, True),  # BFCL compares as Python does
        ({}, "text", ["text"], False, False),
        ({}, {"a": 1}, {"a": True}, False, False),
        ({}, {"a": 1}, {"a": [1]}, False, False),  # BFCL's own notation of choices is no answer
        ({}, [{"a": 1}], [{"a": [1]}], False, False),
        ({"type": "number"}, 2, 2.0, True, True),
        ({"type": "integer"}, 2, 2.0, True, False),  # BFCL: 2.0 is no integer
        ({"type": "array", "items": {"type": "number"}}, [2.5, 5], [2.5, 5], True, True),
        ({"type": "array", "items": {"type": "array", "items": OBJECT}}, [[{"a": 1}]], [[{"a": 1}]], True, True),
        ({"type": "object", "properties": {"b": OBJECT}}, {"b": {"a": 1}}, {"b": {"a": 2}}, False, False),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "New York", "new york.", True, True),
        ({"anyOf": [{"enum": ["a", "A"]}, {"type": "null"}]}, "a", "A", False, True),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, None, "None", False, False),
        ({"type": ["integer", "null"]}, None, 0, False, False),
        # BFCL has no unions: a parameter has the type of its accepted value
        ({"type": ["integer", "string"]}, "New York", "new york.", True, True),
        ({"type": ["integer", "string"]}, 5, "5", False, False),
        ({"anyOf": [{"type": "string"}, STRINGS]}, ["New York"], ["new-york"], False, True),
        ({"anyOf": [{"type": "string"}, STRINGS]}, ["New York"], "New York", False, False),
        ({"anyOf": [{"type": "integer"}, {"type": "number"}]}, 2, 2.0, True, True),
        ({"anyOf": [{"type": "string"}, OBJECT]}, {"a": "New York"}, {"a": "new york"}, False, True),
        ({"anyOf": [{"type": "string"}, OBJECT]}, {"a": [1, 2]}, {"a": 1}, False, False),
        ({"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, ["A b", None], ["ab", None],
         False, True),
        ({"type": "array", "items": {"oneOf": [OBJECT, {"type": "string"}]}}, [{"a": "x"}], [{"a": ["x"]}],
         False, False),
    ],
)  # fmt: skip
def test_values_are_compared_as_json(schema, reference, answer, is_correct, is_bfcl_valid):
    tool = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    result = judged(tool, {"a": reference}, {"a": answer})
    assert (result.is_call_correct, result.is_bfcl_valid) == (is_correct, is_bfcl_valid)


def test_parameters_that_the_schema_leaves_open_are_compared_too():
    tool = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}}
    assert judged(tool, {"a": "x", "b": 1}, {"b": 1, "a": "x"}).is_bfcl_valid
    assert judged(tool, {"a": "x", "b": 1}, {"b": 1, "a": "x"}).is_call_correct
    assert judged(tool, {"a": "x", "b": 1}, {"b": 2, "a": "x"}).error == "wrong-value parameter"
    assert judged(tool, {"a": "x", "b": 1}, {"a": "x"}).error == "missing parameter"
    assert judged(tool, {"a": "x"}, {"a": "x", "b": 2}).error == "extra parameter"


def test_choices_inside_the_dicts_of_imported_rows_are_all_accepted():
    tool = {"type": "object", "properties": {"a": {"type": "object"}}}
    accepted = {"accepted_parameters": {"a": [{"x": ["one", "two"], "y": [1, ""]}]}, "bfcl_id": "simple_1"}
    for answer in ({"x": "one", "y": 1}, {"x": "two", "y": 1}, {"x": "two"}):
        result = judged(tool, {"a": {"x": "one", "y": 1}}, {"a": answer}, **accepted)
        assert (result.is_call_correct, result.is_bfcl_valid) == (True, True), json.dumps(answer)
    assert not judged(tool, {"a": {"x": "one", "y": 1}}, {"a": {"x": "three"}}, **accepted).is_bfcl_valid
