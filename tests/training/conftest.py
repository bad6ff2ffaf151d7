"""What tests of the training room share: the real trainer on a tiny model."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tool_aware.base_model import load_base_model
from tool_aware.config import Environment, load_config
from tool_aware.prompt import encode_example
from tool_aware.training.adapter import new_adapter, prepare_for_training
from tool_aware.training.choice import ToolNames
from tool_aware.training.tracking import Tracker
from tool_aware.training.trainer import PackedTrainer

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def make_trainer(tiny_model_dir, toy_rows, tokenizer, tmp_path):
    """Build a trainer on the tiny NF4 model; keyword arguments are `--set` overrides with `__` for the dot."""
    trackers = []

    def make(**overrides: object) -> PackedTrainer:
        settings = {
            "model.name": tiny_model_dir,
            "training.output_dir": tmp_path / f"output{len(trackers)}",
            "logging.tensorboard": "false",
            "training.learning_rate": "1e-2",
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
        config = load_config(REPOSITORY / "config.yaml", [f"{key}={value}" for key, value in settings.items()])
        model = new_adapter(load_base_model(config.model, config.quantization), config)
        prepare_for_training(model, config)
        examples = [encode_example(tokenizer, row.instruction, row.response) for row in toy_rows]
        tracker = Tracker(config, Environment(), config.training.output_dir)
        trackers.append(tracker)
        names = ToolNames.of(tokenizer, config.toolbox)
        return PackedTrainer(
            model, config, train=examples[:24], val=examples[24:32], tool_names=names, tracker=tracker, run={}
        )

    return make


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 1 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", "--lazy", mount], check=True)  # torch.save may still hold the file it failed at
