"""One call in every form that others write it in: the same query, tool and parameters are carried over, or nothing."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import load_config
from tool_aware.dataset.importing import Imported, import_file
from tool_aware.rows import load_rows, write_rows
from tool_aware.tools import Toolbox

CONFIG = load_config(REPOSITORY / "config.yaml")
NAME = "book_table"
SCHEMA = {
    "type": "object",
    "properties": {
        "people": {"type": "integer"},
        "place": {"type": "string"},
        "wishes": {"type": "array", "items": {"type": "string"}},
        "options": {"type": "object", "properties": {"window": {"type": "boolean"}}},
    },
    "required": ["people"],
}
FUNCTION = {"name": NAME, "description": "Book a table.", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": FUNCTION}]
Shape = Callable[[str, dict[str, Any]], dict[str, Any]]


def user(query: str) -> dict[str, Any]:
    return {"role": "user", "content": query}


def chat(query: str, answer: dict[str, Any], tools: Any = TOOLS, **more: Any) -> dict[str, Any]:
    return {"messages": [user(query), {"role": "assistant", **answer}], "tools": tools, **more}


def call(arguments: Any) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": NAME, "arguments": arguments}}


def text(query: str, content: str) -> dict[str, Any]:
    return chat(query, {"content": content})


def sharegpt(query: str, *turns: tuple[str, str], tools: Any = None) -> dict[str, Any]:
    said = [{"from": who, "value": what} for who, what in (("human", query), *turns)]
    return {"conversations": said, "tools": json.dumps([FUNCTION]) if tools is None else tools}


def named(arguments: dict[str, Any]) -> dict[str, Any]:
    return {"name": NAME, "arguments": arguments}


SHAPES: dict[str, Shape] = {
    "OpenAI": lambda q, a: chat(q, {"content": None, "tool_calls": [call(json.dumps(a))]}),
    "arguments as an object": lambda q, a: chat(q, {"tool_calls": [call(a)]}),
    "arguments encoded twice": lambda q, a: chat(q, {"tool_calls": [call(json.dumps(json.dumps(a)))]}),
    "one call instead of a list": lambda q, a: chat(q, {"tool_calls": call(a)}),
    "calls as JSON": lambda q, a: chat(q, {"tool_calls": json.dumps([call(json.dumps(a))])}),
    "calls without a function around them": lambda q, a: chat(q, {"tool_calls": [named(a)]}),
    "function_call and functions": lambda q, a: {
        "messages": [user(q), {"role": "assistant", "content": None, "function_call": named(json.dumps(a))}],  # type: ignore[arg-type]
        "functions": [FUNCTION],
    },
    "tools as JSON": lambda q, a: chat(q, {"tool_calls": [call(a)]}, json.dumps(TOOLS)),
    "tools as a list of JSON": lambda q, a: chat(q, {"tool_calls": [call(a)]}, [json.dumps(TOOLS[0])]),
    "tools by name": lambda q, a: chat(q, {"tool_calls": [call(a)]}, {NAME: FUNCTION}),
    "messages as JSON": lambda q, a: {
        "messages": json.dumps(chat(q, {"tool_calls": [call(a)]})["messages"]),
        "tools": TOOLS,
    },
    "an uncounted answer in words before": lambda q, a: {
        "messages": [
            user(q),
            {"role": "assistant", "content": "Hm.", "weight": 0},
            {"role": "assistant", "tool_calls": [call(a)]},
        ],
        "tools": TOOLS,
    },
    "the result and a second answer behind": lambda q, a: {
        "messages": [
            *chat(q, {"tool_calls": [call(a)]})["messages"],
            {"role": "tool", "content": "done"},
            {"role": "assistant", "content": "Booked."},
        ],
        "tools": TOOLS,
    },
    "LLaMA-Factory": lambda q, a: sharegpt(
        q, ("function_call", json.dumps(named(a))), ("observation", "{}"), ("gpt", "Booked.")
    ),
    "ms-swift": lambda q, a: {
        "messages": [user(q), {"role": "tool_call", "content": json.dumps(named(a))}],
        "tools": json.dumps(TOOLS),
    },
    "Hermes": lambda q, a: sharegpt(q, ("gpt", f"<tool_call>\n{json.dumps(named(a))}\n</tool_call>")),
    "Hermes with the tools in the system text": lambda q, a: {
        "conversations": [
            {"from": "system", "value": f"You may call functions. <tools> {json.dumps(TOOLS)} </tools> Be brief."},
            {"from": "human", "value": q},
            {"from": "gpt", "value": f"<tool_call>{named(a)!r}</tool_call>"},
        ]
    },
    "Glaive": lambda q, a: sharegpt(
        q, ("gpt", f'<functioncall> {{"name": "{NAME}", "arguments": \'{json.dumps(a)}\'}} <|endoftext|>')
    ),
    "Glaive's text of all turns": lambda q, a: {
        "system": f"SYSTEM: You may call these functions -\n{json.dumps(FUNCTION, indent=4)}\n",
        "chat": f'USER: {q}\n\n\nASSISTANT: <functioncall> {{"name": "{NAME}", "arguments": \'{json.dumps(a)}\'}} '
        "<|endoftext|>\n\n\nFUNCTION RESPONSE: {}\n\n\nASSISTANT: Booked. <|endoftext|>",
    },
    "this toolkit's answer": lambda q, a: text(q, f"Tool: {NAME}\nParameters: {json.dumps(a)}\nReasoning: A table."),
    "Llama 3.1": lambda q, a: text(q, f"<function={NAME}>{json.dumps(a)}</function>"),
    "Mistral's text": lambda q, a: text(q, f"[TOOL_CALLS] {json.dumps([named(a)])}</s>"),
    "Mistral's newer text": lambda q, a: text(q, f"[TOOL_CALLS]{NAME}[ARGS]{json.dumps(a)}"),
    "a JSON text": lambda q, a: text(q, f"```json\n{json.dumps(named(a))}\n```"),
    "ToolACE": lambda q, a: {
        "system": f"Here is a list of functions in JSON format that you can invoke:\n{json.dumps([FUNCTION])}\nGo on.",
        "conversations": [
            {"from": "user", "value": q},
            {"from": "assistant", "value": f"[{NAME}({', '.join(f'{key}={value!r}' for key, value in a.items())})]"},
        ],
    },
    "Anthropic": lambda q, a: {
        "system": "Be brief.",
        "messages": [
            user([{"type": "text", "text": q}]),  # type: ignore[arg-type]
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": NAME, "input": a}]},
        ],
        "tools": [{"name": NAME, "description": "Book a table.", "input_schema": SCHEMA}],
    },
    "Responses API": lambda q, a: {
        "input": [user(q)],
        "output": [
            {"type": "reasoning", "summary": []},
            {"type": "function_call", "call_id": "1", "name": NAME, "arguments": json.dumps(a)},
        ],
        "tools": [{"type": "function", **FUNCTION, "strict": False}],
    },
    "Gemini": lambda q, a: {
        "contents": [
            {"role": "user", "parts": [{"text": q}]},
            {"role": "model", "parts": [{"functionCall": {"name": NAME, "args": a}}]},
        ],
        "tools": [{"functionDeclarations": [FUNCTION]}],
    },
    "TRL's prompt and completion": lambda q, a: {
        "prompt": [user(q)],
        "completion": [{"role": "assistant", "tool_calls": [call(a)]}],
        "tools": TOOLS,
    },
    "xLAM": lambda q, a: {"query": q, "answers": json.dumps([named(a)]), "tools": json.dumps([FUNCTION])},
}

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=30).filter(
    lambda value: value.strip() == value
)
arguments = st.fixed_dictionaries(
    {"people": st.integers(-(2**53), 2**53)},
    optional={
        "place": st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30),
        "wishes": st.lists(words, max_size=3),
        "options": st.fixed_dictionaries({}, optional={"window": st.booleans()}),
    },
)


def import_items(items: list[Any], folder: Path) -> Imported:
    path = folder / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    return import_file(path, CONFIG.toolbox)


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
    assert len(imported.rows) + sum(imported.skipped.values()) == len(items) + 1
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
            [
                user("a table"),
                {"role": "assistant", "content": "For how many?"},
                user("two"),
                {"role": "assistant", "tool_calls": [call({"people": 2})]},
            ],
            "words first, a call in a later turn",
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


def test_the_first_answer_that_counts_is_taken_with_the_context_before_it(folder: Path) -> None:
    messages = [
        user("a table"),
        {"role": "assistant", "content": "For how many?", "weight": 0},
        user("two"),
        {"role": "assistant", "tool_calls": [call({"people": 2})], "weight": 1},
    ]
    (row,) = import_items([{"messages": messages, "tools": TOOLS}], folder).rows
    assert row.query == "user: a table\nassistant: For how many?\nuser: two"
    assert row.answer.parameters == {"people": 2}
    assert row.metadata["context_turns"] == 2


def test_words_beside_a_call_are_its_reason(folder: Path) -> None:
    item = chat("a table", {"content": "I book it. <tool_call>" + json.dumps(named({"people": 2})) + "</tool_call>"})
    (row,) = import_items([item], folder).rows
    assert row.response.endswith("Reasoning: I book it")


# ---- tools ----------------------------------------------------------------------------------------------


def with_tools(tools: Any, name: str = NAME) -> dict[str, Any]:
    asked = {"id": "1", "type": "function", "function": {"name": name, "arguments": {"people": 2}}}
    return chat("a table for two", {"tool_calls": [asked]}, tools)


@pytest.mark.parametrize(
    ("parameters", "schema"),
    [
        (
            {"people": {"type": "int", "description": "How many"}, "at": {"type": "str, optional", "default": "19:00"}},
            {
                "type": "object",
                "properties": {
                    "people": {"type": "integer", "description": "How many"},
                    "at": {"type": "string", "default": "19:00"},
                },
                "required": ["people"],
            },
        ),
        (
            {"people": {"type": "Optional[int]"}, "names": {"type": "List[Union[str, int]]", "default": ""}},
            {
                "type": "object",
                "properties": {
                    "people": {"type": ["integer", "null"]},
                    "names": {"type": "array", "items": {"type": ["string", "integer"]}},
                },
                "required": ["people"],
            },
        ),
        (
            {"type": "OBJECT", "properties": {"people": {"type": "INTEGER"}, "x": {"type": "HashMap"}, "y": None}},
            {"type": "object", "properties": {"people": {"type": "integer"}, "x": {"type": "object"}}},
        ),
        (
            {"type": "dict", "properties": {"people": {"type": "any"}, "x": {"type": "string", "default": None}}},
            {"type": "object", "properties": {"people": {}, "x": {"type": "string"}}},
        ),
    ],
)
def test_types_of_other_languages_become_json_schema(
    parameters: dict[str, Any], schema: dict[str, Any], folder: Path
) -> None:
    imported = import_items([with_tools([{"name": NAME, "description": "x", "parameters": parameters}])], folder)
    assert not imported.skipped
    found = dict(imported.foreign_tools[0].parameters)
    assert {**found, "required": found.get("required", [])} == {**schema, "required": schema.get("required", [])}


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ([{"name": NAME, "parameters": {"people": {"type": "Callable[[int], int]"}}}], "a type that JSON Schema does"),
        ([{**FUNCTION}, {**FUNCTION, "description": "Another."}], "two tools of one name"),
        ([{**FUNCTION, "name": f"tool_{number}"} for number in range(129)], "more than 128 tools"),
        ([{"type": "web_search_preview"}], "a tool that is no function"),
        ([{**FUNCTION, "name": "9 lives"}], "a tool without a usable name"),
        ([{"name": NAME, "parameter_definitions": {"people": {"type": "int"}}}], "a tool with parameters in a field"),
        (["book_table"], "a tool that is not an object"),
        ("book_table", "tools that are not a list of objects"),
        (
            [{**FUNCTION, "parameters": {"type": "object", "properties": {"people": {"pattern": "["}}}}],
            "a tool that ca",
        ),
    ],
)
def test_tools_that_cannot_be_used_cost_the_item(tools: Any, reason: str, folder: Path) -> None:
    imported = import_items([with_tools(tools)], folder)
    assert imported.rows == []
    assert reason in next(iter(imported.skipped))


def test_names_with_other_characters_are_respelled_and_listed(folder: Path) -> None:
    imported = import_items(
        [with_tools([{**FUNCTION, "name": "Table Service/book.v2"}], "Table Service/book.v2")], folder
    )
    assert imported.rows[0].tool == "Table_Service_book_v2"
    assert imported.renamed == {"Table Service/book.v2": "Table_Service_book_v2"}


def test_a_tool_of_the_config_defined_otherwise_is_named_and_the_call_has_to_fit_both(folder: Path) -> None:
    theirs = {"type": "object", "properties": {"query": {"type": "string"}, "site": {"type": "string"}}}
    tools = [{"name": "web_search", "description": "x", "parameters": theirs}]
    items = []
    for given_arguments in ({"query": "gold"}, {"query": "gold", "site": "x.org"}):
        asked = {"function": {"name": "web_search", "arguments": given_arguments}}
        items.append(chat(f"gold price {len(given_arguments)}", {"tool_calls": [asked]}, tools))
    imported = import_items(items, folder)
    assert len(imported.rows) == 1
    assert imported.skipped == {"the same tool name with another schema": 1}
    assert imported.redefined == {"web_search"}
    assert imported.foreign_tools == ()


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
