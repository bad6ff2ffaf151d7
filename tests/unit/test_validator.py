"""Schemas that others wrote: nothing is fetched, no pattern hangs, no number ends the run."""

from __future__ import annotations

import socket
import time

import pytest

from tool_aware import validator
from tool_aware.tool_schema import schema_problems
from tool_aware.tools import Tool
from tool_aware.validator import pattern_problem, validator_of

SLOW = {
    "^(a|a)*$": "a" * 60 + "b",
    "^(a+)+$": "a" * 60 + "b",
    "^([a-zA-Z0-9_.]+)+@x$": "a" * 60,
    "^(([a-z])+.)+[A-Z]([a-z])+$": "a" * 300,
    r"(\d+,?)+;": "1" * 60,
    "^(.*?,){30}P": "1,2,3,4,5,6,7,8,9," * 5,
}


@pytest.mark.parametrize("pattern", SLOW)
@pytest.mark.parametrize("where", ["pattern", "patternProperties", "additionalProperties", "unevaluatedProperties"])
def test_a_pattern_that_hangs_costs_its_time_once(pattern, where, monkeypatch):
    monkeypatch.setattr(validator, "PATTERN_TIME_S", 0.1)
    text = SLOW[pattern]
    schema, value = {
        "pattern": ({"pattern": pattern}, text),
        "patternProperties": ({"patternProperties": {pattern: {}}}, {text: 1}),
        "additionalProperties": ({"patternProperties": {pattern: {}}, "additionalProperties": False}, {text: 1}),
        "unevaluatedProperties": ({"anyOf": [{"patternProperties": {pattern: {}}}], "unevaluatedProperties": False},
                                  {text: 1}),
    }[where]  # fmt: skip
    validator._spent_s.clear()
    begun_s = time.process_time()
    for _ in range(20):
        list(validator_of(schema).iter_errors(value))
    assert time.process_time() - begun_s < 2 * validator.PATTERN_TIME_S + 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}/x", "//127.0.0.1:{}/x", "file:///etc/passwd", "other.json"])
@pytest.mark.parametrize("key", ["$ref", "$dynamicRef", "$recursiveRef", "$schema", "$id"])
def test_no_reference_is_fetched(address, key):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        schema = {"type": "object", "properties": {"a": {key: address.format(listener.getsockname()[1])}}}
        schema_problems("tool", schema)
        try:
            list(validator_of(schema).iter_errors({"a": 1}))
        except Exception as error:
            assert "Unresolvable" in type(error).__name__ or "Referencing" in type(error).__name__  # noqa: PT017
        with pytest.raises(BlockingIOError):  # a connection would stand here as soon as it is made
            listener.accept()


@pytest.mark.parametrize(
    "pattern", ["(?:a{1000}){1000}", "((((a{50}){50}){50}){50}){50}", "a{99999999999}", "(", "[", "(?P<x", "\\", "*"]
)
def test_a_pattern_that_cannot_be_used_is_named(pattern):
    assert pattern_problem(pattern)
    found = schema_problems("tool", {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}})
    assert len(found) == 1
    assert "tool.a" in found[0]


@pytest.mark.parametrize("pattern", ["^[a-z]+$", r"^(\w+\s?){1,100}$", "a{1,1000}", "(?i)x", "x*?"])
def test_patterns_that_people_write_are_kept(pattern):
    assert pattern_problem(pattern) is None


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"multipleOf": 0.1}, 10**400),
        ({"multipleOf": 1e-300}, 1e300),
        ({"maximum": 1.5}, 10**400),
        ({"minimum": 1e308}, -(10**400)),
        ({"exclusiveMaximum": 0.5}, 10**4000),
        ({"uniqueItems": True}, [10**400, 1.0, True, "x", None, {}, []]),
        ({"enum": [1e308]}, 10**400),
    ],
)
def test_no_number_is_too_large_to_be_judged(schema, value):
    list(validator_of(schema).iter_errors(value))


def test_what_is_said_of_a_call_is_what_jsonschema_says():
    from jsonschema import Draft202012Validator

    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^x"}, "b": {"multipleOf": 3}},
        "patternProperties": {"^p_": {"type": "integer"}},
        "additionalProperties": False,
    }
    values = [
        {},
        {"a": "x", "p_1": 2},
        {"a": "y"},
        {"a": 1},
        {"b": 4},
        {"p_1": "x"},
        {"q": 1, "r": 2},
        {"a": "y", "q": 1},
    ]
    plain = {key: value for key, value in schema.items() if key != "patternProperties"}
    for one in (schema, plain):
        for value in values:
            ours = [error.message for error in validator_of(one).iter_errors(value)]
            assert ours == [error.message for error in Draft202012Validator(one).iter_errors(value)]


def test_a_tool_with_a_slow_pattern_refuses_the_call_and_says_why():
    tool = Tool("t", "d", {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a|a)*$"}}})
    assert "takes too long" in tool.parameter_problems({"a": "a" * 60 + "b"})[0]
    assert tool.parameter_problems({"a": 3})
