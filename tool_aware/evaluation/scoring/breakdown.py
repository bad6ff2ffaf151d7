"""Errors of a system: by slice, follow-up, source, language, length; its worst rows; what to add to the data next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tool_aware.evaluation.scoring.intervals import NOT_AVAILABLE, Figure, proportion
from tool_aware.evaluation.scoring.judgement import INVALID, Judgement
from tool_aware.rows import Row

WORST_ROWS = 20
TOP_CONFUSIONS = 5
LENGTHS = ((0, 40), (40, 100), (100, 250), (250, None))  # characters of the query


@dataclass(frozen=True)
class Part:
    """Tool accuracy of each system on the rows that share one value of one property."""

    property: str
    value: str
    rows: int
    accuracy: dict[str, Figure]


@dataclass(frozen=True)
class Confusion:
    """Rows of one tool that went to another, and what they have in common."""

    right: str
    chosen: str
    rows: int
    commonest_slice: str
    examples: list[str]

    def advice(self) -> str:
        """Return what to add to the training data."""
        seen = f"{self.rows} row{'s' * (self.rows > 1)} of {self.right}"
        if self.chosen == INVALID:
            return f"{seen} got no usable call: check their length and format, and train longer"
        where = f", most in slice {self.commonest_slice}" if self.commonest_slice else ""
        return (
            f"{seen} went to {self.chosen}{where}: add contrast pairs, queries that differ by the few words that "
            f"decide between {self.right} and {self.chosen}"
        )


def break_down(systems: Mapping[str, Sequence[Judgement]], rows: Mapping[int, Row]) -> list[Part]:
    """Compute tool accuracy by property, values with most rows first; leave out properties that have one value."""
    parts = []
    for name, value_of in _PROPERTIES.items():
        values = {index: value for index, row in rows.items() if (value := value_of(row))}
        counts = Counter(values.values())
        if len(counts) < 2:
            continue
        accuracies = {system: _accuracies(judgements, values) for system, judgements in systems.items()}
        for value, count in counts.most_common():
            accuracy = {system: by_value.get(value, NOT_AVAILABLE) for system, by_value in accuracies.items()}
            parts.append(Part(name, value, count, accuracy))
    return parts


def _length(row: Row) -> str:
    length = len(row.query)
    low, high = next((low, high) for low, high in LENGTHS if high is None or length < high)
    return f"{low} to {high} characters" if high else f"{low} characters and more"


_PROPERTIES = {
    "slice": lambda row: row.metadata.get("slice"),
    "follow-up": lambda row: row.metadata.get("follow_up"),
    "source": lambda row: row.metadata.get("source"),
    "language": lambda row: row.metadata.get("language"),
    "length": _length,
}


def _accuracies(judgements: Sequence[Judgement], values: Mapping[int, str]) -> dict[str, Figure]:
    """Return the tool accuracy on the rows that have one value, by that value."""
    inside = [(values[j.row], j.is_tool_right) for j in judgements if j.row in values]
    counts, right = Counter(value for value, _ in inside), Counter(value for value, is_right in inside if is_right)
    return {value: proportion(right[value], count) for value, count in counts.items()}


def worst_rows(judgements: Sequence[Judgement], confidence: Mapping[int, float]) -> list[Judgement]:
    """Return the worst rows: wrong tool or no call before wrong parameters, the most confident first."""
    wrong = [judgement for judgement in judgements if judgement.error]
    return sorted(wrong, key=lambda j: (j.is_tool_right, -confidence.get(j.row, 0.0), j.row))[:WORST_ROWS]


def top_confusions(judgements: Sequence[Judgement], rows: Mapping[int, Row]) -> list[Confusion]:
    """Return the commonest wrong choices, with examples."""
    pairs = Counter((j.expected, j.credited) for j in judgements if not j.is_tool_right)
    confusions = []
    for (right, chosen), count in pairs.most_common(TOP_CONFUSIONS):
        members = [rows[j.row] for j in judgements if (j.expected, j.credited) == (right, chosen)]
        slices = Counter(row.metadata.get("slice") or "" for row in members)
        examples = [row.query for row in members[:3]]
        confusions.append(Confusion(right, chosen, count, slices.most_common(1)[0][0], examples))
    return confusions
