"""Loads what fillers are drawn from: words, how languages write numbers (pools.yaml), program steps (steps.yaml)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tool_aware.config.yaml_file import shipped_yaml

POOLS_FILE = Path(__file__).parent / "content" / "pools.yaml"
STEPS_FILE = POOLS_FILE.with_name("steps.yaml")


@cache
def pools() -> Mapping[str, Any]:
    """Return the content of pools.yaml."""
    return _read(POOLS_FILE)


@cache
def steps() -> Mapping[str, Any]:
    """Return the content of steps.yaml: the lines that programs are put together from."""
    return _read(STEPS_FILE)


def _read(path: Path) -> Mapping[str, Any]:
    return shipped_yaml(path)
