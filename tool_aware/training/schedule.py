"""The optimizer steps of a run, and the rows and the learning rate of each. No torch: a plan is quick."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from tool_aware.config.sections import Auto, TrainingSection
from tool_aware.config.settings import Config

SCORED_ROW_COST = 1 / 2  # of a row trained on, at most: forward, against forward, backward as long, and recomputation
MOST_COST = 0.1  # of the training, of all scorings together
FEWEST_STEPS_BETWEEN_CHECKPOINTS = 100
MOST_TIME_OF_CHECKPOINTS = 1 / 20  # of the training between two
_SCORINGS_OF_A_SAMPLE = 4
_FEWEST_SCORED_ROWS = 50  # of which one is 2 points of tool accuracy


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


@dataclass(frozen=True)
class Scorings:
    """When val.json is scored, and on how many of its rows: always the same ones, or the best could not be told.

    Decided by settings and numbers of rows alone, never by a clock: a resumed run scores as if it had not been stopped.
    """

    every: int  # optimizer steps from one to the next; the last step is scored too
    count: int
    rows: int  # of each
    of: int  # rows of val.json
    cost: float  # of all, as a share of the training

    @classmethod
    def of_run(cls, training: TrainingSection, schedule: Schedule, val_rows: int) -> Scorings:
        """Return the scorings that `training.eval_steps` asks for.

        `auto` scores all rows after every epoch if that costs at most MOST_COST, else after as many epochs as that
        allows. If it does not allow two, up to _SCORINGS_OF_A_SAMPLE scorings share what it allows between them; below
        _FEWEST_SCORED_ROWS a figure would say nothing, so that many are scored at the end whatever it costs.
        """
        steps, epoch = schedule.steps, schedule.steps_per_epoch
        trained = steps / epoch * schedule.examples  # rows
        every, rows = training.eval_steps or epoch, val_rows
        if every == "auto":
            most = int(MOST_COST / SCORED_ROW_COST * trained)  # rows to score
            every, affordable = epoch, most // max(val_rows, 1)
            if steps > epoch and affordable < 2 and val_rows > _FEWEST_SCORED_ROWS:
                affordable = min(max(most // _FEWEST_SCORED_ROWS, 1), _SCORINGS_OF_A_SAMPLE)
            every = epoch * math.ceil(steps / epoch / max(affordable, 1))
            rows = min(val_rows, max(most // math.ceil(steps / every), _FEWEST_SCORED_ROWS))
        count = math.ceil(steps / every) if val_rows else 0
        return cls(every, count, rows, val_rows, count * rows * SCORED_ROW_COST / trained)

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether val.json is scored after `step` of `steps`."""
        return self.count > 0 and (step % self.every == 0 or step >= steps)

    def text(self) -> str:
        """Return it for the plan."""
        if not self.count:
            return "no rows, never scored"
        which = "all" if self.rows == self.of else f"{self.rows:,} of them"
        same = ", always the same" if self.rows < self.of and self.count > 1 else ""
        times = f"{self.count} times, every {self.every:,} steps{same}" if self.count > 1 else "once, at the end"
        cost = f"about {100 * self.cost:.0f} %" if self.cost >= 0.01 else "less than 1 %"
        return f"{self.of:,} rows, {which} scored {times}: {cost} of the time of training"


class CheckpointTimes:
    """After which steps a checkpoint is due, as `training.save_steps` says.

    `auto` goes by the clock: no result depends on where checkpoints lie, and a fast card takes a hundred small steps in
    the time that writing one takes.
    """

    def __init__(self, every: int | Auto, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._earliest_s = -math.inf  # by the clock

    def is_due(self, step: int) -> bool:
        """Return whether a checkpoint is to be written after `step`."""
        if self._every == "auto":
            return step % FEWEST_STEPS_BETWEEN_CHECKPOINTS == 0 and self._clock() >= self._earliest_s
        return step % self._every == 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Measure how long the block takes to write a checkpoint; the next one is due by that."""
        began_s = self._clock()
        yield
        ended_s = self._clock()
        self._earliest_s = ended_s + (ended_s - began_s) / MOST_TIME_OF_CHECKPOINTS


def stratified_sample(classes: Sequence[Hashable], count: int, seed: int) -> list[int]:
    """Return the numbers of `count` rows, in order: of each class its share, give or take one, at random."""
    order = list(range(len(classes)))
    random.Random(f"{seed}/scored").shuffle(order)
    first = {name: number for number, name in reversed(list(enumerate(classes)))}
    order.sort(key=lambda row: first[classes[row]])  # stable: at random within a class
    return sorted(order[(2 * number + 1) * len(order) // (2 * count)] for number in range(count))


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
