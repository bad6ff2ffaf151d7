"""Figures of one stage after another at several numbers of rows: how they grow, as a table and as JSON."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tool_aware.console import table
from tool_aware.files import write_json

Points = Sequence[Mapping[str, Any]]  # each with `rows`, how many there were


def exponent(points: Points, seconds: Sequence[float], least_s: float) -> float:
    """Return the slope of log seconds over log rows between the two largest measurements; NaN if there is but one.

    What took less than `least_s` counts as that: shorter times are noise.
    """
    if len(points) < 2:
        return math.nan
    first, last = (max(one, least_s) for one in seconds[-2:])
    return round(math.log(last / first) / math.log(points[-1]["rows"] / points[-2]["rows"]), 2)


def report(
    what: str, points: Points, lines: Sequence[Sequence[Any]], growth: Mapping[str, float], path: Path | None
) -> None:
    """Print a table of `what`, a column for each number of rows; write the points as JSON to `path`, if given."""
    headers = (what, *(f"{point['rows']:,} rows" for point in points), "exponent")
    print(table(headers, lines, "<" + ">" * (len(points) + 1)))
    if path:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        write_json(path, {**machine, "measured": points, "exponents": growth})
