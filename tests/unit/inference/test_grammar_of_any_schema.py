"""The three grammars of any valid schema: a call that fits the schema is accepted, as it is rendered."""

import json
import re

import pytest
from hypothesis import given, settings
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from tests.fixtures.schemas import samples
from tool_aware.console import UserError
from tool_aware.inference.constrained import readable_schemas
from tool_aware.inference.grammar import FREE_DEPTH, gbnf, lark, regex
from tool_aware.prompt import render_response
from tool_aware.tools import Tool, Toolbox, ToolCall


@pytest.fixture(scope="module")
def bytes_of_text():
    """A tokenizer of llguidance whose tokens are bytes."""
    import llguidance

    return llguidance.LLTokenizer("byte")


def accepts(grammar, tokenizer, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = tokenizer.tokenize_str(text)
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def tools_of(parameters):
    return Toolbox([Tool("f", "does", parameters), Tool("g", "other")])


def answer(call):
    return render_response(ToolCall("f", call, "It asks so."))


def dialects(tools):
    found = readable_schemas(tools)
    return {"lark": lark(tools, schemas=found.schemas), "gbnf": gbnf_to_lark(gbnf(tools)), "regex": regex(tools)}


def accepted_by(tools, call, tokenizer):
    text, written = answer(call), dialects(tools)
    verdicts = {name: bool(accepts(written[name], tokenizer, text)) for name in ("lark", "gbnf")}
    return {**verdicts, "regex": bool(re.fullmatch(written["regex"], text))}


def nesting(value):
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(nesting, value.values() if isinstance(value, dict) else value), default=0)


@settings(max_examples=60, deadline=None)
@given(samples())
def test_every_grammar_accepts_a_call_that_fits(bytes_of_text, sample):
    tools = tools_of(sample.parameters)
    for call in filter(None, (sample.call, sample.changed)):
        verdicts = accepted_by(tools, call, bytes_of_text)
        if nesting(call) > 1 + FREE_DEPTH:  # a regular expression ends there where the schema leaves a value open
            del verdicts["regex"]
        assert all(verdicts.values()), (verdicts, answer(call))


def test_a_call_of_either_kind_is_accepted_where_a_tool_has_two(bytes_of_text):
    by_name = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    by_id = {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "deep": {"type": "boolean"}},
        "required": ["id"],
    }
    for key in ("anyOf", "oneOf"):
        tools = tools_of({"properties": {"verbose": {"type": "boolean"}}, key: [by_name, by_id]})
        for call in ({"name": "x"}, {"verbose": True, "id": 1, "deep": False}, {"verbose": True, "name": "y"}):
            assert tools["f"].parameter_problems(call) == []
            assert all(accepted_by(tools, call, bytes_of_text).values()), (key, call)
        assert tools["f"].parameter_problems({"verbose": True})


def of(schema, **others):
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], **others}


@pytest.mark.parametrize(
    ("parameters", "wrong"),
    [
        (of({"type": "null"}), {"a": 0}),
        (of({"oneOf": [{"const": "a"}, {"const": "b"}]}), {"a": "c"}),
        (of({"enum": ["a", 1, None]}), {"a": "1"}),
        (of({"type": "array", "prefixItems": [{"type": "number"}], "items": False}), {"a": [1, "b"]}),
        (of({"type": "array", "items": {"type": ["string", "null"]}}), {"a": [1]}),
        (of({"type": "object", "additionalProperties": {"type": "string"}}), {"a": {"k": 1}}),
        (of({"$ref": "#/$defs/D"}, **{"$defs": {"D": {"type": "boolean"}}}), {"a": 1}),
        (of({}, additionalProperties={"type": "integer"}), {"a": 1, "b": "x"}),
        (of({}), {"a": 1, "b": "x"}),
        (of({"anyOf": [{"type": "integer"}, {"type": "null"}]}), {"a": "x"}),
    ],
)  # fmt: skip
def test_no_grammar_accepts_what_the_schema_refuses(bytes_of_text, parameters, wrong):
    tools = tools_of(parameters)
    assert tools["f"].parameter_problems(wrong)
    assert not any(accepted_by(tools, wrong, bytes_of_text).values())


@pytest.mark.parametrize(
    ("schema", "value", "lost"),
    [
        ({"type": "string", "pattern": "^(?=r)"}, "red", "look-around"),
        ({"type": "string", "pattern": r"\bred"}, "red", "lookarounds"),
        ({"not": {"type": "string"}}, 1, "not"),
        ({"type": "array", "uniqueItems": True}, [1, 2], "uniqueItems"),
        ({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 0.5}]}, -3, "oneOf"),
        ({"type": "object", "propertyNames": {"pattern": "^x"}}, {"x": 1}, "propertyNames"),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, "ab", "if"),
    ],
)
def test_what_llguidance_cannot_hold_an_answer_to_is_said_and_left_out(bytes_of_text, schema, value, lost):
    tools = tools_of(of(schema))
    found = readable_schemas(tools)
    assert len(found.notes) == 1
    assert "does not hold f to all of its schema" in found.notes[0]
    assert lost in found.notes[0]
    assert all(accepted_by(tools, {"a": value}, bytes_of_text).values())


def test_a_format_is_shown_and_not_forced(bytes_of_text):
    when = {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "array", "items": {"format": "color"}}]}
    tools = tools_of(of(when, properties={"a": when, "format": {"type": "string", "format": "email"}}))
    assert readable_schemas(tools).notes == []
    for call in ({"a": "2026-05-01T09:00:00", "format": "<EMAIL_1>"}, {"a": ["red"]}):
        assert tools["f"].parameter_problems(call) == []
        assert all(accepted_by(tools, call, bytes_of_text).values())


def test_a_tool_that_no_call_can_fit_is_refused_by_name():
    tools = tools_of(of({"type": "integer", "enum": ["x"]}))
    with pytest.raises(UserError, match="constrained decoding cannot use its schema") as caught:
        readable_schemas(tools)
    assert caught.value.where == "tools: f"


def test_objects_of_many_optional_properties_make_no_endless_grammar(bytes_of_text):
    tools = tools_of({"type": "object", "properties": {"a": {"type": "object", "properties": {
        f"p{n}": {"type": "string"} for n in range(60)}}}})  # fmt: skip
    call = {"a": {"p7": "x", "p59": "y"}}
    assert len(regex(tools)) < 200_000
    assert all(accepted_by(tools, call, bytes_of_text).values())


def test_names_that_differ_in_one_sign_have_rules_of_their_own():
    text = gbnf(Toolbox([Tool("a_b", "x"), Tool("a-b", "y"), Tool("A-b", "z")]))
    rules = re.findall(r"^(call-\S+) ::=", text, re.MULTILINE)
    assert len(set(rules)) == 3
    assert json.dumps("Tool: a-b") in text
