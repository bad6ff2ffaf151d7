"""Hold the formula against measured runs: the files benchmarks/results/train_memory*.json.

The CUDA context is the card's and its driver's, not the run's. Where a process measured it before it computed anything,
as training does too, that figure takes the place of the constant.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.estimate import CALIBRATION, Calibration, MemoryEstimate, estimate_training
from tool_aware.memory.evaluation_estimate import EVALUATION, GenerationSpec, estimate_generation
from tool_aware.memory.spec import TrainingSpec
from tool_aware.units import GIB


@dataclass(frozen=True)
class Comparison:
    """A measured run and the estimate for it; errors as shares of the measured value, None where not measured."""

    spec: TrainingSpec | GenerationSpec
    allocated_error: float
    reserved_error: float | None
    total_error: float | None


def compare(path: Path, calibration: Calibration = CALIBRATION) -> list[Comparison]:
    """Estimate each run of a file that did not run out of memory."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return [compare_row(row, calibration) for row in rows if is_comparable(row)]


def is_comparable(row: Mapping[str, Any]) -> bool:
    """Return whether a run was measured to its end, and nothing is known that distorts it."""
    return not row["oom"] and not row.get("excluded") and row["allocated_gib"] is not None


def compare_row(row: Mapping[str, Any], calibration: Calibration = CALIBRATION) -> Comparison:
    """Estimate one measured run."""
    if row.get("bare_context_gib"):
        calibration = replace(calibration, bare_context_bytes=row["bare_context_gib"] * GIB)
    spec = spec_of(row)
    return _compared(spec, estimate_training(spec, calibration), row)


def compare_evaluation(row: Mapping[str, Any], calibration: Calibration = EVALUATION) -> Comparison:
    """Estimate one run of benchmarks/evaluate_memory.py."""
    spec = generation_spec_of(row)
    return _compared(spec, estimate_generation(spec, calibration), row)


def _compared(spec: TrainingSpec | GenerationSpec, estimate: MemoryEstimate, row: Mapping[str, Any]) -> Comparison:
    return Comparison(
        spec,
        estimate.allocated_bytes / GIB / row["allocated_gib"] - 1,
        _error(estimate.reserved_bytes, row["reserved_gib"]),
        _error(estimate.total_bytes, row["nvml_gib"]),
    )


def mean_and_worst(errors: Sequence[float | None]) -> tuple[float, float] | None:
    """Return the mean and largest absolute error of those that are known."""
    known = [abs(error) for error in errors if error is not None]
    return (sum(known) / len(known), max(known)) if known else None


def _error(estimated_bytes: float, measured_gib: float | None) -> float | None:
    return None if measured_gib is None else estimated_bytes / GIB / measured_gib - 1


def generation_spec_of(row: Mapping[str, Any]) -> GenerationSpec:
    """Read the spec of a measured evaluation."""
    model = TrainingSpec(PRESETS[row["preset"]], row["quantization"])
    names = set(GenerationSpec.__dataclass_fields__) & row.keys()
    return GenerationSpec(model, **{name: row[name] for name in names})


def spec_of(row: Mapping[str, Any]) -> TrainingSpec:
    """Read the spec of a measured run; keys that a file leaves out have TrainingSpec's defaults."""
    names = set(TrainingSpec.__dataclass_fields__) & row.keys()
    values = {name: row[name] for name in names}
    if isinstance(values.get("targets"), list):
        values["targets"] = tuple(values["targets"])
    return TrainingSpec(PRESETS[row["preset"]], **values, cuda_graphs=bool(row.get("is_recorded")))
