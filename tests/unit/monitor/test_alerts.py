"""Conditions on GPUs: what can be written, when they fire, and that the unknown never fires."""

from __future__ import annotations

import pytest

from tool_aware.console import UserError
from tool_aware.gpu.readings import GpuReading
from tool_aware.monitor.alerts import Alerts, parse_condition, refuse_unknown
from tool_aware.units import GIB

GPU = GpuReading(0, total_bytes=12 * GIB, used_bytes=6 * GIB, utilization_percent=40, temperature_c=80, power_w=200.0)


@pytest.mark.parametrize(
    ("text", "is_met"),
    [
        ("memory>45%", True), ("memory>50%", False), ("memory>5.5GiB", True), ("memory > 6 GiB", False),
        ("use<50", True), ("use<40%", False), ("temperature>79.5C", True), ("temperature>80", False),
        ("power>199W", True), ("power<1", False),
    ],
)  # fmt: skip
def test_a_condition_is_met_past_its_limit_and_not_at_it(text, is_met):
    assert parse_condition(text).is_met(GPU) is is_met


@pytest.mark.parametrize(
    "text", ["memory", "memory>", "memory>=9", "speed>3", "use>3 GiB", "memory>x%", "temperature>80%", ""]
)
def test_what_is_no_condition_is_refused_with_examples(text):
    with pytest.raises(UserError, match="memory>95%"):
        parse_condition(text)


def test_what_is_not_known_fires_nothing():
    conditions = [
        parse_condition(text) for text in ("memory>0%", "memory<99%", "use<99", "temperature<999", "power<9999")
    ]
    assert list(Alerts(conditions).check([GpuReading(0)])) == []


def test_an_alert_is_told_once_and_again_only_after_it_was_over():
    alerts = Alerts([parse_condition("temperature>70")])
    temperatures = [60, 80, 81, 60, 90]
    told = [list(alerts.check([GpuReading(0, temperature_c=value)])) for value in temperatures]
    assert [len(lines) for lines in told] == [0, 1, 0, 0, 1]
    assert told[1] == ["GPU 0: temperature>70 C (80.0 C)"]
    assert alerts.fired == 2


FULL = GpuReading(0, total_bytes=10 * GIB, used_bytes=GIB, utilization_percent=5)
WITHOUT_TOTAL = GpuReading(1, used_bytes=GIB, temperature_c=40)
SILENT = GpuReading(2)
LOST = GpuReading(3, problem="GPU is lost")


@pytest.mark.parametrize(
    ("condition", "gpus", "words"),
    [
        ("memory>95%", [WITHOUT_TOTAL], "the driver does not report the memory in all of GPU 1"),
        ("power>100W", [FULL], "not report power of GPU 0 (unknown GPU)\n  fix: what it reports: memory, use"),
        ("use>5%", [SILENT], "no condition can be watched here"),
        ("use>5%", [WITHOUT_TOTAL, SILENT, LOST], "fix: what it reports: memory, temperature"),
    ],
)  # fmt: skip
def test_a_condition_that_no_gpu_can_meet_is_refused_at_the_start(condition, gpus, words):
    with pytest.raises(UserError) as caught:
        refuse_unknown([parse_condition(condition)], gpus)
    assert words in str(caught.value)


def test_a_condition_that_some_gpu_can_meet_is_watched_with_a_warning(capsys):
    refuse_unknown([parse_condition("memory>95%")], [FULL, WITHOUT_TOTAL])
    assert "--alert memory>95%: the driver does not report the memory in all of GPU 1" in capsys.readouterr().err


def test_gpus_that_do_not_answer_at_the_moment_are_not_counted(capsys):
    refuse_unknown([parse_condition("memory>95%"), parse_condition("memory>1GiB")], [FULL, LOST])
    refuse_unknown([parse_condition("memory>95%")], [LOST])
    assert capsys.readouterr().err == ""
