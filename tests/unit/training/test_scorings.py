"""When val.json is scored, on which rows, and at what cost."""

import random
from collections import Counter
from pathlib import Path

import pytest

from tool_aware.config.settings import load_config
from tool_aware.training.schedule import MOST_COST, SCORED_ROW_COST, Schedule, Scorings, stratified_sample

SHIPPED = Path(__file__).parents[3] / "config.yaml"


def scorings(train: int, val: int, **settings: object) -> tuple[Scorings, Schedule]:
    config = load_config(SHIPPED, [f"training.{key}={value}" for key, value in settings.items()])
    schedule = Schedule.of(config, train)
    return Scorings.of_run(config.training, schedule, val), schedule


def test_the_default_data_is_scored_whole_after_every_epoch():
    found, schedule = scorings(10_244, 1_281)
    assert (found.every, found.count, found.rows) == (schedule.steps_per_epoch, 3, 1_281)
    assert found.text() == "1,281 rows, all scored 3 times, every 1,281 steps: about 6 % of the time of training"


def test_twenty_epochs_of_eighty_rows_are_scored_on_a_sample():
    found, schedule = scorings(80, 1_281, num_train_epochs=20)
    assert schedule.steps == 200
    assert found == Scorings(every=50, count=4, rows=80, of=1_281, cost=0.1)
    assert found.text() == (
        "1,281 rows, 80 of them scored 4 times, every 50 steps, always the same: about 10 % of the time of training"
    )


def test_where_two_scorings_of_all_rows_fit_epochs_are_left_out_and_no_rows():
    found, schedule = scorings(1_280, 1_281, num_train_epochs=20)
    assert (found.count, found.rows, found.every) == (3, 1_281, 7 * schedule.steps_per_epoch)


@pytest.mark.parametrize("epochs", ["null", "7"])
def test_who_sets_the_key_gets_all_rows_as_often_as_asked_for(epochs):
    found, schedule = scorings(80, 1_281, num_train_epochs=20, eval_steps=epochs)
    assert found.every == (7 if epochs == "7" else schedule.steps_per_epoch)
    assert found.rows == 1_281
    assert found.cost > 8  # times the training, which the plan says


def test_auto_costs_at_most_a_tenth_whatever_the_sizes():
    dice = random.Random(0)
    for _ in range(2_000):
        settings = {"num_train_epochs": dice.choice([0.3, 1, 2.5, 3, 20, 77]), "max_steps": dice.choice(["null", 40])}
        train, val = dice.randint(1, 4_000), dice.choice([0, 1, 30, 50, 51, 200, 1_281, 9_000])
        found, schedule = scorings_of(train, val, **settings)
        due = [step for step in range(1, schedule.steps + 1) if found.is_due(step, schedule.steps)]
        assert len(due) == found.count
        assert found.rows <= val
        if val:
            assert due[-1] == schedule.steps
            trained = schedule.steps / schedule.steps_per_epoch * train
            assert found.cost == pytest.approx(found.count * found.rows * SCORED_ROW_COST / trained)
            assert found.cost <= MOST_COST + 1e-9 or (found.count == 1 and found.rows <= 50)


def scorings_of(train: int, val: int, **settings: object) -> tuple[Scorings, Schedule]:
    values = {f"training.{key}": None if value == "null" else value for key, value in settings.items()}
    config = CONFIG.with_settings(values)
    schedule = Schedule.of(config, train)
    return Scorings.of_run(config.training, schedule, val), schedule


CONFIG = load_config(SHIPPED)


def test_without_val_rows_nothing_is_scored():
    found, schedule = scorings(80, 0)
    assert found.text() == "no rows, never scored"
    assert not any(found.is_due(step, schedule.steps) for step in range(1, schedule.steps + 1))


def test_a_sample_has_each_tools_share_and_depends_on_the_seed_alone():
    tools = random.Random(1).choices("abcd", weights=[70, 20, 9, 1], k=1_281)
    whole = Counter(tools)
    sample = stratified_sample(tools, 100, seed=42)
    assert sample == sorted(set(sample)) == stratified_sample(tools, 100, seed=42)
    for tool, count in Counter(tools[row] for row in sample).items():
        assert abs(count - whole[tool] * 100 / 1_281) < 1.01
    assert sample != stratified_sample(tools, 100, seed=43)
    assert stratified_sample(tools, 1_281, seed=42) == list(range(1_281))
    assert stratified_sample([], 0, seed=42) == []
