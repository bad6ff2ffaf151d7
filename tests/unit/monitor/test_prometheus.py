"""Metrics for Prometheus: a real scrape over HTTP, on loopback only."""

from __future__ import annotations

import urllib.error
import urllib.request
from datetime import UTC, datetime

import pytest

from tool_aware.console import UserError
from tool_aware.gpu.readings import GpuReading
from tool_aware.monitor.prometheus import CONTENT_TYPE, Exporter, exposition
from tool_aware.monitor.sampling import Sample
from tool_aware.units import GIB

GPUS = [
    GpuReading(0, 'RTX "A"', total_bytes=12 * GIB, used_bytes=6 * GIB, power_w=212.5),
    GpuReading(1, "H100", problem="GPU is lost"),
]


def test_known_values_are_offered_and_unknown_ones_left_out():
    text = exposition(GPUS)
    assert 'gpu_memory_used_bytes{gpu="0",name="RTX \\"A\\""} 6.44245e+09\n' in text
    assert "gpu_temperature_celsius" not in text
    assert 'gpu_up{gpu="1",name="H100"} 0\n' in text
    assert "# TYPE gpu_power_watts gauge\n" in text


def test_a_scrape_gets_the_newest_sample():
    exporter = Exporter(0)
    try:
        exporter.take(Sample(0.0, datetime.now(UTC), GPUS))
        with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/metrics", timeout=120) as answer:
            assert answer.headers["Content-Type"] == CONTENT_TYPE
            assert answer.read().decode() == exposition(GPUS)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}/other", timeout=120)
    finally:
        exporter.close()


def test_a_port_in_use_is_the_users_to_change():
    exporter = Exporter(0)
    try:
        with pytest.raises(UserError, match="cannot listen"):
            Exporter(exporter.port)
    finally:
        exporter.close()
