"""What evaluate.py refuses: one message, exit code 2, nothing lost."""

import json
import shutil

import pytest

from tests.fixtures.evaluate_script import copy_of, refused
from tool_aware.files import sha256_of
from tool_aware.manifest import write_manifest


def test_an_empty_test_set_is_refused(evaluate, evaluation_data_dir, tmp_path):
    data = copy_of(evaluation_data_dir, tmp_path, test=lambda rows: [])
    refused(evaluate(tmp_path / "r", data_dir=data), "test.json", "must be a non-empty JSON array")


def test_missing_data_names_the_stage_to_run(evaluate, tmp_path):
    refused(evaluate(tmp_path / "r", data_dir=tmp_path), "test.json: not found", "python prepare_dataset.py")


def test_test_rows_found_in_train_are_refused_with_their_numbers(evaluate, evaluation_data_dir, tmp_path):
    train = json.loads((evaluation_data_dir / "train.json").read_text())
    data = copy_of(evaluation_data_dir, tmp_path, test=lambda rows: [rows[0], train[4], *rows[1:]])
    refused(evaluate(tmp_path / "r", data_dir=data), "must not have been trained on", "row 2 is row 5 of train.json")


def test_test_rows_that_the_adapter_was_taught_elsewhere_are_refused(
    evaluate, adapter, evaluation_data_dir, config, tmp_path
):
    shutil.copytree(adapter, tmp_path / "output/lora_adapters")
    shutil.copytree(evaluation_data_dir, tmp_path / "elsewhere")
    shutil.copy(evaluation_data_dir / "test.json", tmp_path / "elsewhere/train.json")
    inputs = {str(tmp_path / "elsewhere/train.json"): sha256_of(tmp_path / "elsewhere/train.json")}
    settings = config.as_dict()
    write_manifest(tmp_path / "output", stage="train", config=settings, seed=1, started_s=0.0, inputs=inputs)
    result = evaluate(tmp_path / "r", "--dry-run", "--adapter", tmp_path / "output/lora_adapters")
    refused(result, "16 of 16 rows are in", "elsewhere/train.json")


def test_a_test_file_whose_tools_are_not_in_the_config_is_refused(evaluate, evaluation_data_dir, tmp_path):
    def rename(rows):
        return [
            {**row, "response": row["response"].replace("web_search", "browse"), "metadata": {"source": "custom"}}
            for row in rows
        ]

    data = copy_of(evaluation_data_dir, tmp_path, test=rename)
    refused(evaluate(tmp_path / "r", data_dir=data), "unknown tool 'browse'", "4 problems")


def test_results_of_another_test_file_are_not_overwritten(finished, evaluate, evaluation_data_dir, tmp_path):
    folder, _ = finished
    before = (folder / "comparison.json").read_bytes()
    data = copy_of(evaluation_data_dir, tmp_path, test=lambda rows: rows[:5])
    refused(evaluate(folder, data_dir=data), "results of another test file", "--overwrite")
    assert (folder / "comparison.json").read_bytes() == before


def test_a_part_of_an_evaluation_does_not_replace_a_whole_one(evaluate, gold_answers, tmp_path):
    gold = ("--predictions", gold_answers)
    for options in (["--limit", 5], ["--limit", 3], [], []):  # parts in any order, then whole ones
        result = evaluate(tmp_path / "r", *gold, *options)
        assert result.returncode == 0, result.stderr
    before = (tmp_path / "r" / "comparison.json").read_bytes()
    for option, words in ((["--choice-only"], "--choice-only"), (["--limit", 5], "--limit 5")):
        result = evaluate(tmp_path / "r", *gold, *option)
        refused(result, f"a whole evaluation, which {words} would replace", "--set evaluation.results_dir=")
    assert (tmp_path / "r" / "comparison.json").read_bytes() == before
    assert evaluate(tmp_path / "r", *gold, "--limit", 16).returncode == 0  # all rows there are
    assert evaluate(tmp_path / "r", *gold, "--limit", 5, "--overwrite").returncode == 0
    assert json.loads((tmp_path / "r" / "manifest.json").read_text())["partial"] == ["--limit 5"]


def test_figures_of_a_base_that_this_run_does_not_know_do_not_stay(finished, evaluate, gold_answers, tmp_path):
    shutil.copytree(finished[0], tmp_path / "r", ignore=shutil.ignore_patterns("predictions"))
    (tmp_path / "r" / "notes.txt").write_text("mine")
    result = evaluate(tmp_path / "r", "--predictions", gold_answers)
    assert result.returncode == 0, result.stderr
    left = {path.name for path in (tmp_path / "r").iterdir()}
    outputs = json.loads((tmp_path / "r" / "manifest.json").read_text())["outputs"]
    assert left == {*outputs, "manifest.json", "notes.txt"}
    assert not any(name.startswith("base_model") for name in left)


def test_a_plan_with_overwrite_deletes_no_answers(finished, evaluate):
    folder, _ = finished
    before = {path: path.read_bytes() for path in (folder / "predictions").iterdir()}
    plan = evaluate(folder, "--overwrite", "--dry-run")
    assert plan.returncode == 0
    assert "known" not in plan.stderr
    assert {path: path.read_bytes() for path in (folder / "predictions").iterdir()} == before


def test_a_missing_adapter_names_the_stage_to_run(evaluate, tmp_path):
    result = evaluate(tmp_path / "r", "--adapter", tmp_path / "nothing")
    refused(result, "no adapter found", "python train_tool_aware.py")


def test_output_dir_names_the_training_whose_adapter_is_evaluated(evaluate, adapter, tmp_path):
    refused(evaluate(tmp_path / "r", "--output_dir", tmp_path), f"{tmp_path}/lora_adapters", "no adapter found")
    shutil.copytree(adapter, tmp_path / "stage2" / "lora_adapters")
    result = evaluate(tmp_path / "r", "--output_dir", tmp_path / "stage2", "--dry-run")
    assert f"fine-tuned  {tmp_path}/stage2/lora_adapters" in result.stderr


def test_an_adapter_of_another_base_is_refused_before_anything_is_loaded(evaluate, adapter, tmp_path):
    other = tmp_path / "adapter"
    other.mkdir()
    (other / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/else"}))
    (other / "adapter_model.safetensors").write_bytes(b"")
    refused(evaluate(tmp_path / "r", "--adapter", other), "was trained on someone/else", "--set model.name=")


def test_data_made_with_other_tools_is_warned_of(evaluate, evaluation_data_dir, tmp_path, config):
    data = copy_of(evaluation_data_dir, tmp_path)
    tools = config.as_dict()["tools"]
    tools[1]["description"] = "Search the archive."
    (data / "manifest.json").write_text(json.dumps({"stage": "prepare_dataset", "config": {"tools": tools}}))
    result = evaluate(tmp_path / "r", "--dry-run", data_dir=data)
    assert result.returncode == 0
    assert (
        "data was made for other tools than the config lists (web_search has another description or schema)"
        in result.stderr
    )


def test_a_folder_that_is_no_merged_model_is_refused(evaluate, adapter, tmp_path):
    refused(evaluate(tmp_path / "r", "--model", tmp_path / "nothing"), "no such folder")
    refused(evaluate(tmp_path / "r", "--model", adapter), "holds an adapter", f"--adapter {adapter}")


@pytest.fixture
def misread_model(tiny_model_dir, tmp_path):
    """A model with a tokenizer that works, but whose spaces llguidance takes for a letter."""
    folder = tmp_path / "misread"
    shutil.copytree(tiny_model_dir, folder, ignore=shutil.ignore_patterns("tokenizer.model"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    mark = {"type": "Replace", "pattern": {"Regex": " "}, "content": "▁"}
    first = {"type": "Prepend", "prepend": "▁"}
    tokenizer |= {"normalizer": {"type": "Sequence", "normalizers": [first, mark]}, "pre_tokenizer": None}
    steps = tokenizer["decoder"]["decoders"]
    tokenizer["decoder"]["decoders"] = [step for step in steps if step["type"] != "Replace"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_a_tokenizer_that_the_grammar_misreads_is_refused_before_the_model_is_loaded(evaluate, misread_model, tmp_path):
    unquantised = ("--set", "quantization.load_in_4bit=false", "--dry-run")
    result = evaluate(tmp_path / "r", "--model", misread_model, *unquantised)
    refused(result, "test.json: row 1", "cannot write its reference answer", "llguidance", "--no-constrained")
    result = evaluate(tmp_path / "r", "--model", misread_model, *unquantised, "--no-constrained")
    assert result.returncode == 0, result.stderr


def test_a_merged_model_is_compared_with_the_bases_answers_of_an_earlier_run(
    evaluate, finished, tiny_model_dir, tmp_path
):
    shutil.copytree(finished[0] / "predictions", tmp_path / "predictions")
    unquantised = ("--set", "quantization.load_in_4bit=false")
    result = evaluate(tmp_path, "--model", tiny_model_dir, *unquantised, "--no-robustness", "--no-constrained")
    assert result.returncode == 0, result.stderr
    assert "COMPARISON" in result.stdout
    assert "base:" not in result.stderr  # nothing was generated for it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min", "acuracy=0.8"], "'acuracy' is not one of accuracy"),
        (["--min", "accuracy=80"], "needs a number from 0 to 1"),
        (["--max-drop", "chat=0.1"], "'chat' is not one of rag_retrieval"),
        (["--endpoint", "http://127.0.0.1:9"], "--endpoint and --served-model go together"),
        (["--limit", "0"], "must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(evaluate, tmp_path, options, words):
    refused(evaluate(tmp_path / "r", *options), words)


def test_a_class_without_rows_is_not_available_and_neither_0_nor_1(evaluate, evaluation_data_dir, tmp_path):
    data = copy_of(
        evaluation_data_dir, tmp_path, test=lambda rows: [r for r in rows if r["metadata"]["tool"] != "web_search"]
    )
    gold = tmp_path / "gold.json"
    gold.write_text(json.dumps([row["response"] for row in json.loads((data / "test.json").read_text())]))
    result = evaluate(tmp_path / "r", "--predictions", gold, "--min", "f1.web_search=0.1", data_dir=data)
    assert result.returncode == 3
    assert "no test rows for web_search: their figures are n/a" in result.stderr
    assert "f1.web_search is n/a" in result.stderr
    metrics = json.loads((tmp_path / "r" / "finetuned_model_metrics.json").read_text())
    assert metrics["per_tool"]["web_search"]["f1"]["value"] is None
    assert metrics["macro_f1"]["value"] == 1


def test_the_plan_is_printed_without_doing_anything(evaluate, tmp_path):
    result = evaluate(tmp_path / "r", "--dry-run")
    assert result.returncode == 0
    assert "16 of 16" in result.stderr
    assert not (tmp_path / "r").exists()
