"""The training step for a model without data, so that its memory can be traced before anything is downloaded.

It is the trainer's own micro-step; only what a run sets up around it (devices, folders, callbacks) is left out.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Protocol

from tool_aware.config import Config
from tool_aware.prompt import EncodedExample
from tool_aware.training.adapter import new_adapter, prepare_for_training

if TYPE_CHECKING:
    from peft import PeftModel
    from torch.optim import Optimizer
    from transformers import PreTrainedModel


class StepShape(Protocol):
    """What a step's memory depends on besides the config; lengths in tokens."""

    batch_size: int
    seq_length: int
    prefix_tokens: int
    answer_tokens: int
    label_tokens: int
    accumulation: int
    optimizer: str


class DryStep:
    """Prepares a model without data and runs optimizer steps on it, as `tool_aware.gpu.dry_run` wants it."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def prepare(self, base: PreTrainedModel, shape: StepShape) -> PeftModel:
        """Put the adapter on a base model without data."""
        optimization = self._config.optimization.model_copy(update={"optim": shape.optimizer})
        self._config = self._config.model_copy(update={"optimization": optimization})
        model = new_adapter(base, self._config)
        prepare_for_training(model, self._config)
        return model.train()

    def optimizer(self, model: PeftModel, shape: StepShape) -> Optimizer:
        """Make the configured optimizer."""
        from tool_aware.training.optimizer import build_optimizer

        self._optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], self._config)
        return self._optimizer

    def backward(self, model: PeftModel, shape: StepShape) -> None:
        """Run the micro-steps of one optimizer step over examples of the shape's lengths."""
        import torch

        from tool_aware.training.decoder import PackedDecoder
        from tool_aware.training.trainer import PackedTrainer

        # Trainer's own set-up opens devices and folders; a micro-step needs these attributes only.
        trainer = PackedTrainer.__new__(PackedTrainer)
        trainer.model, trainer.config, trainer.examples = model, self._config, examples_of(shape)
        trainer.micro_batch_limit = shape.batch_size
        trainer.optimizer = self._optimizer
        trainer._decoder, trainer._packed_ahead = PackedDecoder.of(model, self._config), None
        trainer.micro_batches = SimpleNamespace(upcoming=list)
        trainer.args = SimpleNamespace(device=torch.device("cpu"), world_size=1)
        trainer.accelerator = SimpleNamespace(backward=torch.Tensor.backward)
        trainer.throughput = SimpleNamespace(add=lambda *_: None)
        labels = torch.tensor(shape.label_tokens * shape.accumulation)
        for _ in range(shape.accumulation):
            trainer.training_step(model, list(range(shape.batch_size)), labels)


def examples_of(shape: StepShape) -> list[EncodedExample]:
    """Examples of the shape's lengths; ids do not matter but that the prefix is shared and what follows it is not."""
    answer = min(shape.answer_tokens, shape.seq_length - shape.prefix_tokens - 1)
    query = shape.seq_length - shape.prefix_tokens - answer
    return [
        EncodedExample([1] * shape.prefix_tokens + [2 + number] * query, [1] * answer)
        for number in range(shape.batch_size)
    ]
