"""Gates: the demands on the figures, for CI, and which of them a result misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tool_aware.console import UserError
from tool_aware.evaluation.results import Results
from tool_aware.evaluation.scoring.intervals import Figure
from tool_aware.evaluation.scoring.metrics import Metrics

FIGURES = (
    "accuracy",
    "balanced_accuracy",
    "macro_precision",
    "macro_recall",
    "macro_f1",
    "weighted_f1",
    "parse_rate",
    "schema_rate",
    "call_accuracy",
    "call_accuracy_given_tool",
    "bfcl_strict",
    "bfcl_strict_given_tool",
    "usable_call",
    "usable_call_given_tool",
)
PER_TOOL = ("precision", "recall", "f1")

Known = TypeVar("Known")


@dataclass(frozen=True)
class NamedFigure:
    """A figure of a system, `accuracy`, or of one of its tools, `f1.web_search`."""

    figure: str
    tool: str | None = None

    def __str__(self) -> str:
        return f"{self.figure}.{self.tool}" if self.tool else self.figure

    def value(self, metrics: Metrics) -> float | None:
        """Return its value; None if it is n/a or the system has no such figure."""
        figure: Figure | None = getattr(metrics.per_tool[self.tool] if self.tool else metrics, self.figure)
        return None if figure is None else figure.value


@dataclass(frozen=True)
class Gates:
    """`minimum`: figure -> least value; `max_drop`: tool -> how far its F1 may fall below the base's."""

    minimum: dict[NamedFigure, float]
    max_drop: dict[str, float]
    require_significant: bool = False


def parse_gates(
    minimum: Sequence[str], max_drop: Sequence[str], require_significant: bool, tools: Sequence[str]
) -> Gates:
    """Read `accuracy=0.8`, `f1.web_search=0.7` and `direct_chat=0.02`. Raises UserError for what is none of these."""
    figures = [*map(NamedFigure, FIGURES), *(NamedFigure(figure, tool) for figure in PER_TOOL for tool in tools)]
    return Gates(
        dict(_read(text, "--min", {str(figure): figure for figure in figures}) for text in minimum),
        dict(_read(text, "--max-drop", {tool: tool for tool in tools}) for text in max_drop),
        require_significant,
    )


def _read(text: str, option: str, known: Mapping[str, Known]) -> tuple[Known, float]:
    name, _, value = text.partition("=")
    if name not in known:
        raise UserError(f"{option} {text}: {name!r} is not one of {', '.join(known)}")
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise UserError(f"{option} {text}: needs a number from 0 to 1", fix=f"for example {option} {name}=0.8")
    return known[name], number


def failures(gates: Gates, results: Results) -> list[str]:
    """Return the demands that the tuned model misses, in words; a figure that is n/a meets none."""
    tuned, comparison = results.metrics[results.tuned], results.comparison
    missed = []
    for figure, least in gates.minimum.items():
        value = figure.value(tuned)
        if value is None or value < least:
            missed.append(f"{figure} is {_shown(value)}, wanted at least {least:g}")
    for tool, drop in gates.max_drop.items():
        f1 = NamedFigure("f1", tool)
        before, after = f1.value(results.metrics[results.main[0]]) if comparison else None, f1.value(tuned)
        if before is None or after is None:
            missed.append(f"{f1} cannot be compared: base {_shown(before)}, fine-tuned {_shown(after)}")
        elif before - after > drop:
            missed.append(f"{f1} fell from {before:.3f} to {after:.3f}, allowed is a drop of {drop:g}")
    if gates.require_significant and (not comparison or comparison.tool_choice.conclusion != "better"):
        verdict = comparison.verdict() if comparison else "there is no base to compare with"
        missed.append(f"no significant improvement: {verdict}")
    return missed


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
