"""Fit the constants of the memory estimate to measured runs, and print its errors.

    python benchmarks/memory_calibration.py
    python benchmarks/memory_calibration.py benchmarks/results/train_memory_nvidia_l4.json

The formula counts tensors from shapes. What libraries and the allocator add can only be measured: the cuBLAS workspace,
what the allocator reserves beyond what is in use, and the CUDA context. Each is fitted to all runs. To estimate the
error of a new configuration, each run is also estimated from a fit to all other runs.

Reads   benchmarks/results/train_memory_*.json, or the files given
Writes  nothing; the constants live in tool_aware/memory/estimate.py
Exit    0 done; 2 something to fix
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tool_aware.console import run, table
from tool_aware.memory.estimate import (
    CALIBRATION,
    SLACK_PARTS,
    Calibration,
    estimate_training,
    library_sets,
    slack_parts,
    workspaces_of,
)
from tool_aware.memory.measured import compare_row, is_comparable, mean_and_worst, spec_of
from tool_aware.units import GIB, MIB

RESULTS = Path(__file__).resolve().parent / "results"
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, compare with the constants in use, and print the errors of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="*", type=Path, help="files of train_memory.py")
    files = parser.parse_args(argv).results or sorted(RESULTS.glob("train_memory_*.json"))
    rows = [row for file in files for row in json.loads(file.read_text())["rows"] if is_comparable(row)]
    fitted = fit(rows)
    print(
        table(
            ("constant", "in use", "fitted"), list(zip(NAMES, constants(CALIBRATION), constants(fitted), strict=True))
        )
    )
    for name, calibrations in (
        ("in use", [CALIBRATION] * len(rows)),
        ("fitted", [fitted] * len(rows)),
        ("fitted without the run", [fit([*rows[:i], *rows[i + 1 :]]) for i in range(len(rows))]),
    ):
        compared = [compare_row(row, calibration) for row, calibration in zip(rows, calibrations, strict=True)]
        for what, errors in (
            ("allocated", [one.allocated_error for one in compared]),
            ("in all", [one.total_error for one in compared]),
        ):
            mean, worst = mean_and_worst(errors)
            known = sum(error is not None for error in errors)
            print(f"{name + ':':<24} {what:<10} mean {mean:.2%}, worst {worst:.2%} of {known} runs")
    return 0


NAMES = ("workspace MiB", *(f"slack, of {part}" for part in SLACK_PARTS), "bare context GiB", "libraries GiB")


def constants(calibration: Calibration) -> tuple[float, ...]:
    """Return the constants in the order of NAMES."""
    contexts = (round(size / GIB, 3) for size in (calibration.bare_context_bytes, calibration.libraries_bytes))
    shares = (round(share, 3) for share in calibration.slack_shares)
    return round(calibration.workspace_bytes / MIB, 1), *shares, *contexts


def fit(rows: Sequence[Row]) -> Calibration:
    """Fit all constants: workspace and contexts are medians, the slack is a non-negative least squares fit."""
    specs = [spec_of(row) for row in rows]
    workspaces = [
        (row["allocated_gib"] * GIB - estimate_training(spec).tensor_bytes) / workspaces_of(spec.resolved)
        for row, spec in zip(rows, specs, strict=True)
    ]
    bare = max(row["bare_context_gib"] for row in rows)  # of a card that is not known, the most is expected
    libraries = [
        (row["nvml_gib"] - row["reserved_gib"] - row["bare_context_gib"]) / library_sets(spec.resolved)
        for row, spec in zip(rows, specs, strict=True)
    ]
    return replace(
        CALIBRATION,
        workspace_bytes=statistics.median(workspaces),
        slack_shares=tuple(_slack_shares(rows)),
        bare_context_bytes=bare * GIB,
        libraries_bytes=statistics.median(libraries) * GIB,
    )


def _slack_shares(rows: Sequence[Row]) -> list[float]:
    """Fit the slack by non-negative least squares on errors relative to all that a run takes."""
    from scipy.optimize import nnls

    parts = [[part / GIB / row["nvml_gib"] for part in slack_parts(spec_of(row).resolved)] for row in rows]
    shares, _ = nnls(parts, [(row["reserved_gib"] - row["allocated_gib"]) / row["nvml_gib"] for row in rows])
    return list(map(float, shares))


if __name__ == "__main__":
    run(main)
