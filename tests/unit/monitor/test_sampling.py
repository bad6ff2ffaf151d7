"""Statistics in constant memory, and a pace that does not drift."""

from __future__ import annotations

import subprocess
import threading
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tool_aware.console import UserError
from tool_aware.gpu.readings import GpuReading
from tool_aware.monitor import watching
from tool_aware.monitor.sampling import HISTOGRAM_STEP_BYTES, GpuStatistics, Sample, Statistics
from tool_aware.monitor.watching import Pace, ticks
from tool_aware.units import GIB, MIB

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def sample(seconds: float, **fields: object) -> Sample:
    return Sample(seconds, NOON, [GpuReading(0, **{"total_bytes": 12 * GIB, **fields})])


def statistics_of(*samples: Sample) -> Statistics:
    statistics = Statistics()
    for one in samples:
        statistics.add(one)
    return statistics


def test_peak_mean_and_time_at_the_peak_follow_the_samples():
    gpu = statistics_of(
        sample(0, used_bytes=2 * GIB), sample(10, used_bytes=6 * GIB), sample(40, used_bytes=4 * GIB)
    ).gpus[0]
    assert gpu.peak_bytes == 6 * GIB
    assert gpu.mean("used_bytes") == 4 * GIB
    assert gpu.seconds_at_peak == 10


def test_energy_is_the_area_below_the_power():
    gpu = statistics_of(sample(0, power_w=100.0), sample(1800, power_w=300.0), sample(3600, power_w=300.0)).gpus[0]
    assert gpu.energy_wh == pytest.approx(0.5 * 200 + 0.5 * 300)


def test_no_energy_is_invented_for_the_time_a_gpu_was_lost():
    gpu = statistics_of(
        sample(0, power_w=100.0), sample(3600, problem="GPU is lost"), sample(7200, power_w=100.0)
    ).gpus[0]
    assert gpu.energy_wh == 0
    assert gpu.seconds_lost == 3600


def test_what_was_never_known_is_null_and_not_zero():
    summary = statistics_of(sample(0), sample(1)).as_dict()["gpus"]["0"]
    assert summary["memory_peak_mib"] is summary["memory_p95_mib"] is summary["energy_wh"] is None
    assert summary["utilization_mean_percent"] is None


@given(st.lists(st.integers(1, 12 * 1024), min_size=1, max_size=60))
def test_the_percentile_is_right_to_one_step_of_the_histogram(mebibytes):
    gpu = GpuStatistics("GPU")
    for value in mebibytes:
        gpu.add(GpuReading(0, used_bytes=value * MIB), 1.0)
    ordered = sorted(mebibytes)
    exact = ordered[max(0, -(-95 * len(ordered) // 100) - 1)] * MIB
    assert exact <= gpu.memory_percentile(0.95) <= min(gpu.peak_bytes, exact + HISTOGRAM_STEP_BYTES)


def test_a_week_of_samples_takes_no_more_memory_than_the_card_has_steps():
    gpu = GpuStatistics("GPU")
    for second in range(20_000):
        gpu.add(GpuReading(0, used_bytes=(second * 7919) % (12 * GIB)), 1.0)
    assert len(gpu._used_seconds) <= 12 * GIB // HISTOGRAM_STEP_BYTES


class Clock:
    """A clock that only sleeping moves, so that a slow machine changes nothing."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watching, "time", clock)
    return clock


def test_ticks_do_not_drift_when_the_body_takes_time(clock):
    started_s = clock.monotonic()
    for number, seconds in enumerate(ticks(Pace(0.05, count=10))):
        assert seconds == pytest.approx(number * 0.05)
        clock.sleep(0.02)
    assert clock.monotonic() - started_s == pytest.approx(9 * 0.05 + 0.02)


def test_ticks_that_were_missed_are_skipped_and_not_made_up_for(clock):
    seen = []
    for seconds in ticks(Pace(0.05, count=3)):
        seen.append(round(seconds / 0.05))
        if len(seen) == 1:
            clock.sleep(0.22)
    assert seen == [0, 4, 5]


def test_a_duration_ends_the_ticks(clock):
    assert len(list(ticks(Pace(0.02, duration_s=0.1)))) == 6


def test_the_pace_is_kept_by_the_clock_on_the_wall():
    started_s = time.monotonic()
    assert len(list(ticks(Pace(0.05, count=3)))) == 3
    assert time.monotonic() - started_s >= 2 * 0.05


def test_ticks_end_with_the_process_they_wait_for():
    started_s, seen = time.monotonic(), []
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        for seconds in ticks(Pace(600, process_id=process.pid)):
            seen.append(seconds)
            process.stdin.close()
    assert len(seen) == 1
    assert time.monotonic() - started_s < 600


def test_waiting_for_a_process_that_is_not_there_is_the_users_mistake():
    with pytest.raises(UserError, match="no such process"):
        Pace(1, process_id=2**22 - 1)
    with pytest.raises(UserError, match="no such process"):
        Pace(1, process_id=99999999999)


def test_waiting_for_a_thread_is_the_users_mistake():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(UserError, match="is a thread"):
            Pace(1, process_id=thread.native_id)
    finally:
        stop.set()
