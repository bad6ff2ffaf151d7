"""Tools that others define: their types, names and collisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.conversation_shapes import (
    FUNCTION,
    NAME,
    chat,
    import_items,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imports")


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
