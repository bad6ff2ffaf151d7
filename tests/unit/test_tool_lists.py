"""Rows read rightly with other lists of tools, and what evaluation keeps back never occurs in training."""

from __future__ import annotations

import random

import pytest

from tool_aware.prompt import parse_response, query_of, render_instruction, render_response
from tool_aware.rows import Row
from tool_aware.text import normalised
from tool_aware.tool_library import held_out_tools, held_out_wordings, queries_of, training_tools, training_wordings
from tool_aware.tool_lists import NOT_OFFERED, as_listed, draw_list, in_another_order, masked, renamed, without
from tool_aware.tools import Tool, Toolbox, ToolCall

LIMIT = {"type": "object", "properties": {"query": {"type": "string"}, "limit": {"type": "integer", "default": 3}}}
TOOLS = Toolbox(
    [
        Tool("docs", "finds documents", {**LIMIT, "required": ["query"]}),
        Tool("web", "searches the web", {**LIMIT, "required": ["query"]}),
        Tool("chat", "talks", {"properties": {"message": {"type": "string"}}, "required": ["message"]}),
    ]
)


def row(query, call, **metadata):
    return Row(render_instruction(query, TOOLS), render_response(call), {"source": "x", "tool": call.tool, **metadata})


FIND = ToolCall("docs", {"query": "leave"}, "The word leave asks docs for a document.")


def test_a_renamed_tool_is_renamed_in_prompt_answer_and_reasoning():
    made = renamed(TOOLS, {"docs": "kb", "web": "www", "chat": "chat"}).rewrite(row("find leave", FIND), FIND)
    assert made.answer.call == ToolCall("kb", {"query": "leave"}, "The word leave asks kb for a document.")
    assert "- kb(" in made.instruction
    assert "docs" not in made.instruction
    assert made.query == "find leave"
    assert made.tool == "kb"


def test_masked_and_shuffled_lists_keep_descriptions():
    assert [tool.name for tool in masked(TOOLS).tools] == ["tool_1", "tool_2", "tool_3"]
    shuffled = in_another_order(TOOLS, seed=0)
    assert sorted(shuffled.tools.names) == sorted(TOOLS.names)
    assert shuffled.tools.names != TOOLS.names


def test_without_its_tool_a_row_goes_to_an_acceptable_one_then_to_the_one_that_calls_none():
    listed = without(TOOLS, "docs", "chat")
    assert listed.rewrite(row("find leave", FIND), FIND).answer.call == ToolCall(
        "chat", {"message": "find leave"}, NOT_OFFERED
    )
    either = row("find leave", FIND, acceptable_tools=["docs", "web"])
    assert listed.rewrite(either, FIND).answer.call == ToolCall("web", {"query": "find leave"}, FIND.reasoning)
    assert without(TOOLS, "docs", None).rewrite(row("find leave", FIND), FIND) is None


@pytest.mark.parametrize(
    ("query", "given", "expected"),
    [
        ("find leave", {}, {}),
        ("find 3 pages on leave", {}, {"limit": 3}),
        ("find three pages on leave", {}, {"limit": 3}),
        ("find 8 pages on leave", {"limit": 8}, {}),
        ("find 5 pages on leave", {"limit": 5}, {"limit": 5}),
    ],
)
def test_a_call_follows_the_defaults_of_the_list(query, given, expected):
    """docs takes 3 by default, and 8 in this list."""
    changed = {**LIMIT["properties"], "limit": {"type": "integer", "default": 8}}
    box = Toolbox([Tool("docs", "finds", {"properties": changed, "required": ["query"]})])
    listed = type(as_listed(box))(box, {"docs": "docs"}, old_defaults={"docs": {"limit": 3}})
    call = ToolCall("docs", {"query": "leave", **given}, "So.")
    assert listed.answer(call, query, ("docs",)).parameters == {"query": "leave", **expected}


def test_drawn_lists_differ_and_every_answer_fits_its_list(config, toy_rows):
    library, kinds = training_tools(), set()
    for seed in range(150):
        drawn = draw_list(config.toolbox, library, random.Random(seed), "direct_chat")
        kinds |= set(drawn.changes)
        assert len(drawn.tools.tools) == len(drawn.tools.shown)  # no two tools share a name
        own = [made for each in toy_rows[:8] if (made := drawn.tools.rewrite(each, each.answer.call))]
        asked = [drawn.tools.row_of(each) for each in drawn.library[:8]]
        for made in [*own, *asked]:
            assert drawn.tools.tools.problems(made.answer.call) == []
            assert made.tool == parse_response(made.response).tool
    assert kinds == {
        *("one missing", "more tools", "other tools", "order", "descriptions", "defaults", "renamed", "masked")
    }


def test_the_same_seed_draws_the_same_list(config):
    one, other = (draw_list(config.toolbox, training_tools(), random.Random("7/3"), "direct_chat") for _ in range(2))
    assert render_instruction("x", one.tools.tools) == render_instruction("x", other.tools.tools)


def test_a_query_is_never_sent_as_a_program_or_an_address(config):
    listed = without(config.toolbox, "direct_chat", None)
    said = ToolCall("direct_chat", {"message": "what is 17 % of 80"}, "It asks so.")
    assert listed.answer(said, "what is 17 % of 80", ("code_execution",)) is None
    assert listed.answer(said, "who won?", ("web_search",)).parameters == {"query": "who won?"}
    address = {"type": "object", "properties": {"url": {"type": "string", "format": "uri"}}, "required": ["url"]}
    assert Tool("fetch", "gets a page", address).text_parameter is None


def test_another_default_fits_the_bounds_of_its_parameter():
    bounded = {"type": "integer", "default": 5, "exclusiveMinimum": 3, "exclusiveMaximum": 8}
    stepped = {"type": "integer", "default": 4, "multipleOf": 4}
    box = Toolbox([Tool("pick", "picks", {"type": "object", "properties": {"n": bounded, "m": stepped}})])
    drawn = [draw_list(box, training_tools(), random.Random(seed), None).tools for seed in range(60)]
    found = [each.tools[each.shown["pick"]].defaults for each in drawn if "pick" in each.shown]
    assert {each["n"] for each in found} == {4, 5, 6}
    assert {each["m"] for each in found} == {4, 8, 20}


# ---- the library ----------------------------------------------------------------------------------------


def test_tools_and_queries_for_evaluation_never_occur_in_training():
    training, held_out = training_tools(), held_out_tools()
    names = {name for entry in training for name in (entry.tool.name, *entry.names)}
    assert not names & {name for entry in held_out for name in (entry.tool.name, *entry.names)}
    asked = {normalised(each.query) for _, each in queries_of(training)}
    assert not asked & {normalised(each.query) for _, each in queries_of(held_out)}
    texts = {text for entry in training for text in (entry.tool.description, *entry.descriptions)}
    assert not texts & {text for entry in held_out for text in (entry.tool.description, *entry.descriptions)}


def test_names_and_descriptions_for_evaluation_never_occur_in_training(config):
    for name in config.toolbox.names:
        training, kept = training_wordings(name), held_out_wordings(name)
        assert len(kept.names) == len(kept.descriptions) == 2
        assert not set(training.names) & set(kept.names)
        assert not set(training.descriptions) & set(kept.descriptions)


def test_the_library_is_as_large_as_promised_and_its_calls_fit():
    training, held_out = training_tools(), held_out_tools()
    assert len(training) >= 40
    assert [sum(entry.set == name for entry in held_out) for name in ("unseen_five", "fifth_tool", "second_five")] == [
        *(5, 5, 5)
    ]
    for entry, asked in queries_of([*training, *held_out]):
        assert entry.tool.parameter_problems(asked.call.parameters) == [], asked.query
        assert query_of(render_instruction(asked.query, Toolbox([entry.tool]))) == asked.query.strip()
