"""Files someone else wrote: checked with every bad row in one report, or converted from chat messages and BFCL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, UserError
from tool_aware.dataset import data_check
from tool_aware.dataset.import_report import collect_import
from tool_aware.dataset.importing import import_file
from tool_aware.prompt import query_of
from tool_aware.rows import Row, write_rows

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def chat(query: str, name: str = "get_weather", arguments: object = '{"city": "Oslo"}', calls: int = 1) -> dict:
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": query},
            {"role": "assistant", "content": None, "tool_calls": [call] * calls},
        ],
        "tools": [WEATHER],
    }


def write_lines(path: Path, items: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(item) for item in items))
    return path


# ---- import ---------------------------------------------------------------------------------------------


def test_chat_messages_become_rows_with_their_own_tools(tmp_path: Path, config: Config) -> None:
    answered = {
        "messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Hi!"}],
        "tools": [WEATHER],
    }
    path = write_lines(
        tmp_path / "a.jsonl", [chat("is it cold in Oslo?"), answered, chat("and now?", arguments={"city": "Rome"})]
    )
    imported = import_file(path, config.toolbox)
    assert [row.tool for row in imported.rows] == ["get_weather", "direct_chat", "get_weather"]
    assert imported.rows[0].answer.parameters == {"city": "Oslo"}
    assert "get_weather(city: string)" in imported.rows[0].instruction
    assert query_of(imported.rows[0].instruction) == "is it cold in Oslo?"
    assert [tool.name for tool in imported.foreign_tools] == ["get_weather"]


def test_messages_without_tools_use_those_of_the_config(tmp_path: Path, config: Config) -> None:
    item = chat("gold price", "web_search", '{"query": "gold price"}')
    del item["tools"]
    imported = import_file(write_lines(tmp_path / "a.jsonl", [item]), config.toolbox)
    assert imported.rows[0].answer.parameters == {"query": "gold price"}
    assert imported.foreign_tools == ()


def test_what_the_format_cannot_hold_is_counted_by_reason(tmp_path: Path, config: Config) -> None:
    items = [
        chat("two things", calls=2),
        chat("x", arguments="{broken"),
        chat("x", arguments='{"town": "Oslo"}'),
        chat("x", name="unknown_tool"),
        {"messages": [{"role": "user", "content": "alone"}]},
        chat("good one"),
    ]
    imported = import_file(write_lines(tmp_path / "a.jsonl", items), config.toolbox)
    assert len(imported.rows) == 1
    assert imported.skipped == {
        "several tool calls": 1,
        "arguments are not JSON": 1,
        "parameters against the schema": 1,
        "unknown tool": 1,
        "no assistant message": 1,
    }


def bfcl(tmp_path: Path, truth: list) -> Path:
    function = {
        "name": "geometry.area-of",
        "description": "Area",
        "parameters": {
            "type": "dict",
            "properties": {
                "base": {"type": "integer"},
                "height": {"type": "float"},
                "unit": {"type": "string"},
                "options": {"type": "dict", "properties": {"exact": {"type": "boolean"}}},
            },
            "required": ["base", "height"],
        },
    }
    question = {
        "id": "simple_0",
        "question": [[{"role": "user", "content": "area, base 10 height 5.5"}]],
        "function": [function],
    }
    (tmp_path / "possible_answer").mkdir()
    write_lines(tmp_path / "possible_answer/b.json", [{"id": "simple_0", "ground_truth": truth}])
    return write_lines(tmp_path / "b.json", [question])


def test_bfcl_questions_become_rows_that_keep_every_accepted_value(tmp_path: Path, config: Config) -> None:
    accepted = {"base": [10], "height": [5.5, 11], "unit": ["units", ""], "options": [{"exact": [True, ""]}]}
    imported = import_file(bfcl(tmp_path, [{"geometry.area-of": accepted}]), config.toolbox)
    (row,) = imported.rows
    assert row.tool == "geometry_area-of"
    assert row.answer.parameters == {"base": 10, "height": 5.5, "options": {}}
    assert row.metadata["accepted_parameters"] == accepted
    assert imported.foreign_tools[0].parameters["type"] == "object"
    assert imported.foreign_tools[0].properties["height"]["type"] == "number"


def test_bfcl_rows_with_several_calls_are_left_out(tmp_path: Path, config: Config) -> None:
    imported = import_file(bfcl(tmp_path, [{"a": {}}, {"b": {}}]), config.toolbox)
    assert imported.rows == []
    assert imported.skipped == {"several calls": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no rows"), ("{}\n", "expected messages"), ("{oops", "is not JSON: 1"), ("[1, 2]", "not an object")],
)
def test_a_file_that_is_neither_is_refused(text: str, message: str, tmp_path: Path, config: Config) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        collect_import(tmp_path / "x.jsonl", config, Path("config.yaml"), Fallbacks())


def test_bfcl_without_its_answers_says_which_file_is_missing(tmp_path: Path, config: Config) -> None:
    path = write_lines(tmp_path / "q.json", [{"id": "1", "question": [], "function": []}])
    with pytest.raises(UserError, match=r"possible_answer.q\.json"):
        import_file(path, config.toolbox)


# ---- check ----------------------------------------------------------------------------------------------


def test_bad_rows_of_all_files_are_in_one_report(tmp_path: Path, config: Config, toy_rows: list[Row]) -> None:
    bad = {"instruction": "x", "response": "Tool: nope\nParameters: {}\nReasoning: y"}
    (tmp_path / "train.json").write_text(json.dumps([bad, {"instruction": ""}]))
    (tmp_path / "test.json").write_text(
        json.dumps([{"instruction": "x", "response": "Tool: web_search\nParameters: {}\nReasoning: y"}])
    )
    with pytest.raises(UserError) as caught:
        data_check.load_all(data_check.files_to_check(tmp_path), config.toolbox)
    for part in (
        "train.json: row 1: response: unknown tool 'nope'",
        "row 2: instruction",
        "test.json: row 1",
        "'query' is a required",
    ):
        assert part in str(caught.value)


def test_leaks_between_files_are_found(tmp_path: Path, config: Config, toy_rows: list[Row]) -> None:
    write_rows(tmp_path / "train.json", toy_rows[:40])
    write_rows(tmp_path / "test.json", [*toy_rows[40:], toy_rows[0]])
    loaded = data_check.load_all(data_check.files_to_check(tmp_path), config.toolbox)
    (leak,) = data_check.leakage(loaded)
    assert (leak.held_out, leak.exact) == ("test", 1)


def test_a_rare_tool_is_warned_about(tmp_path: Path, config: Config, toy_rows: list[Row]) -> None:
    write_rows(tmp_path / "train.json", [row for row in toy_rows if row.tool != "web_search"])
    loaded = data_check.load_all(data_check.files_to_check(tmp_path), config.toolbox)
    (warning,) = data_check.imbalance(loaded, config.toolbox)
    assert "web_search has 0 rows" in warning


def test_token_lengths_are_counted_with_a_tokenizer_and_estimated_closely_without(
    tmp_path: Path, config: Config, toy_rows: list[Row], tokenizer
) -> None:
    write_rows(tmp_path / "train.json", toy_rows)
    loaded = data_check.load_all(data_check.files_to_check(tmp_path), config.toolbox)["train"]
    counted, estimated = data_check.token_lengths(loaded, tokenizer), data_check.token_lengths(loaded, None)
    assert sum(estimated) == pytest.approx(sum(counted), rel=0.15)
    assert "0 above model.max_seq_length 2048" in data_check.describe_lengths(counted, 2048, is_estimate=False)
    assert f"{len(toy_rows)} above model.max_seq_length 64" in data_check.describe_lengths(
        counted, 64, is_estimate=False
    )


def test_splits_under_other_endings_are_named(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(UserError, match=r"rename train\.jsonl: JSON Lines are read too"):
        data_check.files_to_check(tmp_path)
