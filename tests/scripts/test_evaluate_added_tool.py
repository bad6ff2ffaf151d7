"""Evaluation with other tools than the adapter was trained with, which warns and says what to expect."""

import copy
import json
import re
import shutil

import pytest
import yaml

from tests.fixtures.evaluate_script import copy_of, refused
from tests.fixtures.repository import REPOSITORY

CALENDAR = {
    "name": "calendar",
    "description": "Read and change the user's calendar.",
    "parameters": {
        "type": "object",
        "properties": {"action": {"type": "string", "enum": ["list", "add"]}, "when": {"type": "string"}},
        "required": ["action", "when"],
    },
    "examples": [
        {"query": "what's on tomorrow afternoon?", "parameters": {"action": "list", "when": "tomorrow afternoon"}},
        {"query": "put lunch with Ana on Friday", "parameters": {"action": "add", "when": "Friday"}},
        {"query": "the dentist again"},  # its parameters cannot be known
    ],
}


@pytest.fixture
def tools(config):
    """The tools of config.yaml, to change."""
    return copy.deepcopy(config.as_dict()["tools"])


@pytest.fixture
def evaluate_with(evaluate, adapter, evaluation_data_dir, config, tmp_path):
    """Run evaluate.py with other tools than those of the data and of the adapter's training."""
    before = config.as_dict()["tools"]
    data = copy_of(evaluation_data_dir, tmp_path)
    (data / "manifest.json").write_text(json.dumps({"stage": "prepare_dataset", "config": {"tools": before}}))
    shutil.copytree(adapter, tmp_path / "output" / "lora_adapters")

    def run(tools, *options, variation=0.7, results="r"):
        training = {"stage": "train", "config": {"tools": before, "training": {"tool_variation": variation}}}
        (tmp_path / "output" / "manifest.json").write_text(json.dumps(training))
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({"extends": str(REPOSITORY / "config.yaml"), "tools": tools}, sort_keys=False))
        chosen = ("--config", file, "--output_dir", tmp_path / "output")
        return evaluate(tmp_path / results, *chosen, *options, data_dir=data)

    return run


CHOICES = ("--choice-only", "--no-robustness")


def test_a_tool_appended_to_the_config_is_evaluated_at_once_with_its_examples(evaluate_with, tools, tmp_path):
    card = tmp_path / "output" / "lora_adapters" / "README.md"
    before = card.read_text() if card.exists() else None
    result = evaluate_with([*tools, CALENDAR], *CHOICES)
    assert result.returncode == 0, result.stderr
    for words in (
        "16 of 16 in",
        "and 2 made from examples of new tools",
        "calendar 2",
        "16 test rows are shown with the tools that the config lists",
        "was trained with other tools (calendar is new), and with varied lists of tools (training.tool_variation 0.7)",
        "74 %",
    ):
        assert words in result.stderr
    rows = json.loads((tmp_path / "r" / "finetuned_model_results.json").read_text())
    assert len(rows) == 18
    assert all(row["scores"].keys() >= {"calendar"} for row in rows)
    fallbacks = json.loads((tmp_path / "r" / "manifest.json").read_text())["fallbacks"]
    assert any("calendar is new" in fallback and "74 %" in fallback for fallback in fallbacks)
    report = (tmp_path / "r" / "report.md").read_text()
    assert "calendar is new" in report
    assert "2 of the 3 of calendar" in report
    assert (card.read_text() if card.exists() else None) == before  # its figures are of the tools it was trained with


def test_rows_of_ones_own_for_a_new_tool_are_asked_instead_of_its_examples(evaluate_with, tools, tmp_path):
    file = tmp_path / "data" / "test.json"
    rows = json.loads(file.read_text())
    answer = 'Tool: calendar\nParameters: {"action": "list", "when": "Monday"}\nReasoning: It asks for a day.'
    mine = {"instruction": rows[0]["instruction"] + " on Monday, am I free", "response": answer}
    file.write_text(json.dumps([*rows, mine]))
    result = evaluate_with([*tools, CALENDAR], "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "calendar 1" in result.stderr
    assert "17 test rows are shown with the tools that the config lists" in result.stderr
    assert "examples" not in result.stderr


def test_an_adapter_that_never_saw_other_lists_is_said_to_know_names_only(evaluate_with, tools):
    result = evaluate_with([*tools, CALENDAR], "--dry-run", variation=0)
    assert result.returncode == 0, result.stderr
    assert "it has learnt names and is likely wrong" in result.stderr
    assert "0 % of the queries of an added tool" in result.stderr


def test_answers_to_other_examples_are_not_taken_for_those_of_now(evaluate_with, tools):
    assert evaluate_with([*tools, CALENDAR], *CHOICES).returncode == 0
    assert "18 known" in evaluate_with([*tools, CALENDAR], *CHOICES, "--dry-run").stderr
    other = copy.deepcopy(CALENDAR)
    other["examples"][0]["query"] = "anything on Monday?"
    assert not re.search(r"\d known", evaluate_with([*tools, other], *CHOICES, "--dry-run").stderr)


def test_a_tool_that_is_gone_leaves_its_rows_to_the_one_that_stands_for_none(evaluate_with, tools, tmp_path):
    fewer = [tool for tool in tools if tool["name"] != "web_search"]
    result = evaluate_with(fewer, *CHOICES)
    assert result.returncode == 0, result.stderr
    assert "web_search is gone" in result.stderr
    assert "the tool of 4 test rows is gone" in result.stderr
    assert "direct_chat 8" in result.stderr
    metrics = json.loads((tmp_path / "r" / "finetuned_model_metrics.json").read_text())
    assert "web_search" not in metrics["per_tool"]


def test_rows_whose_tool_is_gone_without_another_are_left_out_and_counted(evaluate_with, tools):
    fewer = [tool for tool in tools if tool["name"] != "direct_chat"]
    result = evaluate_with(fewer, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "4 test rows are left out" in result.stderr
    refused(evaluate_with([CALENDAR, {**CALENDAR, "name": "diary"}], "--dry-run"), "none of the 16 test rows")


def test_rows_of_a_renamed_tool_ask_for_its_new_name(evaluate_with, tools):
    tools[1]["name"] = "browse"
    result = evaluate_with(tools, "--dry-run")
    assert result.returncode == 0, result.stderr
    assert "was trained with other tools (web_search is browse now)" in result.stderr
    assert "browse 4" in result.stderr


def test_answers_made_elsewhere_are_one_for_each_row_of_the_file(evaluate_with, tools, gold_answers):
    result = evaluate_with([*tools, CALENDAR], "--predictions", gold_answers)
    assert result.returncode == 0, result.stderr
    assert "tool accuracy 100.00 % [80.6, 100.0] on 16 rows" in result.stdout


def test_an_unreadable_list_of_tools_in_a_manifest_is_named(evaluate_with, tools, tmp_path):
    manifest = {"stage": "prepare_dataset", "config": {"tools": [{"name": "x", "parameters": {"type": "nothing"}}]}}
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    refused(evaluate_with(tools, "--dry-run"), "data/manifest.json", "cannot be read")
