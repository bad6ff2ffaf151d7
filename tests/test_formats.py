"""docs/FORMATS.md leaves nothing out that the stages write, and its examples are true."""

from __future__ import annotations

import dataclasses
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fixtures.repository import REPOSITORY
from tool_aware import paths
from tool_aware.chat_format import encode_example
from tool_aware.config.data_sections import ToolSection
from tool_aware.config.environment import Environment
from tool_aware.config.settings import load_config
from tool_aware.evaluation.scoring.breakdown import Confusion, Part
from tool_aware.evaluation.scoring.calibration import Bin, Calibration, CostPolicy, Threshold
from tool_aware.evaluation.scoring.earlier_turns import EarlierTurns
from tool_aware.evaluation.scoring.judgement import ERRORS, Judgement, ParameterMatch, Prediction
from tool_aware.evaluation.scoring.metrics import Metrics, ParameterMetrics, ToolMetrics
from tool_aware.evaluation.scoring.reasoning import ReasoningFigures
from tool_aware.evaluation.scoring.robustness import OnList, Shift
from tool_aware.evaluation.scoring.significance import Comparison, PairedTest
from tool_aware.evaluation.scoring.two_requests import TwoRequests
from tool_aware.gpu.readings import GpuReading
from tool_aware.manifest import write_manifest
from tool_aware.monitor.recording import open_recorder
from tool_aware.monitor.sampling import Sample, Statistics, TrainingProgress
from tool_aware.prompt import parse_response, render_template
from tool_aware.rows import SPLITS, load_rows

PAGE = (REPOSITORY / "docs" / "FORMATS.md").read_text(encoding="utf-8")
_HEADINGS = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
SECTIONS = dict(zip(_HEADINGS[1::2], _HEADINGS[2::2], strict=True))

DESCRIBED = (
    Metrics,
    ToolMetrics,
    ParameterMetrics,
    Judgement,
    ParameterMatch,
    Comparison,
    PairedTest,
    Calibration,
    Bin,
    Shift,
    OnList,
    EarlierTurns,
    TwoRequests,
    ReasoningFigures,
    Part,
    Confusion,
)


@pytest.mark.parametrize("kind", DESCRIBED, ids=lambda kind: kind.__name__)
def test_every_figure_of_the_evaluation_is_described(kind):
    named = set(re.findall(r"`(\w+)`", SECTIONS["Stage 3: evaluation_results"]))
    assert {field.name for field in dataclasses.fields(kind)} <= named


def test_every_field_of_a_stored_answer_is_shown():
    text = SECTIONS["Stage 3: evaluation_results"]
    assert all(f'"{field.name}"' in text for field in dataclasses.fields(Prediction))
    assert all(f"`{error}`" in text for error in ERRORS)


def test_every_key_of_a_manifest_is_described(tmp_path):
    manifest = write_manifest(tmp_path, stage="test", config={}, seed=1, started_s=0.0)
    described = set(re.findall(r"`(\w+)`", SECTIONS["Manifests"]))
    assert set(manifest) <= described


def test_every_metadata_key_that_synthesis_writes_is_described(config):
    from tool_aware.dataset.assembly import make_generator
    from tool_aware.dataset.synthesis.content import load_content

    generator = make_generator(config, config.toolbox, load_content())
    rows = [*generator.rows_for("web_search", 40), *generator.ambiguous_rows(5)]
    table = SECTIONS["Stage 1: data"]
    described = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert {key for row in rows for key in row.metadata} <= described


def test_every_file_of_the_dataset_stage_is_described(toy_rows, config):
    from tool_aware.dataset.assembly import Collected
    from tool_aware.dataset.outputs import Result, render
    from tool_aware.dataset.splitting import Split

    collected = Collected([], to_label=[{"query": "?"}])
    split = Split({"train": toy_rows[:8], "val": toy_rows[8:12], "test": toy_rows[12:16]})
    files = render(Result(split, seed=1, collected=collected), config.toolbox, None)
    text = SECTIONS["Stage 1: data"]
    assert not {name for name in files if f"`{name}`" not in text}
    report = next(value for value in examples_in("Stage 1: data") if "held_out" in value)
    assert set(report) == set(json.loads(files["split_report.json"]))
    sample = next(value for value in examples_in("Stage 1: data") if "loss_runs" in value)
    assert set(sample) == set(json.loads(files["sample_raw.json"])[0])


def test_every_file_of_the_evaluation_stage_is_described(tmp_path, toy_rows, config):
    from tool_aware.evaluation.answering.tasks import Plan, plan_tasks
    from tool_aware.evaluation.held_out import TestSet
    from tool_aware.evaluation.report.output import write_results
    from tool_aware.evaluation.results import assemble

    rows = dict(enumerate(toy_rows[:8]))
    answers = [Prediction(index, row.response) for index, row in rows.items()]
    tasks = plan_tasks(Plan(constrained=False, choices=False), rows, {}, config.toolbox, [])
    results = assemble(config, rows, {}, {"base": answers, "finetuned": answers}, tasks, baselines=dict)
    test = TestSet(tmp_path / "test.json", "0" * 64, rows, len(rows), [], {}, None)
    test.path.write_text("[]")
    outputs = write_results(tmp_path, results, config, test, started_s=0.0)
    text = SECTIONS["Stage 3: evaluation_results"]
    assert not {path.name for path in outputs if f"`{path.name}`" not in text}
    described = set(re.findall(r"^\| `(\w+)` \|", text.partition("**`comparison.json`**")[2], re.MULTILINE))
    assert set(json.loads((tmp_path / "comparison.json").read_text())) == described


def test_every_file_of_the_training_stage_is_described():
    text = SECTIONS["Stage 2: output"]
    files = (
        paths.PROMPT_TEMPLATE_NAME,
        paths.CHECKPOINT_MANIFEST_NAME,
        paths.VALIDATIONS_NAME,
        paths.BEST_ADAPTER_NAME,
        paths.METRICS_NAME,
        paths.CURVES_NAME,
        paths.CARD_NAME,
        paths.THRESHOLDS_NAME,
        paths.PROBE_NAME,
    )
    folders = (paths.ADAPTER_FOLDER, paths.FINAL_MODEL_FOLDER, paths.TENSORBOARD_FOLDER)
    assert all(f"`{name}`" in text for name in files)
    assert all(f"`{name}/`" in text for name in folders)


def test_every_figure_of_a_logged_step_is_shown():
    from tool_aware.training.run.tracking import Throughput, step_line, validation_line

    step, validation = (value for value in examples_in("Stage 2: output") if "steps" in value)
    assert set(Throughput().lap(1, 2)) <= set(step)
    assert step_line(step).startswith("step 10/714  loss 0.8720")
    assert validation_line(validation).endswith("63.2% of 117 rows")


def test_every_field_of_the_thresholds_is_shown():
    shown = next(value for value in examples_in("Stage 2: output") if "how_to_apply" in value)
    assert {field.name for field in dataclasses.fields(Threshold)} == set(shown["threshold"])
    assert {field.name for field in dataclasses.fields(CostPolicy)} <= set(shown["costs"])


def test_every_field_of_the_monitors_logs_is_shown(tmp_path):
    gpu = GpuReading(0, "a card", used_bytes=2**30, throttled_by="heat", problem="lost")
    sample = Sample(0.0, datetime.now(UTC), [gpu], TrainingProgress(1, 2, loss=0.5))
    section = SECTIONS["Any time: the monitor's logs"]
    (shown,) = examples_in("Any time: the monitor's logs")
    for name in ("log.json", "log.csv"):
        statistics = Statistics()
        statistics.add(sample)
        recorder = open_recorder(tmp_path / name, 1.0, [gpu], statistics)
        recorder.take(sample)
        recorder.close()
    written = json.loads((tmp_path / "log.json").read_text())
    assert set(written) == set(shown)
    assert set(written["summary"]["gpus"]["0"]) == set(shown["summary"]["gpus"]["0"])
    assert set(written["samples"][0]["gpus"][0]) - {"problem"} == set(shown["samples"][0]["gpus"][0])
    assert written["samples"][0].keys() == shown["samples"][0].keys()
    assert (tmp_path / "log.csv").read_text().splitlines()[0] in section


def test_every_variable_of_the_environment_is_listed():
    listed = set(re.findall(r"`(\w+)`", PAGE))
    assert {name.upper() for name in Environment.__dataclass_fields__} <= listed


def test_every_key_of_the_origin_of_answers_is_shown(config, tmp_path):
    from tool_aware.evaluation.answering.tasks import Task, origin_of
    from tool_aware.evaluation.held_out import TestSet

    task = Task("base_choice", False, "choice", {}, config.toolbox, {})
    test = TestSet(tmp_path / "test.json", "0" * 64, {}, 0, [], {}, None)
    shown = next(value for value in examples_in("Stage 3: evaluation_results") if "origin" in value)
    assert shown["origin"].keys() == origin_of(task, test, config, model="a", adapter=None).keys()


# ---- examples are true ------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def examples_in(section: str) -> list[Any]:
    """The JSON examples of a section."""
    text = SECTIONS[section]
    return [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)]


def test_the_examples_are_of_a_run_of_the_demo_as_it_is_now():
    from tool_aware.training.schedule import Schedule

    demo = load_config(REPOSITORY / "config.demo.yaml")
    manifest = next(value for value in examples_in("Manifests") if "stage" in value)
    checkpoint = next(value for value in examples_in("Stage 2: output") if "run" in value)
    report = next(value for value in examples_in("Stage 1: data") if "rows_by_slice" in value)
    step, validation = (value for value in examples_in("Stage 2: output") if "steps" in value)
    rows = {name: sum(part[name] for part in report["rows_by_slice"].values()) for name in SPLITS}
    assert manifest["counts"] == {"train": rows["train"], "val": rows["val"]}
    assert set(map(Path, manifest["inputs"])) == {demo.dataset.dir / f"{name}.json" for name in ("train", "val")}
    steps = Schedule.of(demo, rows["train"]).steps
    assert {steps} == {manifest["steps"], step["steps"], validation["steps"]}
    assert validation["val_examples"] == rows["val"]
    assert checkpoint["run"]["lora.r"] == demo.lora.r
    metrics = next(value for value in examples_in("Stage 3: evaluation_results") if "confusion" in value)
    assert metrics["rows"] == rows["test"] == sum(map(sum, metrics["confusion"]))


def test_all_json_examples_are_json():
    assert all(examples_in(section) for section in SECTIONS if "```json" in SECTIONS[section])


def test_the_prompt_shown_is_the_prompt_trained_on(config):
    shown = blocks("text")
    assert shown[0] == render_template(config.toolbox) + "\n"
    call = parse_response(next(text for text in shown if text.startswith("Tool: "))).call
    assert call is not None
    assert not config.toolbox.problems(call)


def test_the_token_ids_shown_are_those_of_the_tokenizer(tokenizer):
    shown = next(text for text in blocks("text") if text.startswith("prompt "))
    prompt, completion = ([int(word) for word in line.split()[1:]] for line in shown.splitlines())
    example = encode_example(tokenizer, "hi", "Tool: web_search")
    assert (prompt, completion) == (example.prompt, example.completion)


@pytest.mark.parametrize("section", ["Stage 1: data", "Your own data"])
def test_the_rows_shown_can_be_loaded(section, tmp_path, config):
    rows = next(value for value in examples_in(section) if isinstance(value, list))
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows))
    assert len(load_rows(path, config.toolbox).rows) == len(rows)


def test_the_messages_shown_can_be_imported(tmp_path, config):
    from tool_aware.dataset.importing import import_file

    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps(next(value for value in examples_in("Your own data") if "messages" in value)))
    imported = import_file(path, config.toolbox)
    assert [row.tool for row in imported.rows] == ["book_table"]


def test_the_tool_shown_is_a_valid_entry_of_the_config():
    shown = blocks("yaml")[0]
    tools = [ToolSection.model_validate(entry) for entry in yaml.safe_load(shown)]
    assert [len(tool.examples) for tool in tools] == [2]
