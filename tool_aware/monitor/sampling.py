"""Samples of all GPUs over time, and what is left of them at the end: peak, mean, 95th percentile, energy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tool_aware.gpu.readings import UNKNOWN_NAME, GpuReading
from tool_aware.units import MIB

HISTOGRAM_STEP_BYTES = 16 * MIB  # keeps the memory of a week's statistics bounded: 5,120 counters for an 80 GiB card
AT_PEAK_SHARE = 0.99  # memory within 1 % of the peak counts as "at the peak"


@dataclass(frozen=True)
class TrainingProgress:
    """The newest line of output/metrics.jsonl of the run beside the monitor."""

    pid: int
    step: int
    total_steps: int | None = None
    loss: float | None = None
    eta_s: float | None = None


@dataclass(frozen=True)
class Sample:
    """All GPUs at one moment. `seconds` counts from the start of the monitor on a clock that never jumps."""

    seconds: float
    at: datetime
    gpus: Sequence[GpuReading]
    training: TrainingProgress | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the record of one sample as it is written to file; null is "not known", never 0."""
        record: dict[str, Any] = {
            "time": self.at.isoformat(timespec="milliseconds"),
            "seconds": round(self.seconds, 3),
            "gpus": [_gpu_record(gpu) for gpu in self.gpus],
        }
        if self.training:
            record["training"] = {"step": self.training.step, "loss": self.training.loss}
        return record


def _gpu_record(gpu: GpuReading) -> dict[str, Any]:
    """Return one GPU of a sample; memory in MiB as nvidia-smi prints it."""
    record: dict[str, Any] = {
        "index": gpu.index,
        "memory_used_mib": None if gpu.used_bytes is None else round(gpu.used_bytes / MIB),
        "utilization_percent": gpu.utilization_percent,
        "temperature_c": gpu.temperature_c,
        "power_w": None if gpu.power_w is None else round(gpu.power_w, 1),
        "sm_clock_mhz": gpu.sm_clock_mhz,
    }
    if gpu.throttled_by:
        record["throttled_by"] = gpu.throttled_by
    if gpu.problem:
        record["problem"] = gpu.problem
    return record


@dataclass
class GpuStatistics:
    """Statistics of one GPU, in memory that does not grow with time."""

    name: str
    peak_bytes: int = 0
    energy_wh: float = 0.0
    seconds_lost: float = 0.0
    # Memory in histogram steps -> seconds spent there.
    _used_seconds: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    _sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _counts: Counter[str] = field(default_factory=Counter)
    _peaks: dict[str, float] = field(default_factory=dict)
    _last_power_w: float | None = None

    def add(self, gpu: GpuReading, elapsed_s: float) -> None:
        """Count one reading; `elapsed_s` is the time since the one before."""
        if gpu.problem:
            self.seconds_lost += elapsed_s
            self._last_power_w = None
            return
        if gpu.used_bytes is not None:
            self.peak_bytes = max(self.peak_bytes, gpu.used_bytes)
            self._used_seconds[gpu.used_bytes // HISTOGRAM_STEP_BYTES] += elapsed_s
        if gpu.power_w is not None and self._last_power_w is not None:
            self.energy_wh += (gpu.power_w + self._last_power_w) / 2 * elapsed_s / 3600  # trapezoid
        self._last_power_w = gpu.power_w
        for name in ("used_bytes", "utilization_percent", "temperature_c", "power_w"):
            value = getattr(gpu, name)
            if value is not None:
                self._sums[name] += value
                self._counts[name] += 1
                self._peaks[name] = max(value, self._peaks.get(name, value))

    def mean(self, name: str) -> float | None:
        """Return the mean of a field of GpuReading over the readings that had it."""
        return self._sums[name] / self._counts[name] if self._counts[name] else None

    def peak(self, name: str) -> float | None:
        """Return the largest value of a field of GpuReading."""
        return self._peaks.get(name)

    def memory_percentile(self, share: float) -> int | None:
        """Return the memory that was not exceeded during `share` of the time, to within 16 MiB."""
        left_s = share * sum(self._used_seconds.values())
        for step in sorted(self._used_seconds):
            left_s -= self._used_seconds[step]
            if left_s <= 0:
                return min(self.peak_bytes, (step + 1) * HISTOGRAM_STEP_BYTES)
        return None

    @property
    def seconds_at_peak(self) -> float:
        """Return the time spent within 1 % of the memory peak."""
        lowest = int(self.peak_bytes * AT_PEAK_SHARE) // HISTOGRAM_STEP_BYTES
        return sum(seconds for step, seconds in self._used_seconds.items() if step >= lowest)

    def as_dict(self) -> dict[str, Any]:
        """Return the summary that is written at the end of a log."""

        def rounded(value: float | None, digits: int = 1) -> float | None:
            return None if value is None else round(value, digits)

        percentile = self.memory_percentile(0.95)
        mean_bytes = self.mean("used_bytes")
        return {
            "name": self.name,
            "memory_peak_mib": round(self.peak_bytes / MIB) if self._counts["used_bytes"] else None,
            "memory_mean_mib": None if mean_bytes is None else round(mean_bytes / MIB),
            "memory_p95_mib": None if percentile is None else round(percentile / MIB),
            "seconds_at_memory_peak": rounded(self.seconds_at_peak),
            "utilization_mean_percent": rounded(self.mean("utilization_percent")),
            "temperature_peak_c": rounded(self.peak("temperature_c")),
            "power_mean_w": rounded(self.mean("power_w")),
            "power_peak_w": rounded(self.peak("power_w")),
            "energy_wh": rounded(self.energy_wh, 3) if self._counts["power_w"] else None,
            "seconds_without_answer": rounded(self.seconds_lost),
        }


class Statistics:
    """The statistics of every GPU, and of how long was watched."""

    def __init__(self) -> None:
        self.gpus: dict[int, GpuStatistics] = {}
        self.samples = 0
        self.seconds = 0.0

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        elapsed_s = sample.seconds - self.seconds if self.samples else 0.0
        for gpu in sample.gpus:
            statistics = self.gpus.setdefault(gpu.index, GpuStatistics(gpu.name))
            if gpu.name != UNKNOWN_NAME:  # a GPU that was silent at the start has its name from when it answers
                statistics.name = gpu.name
            statistics.add(gpu, elapsed_s)
        self.samples += 1
        self.seconds = sample.seconds

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, by GPU number."""
        return {
            "samples": self.samples,
            "seconds": round(self.seconds, 1),
            "gpus": {str(index): statistics.as_dict() for index, statistics in self.gpus.items()},
        }
