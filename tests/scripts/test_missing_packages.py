"""A package that is not installed is an error with the pip line, in every script; a missing module of ours is a bug."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.repository import REPOSITORY
from tests.test_requirements import BROUGHT_ALONG, imported_packages, lines_of, name_of
from tool_aware.console import distribution_of

# Run by the interpreter at its start: the packages look as if pip had never installed them.
HIDER = """
import os
from importlib.machinery import PathFinder

hidden, find = os.environ["HIDDEN_PACKAGES"].split(","), PathFinder.find_spec


def find_spec(name, path=None, target=None):
    return None if name in hidden else find(name, path, target)


PathFinder.find_spec = find_spec
"""
COMMANDS = {
    "prepare_dataset.py": ["--dry-run"],
    "train_tool_aware.py": ["--dry-run"],
    "evaluate.py": ["--dry-run"],
    "monitor_gpu.py": ["check"],
}


def run_without(package: str, folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(HIDER)
    environment = {**os.environ, "HIDDEN_PACKAGES": package, "PYTHONPATH": f"{folder}:{REPOSITORY}", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("package", ["pydantic", "yaml", "jsonschema"])  # imported with the script, and later
@pytest.mark.parametrize("script", COMMANDS)
def test_a_missing_package_is_named_with_its_pip_line(script, package, tmp_path):
    result = run_without(package, tmp_path, [script, *COMMANDS[script]])
    name = distribution_of(package)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {name} is not installed for {sys.executable}\n")
    assert f"fix: {sys.executable} -m pip install {name}" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_check_without_nvml_names_its_package(tmp_path):
    result = run_without("pynvml", tmp_path, ["monitor_gpu.py", "check"])
    assert result.returncode == 2
    assert "pip install nvidia-ml-py" in result.stderr
    assert "bug" not in result.stderr


def test_the_exact_estimate_without_torch_names_it(tmp_path):
    command = ["monitor_gpu.py", "estimate", "--exact", "--model-size", "7", "--seq-length", "64"]
    result = run_without("torch", tmp_path, command)
    assert result.returncode == 2
    assert "pip install torch" in result.stderr


def test_a_module_that_an_installed_package_lacks_asks_for_another_version(tmp_path):
    result = run_program("import yaml.nowhere", tmp_path)
    assert result.returncode == 2
    assert "error: the installed PyYAML has no yaml.nowhere: another version is needed" in result.stderr


@pytest.mark.parametrize("statement", ["import tool_aware.nowhere", "raise ModuleNotFoundError('without a name')"])
def test_a_missing_module_of_this_toolkit_is_a_bug(statement, tmp_path):
    result = run_program(statement, tmp_path)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert "this is a bug" in result.stderr


def test_a_bug_is_reported_with_versions_and_what_to_send(tmp_path):
    result = run_program("1 / 0", tmp_path)
    assert result.returncode == 1
    for part in ("ZeroDivisionError", "tool-aware-finetuning 1.", "Python 3.", "torch 2.", "transformers ", "open an"):
        assert part in result.stderr
    assert "`python monitor_gpu.py check`" in result.stderr


def run_program(statement: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program = f"from tool_aware.console import run\ndef main():\n    {statement}\nrun(main)"
    return run_without("", folder, ["-c", program])


def test_every_package_of_the_requirements_is_found_by_its_pip_name():
    required = set(map(name_of, lines_of("requirements.txt")))
    assert {name_of(distribution_of(package)) for package in imported_packages() - BROUGHT_ALONG} <= required
