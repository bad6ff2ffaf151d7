"""monitor_gpu.py check as a user runs it, on machines with and without a driver."""

from __future__ import annotations

import json

import pytest

from tests.fixtures.imports import heavy_among, modules_imported
from tests.fixtures.nvidia_driver import EMPTY_DATA
from tests.fixtures.repository import REPOSITORY


def test_check_on_a_machine_without_a_gpu_says_what_is_missing(script_without_driver):
    result = script_without_driver.run("check")
    assert result.returncode == 2
    assert "libnvidia-ml.so.1 is missing" in result.stdout
    assert "not ready" in result.stdout


def test_check_shows_each_gpu_and_answers_in_json(script):
    text = script.run("check", *EMPTY_DATA).stdout
    for words in (
        "NVIDIA GeForce RTX 4070 Ti",
        "12.0 GiB: 5.9 used, 5.8 free",
        "64 C, 98 % busy, 212 of 285 W",
        "999999991",
    ):
        assert words in text
    answer = json.loads(script.run("check", "--json", *EMPTY_DATA).stdout)
    assert {line["name"] for line in answer["lines"]} >= {"driver", "torch", "bitsandbytes", "memory", "disk", "model"}
    assert answer["gpus"][0]["used_bytes"] == 6050 * 2**20


def test_check_is_quick(script):
    command = ("monitor_gpu.py", "check", *EMPTY_DATA)
    modules = modules_imported(*command, folder=REPOSITORY, environment=script.environment, exit_codes=(0, 2))
    assert heavy_among(modules) <= {"pynvml", "psycopg2"}  # the driver, the query log
    assert len(modules) < 500  # 373 today; torch alone brings 1,500
    assert script.times_help("check", *EMPTY_DATA) < 6  # 3.5 today where bytecode is kept, torch would make it 30


def test_check_shows_no_secret(script):
    script.environment = {**script.environment, "HF_TOKEN": "hf_secretsecret", "POSTGRES_PASSWORD": "hunter2hunter2"}
    result = script.run("check", *EMPTY_DATA)
    assert "hf_secret" not in result.stdout + result.stderr
    assert "hunter2" not in result.stdout + result.stderr


def test_check_names_a_model_it_does_not_know_and_goes_on(script):
    result = script.run("check", "--set", "model.name=someone/unheard-of")
    assert result.returncode == 2
    assert "no built-in preset" in result.stdout
    assert "ok       driver" in result.stdout


@pytest.mark.parametrize(
    ("setting", "name", "words"),
    [
        ("lora.target_modules=[foo]", "adapter", "no linear layer 'foo'"),
        ("model.name=someone/unheard-of", "model", "no built-in preset"),
        ("dataset.dir={folder}", "data", "train.json:1: is not JSON"),
    ],
)
def test_what_is_wrong_with_the_config_is_a_line_of_the_json_under_its_own_name(script, tmp_path, setting, name, words):
    (tmp_path / "train.json").write_text("[{")
    result = script.run("check", "--json", *EMPTY_DATA, "--set", setting.format(folder=tmp_path))
    assert result.returncode == 2
    problems = {
        line["name"]: line["finding"] for line in json.loads(result.stdout)["lines"] if line["status"] == "problem"
    }
    assert words in problems.pop(name)
    assert problems.keys() <= {"torch"}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("init -1 18", "different versions"),
        ("init -1 9", "kernel module is not loaded"),
        ("init -1 4", "no permission"),
        ("gpus -1 0", "has no GPU"),
    ],
)
def test_each_broken_driver_has_its_line_and_exit_code_2(script, stub, state, words):
    stub.set(state)
    for command in ("check", "monitor"):
        result = script.run(command)
        assert result.returncode == 2
        assert words in result.stdout + result.stderr
        assert "Traceback" not in result.stderr
