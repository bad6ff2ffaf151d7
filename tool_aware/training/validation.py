"""Scoring val.json: loss and tool choice from one forward pass a row; and the adapter that did best.

Best is the lowest loss among those whose tool accuracy is within one standard error of the highest (the rule of
Breiman et al., Classification and Regression Trees, 1984): a row or two of val.json are chance, and an earlier adapter
that has them writes worse parameters. What has been scored so far, and the best adapter's weights, are part of every
checkpoint: a resumed run continues with what it knew at that step, and old checkpoints can be deleted without losing
the best adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tool_aware.chat_format import EncodedExample
from tool_aware.console import Fallbacks
from tool_aware.engine.loss import label_losses
from tool_aware.files import read_as, write_json
from tool_aware.paths import ADAPTER_WEIGHTS_NAME, BEST_ADAPTER_NAME, VALIDATIONS_NAME
from tool_aware.training.choice import AnswerStates, ToolNames, right_choices
from tool_aware.training.distributed import ALONE, Processes

if TYPE_CHECKING:
    import torch
    from peft import PeftModel


@dataclass(frozen=True)
class Validation:
    """One scoring of val.json after `step` optimizer steps; `loss` is the mean over label tokens."""

    step: int
    loss: float
    tool_accuracy: float
    examples: int

    def as_dict(self) -> dict[str, float]:
        """Return the figures under their names in metrics.jsonl."""
        return {"val_loss": self.loss, "val_tool_accuracy": self.tool_accuracy, "val_examples": self.examples}

    @property
    def least_alike(self) -> float:
        """Return the tool accuracy from which another one is not told from this one: a standard error lower."""
        accuracy, rows = self.tool_accuracy, self.examples
        return accuracy - max(math.sqrt(accuracy * (1 - accuracy) / rows), 1 / rows)


@dataclass(frozen=True)
class StoredValidations:
    """The scorings of a run as a checkpoint holds them; `best` is the step of the best one."""

    best: int | None
    history: list[Validation]


class Validations:
    """All scorings of a run so far, in order, and the weights of the best adapter (a copy on the CPU)."""

    def __init__(self) -> None:
        self.history: list[Validation] = []
        self.best: Validation | None = None
        self.best_weights: dict[str, torch.Tensor] = {}

    def add(self, found: Validation, weights: Callable[[], Mapping[str, torch.Tensor]]) -> None:
        """Add a scoring; `weights` is called if it is the best so far."""
        self.history.append(found)
        if self._is_best(found):
            self.best = found
            self.best_weights = {name: tensor.detach().cpu().clone() for name, tensor in weights().items()}

    def _is_best(self, found: Validation) -> bool:
        least = max(self.history, key=lambda one: one.tool_accuracy).least_alike
        if found.tool_accuracy < least:
            return False
        return self.best is None or self.best.tool_accuracy < least or found.loss < self.best.loss

    @property
    def since_best(self) -> int:
        """Return how many scorings came after the best one."""
        return len(self.history) - 1 - self.history.index(self.best) if self.best else 0

    def save(self, folder: Path, step: int) -> None:
        """Write all of it into the checkpoint of `step`, whose own adapter is not written twice."""
        from safetensors.torch import save_file

        best_step = self.best.step if self.best else None
        write_json(folder / VALIDATIONS_NAME, {"best": best_step, "history": [asdict(found) for found in self.history]})
        if self.best and best_step != step:
            save_file(self.best_weights, folder / BEST_ADAPTER_NAME)

    @classmethod
    def load(cls, folder: Path) -> Validations:
        """Return what `save` wrote; no scorings if the checkpoint has none."""
        from safetensors.torch import load_file

        validations, stored = cls(), read_as(folder / VALIDATIONS_NAME, StoredValidations)
        if stored is None:
            return validations
        validations.history = stored.history
        validations.best = next((found for found in validations.history if found.step == stored.best), None)
        if validations.best:
            own = not (folder / BEST_ADAPTER_NAME).is_file()
            validations.best_weights = load_file(folder / (ADAPTER_WEIGHTS_NAME if own else BEST_ADAPTER_NAME))
        return validations


@dataclass(frozen=True)
class Exported:
    """The adapter that is exported: of which step, why, and its figures on val.json."""

    step: int
    why: str
    validation: Validation | None


def choose_adapter(model: PeftModel, validations: Validations, last_step: int, *, keep_best: bool) -> Exported:
    """Put the best adapter's weights into `model`, which holds the last step's, if they are to be exported."""
    from peft import set_peft_model_state_dict

    history, best = validations.history, validations.best
    last = history[-1] if history and history[-1].step == last_step else None
    if best is None:
        return Exported(last_step, "the last step; val.json was never scored", None)
    if not keep_best:
        return Exported(last_step, "the last step, as training.keep_best is off", last)
    if best.step == last_step:
        return Exported(last_step, f"the last step, the best of {len(history)} scorings of val.json", best)
    set_peft_model_state_dict(model, validations.best_weights)
    latest = history[-1]
    figures = f"tool accuracy {best.tool_accuracy:.1%} and loss {best.loss:.4f}"
    against = f"{latest.tool_accuracy:.1%} and {latest.loss:.4f} at step {latest.step}"
    why = f"the best of {len(history)} scorings of val.json: {figures}, against {against}"
    return Exported(best.step, why, best)


def score(
    examples: Sequence[EncodedExample],
    batch_size: int,
    answer_states: AnswerStates,
    names: ToolNames,
    *,
    step: int,
    processes: Processes = ALONE,
    may_split: bool = True,
    fallbacks: Fallbacks | None = None,
) -> Validation:
    """Score `examples` after `step` steps, `batch_size` of them in a forward pass; fewer if memory runs out.

    Processes share the batches between them, and each takes as many: who is left without one takes the last again. Sums
    are taken in the order of the batches, so that the number of processes changes nothing.
    """
    batches = [examples[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    rounds = -(-len(batches) // processes.count)
    mine = (batches[min(turn * processes.count + processes.rank, len(batches) - 1)] for turn in range(rounds))
    scorer = _Scorer(
        answer_states, names, batch_size, may_split=may_split, fallbacks=Fallbacks() if fallbacks is None else fallbacks
    )
    share = [scorer.score(batch) for batch in mine]
    shares = processes.gather(share)
    scored = [shares[index % processes.count][index // processes.count] for index in range(len(batches))]
    loss, labels, right = (sum(column) for column in zip(*scored, strict=True))
    return Validation(step, loss / labels, right / len(examples), len(examples))


class _Scorer:
    """Scores batches, in parts of at most `limit` examples; the limit is halved when memory runs out."""

    def __init__(
        self, answer_states: AnswerStates, names: ToolNames, limit: int, *, may_split: bool, fallbacks: Fallbacks
    ) -> None:
        self._answer_states, self._names, self._limit = answer_states, names, limit
        self._may_split, self._fallbacks = may_split, fallbacks

    def score(self, batch: Sequence[EncodedExample]) -> tuple[float, int, int]:
        """Return the summed loss, the labels and the right choices of a batch."""
        import torch

        parts = [batch[start : start + self._limit] for start in range(0, len(batch), self._limit)]
        try:
            scored = [_score_batch(part, self._answer_states, self._names) for part in parts]
        except torch.OutOfMemoryError as error:
            out_of_memory = error.with_traceback(None)  # its frames hold the failed attempt's tensors
        else:
            loss, labels, right = (sum(column) for column in zip(*scored, strict=True))
            return loss, labels, right
        if self._limit == 1 or not self._may_split:
            raise out_of_memory
        self._limit = -(-min(self._limit, len(batch)) // 2)
        torch.cuda.empty_cache()
        self._fallbacks.add(f"out of GPU memory: val.json is scored in batches of {self._limit}", from_any_process=True)
        return self.score(batch)


def _score_batch(
    batch: Sequence[EncodedExample], answer_states: AnswerStates, names: ToolNames
) -> tuple[float, int, int]:
    """Return the summed loss, the labels and the right choices of a batch."""
    packed, hidden, head_weight = answer_states(batch)
    loss = label_losses(hidden, head_weight, packed.labels).sum().item()
    return loss, len(packed.labels), right_choices([batch[i] for i in packed.order], hidden, head_weight, names)
