"""Test rows that the model under test was taught in an earlier run are refused, as far as that can still be seen."""

from __future__ import annotations

import pytest

from tool_aware.console import UserError
from tool_aware.evaluation.held_out import load_test_set, refuse_rows_trained_on
from tool_aware.files import sha256_of
from tool_aware.lineage import runs_behind
from tool_aware.manifest import write_manifest
from tool_aware.rows import write_rows


def hashes(folder):
    return {str(folder / "train.json"): sha256_of(folder / "train.json")}


@pytest.fixture
def model(tmp_path, toy_rows):
    """A merged model of a second run; the adapter it started from was taught rows 0 to 19."""
    write_rows(tmp_path / "one/train.json", toy_rows[:20])
    write_rows(tmp_path / "two/train.json", toy_rows[20:30])
    first = tmp_path / "first"
    write_manifest(first, stage="train", config={}, seed=1, started_s=0.0, inputs=hashes(tmp_path / "one"))
    lineage = [vars(run) for run in runs_behind(first / "lora_adapters")]
    write_manifest(
        tmp_path / "second",
        stage="train",
        config={},
        seed=1,
        started_s=0.0,
        inputs=hashes(tmp_path / "two"),
        lineage=lineage,
    )
    return tmp_path / "second/final_model"


def test_test_rows_of_the_run_or_of_the_one_before_are_refused(model, tmp_path, toy_rows, config):
    for taught, rows in (("one", toy_rows[18:20]), ("two", toy_rows[27:])):
        write_rows(tmp_path / "now/test.json", rows)
        test = load_test_set(tmp_path / "now", config.toolbox)
        with pytest.raises(UserError, match=f"{taught}/train.json; .* was trained on that"):
            refuse_rows_trained_on(test, model)


def test_other_rows_and_files_that_are_gone_pass(model, tmp_path, toy_rows, config):
    write_rows(tmp_path / "now/test.json", toy_rows[30:])
    refuse_rows_trained_on(load_test_set(tmp_path / "now", config.toolbox), model)
    write_rows(tmp_path / "now/test.json", toy_rows[:4])
    (tmp_path / "one/train.json").unlink()
    refuse_rows_trained_on(load_test_set(tmp_path / "now", config.toolbox), model)
