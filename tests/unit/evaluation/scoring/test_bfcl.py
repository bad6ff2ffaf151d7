import json

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.evaluation.scoring.bfcl import accepted_values, bfcl_expected, bfcl_function, bfcl_verdict
from tool_aware.prompt import render_response
from tool_aware.rows import Row
from tool_aware.tools import Tool, ToolCall

PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "ratio": {"type": "float"},
    "brief": {"type": "boolean"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "weights": {"type": "array", "items": {"type": "float"}},
    "point": {"type": "tuple", "items": {"type": "integer"}},
    "filter": {"type": "dict"},
    "filters": {"type": "array", "items": {"type": "dict"}},
    "free": {"type": "any"},
}


def verdict(arguments, accepted, *, required=(), name="f"):
    function = {"name": "f", "parameters": {"type": "dict", "properties": PROPERTIES, "required": list(required)}}
    return bfcl_verdict({"name": name, "arguments": arguments}, {"f": accepted}, function)


@pytest.mark.parametrize(
    ("value", "parameter", "accepted", "error"),
    [
        # strings forgive case, spaces, one kind of quotes and , . / - _ * ^ but nothing else
        ("new york, ny.", "city", ["New York NY"], None),
        ("it's", "city", ['it"s'], None),
        ("New-York", "city", ["new_york"], None),
        ("New York!", "city", ["New York"], "value_error:string"),
        ("...", "city", ["", "Rome"], None),  # what is left of it equals the mark of an optional parameter
        # types are strict
        (5, "days", [5], None),
        (5.0, "days", [5], "type_error:simple"),
        ("5", "days", [5], "type_error:simple"),
        (True, "days", [1], "type_error:simple"),
        (1, "brief", [True], "type_error:simple"),
        (5, "ratio", [5.0], None),  # an integer may stand for a float
        (5, "ratio", [5], None),
        ("0.5", "ratio", [0.5], "type_error:simple"),
        (6, "days", [5], "value_error:others"),
        # a value of the accepted value's type stands for a variable and is compared literally
        ("days_ahead", "days", ["days_ahead"], None),
        ("Days_Ahead", "days", ["days_ahead"], "value_error:others"),
        (7, "free", [7], None),
        ("7", "free", [7], "value_error:others"),
        # lists: same order and length, items of the schema's type, string items forgiving
        (["A b", "c"], "tags", [["ab", "C"]], None),
        (["c", "ab"], "tags", [["ab", "c"]], "value_error:list/tuple"),
        (["ab"], "tags", [["ab", "c"]], "value_error:list/tuple"),
        ([1], "tags", [["a"]], "type_error:nested"),
        ([5], "weights", [[5.0]], "type_error:nested"),  # no int-to-float inside a list
        ([5], "weights", [[5]], None),  # unless the accepted list holds integers itself
        ([], "tags", ["", ["a"]], None),
        ((1, 2), "point", [[1, 2]], None),
        ((1, 2), "tags", [["1", "2"]], "type_error:simple"),
        # dicts: keys and values, one level deep
        ({"a": "X y"}, "filter", [{"a": ["xy"]}], None),
        ({"a": "x", "b": 1}, "filter", [{"a": ["x"]}], "value_error:dict_key"),
        ({}, "filter", [{"a": ["x"]}], "value_error:dict_key"),
        ({}, "filter", [{"a": ["x", ""]}], None),
        ({"a": "z"}, "filter", [{"a": ["x"]}], "value_error:dict_value"),
        ({"a": "z"}, "filter", [{"a": ["x"]}, {"a": ["z"]}], None),
        ({"a": "z"}, "filter", [""], "dict_checker:unclear"),
        ([{"a": 1}, {"a": 2}], "filters", [[{"a": [1]}, {"a": [2]}]], None),
        ([{"a": 2}, {"a": 1}], "filters", [[{"a": [1]}, {"a": [2]}]], "value_error:dict_value"),
        ([{"a": 1}], "filters", [[{"a": [1]}, {"a": [2]}]], "value_error:list_dict_count"),
    ],
)
def test_a_value_is_matched_as_bfcl_matches_it(value, parameter, accepted, error):
    result = verdict({parameter: value}, {parameter: accepted})
    assert (result.valid, result.error_type) == (error is None, error)


def test_verdicts_on_random_calls_are_those_of_bfcls_own_checker():
    # random calls, half of them valid; judged by a line-by-line transcription of ast_checker.py at a6da28e, Python
    lines = (REPOSITORY / "tests/fixtures/bfcl_verdicts.jsonl").read_text().splitlines()
    for case in map(json.loads, lines):
        document = {"name": "f", "parameters": {"properties": case["properties"], "required": case["required"]}}
        found = bfcl_verdict({"name": "f", "arguments": case["arguments"]}, {"f": case["accepted"]}, document)
        assert found.valid == case["valid"], case


def test_names_and_presence_are_checked_in_bfcls_order():
    accepted = {"city": ["Rome"], "days": [3, ""]}
    assert verdict({"city": "Rome"}, accepted).valid
    assert verdict({"city": "Rome"}, accepted, name="g").error_type == "simple_function_checker:wrong_func_name"
    missing = verdict({"days": "many"}, accepted, required=["city"])
    assert missing.error_type == "simple_function_checker:missing_required"
    assert verdict({"days": 3}, accepted).error_type == "simple_function_checker:missing_optional"
    assert verdict({"city": "Rome", "x": 1}, accepted).error_type == "simple_function_checker:unexpected_param"
    unlisted = verdict({"city": "Rome", "brief": True}, accepted)  # in the schema, but not in the answer
    assert unlisted.error_type == "simple_function_checker:unexpected_param"
    assert not verdict(["Rome"], accepted).valid


SEARCH = Tool(
    "search", "finds",
    {"type": "object", "required": ["query"], "properties": {
        "query": {"type": "string"}, "limit": {"type": "integer", "default": 3},
        "context": {"type": ["string", "null"], "default": None}, "where": {"type": "object"},
    }},
)  # fmt: skip


def row(parameters, **metadata):
    call = ToolCall("search", parameters, "It asks so.")
    return Row("find it", render_response(call), {"source": "test", "tool": "search", **metadata})


@pytest.mark.parametrize(
    ("parameters", "is_valid"),
    [
        ({"query": "cats"}, True),
        ({"query": "cats", "limit": 3, "context": None}, True),
        ({"query": "cats", "limit": 4}, False),
        ({"query": "cats", "context": ""}, True),  # BFCL cannot tell "" from leaving it out
        ({"query": "felines"}, True),
        ({"query": "dogs"}, False),
        ({"query": "cats", "where": {"a": 1}}, False),
    ],
)
def test_our_rows_can_be_judged_by_bfcl_with_defaults_equal_to_omission(parameters, is_valid):
    accepted = accepted_values(row({"query": "cats"}, accepted_parameters={"query": ["Felines"]}), SEARCH)
    call = {"name": "search", "arguments": parameters}
    assert bfcl_verdict(call, bfcl_expected(SEARCH, accepted), bfcl_function(SEARCH)).valid == is_valid


def test_objects_in_our_rows_become_bfcls_lists_of_choices():
    accepted = accepted_values(row({"query": "cats", "where": {"age": [1, 2]}, "limit": 5}), SEARCH)
    expected, function = bfcl_expected(SEARCH, accepted), bfcl_function(SEARCH)
    same = {"query": "cats", "where": {"age": [1, 2]}, "limit": 5}
    assert bfcl_verdict({"name": "search", "arguments": same}, expected, function).valid
    other = {**same, "where": {"age": [1, 3]}}
    assert not bfcl_verdict({"name": "search", "arguments": other}, expected, function).valid
    assert not bfcl_verdict({"name": "search", "arguments": {**same, "limit": 3}}, expected, function).valid
