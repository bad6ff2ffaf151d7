"""The rules of docs/ARCHITECTURE.md that a program can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.fixtures.imports import HEAVY, heavy_among, modules_imported
from tests.fixtures.repository import REPOSITORY

SCRIPTS = ("prepare_dataset.py", "train_tool_aware.py", "evaluate.py", "monitor_gpu.py")
STAGES = 4  # rooms of this floor do not import one another
FLOORS = {
    **dict.fromkeys(
        (
            "console",
            "beside",
            "command_line",
            "versions",
            "files",
            "text_files",
            "json_values",
            "database",
            "secret_values",
            "sandbox",
            "sandboxed",
            "streams",
            "stage_times",
            "library_imports",
            "transaction",
            "chat_server",
            "paths",
            "manifest",
            "data_folder",
            "config",
            "units",
            "garbage_collection",
            "host_memory",
        ),
        0,
    ),
    **dict.fromkeys(
        (
            "tools",
            "tool_schema",
            "tool_lines",
            "schema_check",
            "schema_merging",
            "validator",
            "prompt",
            "chat_format",
            "batch_encoding",
            "tokenizer",
            "tool_library",
            "tool_lists",
            "history",
            "keyword_rules",
            "router_settings",
            "text",
            "reasoning_text",
            "rows",
            "lineage",
        ),
        0,
    ),
    **dict.fromkeys(("model", "gpu"), 1),
    **dict.fromkeys(("engine", "inference"), 2),
    "memory": 3,
    **dict.fromkeys(("dataset", "training", "evaluation", "monitor"), STAGES),
    **dict.fromkeys(("routing", "demo"), 5),
}


@cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a module; three tests look at each."""
    return ast.parse(path.read_text())


def imports_of(path: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Yield the dotted names a module imports; only those that run when it is imported, if asked."""
    tree = parsed(path)
    nodes = _statements_run_at_import(tree) if at_import_time else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]


def _statements_run_at_import(tree: ast.Module) -> Iterator[ast.AST]:
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        waiting.extend(ast.iter_child_nodes(node))


MODULES = sorted((REPOSITORY / "tool_aware").rglob("*.py"))


def room_of(path: Path) -> str:
    """`tool_aware/memory/plan.py` -> memory, `tool_aware/console.py` -> console."""
    return path.relative_to(REPOSITORY / "tool_aware").with_suffix("").parts[0]


def test_every_room_stands_on_a_floor():
    rooms = {room_of(path) for path in MODULES} - {"__init__"}
    assert not rooms - FLOORS.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_imports_go_down_the_floors(path):
    room = room_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        assert f"{parts[0]}.py" not in SCRIPTS, f"imports the script {name}"
        if parts[0] != "tool_aware" or len(parts) == 1 or parts[1] == room:
            continue
        assert FLOORS[parts[1]] <= FLOORS[room], f"imports {name}, which is above it"
        assert FLOORS[room] != STAGES or FLOORS[parts[1]] < STAGES, f"imports {name}, another stage"


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_imports_another(script):
    names = {name.split(".")[0] for name in imports_of(REPOSITORY / script)}
    assert not names & {Path(other).stem for other in SCRIPTS}


# Torch code throughout, imported by functions only, after the plan has been printed.
TORCH_AT_IMPORT = ("engine", "training/loop.py", "training/step_outcome.py", "training/validation.py")


@pytest.mark.parametrize("path", [*MODULES, *(REPOSITORY / script for script in SCRIPTS)], ids=lambda path: path.name)
def test_importing_loads_nothing_heavy(path):
    if any(path.is_relative_to(REPOSITORY / "tool_aware" / exempt) for exempt in TORCH_AT_IMPORT):
        pytest.skip("is itself imported inside functions only")
    found = {name.split(".")[0] for name in imports_of(path, at_import_time=True)} & (HEAVY - {"numpy"})
    assert not found


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_at_once(script):
    modules = modules_imported(script, "--help", folder=REPOSITORY)
    assert not heavy_among(modules)
    assert len(modules) < 450  # 260 to 325 today, or 0.2 s; the interpreter alone has 26, torch 1,500


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_contract_of_the_script(script):
    result = subprocess.run(
        [sys.executable, script, "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "Reads" in result.stdout
    assert "Exit" in result.stdout


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_stay_short_enough_to_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 420


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_stay_short_enough_to_read_in_one_sitting(script):
    assert len((REPOSITORY / script).read_text().splitlines()) <= 300


def test_no_module_name_occurs_twice():
    names = Counter(path.name for path in MODULES if path.stem not in ("__init__", "__main__"))
    assert not [name for name, count in names.items() if count > 1]


# First words that say neither what is returned nor what is done.
REFUSED_FIRST_WORDS = {"What", "Whether", "Say", "Tell", "How", "Let", "Give", "Hand", "Have"}


@pytest.mark.parametrize("path", [*MODULES, *(REPOSITORY / script for script in SCRIPTS)], ids=lambda path: path.name)
def test_docstrings_begin_with_what_is_returned_or_done(path):
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    documented = [node for node in ast.walk(parsed(path)) if isinstance(node, kinds)]
    first_lines = [text.splitlines()[0] for node in documented if (text := ast.get_docstring(node))]
    assert not [line for line in first_lines if line.split()[0] in REFUSED_FIRST_WORDS]
