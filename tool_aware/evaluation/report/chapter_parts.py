"""The parts that a chapter of the report consists of, and how its figures are written."""

from __future__ import annotations

from dataclasses import dataclass, field

from tool_aware.evaluation.scoring.intervals import Estimate, Figure


@dataclass(frozen=True)
class Table:
    """Cells of text; the first column is a label, the others are figures."""

    headers: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Card:
    """One case, reference and answer side by side; `more` are further texts, (label, lines)."""

    title: str
    reason: str
    query: str
    wanted: str
    given: str
    more: list[tuple[str, list[str]]] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """One chapter of the report. `charts` are SVG, (caption, markup); they contain no text from data unescaped.

    `cards` stand in groups, (caption, cards).
    """

    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[tuple[str, str]] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    cards: list[tuple[str, list[Card]]] = field(default_factory=list)


def interval(figure: Figure | None) -> str:
    """Write a figure as `87.7 [82–92]`, in percent; `–` where a system has no such figure."""
    if figure is None:
        return "–"
    if not isinstance(figure, Estimate):
        return "n/a"
    return f"{100 * figure.value:.1f} [{100 * figure.low:.0f}–{100 * figure.high:.0f}]"


def share_percent(value: float | None) -> str:
    """Write a share as `87.7`, in percent; `n/a` without one."""
    return "n/a" if value is None else f"{100 * value:.1f}"
