"""One call in every form that others write it in: the same query, tool and parameters are carried over, or nothing."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests.fixtures.conversation_shapes import (
    CONFIG,
    FUNCTION,
    NAME,
    SCHEMA,
    SHAPES,
    TOOLS,
    arguments,
    call,
    chat,
    import_items,
    named,
    text,
    user,
    words,
)
from tool_aware.config.data_sections import ConversationSection
from tool_aware.dataset.importing import import_file
from tool_aware.prompt import Turn
from tool_aware.rows import load_rows, write_rows
from tool_aware.tools import Toolbox


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imports")


@pytest.mark.parametrize("name", SHAPES)
def test_each_form_of_a_call_is_read(name: str, folder: Path) -> None:
    given_arguments = {"people": 2, "place": "Oslo", "wishes": ["quiet", "true"], "options": {"window": True}}
    imported = import_items([SHAPES[name]("a table for two", given_arguments)], folder)
    assert not imported.skipped
    (row,) = imported.rows
    assert (row.query, row.tool, row.answer.parameters) == ("a table for two", NAME, given_arguments)
    assert imported.foreign_tools[0].parameters == SCHEMA


@given(query=words, chosen=arguments)
@settings(max_examples=25)
def test_the_form_does_not_change_query_tool_or_parameters(query: str, chosen: dict[str, Any], folder: Path) -> None:
    imported = import_items([shape(query, chosen) for shape in SHAPES.values()], folder)
    assert not set(imported.skipped) - {"tool syntax in the text that cannot be read", "arguments are not JSON"}
    results = {json.dumps([row.query, row.tool, row.answer.parameters]) for row in imported.rows}
    assert len(results) == 1
    assert json.loads(results.pop())[1:] == [NAME, chosen]
    assert len(imported.rows) > len(SHAPES) - 5  # a text may hold what ends a call's own syntax


JUNK: list[Any] = [
    None, "", "x", "[]", "{", "null", 0, 1, -1.5, True, [], {}, [None], [[]], [{}], {"": None}, ["x"],
    {"x": {"x": []}}, "\ud83d", "\u2028", "a" * 300, 10**400, float("nan"), float("inf"), {"type": "object"},
    {"$ref": "#/x"}, {"type": 3}, {"type": ["string", 3]}, {"enum": None}, {"pattern": "["}, {"$ref": "#"},
    "<tool_call>", "[TOOL_CALLS]",
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in children for place in places(item, (*at, key)))]


def mutated(item: dict[str, Any], chance: random.Random) -> Any:
    """Return an item with one to three of its values replaced, removed, doubled, or moved."""
    changed: Any = {"item": copy.deepcopy(item)}
    for _ in range(chance.randint(1, 3)):
        *path, last = chance.choice([place for place in places(changed) if place])
        node = changed
        for key in path:
            node = node[key]
        kind = chance.randrange(5)
        if kind == 0 and isinstance(node, dict):
            node[chance.choice(["name", "role", "type", "arguments", "tools", "x"])] = node.pop(last)
        elif kind == 1:
            node[last] = [copy.deepcopy(node[last])] * 2
        elif kind == 2 and path:
            del node[last]
        elif kind == 3:
            node[last] = json.dumps(node[last])
        else:
            node[last] = copy.deepcopy(chance.choice(JUNK))
    return changed.get("item")


BFCL = {
    "id": "simple_0",
    "question": [[user("a table for two")]],
    "function": [{**FUNCTION, "parameters": {**SCHEMA, "type": "dict"}}],
    "ground_truth": [{NAME: {"people": [2], "place": ["Oslo", ""], "options": [{"window": [True, ""]}]}}],
}


@pytest.mark.parametrize("seed", range(6))
def test_no_damage_to_an_item_ends_the_import_or_makes_a_row_that_cannot_be_read(seed: int, folder: Path) -> None:
    chance = random.Random(seed)
    given_arguments = {"people": 2, "place": "Oslo", "wishes": ["quiet"], "options": {"window": True}}
    whole = [*(shape("a table for two", given_arguments) for shape in SHAPES.values()), BFCL]
    items = [mutated(chance.choice(whole), chance) for _ in range(400)]
    imported = import_items([*items, whole[0]], folder)
    assert len(imported.rows) - imported.further_rows + sum(imported.skipped.values()) == len(items) + 1
    write_rows(folder / "train.json", imported.rows)
    load_rows(folder / "train.json", Toolbox([*CONFIG.toolbox, *imported.foreign_tools]))


# ---- what is no plain answer ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "<tool_call>get_weather</tool_call>",
        "<function=book_table><parameter=people>2</parameter></function>",
        "Sure. [TOOL_CALLS] book_table",
        'I would send {"name": "book_table", "arguments": {"people": 2}} now.',
        "Thought: a table\nAction: book_table\nAction Input: 2 people",
        "I call book_table(people=2)",
        "<|python_tag|>brave_search.call(query='x')",
        "<invoke name='book_table'><parameter name='people'>2</parameter></invoke>",
        "[book_table(people=2), book_table(people=3)]",
        "functools[book_table(people=2)]",
        "[order_taxi(people=2)]",
        "order_taxi(people=2)",
        "[]",
        '{"tool": "book_table", "tool_input": {"people": 2}} ',
        '<|channel|>commentary to=functions.book_table <|constrain|>json<|message|>{"people": 2}<|call|>',
        '>>>book_table\n{"people": 2}',
        '<|recipient|>book_table\n<|content|>{"people": 2}',
        "book_table\n```python\ntool_call(people=2)\n```",
        '`book_table`: {"people": 2}',
        "<book_table>\n<people>2</people>\n</book_table>",
        "<use_mcp_tool><server_name>x</server_name></use_mcp_tool>",
        "Tool: book_table\nParameters: {people: 2}",
        "**Function:** `book_table`\npeople: 2",
    ],
)
def test_tool_syntax_in_a_text_never_becomes_a_plain_answer(content: str, folder: Path) -> None:
    imported = import_items([text("a table for two", content)], folder)
    assert imported.rows == []
    assert sum(imported.skipped.values()) == 1


def test_an_answer_that_only_names_a_tool_is_plain(folder: Path) -> None:
    said = "The tool `book_table` could do that, or <b>book_table</b>, but for which day?"
    (row,) = import_items([text("a table for two", said)], folder).rows
    assert row.tool == "direct_chat"


def test_the_end_mark_of_a_chat_in_one_text_is_no_part_of_the_answer(folder: Path) -> None:
    chat_text = "USER: hello there\n\n\nASSISTANT: Hello, Ana. <|endoftext|>\n\n\nUSER: bye"
    rows = import_items([{"system": "SYSTEM: You are helpful.", "chat": chat_text}], folder).rows
    assert [(row.query, row.tool) for row in rows] == [("hello there", "direct_chat")]
    assert rows[0].response.endswith("Reasoning: Hello, Ana")
    assert import_items([{"chat": "hello there"}], folder).skipped == {"a chat without USER: and ASSISTANT:": 1}


@pytest.mark.parametrize("mark", ["label", "kto_tag"])
def test_an_answer_that_is_marked_as_bad_is_not_learnt(mark: str, folder: Path) -> None:
    good, bad = (text("a table for two", said) for said in ("For which day?", "No."))
    imported = import_items([{**good, mark: True}, {**bad, mark: False}], folder)
    assert imported.skipped == {"an answer that is marked as bad": 1}
    assert [row.response.splitlines()[-1] for row in imported.rows] == ["Reasoning: For which day"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user("x"), {"role": "assistant", "content": None}], "an answer without text and call"),
        ([user("x"), {"role": "assistant", "content": "Hi", "weight": 0}], "no assistant message that is trained on"),
        (
            [user("x"), {"role": "assistant", "tool_calls": [call({"people": 2}), call({"people": 3})]}],
            "several tool calls",
        ),
        (
            [
                user("x"),
                {"role": "assistant", "tool_calls": [call({"people": 2})], "weight": 0},
                {"role": "tool", "content": "done"},
                {"role": "assistant", "content": "Booked."},
            ],
            "an answer to a tool's result",
        ),
        (
            [user([{"type": "image_url", "image_url": {}}]), {"role": "assistant", "content": "A cat."}],  # type: ignore[arg-type]
            "content that is not text",
        ),
        (
            [user("x"), {"role": "assistant", "content": "Let me see.", "toolInvocations": [{"toolName": NAME}]}],
            "a field that may hold a call",
        ),
        (
            [user("x"), {"role": "assistant", "content": "Let me see."}, {"role": "tool", "content": "12 C"}],
            "a tool's result without its call",
        ),
        ([user("x"), {"role": "narrator", "content": "y"}], "a message of an unknown role"),
        ([user(""), {"role": "assistant", "content": "y"}], "an empty query"),
        ([{"role": "assistant", "content": "y"}, user("x")], "no user message before the first answer"),
    ],
)
def test_turns_that_are_no_single_query_with_its_answer_are_left_out(
    messages: list[Any], reason: str, folder: Path
) -> None:
    imported = import_items([{"messages": messages, "tools": TOOLS}], folder)
    assert imported.skipped == {reason: 1}
    assert imported.rows == []


TALK = [
    user("a table"),
    {"role": "assistant", "content": "For how many?"},
    user("two"),
    {"role": "assistant", "tool_calls": [call({"people": 2})]},
    {"role": "tool", "content": "no table for two"},
    {"role": "assistant", "content": "There is none."},
    user("then four"),
    {"role": "assistant", "tool_calls": [call({"people": 4})]},
    user("thanks"),
    {"role": "assistant", "content": "Enjoy your meal."},
]
ASKED, ANSWERED = Turn("a table", None), Turn("two", NAME)


def test_every_call_is_a_row_with_the_users_turns_before_it(folder: Path) -> None:
    imported = import_items([{"messages": [{"role": "system", "content": "Be kind."}, *TALK], "tools": TOOLS}], folder)
    assert [(row.query, row.history, row.answer.parameters) for row in imported.rows] == [
        ("two", (ASKED,), {"people": 2}),
        ("then four", (ASKED, ANSWERED), {"people": 4}),
    ]
    assert imported.rows[1].metadata["history"] == [
        {"query": "a table", "tool": None}, {"query": "two", "tool": NAME}
    ]  # fmt: skip
    assert len({row.metadata["group"] for row in imported.rows}) == 1
    assert (imported.further_rows, imported.skipped) == (1, {})


def test_turns_that_are_not_trained_on_are_earlier_turns_and_no_rows(folder: Path) -> None:
    messages = [{**turn, "weight": 0} if number < 4 else turn for number, turn in enumerate(TALK)]
    (row,) = import_items([{"messages": messages, "tools": TOOLS}], folder).rows
    assert (row.query, row.history) == ("then four", (ASKED, ANSWERED))
    assert "group" not in row.metadata


def test_what_cannot_be_taken_over_later_leaves_the_rows_before_it(folder: Path) -> None:
    several = {"role": "assistant", "tool_calls": [call({"people": 2}), call({"people": 3})]}
    messages = [*TALK[2:4], user("and two more"), several]
    imported = import_items([{"messages": messages, "tools": TOOLS}], folder)
    assert [row.query for row in imported.rows] == ["two"]
    assert (imported.skipped, imported.further_left_out) == ({}, {"several tool calls": 1})


def test_a_call_whose_earlier_turns_may_not_be_shown_is_left_out(folder: Path) -> None:
    path = folder / "talk.jsonl"
    path.write_text(json.dumps({"messages": TALK, "tools": TOOLS}))
    none, one = (ConversationSection(max_turns=count) for count in (0, 1))
    assert import_file(path, CONFIG.toolbox, conversation=none).rows == []
    imported = import_file(path, CONFIG.toolbox, conversation=one)
    assert [row.history for row in imported.rows] == [(ASKED,), (ANSWERED,)]
    assert imported.turns_not_shown == 1


def test_secrets_in_earlier_turns_are_replaced_as_in_the_query(folder: Path) -> None:
    messages = [
        user("a table for anna@example.com"),
        TALK[1],
        user("two, tom@example.com and anna@example.com"),
        TALK[3],
    ]
    (row,) = import_items([{"messages": messages, "tools": TOOLS}], folder).rows
    assert (row.query, row.history[0].query) == ("two, <EMAIL_1> and <EMAIL_2>", "a table for <EMAIL_2>")


def test_words_beside_a_call_are_its_reason(folder: Path) -> None:
    item = chat("a table", {"content": "I book it. <tool_call>" + json.dumps(named({"people": 2})) + "</tool_call>"})
    (row,) = import_items([item], folder).rows
    assert row.response.endswith("Reasoning: I book it")


def test_a_plain_answer_for_which_tools_were_forbidden_says_nothing_about_the_right_tool(folder: Path) -> None:
    free, forced = (text("a table for two", said) for said in ("For which day?", "I cannot book it."))
    imported = import_items([{**free, "tool_choice": "auto"}, {**forced, "tool_choice": "none"}], folder)
    assert imported.skipped == {"an answer for which tools were forbidden": 1}
    assert len(imported.rows) == 1


def test_an_argument_that_is_given_twice_costs_its_item(folder: Path) -> None:
    call = {"function": {"name": "web_search", "arguments": '{"query": "a", "query": "b"}'}}
    item = {"messages": [{"role": "user", "content": "news of Oslo"}, {"role": "assistant", "tool_calls": [call]}]}
    assert import_items([item], folder).skipped == {"an argument that is given twice": 1}


def test_a_key_that_is_given_twice_costs_its_item(folder: Path) -> None:
    good = json.dumps(text("a table for two", "For which day?"))
    path = folder / "twice.jsonl"
    path.write_text(f'{good}\n{good[:-1]}, "messages": []}}\n')
    imported = import_file(path, CONFIG.toolbox)
    assert (len(imported.rows), imported.skipped) == (1, {"a key that is given twice": 1})
