"""The items of a source one by one, whatever they are stored in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.dataset.importing import import_file
from tool_aware.dataset.imports.foreign_files import read_items

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
BASE = {"type": "object", "properties": {"base": {"type": "integer"}, "unit": {"type": "string"}}, "required": ["base"]}


def chats() -> list[dict[str, Any]]:
    """Two conversations whose tools have other parameters, which Arrow joins to one struct with nulls."""

    def chat(query: str, name: str, arguments: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        return {
            "messages": [{"role": "user", "content": query}, {"role": "assistant", "tool_calls": [call]}],
            "tools": [{"type": "function", "function": {"name": name, "description": name, "parameters": schema}}],
        }

    return [
        chat("is it cold in Oslo", "get_weather", {"city": "Oslo"}, CITY),
        chat("area with a base of 3", "area", {"base": 3}, BASE),
    ]


def taken(source: Path, config: Config, **more: Any) -> list[tuple[str, str, Any]]:
    imported = import_file(source, config.toolbox, **more)
    assert not imported.skipped
    for tool in imported.foreign_tools:
        assert tool.parameters == {"get_weather": CITY, "area": BASE}[tool.name]
    return [(row.query, row.tool, row.answer.parameters) for row in imported.rows]


EXPECTED = [("is it cold in Oslo", "get_weather", {"city": "Oslo"}), ("area with a base of 3", "area", {"base": 3})]


def test_tables_of_arrow_carry_over_what_json_lines_do(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    home = tmp_path / "home"
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    data = datasets.Dataset.from_list(chats())
    assert data[0]["tools"][0]["function"]["parameters"]["properties"].get("base", None) is None
    data.to_parquet(str(tmp_path / "calls.parquet"))
    data.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, chats())))
    data.to_json(str(tmp_path / "with_nulls.jsonl"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "calls.parquet").rename(tmp_path / "folder" / "part-0.parquet")
    for name in ("lines.jsonl", "with_nulls.jsonl", "folder/part-0.parquet", "folder", "saved", "splits"):
        assert taken(tmp_path / name, config) == EXPECTED, name
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    assert taken(arrow, config) == EXPECTED
    assert not home.exists()  # nothing is left in the user's cache


def test_of_several_splits_one_has_to_be_named(tmp_path: Path, config: Config) -> None:
    import datasets

    data = datasets.Dataset.from_list(chats())
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(UserError, match=r"has the splits train, test(?s:.*)--split train"):
        taken(tmp_path / "splits", config)
    assert len(taken(tmp_path / "splits", config, split="test")) == 1
    with pytest.raises(UserError, match="has no split dev; it has train, test"):
        taken(tmp_path / "splits", config, split="dev")


def test_columns_of_csv_may_hold_json(tmp_path: Path, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    import csv

    for separator in ",;\t":
        with (tmp_path / "calls.csv").open("w", newline="") as file:
            writer = csv.writer(file, delimiter=separator)
            writer.writerow(["messages", "tools", "note"])
            writer.writerows([[json.dumps(chat["messages"]), json.dumps(chat["tools"]), ""] for chat in chats()])
        assert taken(tmp_path / "calls.csv", config) == EXPECTED
    assert "separated by semicolons" in capsys.readouterr().err


def test_one_json_value_may_be_an_array_an_object_with_a_list_or_one_item(tmp_path: Path, config: Config) -> None:
    path = tmp_path / "x.json"
    for value, number in ((chats(), 2), ({"version": 1, "data": chats()}, 2), (chats()[0], 1)):
        for indent in (2, None):
            path.write_text(json.dumps(value, indent=indent))
            assert taken(path, config) == EXPECTED[:number]


def test_a_damaged_table_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + b"\x00" * 64)
    with pytest.raises(UserError, match=r"x\.parquet(?s:.*)cannot be read"):
        list(read_items(tmp_path / "x.parquet"))


def test_a_row_of_csv_with_other_cells_than_the_header_costs_that_row(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('query,answers,tools\n"a","[]","[]"\nb\n')
    items = list(read_items(tmp_path / "x.csv"))
    assert [item.problem for item in items] == [None, "has 1 cells, and the first line 3"]
