"""Rows are checked all at once, files appear whole, manifests tell where a result came from."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

import tool_aware
from tool_aware.console import UserError
from tool_aware.files import atomic_folder, sha256_of, write_json
from tool_aware.manifest import read_manifest, write_manifest
from tool_aware.rows import load_rows, write_rows

GOOD = {"instruction": "q", "response": 'Tool: web_search\nParameters: {"query": "x"}\nReasoning: r'}


def load(folder: Path, items: object, toolbox):
    path = folder / "train.json"
    path.write_text(json.dumps(items))
    return load_rows(path, toolbox)


def problems_of(folder: Path, items: object, toolbox) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, items, toolbox)
    return str(caught.value)


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


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert json.loads(path.read_text()) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["value.json"]


def test_a_folder_appears_whole_or_keeps_its_old_content(tmp_path):
    target = tmp_path / "model"
    with atomic_folder(target) as part:
        (part / "a").write_text("1")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as part:
        (part / str(1 / 0)).write_text("never written")
    assert [file.name for file in target.iterdir()] == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_manifest_tells_where_a_result_came_from(tmp_path, config):
    (tmp_path / "in.json").write_text("in")
    (tmp_path / "out.json").write_text("out")
    write_manifest(
        tmp_path,
        stage="prepare",
        config=config.as_dict(),
        seed=42,
        started_s=time.time() - 2,
        inputs=[tmp_path / "in.json"],
        outputs=[tmp_path / "out.json"],
        counts={"train": 3},
        fallbacks=["no database"],
    )
    manifest = read_manifest(tmp_path)
    assert manifest["outputs"] == {"out.json": sha256_of(tmp_path / "out.json")}
    assert manifest["seconds"] >= 2
    assert manifest["toolkit"] == tool_aware.__version__
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= manifest["versions"].keys()
    assert manifest["config"]["lora"]["r"] == 8
    assert (manifest["seed"], manifest["counts"], manifest["fallbacks"]) == (42, {"train": 3}, ["no database"])
