"""Confusion matrices as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tool_aware.evaluation.scoring.metrics import Metrics
from tool_aware.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes


MOST_WITH_NUMBERS = 25  # tools; a larger matrix shows colours alone
LARGEST_INCHES = 24.0  # of a larger matrix's sides


def draw_confusion(path: Path, title: str, metrics: Metrics) -> None:
    """Write the confusion matrix of one system: shares of each row by colour, counts in the cells."""
    import numpy as np
    from matplotlib.figure import Figure

    counts = np.array(metrics.confusion)  # (tools, tools + 1)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    is_small = len(counts) <= MOST_WITH_NUMBERS
    width, height = (0.95, 0.75) if is_small else (LARGEST_INCHES / counts.shape[1],) * 2
    size = (2.6 + width * counts.shape[1], 1.8 + height * counts.shape[0])
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.subplots()
    if is_small:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    else:  # imshow works out every pixel of so large a picture, with hundreds of megabytes
        edges = (np.arange(length + 1) - 0.5 for length in reversed(shares.shape))
        axes.pcolormesh(*edges, shares, cmap="Blues", vmin=0, vmax=1)
        axes.invert_yaxis()
    _label(axes, metrics.labels)
    for (row, column), count in np.ndenumerate(counts) if is_small else ():
        colour = "white" if shares[row, column] > 0.55 else "#1b2733"
        axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=11)
    axes.set_title(f"{title}: {metrics.accuracy.percent()} of {metrics.rows} rows", loc="left", fontsize=11)
    with atomic_path(path) as part:
        figure.savefig(part, format="png")


def _label(axes: Axes, labels: list[str]) -> None:
    is_small = len(labels) - 1 <= MOST_WITH_NUMBERS
    axes.set_xticks(range(len(labels)), labels, rotation=25 if is_small else 90, ha="right" if is_small else "center")
    axes.set_yticks(range(len(labels) - 1), labels[:-1])
    if not is_small:
        axes.tick_params(labelsize=max(2, 72 * LARGEST_INCHES / len(labels) * 0.8 // 1))
    axes.set_xlabel("chosen tool")
    axes.set_ylabel("right tool")
    axes.axvline(len(labels) - 1.5, color="#8a97a5", linewidth=1)  # sets "invalid" apart: it is no tool
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
