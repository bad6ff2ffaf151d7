"""The optimizer steps of a run, and the rows and the learning rate of each. No torch: a plan is quick."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tool_aware.config.sections import TrainingSection
from tool_aware.config.settings import Config


@dataclass(frozen=True)
class Schedule:
    """Examples and optimizer steps of a run."""

    examples: int
    effective_batch: int
    steps_per_epoch: int
    steps: int

    @classmethod
    def of(cls, config: Config, examples: int, processes: int = 1) -> Schedule:
        """Return the steps of `config.training` over `examples` rows on `processes` GPUs."""
        training = config.training
        effective = training.effective_batch * processes
        per_epoch = math.ceil(examples / effective)
        steps = training.max_steps or math.ceil(training.num_train_epochs * per_epoch)
        return cls(examples, effective, per_epoch, steps)


def learning_rate_at(step: int, training: TrainingSection, schedule: Schedule) -> float:
    """Return the learning rate of the step after `step` others; the curves are those of transformers' get_scheduler.

    Warm-up rises linearly from 0 over `warmup_ratio` of the steps, rounded down: a run of one step would learn nothing.
    """
    kind, warmup = training.lr_scheduler_type, int(training.warmup_ratio * schedule.steps)
    if kind == "constant":
        return training.learning_rate
    if step < warmup:
        return training.learning_rate * (step / warmup)
    if kind == "constant_with_warmup":
        return training.learning_rate
    left = max(1, schedule.steps - warmup)
    if kind == "linear":
        return training.learning_rate * max(0.0, (schedule.steps - step) / left)
    return training.learning_rate * max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / left))))


class MicroBatches:
    """The micro-batches of one process, `size` rows each, `accumulation` of them an optimizer step.

    The order depends on (seed, epoch) alone, so a resumed run continues where it was. An effective batch is the same
    rows on any number of processes; at the end of an epoch there may be fewer rows than processes, and some have none.
    With `lengths` of the examples, in tokens, processes get nearly equal work, as a step lasts as long as its slowest.
    """

    def __init__(
        self,
        examples: int,
        size: int,
        seed: int,
        *,
        accumulation: int = 1,
        rank: int = 0,
        processes: int = 1,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.examples, self.size, self.seed, self.accumulation = examples, size, seed, accumulation
        self.rank, self.processes = rank, processes
        self._lengths = lengths or [0] * examples
        self._epoch_order = lru_cache(maxsize=2)(self._shuffled)  # the present epoch and the next one's first rows

    @classmethod
    def of(cls, config: Config, lengths: Sequence[int], rank: int = 0, processes: int = 1) -> MicroBatches:
        """Return the micro-batches of `config.training` over examples of these lengths in tokens."""
        training = config.training
        return cls(
            len(lengths),
            training.per_device_train_batch_size,
            training.seed,
            accumulation=training.gradient_accumulation_steps,
            rank=rank,
            processes=processes,
            lengths=lengths,
        )

    @property
    def of_epoch(self) -> int:
        """Return the number of micro-batches of an epoch; the last one may be smaller."""
        return math.ceil(self.examples / (self.size * self.processes))

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps of an epoch; the last one may have fewer micro-batches."""
        return math.ceil(self.of_epoch / self.accumulation)

    def of_step(self, step: int) -> list[list[int]]:
        """Return the row numbers of the micro-batches of the optimizer step that comes after `step` others."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        first = step_of_epoch * self.accumulation
        return [self._rows(epoch, number) for number in range(first, min(first + self.accumulation, self.of_epoch))]

    def epochs_at(self, step: int) -> float:
        """Return how many epochs are done after `step` steps."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return epoch + step_of_epoch * self.accumulation / self.of_epoch

    def _rows(self, epoch: int, number: int) -> list[int]:
        start = number * self.size * self.processes
        rows = self._epoch_order(epoch)[start : start + self.size * self.processes]
        return rows if self.processes == 1 else self._share(rows)

    def _share(self, rows: list[int]) -> list[int]:
        """Return the rows of this process: longest first, dealt out forwards and backwards in turn."""
        dealt = [*range(self.processes), *reversed(range(self.processes))]
        longest_first = sorted(rows, key=lambda row: -self._lengths[row])
        return [row for place, row in enumerate(longest_first) if dealt[place % len(dealt)] == self.rank]

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(self.examples))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order
