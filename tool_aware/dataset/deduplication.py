"""Removal of rows whose conversation equals that of an earlier row, or nearly so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tool_aware.dataset.similarity import GramIndex, compared
from tool_aware.rows import Row

NEAR_DUPLICATE = 0.85  # cosine of trigram sets from which on two queries count as the same question


@dataclass(frozen=True)
class Deduplicated:
    """The rows that stay, in their order, and how many were dropped."""

    rows: list[Row]
    exact: int
    near: int


def group_of(row: Row, number: int) -> str:
    """Return what splits must keep together with this row: its template, contrast pair, program or session."""
    return str(row.metadata.get("group") or row.metadata.get("session") or f"row-{number}")


def deduplicate(rows: Sequence[Row], threshold: float = NEAR_DUPLICATE) -> Deduplicated:
    """Drop every row whose conversation equals, or across groups nearly equals, that of an earlier row that stays.

    Within a group near-duplicates are wanted (typos of one sentence, the two sides of a contrast pair) and harmless,
    as a group never spans two splits.
    """
    seen: set[str] = set()
    distinct: list[Row] = []
    for row in rows:
        key = row.identity
        if key not in seen:
            seen.add(key)
            distinct.append(row)
    if not distinct:
        return Deduplicated([], len(rows), 0)
    groups = [group_of(row, number) for number, row in enumerate(distinct)]
    dropped: set[int] = set()
    for pair in GramIndex([compared(row) for row in distinct]).pairs(threshold, groups):
        if pair.first not in dropped:
            dropped.add(pair.second)
    kept = [row for number, row in enumerate(distinct) if number not in dropped]
    return Deduplicated(kept, len(rows) - len(distinct), len(dropped))
