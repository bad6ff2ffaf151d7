"""Loads what fillers are drawn from, content/pools.yaml: words, sentences, and how languages write numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

POOLS_FILE = Path(__file__).parent / "content" / "pools.yaml"


@cache
def pools() -> Mapping[str, Any]:
    """Return the content of pools.yaml."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(POOLS_FILE.read_text(encoding="utf-8"), Loader=loader)  # safe loaders only: plain values
