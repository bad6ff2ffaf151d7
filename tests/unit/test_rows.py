"""Rows are checked all at once, and every malformed one is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tool_aware.console import UserError
from tool_aware.prompt import render_instruction
from tool_aware.rows import Row, load_rows, write_rows

GOOD = {"instruction": "q", "response": 'Tool: web_search\nParameters: {"query": "x"}\nReasoning: r'}


def load(folder: Path, items: object, toolbox):
    path = folder / "train.json"
    path.write_text(json.dumps(items))
    return load_rows(path, toolbox)


def problems_of(folder: Path, items: object, toolbox) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, items, toolbox)
    return str(caught.value)


def test_rows_share_the_beginning_of_their_prompts_in_memory(config):
    one, other = (Row(render_instruction(query, config.toolbox), "") for query in ("a", "b"))
    assert one._head is other._head
    assert one.instruction == render_instruction("a", config.toolbox)
    assert (one.query, other.query) == ("a", "b")
    assert replace(one, response="x").instruction == one.instruction
    with pytest.raises(TypeError, match="instruction"):
        Row()


def test_rows_survive_writing_and_reading(tmp_path, toy_rows, config):
    write_rows(tmp_path / "rows.json", toy_rows)
    assert load_rows(tmp_path / "rows.json", config.toolbox).rows == toy_rows


def test_a_row_without_metadata_is_custom_and_knows_its_tool(tmp_path, config):
    (row,) = load(tmp_path, [GOOD], config.toolbox).rows
    assert row.metadata == {"source": "custom", "tool": "web_search"}
    assert row.query == "q"


def test_a_wrapped_instruction_is_unwrapped_once_and_counted(tmp_path, config):
    loaded = load(tmp_path, [GOOD, {**GOOD, "instruction": "<s>[INST] hello [/INST]"}], config.toolbox)
    assert loaded.unwrapped == 1
    assert loaded.rows[1].instruction == "hello"


SPELLINGS = {
    "two spaces": 'Tool:  web_search\nParameters: {"query": "x"}\nReasoning: r',
    "no space": 'Tool:web_search\nParameters:{"query":"x"}\nReasoning:r',
    "a line in front": '\nTool: web_search\nParameters: {"query": "x"}\nReasoning: r',
    "a space behind the name": 'Tool: web_search \nParameters: {"query": "x"}\nReasoning: r\n',
    "the end of Mistral's template": 'Tool: web_search\nParameters: {"query": "x"}\nReasoning: r </s>\n',
    "the end of ChatML": 'Tool: web_search\nParameters: {"query": "x"}\nReasoning: r<|im_end|>\n<|endoftext|>',
    "JSON over several lines": 'Tool: web_search\nParameters: {\n  "query": "\\u0078"\n}\nReasoning: r',
}


@pytest.mark.parametrize("response", SPELLINGS.values(), ids=SPELLINGS.keys())
def test_a_response_is_loaded_in_the_one_spelling_that_is_trained(tmp_path, config, response):
    loaded = load(tmp_path, [GOOD, {**GOOD, "response": response}], config.toolbox)
    assert [row.response for row in loaded.rows] == [GOOD["response"]] * 2
    assert loaded.respelled == 1


def test_every_malformed_row_is_named_with_file_row_and_field(tmp_path, config):
    rows = [
        GOOD,
        "text",
        {"response": GOOD["response"]},
        {**GOOD, "response": "I would search"},
        {**GOOD, "response": 'Tool: web_searh\nParameters: {"query": "x"}\nReasoning: r'},
        {**GOOD, "response": 'Tool: web_search\nParameters: {"num_results": "five"}\nReasoning: r'},
        {**GOOD, "metadata": {"tool": "rag_retrieval"}},
    ]
    message = problems_of(tmp_path, rows, config.toolbox)
    assert "7 problems" in message
    assert "train.json: row 2: is str, not an object" in message
    assert "row 3: instruction: must be non-empty text" in message
    assert "row 4: response: no Tool line" in message
    assert "row 5: response: unknown tool 'web_searh'; the tools are rag_retrieval, web_search" in message
    assert "row 6: response: 'query' is a required property" in message
    assert "row 6: response: parameter num_results: 'five' is not of type 'integer'" in message
    assert "row 7: metadata.tool: 'rag_retrieval' but the response calls 'web_search'" in message


def test_only_the_first_twenty_problems_are_shown(tmp_path, config):
    message = problems_of(tmp_path, ["x"] * 25, config.toolbox)
    assert "25 problems" in message
    assert message.count("not an object") == 20
    assert "and 5 more" in message


def test_a_missing_file_names_the_stage_that_makes_it(tmp_path, config):
    with pytest.raises(UserError) as caught:
        load_rows(tmp_path / "none.json", config.toolbox)
    assert "python prepare_dataset.py" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}'])
def test_a_file_that_is_no_array_of_rows_is_refused(tmp_path, config, text):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(UserError):
        load_rows(tmp_path / "train.json", config.toolbox)
