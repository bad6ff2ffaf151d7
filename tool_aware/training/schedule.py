"""How many steps a run takes. Without torch, so that a plan is quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tool_aware.config import Config


@dataclass(frozen=True)
class Schedule:
    """Examples and optimizer steps of a run."""

    examples: int
    effective_batch: int
    steps_per_epoch: int
    steps: int

    @classmethod
    def of(cls, config: Config, examples: int, processes: int = 1) -> Schedule:
        """Work out the steps of `config.training` over `examples` rows on `processes` GPUs."""
        training = config.training
        effective = training.per_device_train_batch_size * training.gradient_accumulation_steps * processes
        per_epoch = math.ceil(examples / effective)
        steps = training.max_steps or math.ceil(training.num_train_epochs * per_epoch)
        return cls(examples, effective, per_epoch, steps)
