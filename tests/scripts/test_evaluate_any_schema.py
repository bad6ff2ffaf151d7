"""evaluate.py on tools of every kind of schema, and on hundreds of tools: whole runs on answers made elsewhere."""

import json
import shutil

import pytest
import yaml

import evaluate
from tests.fixtures.repository import REPOSITORY
from tool_aware.prompt import render_response
from tool_aware.tools import ToolCall

CASES = sorted((REPOSITORY / "tests/cases/eval_schemas").iterdir())


def run(folder, *options):
    """Evaluate the answers in `folder`; return the figures of the fine-tuned model."""
    settings = {
        "dataset.dir": folder,
        "evaluation.results_dir": folder / "results",
        "training.output_dir": folder / "output",
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    files = ["--config", str(folder / "config.yaml"), "--predictions", str(folder / "predictions.json")]
    assert evaluate.main([*files, "--no-robustness", *overrides, *options]) == 0
    return json.loads((folder / "results/finetuned_model_metrics.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_answers_that_equal_the_rows_are_right_whatever_the_schema(case, tmp_path):
    folder = tmp_path / "case"
    shutil.copytree(case, folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "extends": str(REPOSITORY / "config.yaml")}))
    metrics = run(folder)
    for figure in ("accuracy", "call_accuracy", "bfcl_strict", "schema_rate"):
        assert metrics[figure]["value"] == 1, figure


def test_two_hundred_tools_are_evaluated_and_listed_in_short(tmp_path, capsys):
    folder, names = tmp_path, [f"tool_{number:03}" for number in range(200)]
    text = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
    tools = [{"name": name, "description": f"Does {name}.", "parameters": text} for name in names]
    config = {"extends": str(REPOSITORY / "config.yaml"), "tools": tools, "evaluation": {"no_tool": None}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    answers = [render_response(ToolCall(name, {"query": name}, "It asks so.")) for name in names]
    rows = [{"instruction": f"Query: {name}", "response": text} for name, text in zip(names, answers, strict=True)]
    (folder / "test.json").write_text(json.dumps(rows))
    (folder / "predictions.json").write_text(json.dumps([answers[1], *answers[1:]]))
    metrics = run(folder)
    assert metrics["accuracy"]["value"] == pytest.approx(199 / 200)
    assert [sum(row) for row in metrics["confusion"]] == [1] * 200
    printed = capsys.readouterr()
    assert "200: tool_000 1, tool_001 1" in printed.err
    assert "and 194 more" in printed.err
    confused = printed.out.partition("confusion matrix")[2]
    assert ["tool_000", "tool_001", "1"] in [line.split() for line in confused.splitlines()]
    assert max(map(len, (printed.out + printed.err).splitlines())) < 300
