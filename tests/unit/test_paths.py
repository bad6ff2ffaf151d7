"""The name of each file that a stage writes stands in tool_aware/paths.py and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.fixtures.repository import REPOSITORY
from tool_aware import paths

NAMES = {
    value: key
    for key, value in vars(paths).items()
    if key.endswith(("_NAME", "_FOLDER", "_PREFIX")) and value != paths.TENSORBOARD_FOLDER  # "runs" is a word too
} | {paths.split_name(split): "split_name" for split in ("train", "val", "test")}
SCRIPTS = ("prepare_dataset.py", "train_tool_aware.py", "evaluate.py", "monitor_gpu.py")


def copies_in(source: str) -> list[str]:
    """List the names that a module writes as a literal of its own; text around a name is no copy."""
    nodes = ast.walk(ast.parse(source))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and node.value in NAMES]


def test_no_module_spells_a_file_name_of_its_own():
    modules = [*(REPOSITORY / "tool_aware").rglob("*.py"), *(REPOSITORY / script for script in SCRIPTS)]
    own = Path(paths.__file__)
    found = {str(path): names for path in modules if path != own and (names := copies_in(path.read_text()))}
    assert not found


def test_a_copy_is_noticed():
    assert copies_in('log = folder / "metrics.jsonl"') == ["metrics.jsonl"]
    assert not copies_in('say("see metrics.jsonl for the figures")')
