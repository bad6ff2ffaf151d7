"""A starting adapter must not have been trained on what the new run is measured on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, UserError
from tool_aware.files import sha256_of
from tool_aware.lineage import runs_behind
from tool_aware.manifest import write_manifest
from tool_aware.rows import LoadedRows, Row, load_rows, write_rows
from tool_aware.training.leakage import lineage_of


def trained(folder: Path, data: Path, lineage: list[dict] | None = None) -> Path:
    """The adapter of a finished run on `data`."""
    adapter = folder / "lora_adapters"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_text(folder.name)
    inputs = {str(path): sha256_of(path) for path in (data / "train.json", data / "val.json")}
    write_manifest(folder, stage="train", config={}, seed=1, started_s=0.0, inputs=inputs, lineage=lineage or [])
    return adapter


def data_of(folder: Path, train: list[Row], val: list[Row], test: list[Row]) -> Path:
    for name, rows in (("train", train), ("val", val), ("test", test)):
        write_rows(folder / f"{name}.json", rows)
    return folder


def loaded(folder: Path, config: Config) -> tuple[dict[str, LoadedRows], LoadedRows]:
    rows = {name: load_rows(folder / f"{name}.json", config.toolbox) for name in ("train", "val", "test")}
    return rows, rows.pop("test")


def in_capitals(row: Row) -> Row:
    return Row(row.instruction.replace(row.query, f"{row.query.upper()} ?!"), row.response, row.metadata)


def test_held_out_rows_that_the_adapter_was_trained_on_are_counted_and_refused(tmp_path, toy_rows, config):
    first = data_of(tmp_path / "one", toy_rows[:30], toy_rows[30:34], toy_rows[34:])
    adapter = trained(tmp_path / "output", first)
    second = data_of(tmp_path / "two", toy_rows[9:], [*map(in_capitals, toy_rows[:4]), toy_rows[40]], toy_rows[4:9])
    with pytest.raises(UserError) as caught:
        lineage_of(adapter, *loaded(second, config), Fallbacks())
    assert "4 of the 5 rows of val.json and 5 of the 5 rows of test.json" in caught.value.what
    assert f"dataset.splits_from={first}" in caught.value.fix


def test_the_adapters_of_all_earlier_runs_are_looked_at_and_recorded(tmp_path, toy_rows, config):
    first = data_of(tmp_path / "one", toy_rows[:10], toy_rows[10:12], toy_rows[12:14])
    second = data_of(tmp_path / "two", toy_rows[20:30], toy_rows[10:12], toy_rows[12:14])
    earlier = trained(tmp_path / "output1", first)
    later = trained(tmp_path / "output2", second, lineage_of(earlier, *loaded(second, config), Fallbacks()))
    third = data_of(tmp_path / "three", toy_rows[20:40], toy_rows[10:12], toy_rows[12:14])
    lineage = lineage_of(later, *loaded(third, config), Fallbacks())
    assert [run["adapter"] for run in lineage] == [str(later), str(earlier)]
    assert lineage[1]["sha256"] == sha256_of(earlier / "adapter_model.safetensors")
    assert lineage[1]["train_sha256"] == sha256_of(first / "train.json")
    leaking = data_of(tmp_path / "four", toy_rows[20:40], toy_rows[10:12], toy_rows[:2])
    with pytest.raises(UserError, match=r"one/train\.json, which holds 0 of the 2 .* 2 of the 2 rows of test"):
        lineage_of(later, *loaded(leaking, config), Fallbacks())


def test_a_second_run_on_the_same_data_is_no_leak(tmp_path, toy_rows, config, capsys):
    data = data_of(tmp_path / "one", toy_rows[:30], toy_rows[30:34], toy_rows[34:])
    assert len(lineage_of(trained(tmp_path / "output", data), *loaded(data, config), Fallbacks())) == 1
    assert capsys.readouterr().err == ""


def test_training_data_that_is_gone_is_warned_of_once(tmp_path, toy_rows, config, capsys):
    first = data_of(tmp_path / "one", toy_rows[:30], toy_rows[30:34], toy_rows[34:])
    adapter = trained(tmp_path / "output", first)
    second = data_of(tmp_path / "two", toy_rows[30:], toy_rows[:4], toy_rows[4:9])
    (first / "train.json").write_text("[]")
    fallbacks = Fallbacks()
    lineage_of(adapter, *loaded(second, config), fallbacks)
    assert capsys.readouterr().err.count("is gone or has changed") == 1
    assert ["is gone or has changed" in message for message in fallbacks] == [True]


def test_an_adapter_without_a_manifest_is_warned_of(tmp_path, toy_rows, config, capsys):
    data = data_of(tmp_path / "one", toy_rows[:30], toy_rows[30:34], toy_rows[34:])
    lineage = lineage_of(tmp_path / "adapter", *loaded(data, config), Fallbacks())
    assert lineage == [{"adapter": str(tmp_path / "adapter"), "sha256": None, "train": None, "train_sha256": None}]
    assert "has no manifest" in capsys.readouterr().err
    assert lineage_of(None, *loaded(data, config), Fallbacks()) == []


def test_a_manifest_of_another_stage_says_nothing_about_an_adapter(tmp_path, toy_rows):
    data = data_of(tmp_path / "one", toy_rows[:30], toy_rows[30:34], toy_rows[34:])
    adapter = trained(tmp_path / "output", data)
    manifest = json.loads((tmp_path / "output/manifest.json").read_text())
    (tmp_path / "output/manifest.json").write_text(json.dumps({**manifest, "stage": "evaluate"}))
    assert runs_behind(adapter)[0].train is None
