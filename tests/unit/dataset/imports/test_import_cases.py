"""Files as people really have them: what is taken over, what is left out, and the message for what cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import Config, load_config
from tool_aware.console import Fallbacks, UserError
from tool_aware.dataset.import_report import collect_import
from tool_aware.dataset.importing import Imported, config_with_tools, import_file
from tool_aware.dataset.imports.foreign_files import read_items
from tool_aware.rows import load_rows, write_rows

CASES = REPOSITORY / "tests" / "cases"


def imported_case(name: str, config: Config) -> Imported:
    return import_file(CASES / name, config.toolbox)


def left_out(imported: Imported) -> list[str]:
    return [line for lines in imported.named.values() for line in lines]


@pytest.mark.parametrize(
    ("name", "tool", "rows", "reasons"),
    [
        ("import_encodings/bom.jsonl", "get_weather", 5, []),
        ("import_encodings/crlf.jsonl", "get_weather", 5, []),
        ("import_encodings/utf16.jsonl", "get_weather", 5, []),
        ("import_legacy_function_call/calls.jsonl", "get_weather", 5, []),
        ("import_tools_json_string/calls.jsonl", "get_weather", 5, []),
        ("import_u2028/calls.jsonl", "get_weather", 6, []),
        ("import_lone_surrogate/calls.jsonl", "get_weather", 4, ["half a surrogate pair"]),
        ("import_mixed_rows/calls.jsonl", "get_weather", 5, ["line 6: no assistant message"]),
        ("import_tool_call_shapes/dict.jsonl", "get_weather", 5, []),
        ("import_tool_call_shapes/string.jsonl", "get_weather", 5, []),
        ("import_tool_call_shapes/tools_dict.jsonl", "get_weather", 5, []),
        ("import_tool_call_shapes/arguments_empty.jsonl", "get_weather", 4, ["'city' is a required property"]),
        (
            "import_tool_call_shapes/function_null.jsonl",
            "get_weather",
            4,
            ["line 4: messages[1].tool_calls[0].function: a tool call without a function (null)"],
        ),
        ("import_tool_call_shapes/names.jsonl", "get_weather", 4, ["a tool call that is only a text"]),
        ("import_tool_call_shapes/messages_null.jsonl", "get_weather", 4, ["line 4: messages: messages is not a list"]),
        ("import_null_description/calls.jsonl", "get_weather", 5, []),
        ("import_null_description/only_description.jsonl", "get_weather", 5, []),
        ("import_parameters_without_type/calls.jsonl", "get_weather", 5, []),
        ("import_parameters_without_type/empty_parameters.jsonl", "get_weather", 5, []),
        ("import_pydantic_schema/calls.jsonl", "add_order", 5, []),
        ("import_multiline_description/calls.jsonl", "get_weather", 5, []),
        ("bfcl_shapes/answer_dict/questions.json", "shape_area0", 5, []),
        ("bfcl_shapes/plain_question/questions.json", "shape_area0", 5, []),
        ("bfcl_shapes/null_optional/questions.json", "shape_area0", 5, []),
        ("bfcl_shapes/java_types/questions.json", "shape_area0", 5, []),
        ("bfcl_shapes/empty_accepted/questions.json", "shape_area0", 4, ["a parameter without an accepted value"]),
    ],
)
def test_a_bad_item_costs_that_item_and_is_named(
    name: str, tool: str, rows: int, reasons: list[str], config: Config, tmp_path: Path
) -> None:
    imported = imported_case(name, config)
    assert imported.rows[0].tool == tool
    assert len(imported.rows) == rows
    assert len(left_out(imported)) == len(reasons)
    for reason, line in zip(reasons, left_out(imported), strict=True):
        assert reason in line
    assert_the_next_step_takes_it(imported, config, tmp_path)


def assert_the_next_step_takes_it(imported: Imported, config: Config, folder: Path) -> None:
    """Write rows and config as the stage does, and read them as the next one does."""
    (folder / "imported.yaml").write_text(
        config_with_tools(config, REPOSITORY / "config.yaml", imported.foreign_tools, folder), encoding="utf-8"
    )
    extended = load_config(folder / "imported.yaml")
    write_rows(folder / "train.json", imported.rows)
    loaded = load_rows(folder / "train.json", extended.toolbox)
    assert [row.response for row in loaded.rows] == [row.response for row in imported.rows]
    assert loaded.respelled == 0
    assert [tool for tool in extended.toolbox if tool.name not in config.toolbox] == list(imported.foreign_tools)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("import_encodings/latin1.jsonl", r"latin1.jsonl:3: is not UTF-8: byte 0xe9.*\n.*--encoding cp1252"),
        ("import_trailing_commas/calls.jsonl", r"(?s)line 1: is not JSON \(a comma follows the value.*fix:.*sed"),
        ("import_pydantic_schema/dangling_ref.jsonl", r"(?s)a tool that cannot be used: 5.*line 1: tools\[0\].*Item"),
        ("bfcl_shapes/no_id/questions.json", r"(?s)no id, which the answer would be found by: 5.*line 1: id"),
        ("import_parquet/calls.parquet", r"(?s)no row could be taken over.*no assistant message: 5.*row 1"),
        ("import_parquet/calls.jsonl.gz", "(?s)no row could be taken over.*no assistant message: 1"),
    ],
)
def test_where_nothing_can_be_taken_over_one_message_says_why(name: str, message: str, config: Config) -> None:
    with pytest.raises(UserError, match=message):
        collect_import(CASES / name, config, Path("config.yaml"), Fallbacks())


def test_another_encoding_is_read_when_it_is_named(config: Config) -> None:
    imported = import_file(CASES / "import_encodings/latin1.jsonl", config.toolbox, encoding="cp1252")
    assert len(imported.rows) == 5
    assert any("été" in row.query for row in imported.rows)


def test_an_lfs_pointer_is_named_as_one(tmp_path: Path, config: Config) -> None:
    (tmp_path / "x.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n")
    with pytest.raises(UserError, match="Git LFS pointer"):
        import_file(tmp_path / "x.jsonl", config.toolbox)


def test_the_unusual_format_of_a_file_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    list(read_items(CASES / "import_encodings/utf16.jsonl"))
    assert "is read as UTF-16" in capsys.readouterr().err


def test_a_name_without_file_or_network_is_one_message(config: Config) -> None:
    with pytest.raises(UserError, match=r"some/data-set: is no file here, and the Hugging Face Hub cannot be asked"):
        import_file(Path("some/data-set"), config.toolbox)


@pytest.mark.parametrize("name", ["gone.jsonl", "some/gone.parquet"])
def test_a_missing_file_is_not_looked_up_elsewhere(name: str, config: Config) -> None:
    with pytest.raises(UserError, match="not found"):
        import_file(Path(name), config.toolbox)


def test_a_folder_of_cases_is_no_data_set(tmp_path: Path, config: Config) -> None:
    shutil.copy(CASES / "import_u2028/calls.jsonl", tmp_path)
    with pytest.raises(UserError, match=r"is a folder(?s:.*)name one of its files: calls.jsonl"):
        import_file(tmp_path, config.toolbox)
