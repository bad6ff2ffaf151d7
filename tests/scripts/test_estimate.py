"""monitor_gpu.py estimate as a user runs it; no machine needs a GPU for it."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.fixtures.imports import heavy_among, modules_imported
from tests.fixtures.nvidia_driver import EMPTY_DATA
from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import load_config

BRIEF = ("--model-size", "7.0", "--quantization", "4bit", "--lora-r", "8", "--batch-size", "1", "--seq-length", "2048")


def test_the_briefs_estimate(script_without_driver):
    result = script_without_driver.run("estimate", *BRIEF)
    assert result.returncode == 0
    assert "needed on the card" in result.stdout
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    shown = readme.partition("term                      GiB\n")[2].partition("```")[0].splitlines()
    assert len(shown) > 5
    assert set(shown) - {"..."} <= set(result.stdout.splitlines())
    record = json.loads(script_without_driver.run("estimate", *BRIEF, "--json").stdout)
    assert 5.5 < record["total_gib"] < 8
    assert record["spec"]["tokens"] == 2048
    assert "H200" in record["calibrated_on"]


def test_an_estimate_is_quick(script_without_driver):
    command, environment = ("monitor_gpu.py", "estimate", *BRIEF), script_without_driver.environment
    modules = modules_imported(*command, folder=REPOSITORY, environment=environment)
    assert heavy_among(modules) <= {"pynvml"}  # the driver
    assert len(modules) < 500  # 357 today
    assert script_without_driver.times_help("estimate", *BRIEF) < 3  # 1.5 today


def test_an_estimate_that_does_not_fit_exits_with_3_and_writes_a_config_that_does(script_without_driver, tmp_path):
    wanted = tmp_path / "config.6gb.yaml"
    arguments = ["estimate", *EMPTY_DATA, "--batch-size", "64", "--vram", "6"]
    assert script_without_driver.run(*arguments).returncode == 3
    assert script_without_driver.run(*arguments, "--write", str(wanted)).returncode == 0
    assert yaml.safe_load(wanted.read_text())["training"]["per_device_train_batch_size"] < 64
    again = script_without_driver.run("estimate", *EMPTY_DATA, "--config", str(wanted), "--vram", "6")
    assert again.returncode == 0
    assert "fits 6 GiB" in again.stdout
    refused = script_without_driver.run(*arguments, "--write", str(wanted))
    assert refused.returncode == 2
    assert "is there already" in refused.stderr


def test_the_config_that_is_written_is_the_one_that_was_estimated(script_without_driver, tmp_path):
    wanted = tmp_path / "config.9gb.yaml"
    changes = ["lora.r=64", "lora.target_modules=[q_proj, v_proj]", "tools.0.description=Other words", "lora.alpha=2e1"]
    arguments = ["estimate", *EMPTY_DATA, "--model", "mistralai/Mistral-7B-v0.3", "--quantization", "8bit"]
    arguments += [word for change in changes for word in ("--set", change)]
    assert script_without_driver.run(*arguments, "--vram", "9.5", "--write", str(wanted)).returncode == 0
    edits = json.loads(script_without_driver.run(*arguments, "--vram", "9.5", "--json").stdout)["edits"]
    assert edits
    overrides = [change for change in arguments[2::2] if "=" in change]
    expected = load_config(
        REPOSITORY / "config.yaml",
        ["dataset.dir=/nonexistent", *overrides, "model.name=mistralai/Mistral-7B-v0.3"]
        + [f"{key}={json.dumps(value)}" for key, value in {"quantization.load_in_4bit": False, **edits}.items()],
    )
    assert load_config(wanted) == expected
    assert yaml.safe_load(wanted.read_text())["lora"] == {
        "r": 64,
        "alpha": 20.0,
        "target_modules": ["q_proj", "v_proj"],
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model-size", "3"], "--model-size"),
        (["--model", "tinyllama-1.1b"], "name its folder or its Hugging Face id"),
        (["--table"], "name one: --vram 10"),
    ],
)
def test_what_no_config_says_is_not_written(script_without_driver, tmp_path, arguments, words):
    wanted = tmp_path / "config.yaml"
    result = script_without_driver.run("estimate", *EMPTY_DATA, "--vram", "9.5", "--write", str(wanted), *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert not wanted.exists()


def test_without_vram_the_card_that_is_there_is_fitted(script):
    result = script.run("estimate", *EMPTY_DATA)
    assert "fits 12 GiB" in result.stdout
    assert "time on NVIDIA GeForce RTX 4070 Ti" in result.stdout


def test_check_and_estimate_judge_the_slice_that_is_named(script, stub):
    slices = {1001: ("MIG-aaaa", 20000), 1002: ("MIG-bbbb", 9856)}
    stub.add("mig 1 1", *(f"uuid {i} {name}\ntotal {i} {mib}\nused {i} 0" for i, (name, mib) in slices.items()))
    script.environment = {**script.environment, "CUDA_VISIBLE_DEVICES": "MIG-bbbb"}
    assert "GiB are free on slice MIG-bbbb" in script.run("check", *EMPTY_DATA).stdout
    assert "fits 9.62 GiB" in script.run("estimate", *EMPTY_DATA).stdout


def test_no_gpu_is_fitted_where_cuda_may_see_none(script):
    script.environment = {**script.environment, "CUDA_VISIBLE_DEVICES": "7"}
    assert "CUDA_VISIBLE_DEVICES=7 names no GPU" in script.run("check", *EMPTY_DATA).stdout
    result = script.run("estimate", *EMPTY_DATA)
    assert "CUDA_VISIBLE_DEVICES=7 names no GPU" in result.stderr
    assert "fits" not in result.stdout


def test_the_estimate_obeys_the_memory_budget_of_the_config(script_without_driver):
    arguments = ["estimate", *EMPTY_DATA, "--vram", "24", "--json", "--set"]
    limited = json.loads(script_without_driver.run(*arguments, "training.memory_budget_gib=8").stdout)
    assert limited["plan"]["budget_from"] == "training.memory_budget_gib: 8"
    assert limited["total_gib"] <= 8
    planned, as_it_is = (
        json.loads(script_without_driver.run(*arguments, f"training.memory_budget_gib={setting}").stdout)["spec"]
        for setting in ("auto", "null")
    )
    assert (as_it_is["checkpointing"], as_it_is["kept_layers"], as_it_is["cached_layers"]) == (True, 0, 0)
    assert planned["cached_layers"] > 0


def test_the_table_of_the_howto_is_what_the_script_prints(script_without_driver):
    result = script_without_driver.run("estimate", "--table", *EMPTY_DATA)
    table, cards = (part.splitlines() for part in result.stdout.split("\n\n"))
    assert [line.split()[1] for line in table[2:]] == ["6", "8", "10", "12", "16", "24", "40", "80"]
    howto = (REPOSITORY / "docs" / "HOWTO.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in howto if line in table] == table
    page = (REPOSITORY / "docs" / "benchmarks" / "gpu.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in page if line in cards] == cards
    assert [line.split(",")[0] for line in cards if "float16 | transformers'" in line] == ["| T4"]


def test_a_card_without_bfloat16_is_estimated_with_transformers_pass(script_without_driver):
    arguments = ["estimate", *EMPTY_DATA, "--vram", "15", "--json", "--card"]
    specs = {card: json.loads(script_without_driver.run(*arguments, card).stdout)["spec"] for card in ("T4", "L4")}
    assert (specs["T4"]["decoder"], specs["L4"]["decoder"]) == ("transformers", "own")


def test_the_traced_step_stands_in_the_json_beside_the_formula_for_the_same_step(script_without_driver):
    arguments = ["estimate", *EMPTY_DATA, "--model", "tinyllama-1.1b", "--vram", "8", "--exact", "--json"]
    exact = json.loads(script_without_driver.run(*arguments).stdout)["exact"]
    assert exact["without"] == ["cached layers"]
    assert exact["gib"] == pytest.approx(exact["formula_gib"], rel=0.02)


def test_evaluation_is_estimated_too(script_without_driver):
    result = script_without_driver.run("estimate", "--evaluation", *EMPTY_DATA)
    assert result.returncode == 0
    assert "keys and values" in result.stdout
    record = json.loads(script_without_driver.run("estimate", "--evaluation", "--json", *EMPTY_DATA).stdout)
    assert record["calibrated_on"].startswith("21 runs on one H200")
    arguments = ["--batch-size", "128", "--seq-length", "308", "--set", "evaluation.max_new_tokens=80"]
    assert "128 x 448 tokens" in script_without_driver.run("estimate", "--evaluation", *arguments, *EMPTY_DATA).stdout


def test_evaluation_is_held_to_a_card(script_without_driver):
    arguments = ["estimate", "--evaluation", *EMPTY_DATA, "--vram", "12"]
    fitting = script_without_driver.run(*arguments)
    assert fitting.returncode == 0
    assert "fits 12 GiB" in fitting.stdout
    record = json.loads(script_without_driver.run(*arguments, "--json").stdout)
    most = record["largest_batch_size"]
    assert record["fits"]
    assert 0 < record["left_gib"] < 12
    assert script_without_driver.run(*arguments, "--batch-size", str(most)).returncode == 0
    one_more = script_without_driver.run(*arguments, "--batch-size", str(most + 1))
    assert one_more.returncode == 3
    assert f"room for: evaluation.batch_size: {most}" in one_more.stdout
    assert "GiB too much" in one_more.stdout
    none = script_without_driver.run(*arguments, "--vram", "3")
    assert none.returncode == 3
    assert "no evaluation.batch_size fits" in none.stdout


def test_evaluation_is_estimated_for_the_model_that_is_named(script_without_driver):
    arguments = ["estimate", "--evaluation", "--json", *EMPTY_DATA]
    models = ([], ["--model", "mistral-nemo"], ["--model-size", "3"])
    small, large, scaled = (
        json.loads(script_without_driver.run(*arguments, *model).stdout)["spec"]["architecture"]["name"]
        for model in models
    )
    assert (small, large, scaled) == ("Mistral-7B v0.2", "Mistral-Nemo-12B", "Mistral-7B scaled to 3B")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--write", "config.10gb.yaml"], "there is no GPU here to fit"),
        (["--evaluation", "--exact"], "are about training"),
        (["--evaluation", "--card", "RTX 4070 Ti"], "are about training"),
        (["--model", "someone/unheard-of"], "no built-in preset"),
        (["--lora-r", "1000"], "lora.r"),
        (["--model-size", "-7"], "not above 0"),
        (["--config", "missing.yaml"], "not found"),
    ],
)
def test_a_mistake_in_an_estimate_is_one_message(script_without_driver, arguments, words):
    result = script_without_driver.run("estimate", *arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", ["check", "monitor", "plot", "estimate"])
def test_help_answers_at_once(command):
    modules = modules_imported("monitor_gpu.py", command, "--help", folder=REPOSITORY)
    assert not heavy_among(modules)
    assert len(modules) < 450  # 294 today
