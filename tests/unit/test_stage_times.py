"""Where the time of a run went."""

from __future__ import annotations

import pytest

from tool_aware.stage_times import IMPORTS, Spent, StageTimes


class Clock:
    """Seconds that pass when a test says so, half of them on the processor."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> Spent:
        return Spent(self.seconds, self.seconds / 2)

    def pass_(self, seconds: float) -> None:
        self.seconds += seconds


def test_a_stage_inside_another_one_is_counted_once():
    clock = Clock()
    times = StageTimes(clock=clock)
    with times.stage("training"):
        clock.pass_(3)
        with times.stage("scoring"):
            clock.pass_(2)
        clock.pass_(1)
    assert times.all()["training"] == Spent(4.0, 2.0)
    assert times.all()["scoring"] == Spent(2.0, 1.0)


def test_the_stages_add_up_to_the_run_while_some_still_run():
    clock = Clock()
    times = StageTimes(before=Spent(5.0, 2.5), clock=clock)
    clock.pass_(1)  # between stages
    with times.stage("training"):
        clock.pass_(3)
        with times.stage("scoring"):
            clock.pass_(2)
            found = {name: spent.seconds for name, spent in times.all().items()}
    assert found == {IMPORTS: 5.0, "training": 3.0, "scoring": 2.0, "all else": 1.0}


def test_a_stage_that_fails_is_counted():
    clock = Clock()
    times = StageTimes(clock=clock)

    @times.stage("merging")
    def fail() -> None:
        clock.pass_(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert times.all()["merging"].seconds == 1.0
