"""What is evaluated beside base and adapter gets a results folder of its own."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from tool_aware.evaluation.evaluation_job import Job, Options


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "evaluation_results"),
        ({"adapter": Path("other/lora_adapters")}, "evaluation_results"),
        ({"model": Path("output/final_model/")}, "evaluation_results_final_model"),
        ({"model": Path("final_model"), "overrides": ["evaluation.results_dir=x"]}, "evaluation_results"),
        ({"endpoint": "http://localhost/v1", "served_model": "a/b:c"}, "evaluation_results_a-b-c"),
        ({"endpoint": "http://localhost/v1", "served_model": "/"}, "evaluation_results_endpoint"),
        ({"predictions": Path("x/answers.v2.jsonl")}, "evaluation_results_answers.v2"),
    ],
)
def test_only_base_and_adapter_are_written_to_the_folder_of_the_settings(config, given, name):
    options = Options(**dict.fromkeys((field.name for field in fields(Options)), None) | {"overrides": [], **given})
    job = Job(options, config, None, None, None, None, [], [])
    assert job.results_dir.name == name


def test_a_merged_model_in_the_working_folder_is_named_by_that_folder(config, tmp_path, monkeypatch):
    (tmp_path / "merged").mkdir()
    monkeypatch.chdir(tmp_path / "merged")
    empty = dict.fromkeys((field.name for field in fields(Options)), None)
    job = Job(Options(**empty | {"overrides": [], "model": Path()}), config, None, None, None, None, [], [])
    assert job.results_dir.name == "evaluation_results_merged"
