"""The driver layer against a stub library: each state of a driver has its own words, and none blanks the rest."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tool_aware.console import UserError
from tool_aware.gpu.nvml import DriverUnavailable, nvidia_cards_on_pci, open_driver
from tool_aware.gpu.readings import GpuReading, MigInstance, Process, command_of
from tool_aware.units import MIB


def test_a_reading_has_what_nvidia_smi_shows(stub_here):
    driver = open_driver()
    first = driver.read()[0]
    driver.close()
    assert first == GpuReading(
        index=0,
        name="NVIDIA GeForce RTX 4070 Ti",
        uuid="GPU-1a2b3c4d",
        compute_capability=(8, 9),
        total_bytes=12282 * MIB,
        used_bytes=6050 * MIB,
        reserved_bytes=300 * MIB,
        utilization_percent=98,
        temperature_c=64,
        power_w=212.345,
        power_limit_w=285.0,
        sm_clock_mhz=2610,
        sm_clock_max_mhz=3105,
        throttled_by="power cap",
        processes=(Process(999999991, None, 5300 * MIB), Process(999999992, None, 310 * MIB)),
    )
    assert (driver.info.version, driver.info.cuda) == ("570.86.15", "12.8")


def test_fields_that_the_card_lacks_are_unknown_and_not_zero(stub_here):
    second = open_driver([1]).read()[0]
    assert second.used_bytes == MIB
    assert second.utilization_percent is second.temperature_c is second.power_w is second.throttled_by is None
    assert second.problem is None


def test_memory_that_the_driver_does_not_tell_leaves_the_rest_readable(stub_here):
    stub_here.set("name 0 GPU\nuse 0 7\n")
    reading = open_driver().read()[0]
    assert (reading.used_bytes, reading.free_bytes, reading.utilization_percent) == (None, None, 7)


def test_the_drivers_own_reserve_is_not_free(stub_here):
    reading = open_driver().read()[0]
    assert reading.free_bytes == (12282 - 6050 - 300) * MIB


def test_a_process_whose_memory_is_hidden_is_still_listed(stub_here):
    stub_here.add("compute 0 4711 -1")
    assert Process(4711, command_of(4711), None) in open_driver([0]).read()[0].processes


@pytest.mark.parametrize(("code", "words"), [(15, "lost"), (16, "needs a reset"), (28, "not found")])
def test_a_gpu_that_fails_in_mid_run_is_named_and_the_other_goes_on(stub_here, code, words):
    driver = open_driver()
    driver.read()
    stub_here.add(f"error 1 {code}")
    first, second = driver.read()
    assert words in second.problem
    assert second.name == "NVIDIA H100 80GB HBM3"
    assert first.used_bytes == 6050 * MIB


def test_a_gpu_that_may_not_be_opened_is_named_and_the_other_goes_on(stub_here):
    stub_here.add("error 1 4")
    first, second = open_driver().read()
    assert second.problem == "no permission to read this GPU"
    assert first.problem is None


def test_an_unknown_error_in_one_call_is_no_reason_to_give_the_card_up(stub_here):
    driver = open_driver()
    driver.read()
    stub_here.add("error 1 999")
    second = driver.read()[1]
    assert second.problem is None
    assert second.used_bytes is None


def test_a_lost_gpu_is_read_again_when_it_returns(stub_here):
    driver = open_driver()
    stub_here.add("error 1 15")
    assert driver.read()[1].problem
    stub_here.add("used 1 77")
    assert driver.read()[1].used_bytes == 77 * MIB


def test_sampling_resumes_after_the_whole_driver_was_reloaded(stub_here):
    driver = open_driver()
    stub_here.add("error 0 1", "error 1 1")
    assert [gpu.problem for gpu in driver.read()] == ["driver was unloaded"] * 2
    stub_here.add()
    assert [gpu.problem for gpu in driver.read()] == [None, None]


def test_a_gpu_that_hangs_holds_up_neither_the_other_nor_the_next_reading(stub_here):
    driver = open_driver()
    driver.read()
    stub_here.add("hang 1 3")
    first, second = driver.read(timeout_s=1.0)
    assert first.problem is None
    assert "no answer" in second.problem  # so it was not waited for
    assert second.name == "NVIDIA H100 80GB HBM3"
    stub_here.add("used 1 5")
    deadline = time.monotonic() + 120
    while driver.read(timeout_s=1.0)[1].problem:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert driver.read()[1].used_bytes == 5 * MIB


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "kernel module is not loaded"),
        (18, "different versions"),
        (4, "no permission"),
        (12, "libnvidia-ml.so.1 is missing"),
        (999, "code 999"),
    ],
)
def test_each_reason_for_having_no_driver_has_its_words_and_its_remedy(stub_here, code, words):
    stub_here.set(f"init -1 {code}")
    with pytest.raises(DriverUnavailable) as caught:
        open_driver()
    assert words in caught.value.what
    assert caught.value.fix


def test_a_driver_that_does_not_even_start_is_given_up(stub_here):
    stub_here.set("init_hang -1 3")
    with pytest.raises(DriverUnavailable, match="has not answered"):  # it would answer after 3 s
        open_driver(timeout_s=0.2)


def test_a_driver_without_a_gpu_says_so(stub_here):
    stub_here.set("gpus -1 0")
    with pytest.raises(DriverUnavailable, match="has no GPU"):
        open_driver()


def test_a_gpu_number_out_of_range_is_the_users_mistake(stub_here):
    with pytest.raises(UserError, match="no GPU 5"):
        open_driver([0, 5])


def test_mig_slices_are_listed_and_empty_slots_are_not(stub_here):
    stub_here.add("mig 0 1", "total 1001 20000", "used 1001 300", "uuid 1001 MIG-slice")
    first = open_driver().read()[0]
    assert first.is_mig
    assert first.instances == (MigInstance("MIG-slice", 300 * MIB, 20000 * MIB, 0),)


def test_cards_on_the_bus_are_counted_without_a_driver(tmp_path: Path):
    for name, vendor, kind in (("a", "0x10de", "0x030000"), ("b", "0x10de", "0x040300"), ("c", "0x8086", "0x030000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    assert nvidia_cards_on_pci(tmp_path) == 1


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/usr/bin/python3\0-u\0/home/a/train_tool_aware.py\0--resume\0", "train_tool_aware.py"),
        ("/usr/lib/firefox/firefox\0-contentproc\0", "firefox"),
        ("", None),
    ],
)
def test_a_process_is_named_by_the_script_it_runs(tmp_path: Path, command, name):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cmdline").write_text(command)
    assert command_of(7, tmp_path) == name
    assert command_of(8, tmp_path) is None


IMPOSSIBLE = {
    "total 0 0": ("total_bytes", "reserved_bytes", "free_bytes"),
    "total 0 5": ("used_bytes", "reserved_bytes", "free_bytes"),
    "used 0 99999999": ("used_bytes", "free_bytes"),
    "reserved 0 99999999": ("reserved_bytes",),
    "use 0 4294967295": ("utilization_percent",),
    "celsius 0 4294967295": ("temperature_c",),
    "milliwatts 0 4294967295": ("power_w",),
    "limit 0 4294967295": ("power_limit_w",),
    "clock 0 4294967295": ("sm_clock_mhz",),
}


@pytest.mark.parametrize(("line", "fields"), IMPOSSIBLE.items())
def test_what_no_card_can_have_is_unknown(stub_here, line, fields):
    stub_here.add(line)
    reading = open_driver([0]).read()[0]
    assert [getattr(reading, field) for field in fields] == [None] * len(fields)
    assert reading.name == "NVIDIA GeForce RTX 4070 Ti"
    assert reading.problem is None
