"""Which rows a step takes, in which process, and at which learning rate."""

from __future__ import annotations

import random

import pytest
import torch

from tool_aware.config.settings import Config
from tool_aware.training.schedule import (
    FEWEST_STEPS_BETWEEN_CHECKPOINTS,
    MOST_TIME_OF_CHECKPOINTS,
    CheckpointTimes,
    MicroBatches,
    Schedule,
    learning_rate_at,
)


def test_every_row_is_seen_once_an_epoch_in_an_order_that_the_seed_decides():
    batches = MicroBatches(10, 4, seed=1)
    epochs = []
    for first_step in (0, 3):
        epochs.append([rows for step in range(first_step, first_step + 3) for rows in batches.of_step(step)])
        assert sorted(row for rows in epochs[-1] for row in rows) == list(range(10))
    assert epochs[0] != epochs[1]
    assert [MicroBatches(10, 4, seed=1).of_step(step)[0] for step in range(3)] == epochs[0]


def test_a_step_takes_the_rows_of_its_micro_batches_and_the_last_of_an_epoch_what_is_left():
    whole, split = MicroBatches(10, 4, seed=1), MicroBatches(10, 2, seed=1, accumulation=2)
    assert [len(split.of_step(step)) for step in range(4)] == [2, 2, 1, 2]
    for step in range(6):
        assert [[row for rows in split.of_step(step) for row in rows]] == whole.of_step(step)
    assert [split.epochs_at(step) for step in range(4)] == [0, 0.4, 0.8, 1]


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup_ratio", [0.0, 0.25])
def test_learning_rates_are_those_of_transformers(config, kind, warmup_ratio):
    from transformers import get_scheduler

    training = config.training.model_copy(update={"lr_scheduler_type": kind, "warmup_ratio": warmup_ratio})
    schedule = Schedule(examples=80, effective_batch=8, steps_per_epoch=10, steps=20)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=training.learning_rate)
    scheduler = get_scheduler(kind, optimizer, int(warmup_ratio * 20), 20)
    for step in range(20):
        assert learning_rate_at(step, training, schedule) == scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()


def test_processes_share_an_effective_batch_between_them():
    alone = MicroBatches(10, 4, seed=1)
    shared = [MicroBatches(10, 2, seed=1, rank=rank, processes=2) for rank in range(2)]
    for step in range(3):
        assert sorted(shared[0].of_step(step)[0] + shared[1].of_step(step)[0]) == sorted(alone.of_step(step)[0])


def test_processes_get_packs_of_nearly_equal_length():
    generator = random.Random(0)
    lengths = [generator.randrange(30, 300) for _ in range(640)]
    shares = [MicroBatches(640, 32, seed=1, rank=rank, processes=2, lengths=lengths) for rank in range(2)]
    for index in range(10):
        first, second = (sum(lengths[row] for row in share.of_step(index)[0]) for share in shares)
        assert abs(first - second) < 0.02 * first


def test_no_row_is_taken_twice_where_there_are_fewer_rows_than_processes():
    shared = [MicroBatches(9, 1, seed=1, rank=rank, processes=4) for rank in range(4)]
    assert [len(shared[rank].of_step(2)[0]) for rank in range(4)] == [1, 0, 0, 0]


def test_the_schedule_counts_the_last_partial_batch(config: Config):
    assert Schedule.of(config, 81) == Schedule(examples=81, effective_batch=8, steps_per_epoch=11, steps=33)


def saved_steps(every, *, steps: int, seconds_a_step: float, seconds_to_write: float) -> list[int]:
    """Return after which steps a run would write checkpoints, by a clock that the run itself moves on."""
    now_s, found = 0.0, []
    times = CheckpointTimes(every, clock=lambda: now_s)
    for step in range(1, steps + 1):
        now_s += seconds_a_step
        if times.is_due(step):
            with times.writing():
                now_s += seconds_to_write
            found.append(step)
    return found


def test_checkpoints_are_as_many_steps_apart_as_config_yaml_says():
    assert saved_steps(7, steps=30, seconds_a_step=0.001, seconds_to_write=9) == [7, 14, 21, 28]


def test_checkpoints_take_no_more_than_their_share_of_the_time_of_a_fast_training():
    slow_card = saved_steps("auto", steps=450, seconds_a_step=2.7, seconds_to_write=1)
    assert slow_card == [100, 200, 300, 400]
    fast_card = saved_steps("auto", steps=2_000, seconds_a_step=0.03, seconds_to_write=0.88)
    assert fast_card == [100, 700, 1300, 1900]  # of 0.88 s of writing, 20 times are 587 steps
    assert FEWEST_STEPS_BETWEEN_CHECKPOINTS == 100
    assert 0.88 / (600 * 0.03) < MOST_TIME_OF_CHECKPOINTS < 0.88 / (500 * 0.03)
