"""Split rows into train, val and test so that nothing leaks: whole groups to one side, then a check against train."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tool_aware.dataset.deduplication import NEAR_DUPLICATE, group_of
from tool_aware.dataset.similarity import nearest
from tool_aware.records import SPLITS, Row


@dataclass(frozen=True)
class Leak:
    """A held-out row and the training row it is nearest to."""

    split: str
    query: str
    nearest_query: str
    similarity: float


@dataclass(frozen=True)
class Split:
    """Rows by split name, and what the check of the held-out rows found."""

    rows: Mapping[str, list[Row]]
    nearest: list[Leak] = field(default_factory=list)
    dropped_after_check: int = 0
    is_exhaustive: bool = True

    @property
    def leaks(self) -> list[Leak]:
        """Held-out rows that are still too close to a training row; empty if the guarantee holds."""
        return [leak for leak in self.nearest if leak.similarity >= NEAR_DUPLICATE]


def split_rows(rows: Sequence[Row], fractions: Sequence[float], seed: int) -> Split:
    """Assign every group of rows to one split, then drop held-out rows that are too close to a training row.

    `fractions` are those of train, val and test. The order of rows within a split is shuffled by `seed`.
    """
    random_ = random.Random(f"{seed}/split")
    assigned = _assign(rows, dict(zip(SPLITS, fractions, strict=True)), random_)
    for part in assigned.values():
        random_.shuffle(part)
    checked, is_exhaustive = _check(assigned)
    close = {leak.query for leak in checked if leak.similarity >= NEAR_DUPLICATE}
    kept = {name: [row for row in part if name == "train" or row.query not in close] for name, part in assigned.items()}
    dropped = sum(map(len, assigned.values())) - sum(map(len, kept.values()))
    # Train stays as it was, and with it the nearest training row of every held-out row that is kept.
    remaining = [leak for leak in checked if leak.query not in close]
    return Split(kept, remaining, dropped, is_exhaustive)


def _check(parts: Mapping[str, Sequence[Row]]) -> tuple[list[Leak], bool]:
    """Measure the similarity of every held-out row to its nearest training row."""
    train = [row.query for row in parts["train"]]
    held_out = [(name, row.query) for name in SPLITS[1:] for row in parts[name]]
    values, indices, is_exhaustive = nearest([query for _, query in held_out], train)
    leaks = [
        Leak(name, query, train[index] if index >= 0 else "", round(float(value), 4))
        for (name, query), value, index in zip(held_out, values, indices, strict=True)
    ]
    return leaks, is_exhaustive


def _assign(rows: Sequence[Row], fractions: Mapping[str, float], random_: random.Random) -> dict[str, list[Row]]:
    """Give each group, the largest first, to the split that is furthest behind its target.

    Three targets count alike: the split's size, its rows of the tool, and its rows of the tool's slice. The last keeps
    slices spread, the first two keep sizes right where a slice is too small to be divided.
    """
    members: dict[str, list[Row]] = defaultdict(list)
    for number, row in enumerate(rows):
        members[group_of(row, number)].append(row)
    groups = list(members.values())
    random_.shuffle(groups)
    groups.sort(key=len, reverse=True)
    totals = Counter(stratum for row in rows for stratum in _strata(row))
    filled = {name: Counter() for name in fractions}
    parts: dict[str, list[Row]] = {name: [] for name in fractions}
    for group in groups:
        needed = Counter(stratum for row in group for stratum in _strata(row))

        def lag(name: str, needed: Counter = needed) -> float:
            """How far `name` is behind its targets, each as a part of the target, were it given half the group."""
            behind = 0.0
            for stratum, count in needed.items():
                target = fractions[name] * totals[stratum]
                # A stratum of a few rows has a target below one row; it must not outweigh the two larger targets.
                behind += count * (target - filled[name][stratum] - count / 2) / max(target, 1.0)
            return behind

        name = max(fractions, key=lag)
        parts[name] += group
        filled[name] += needed
    return parts


def _strata(row: Row) -> tuple[str, str, str]:
    return "all", row.tool, f"{row.tool}/{row.metadata.get('slice', '')}"
