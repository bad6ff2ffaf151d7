"""The configuration that loads the tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tool_aware.config.settings import Config


@pytest.fixture
def tiny_config(config: Config, tiny_model_dir: Path) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"name": str(tiny_model_dir)})})
