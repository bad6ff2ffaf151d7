"""Scoring val.json: loss and tool choice from one forward pass a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tool_aware.prompt import EncodedExample
from tool_aware.training.choice import ToolNames, right_choices
from tool_aware.training.loss import label_losses

if TYPE_CHECKING:
    import torch

    from tool_aware.training.packing import Pack

# For a few examples: their pack, the states that predict its labels (L, H), and the output head (V, H).
AnswerStates = Callable[[Sequence[EncodedExample]], "tuple[Pack, torch.Tensor, torch.Tensor]"]


@dataclass(frozen=True)
class Validation:
    """What one scoring of val.json found; `loss` is the mean over label tokens."""

    loss: float
    tool_accuracy: float
    examples: int

    def as_dict(self) -> dict[str, float]:
        """The figures under the names they have in metrics.jsonl."""
        return {"val_loss": self.loss, "val_tool_accuracy": self.tool_accuracy, "val_examples": self.examples}


def score(
    examples: Sequence[EncodedExample], batch_size: int, answer_states: AnswerStates, names: ToolNames
) -> Validation:
    """Score `examples`, `batch_size` of them in a forward pass."""
    loss, labels, right = 0.0, 0, 0
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        packed, hidden, head_weight = answer_states(batch)
        loss += label_losses(hidden, head_weight, packed.labels).sum().item()
        labels += len(packed.labels)
        right += right_choices([batch[i] for i in packed.order], hidden, head_weight, names)
    return Validation(loss / labels, right / len(examples), len(examples))
