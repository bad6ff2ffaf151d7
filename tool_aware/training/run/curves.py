"""training.png: the curves of a run, drawn from metrics.jsonl, which has all sessions of a resumed run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.files import atomic_path
from tool_aware.training.run.tracking import read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TRAIN, _VAL, _QUIET = "#2f6f9f", "#c8553d", "#8a97a5"
_FEW = 30  # up to this many points are marked one by one; a line of a single point would be invisible


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the lines of metrics.jsonl: those of logged steps, and those of validations on val.json."""
    lines = read_lines(path)
    return [line for line in lines if "loss" in line], [line for line in lines if "val_loss" in line]


def draw_curves(metrics: Path, picture: Path, *, title: str, exported_step: int) -> None:
    """Draw losses, tool accuracy, learning rate and speed over the optimizer steps."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    logged, scored = read_metrics(metrics)
    heights = [3, 2, 1.2, 1.2] if scored else [3, 1.2, 1.2]
    figure = Figure(figsize=(8, 1.1 * sum(heights)), dpi=130, layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    panels = iter(axes)

    loss = next(panels)
    _line(loss, logged, "loss", _TRAIN, label="train")
    if scored:
        _line(loss, scored, "val_loss", _VAL, label="val")
        accuracy = next(panels)
        _line(accuracy, scored, "val_tool_accuracy", _VAL)
        accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        accuracy.set_ylim(0, 1.03)
        accuracy.set_ylabel("right tool\non val")
    loss.set_ylabel("loss per label token")
    rate, speed = next(panels), next(panels)
    _line(rate, logged, "lr", _TRAIN)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    rate.set_ylabel("learning\nrate")
    _line(speed, logged, "examples_per_s", _TRAIN)
    speed.set_ylabel("examples\nper second")
    speed.set_xlabel("optimizer step", fontsize=9)
    speed.set_xlim(0, 1.02 * max((line["step"] for line in [*logged, *scored]), default=exported_step))
    speed.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (rate, speed):
        axis.set_ylim(bottom=0)
        axis.yaxis.set_major_locator(MaxNLocator(nbins=3))
    for axis in axes:
        _finish(axis, exported_step)
    loss.legend(frameon=False, fontsize=9)
    figure.align_ylabels(axes)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", parse_math=False)  # a name may have $ in it
    with atomic_path(picture) as part:
        figure.savefig(part, format="png")


def _line(axis: Axes, lines: Sequence[dict[str, Any]], field: str, colour: str, *, label: str | None = None) -> None:
    marker = "o" if len(lines) <= _FEW else None
    steps = [line["step"] for line in lines]
    values = [math.nan if line[field] is None else line[field] for line in lines]  # a gap
    axis.plot(steps, values, color=colour, lw=1.4, marker=marker, ms=3.5, label=label)


def _finish(axis: Axes, exported_step: int) -> None:
    place = axis.get_subplotspec()
    is_first = place is not None and place.is_first_row()
    label = f"exported: step {exported_step}" if is_first else None
    axis.axvline(exported_step, color=_QUIET, lw=1, ls=(0, (4, 3)), zorder=0, label=label)
    axis.grid(axis="y", color="#e3e7eb", lw=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelsize=8, colors="#3b4854")
    axis.yaxis.get_offset_text().set(fontsize=8, color="#3b4854")
    axis.yaxis.label.set(fontsize=9, color="#3b4854")
    axis.spines[:].set_visible(False)
