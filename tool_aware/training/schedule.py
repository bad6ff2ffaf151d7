"""How many steps a run takes, and which rows each of them. Without torch, so that a plan is quick."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

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
        """Work out the steps of `config.training` over `examples` rows on `processes` GPUs."""
        training = config.training
        effective = training.per_device_train_batch_size * training.gradient_accumulation_steps * processes
        per_epoch = math.ceil(examples / effective)
        steps = training.max_steps or math.ceil(training.num_train_epochs * per_epoch)
        return cls(examples, effective, per_epoch, steps)


class MicroBatches:
    """The micro-batches of one epoch on one process, as a dataset: item i is a list of row numbers.

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
        rank: int = 0,
        processes: int = 1,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.examples, self.size, self.seed, self.rank, self.processes = examples, size, seed, rank, processes
        self._lengths = lengths or [0] * examples
        self.epoch = 0
        self._order: tuple[int | None, list[int]] = (None, [])  # an epoch and its order
        self._latest = -1

    def __len__(self) -> int:
        return math.ceil(self.examples / (self.size * self.processes))

    def __getitem__(self, index: int) -> list[int]:
        self._latest = index
        return self._rows(index)

    def upcoming(self) -> list[int]:
        """Return the rows after those that were asked for last; none at the end of an epoch."""
        return self._rows(self._latest + 1)

    def _rows(self, index: int) -> list[int]:
        start = index * self.size * self.processes
        rows = self._epoch_order()[start : start + self.size * self.processes]
        return rows if self.processes == 1 else self._share(rows)

    def _share(self, rows: list[int]) -> list[int]:
        """Deal rows to the processes there and back, the longest first; returns those of this one."""
        dealt = [*range(self.processes), *reversed(range(self.processes))]
        longest_first = sorted(rows, key=lambda row: -self._lengths[row])
        return [row for place, row in enumerate(longest_first) if dealt[place % len(dealt)] == self.rank]

    def _epoch_order(self) -> list[int]:
        if self._order[0] != self.epoch:
            order = list(range(self.examples))
            random.Random(f"{self.seed}/{self.epoch}").shuffle(order)
            self._order = (self.epoch, order)
        return self._order[1]
