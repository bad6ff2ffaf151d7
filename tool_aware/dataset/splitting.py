"""The split of rows into train, val and test: whole groups to one side, then a check of held-out rows against train."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tool_aware.dataset.deduplication import NEAR_DUPLICATE, group_of
from tool_aware.dataset.earlier_splits import EarlierSplits
from tool_aware.dataset.similarity import Compared, compared, nearest
from tool_aware.rows import SPLITS, Row


@dataclass(frozen=True)
class Leak:
    """A held-out row and the training row it is nearest to, as conversations: the earlier queries and the query."""

    split: str
    query: str
    nearest_query: str
    similarity: float


@dataclass(frozen=True)
class Split:
    """Rows by split name, and the result of the check of the held-out rows."""

    rows: Mapping[str, list[Row]]
    nearest: list[Leak] = field(default_factory=list)
    dropped_after_check: int = 0
    is_exhaustive: bool = True
    kept_in_place: Mapping[str, int] = field(default_factory=dict)  # rows that stay in the split of an earlier data set
    dropped_as_trained_on: int = 0  # rows of its train.json whose group is held out

    @property
    def highest_similarity(self) -> float:
        """Return the similarity of the held-out row that is nearest to a training row."""
        return max((leak.similarity for leak in self.nearest), default=0.0)

    @property
    def leaks(self) -> list[Leak]:
        """Return the held-out rows that are still too close to a training row; empty if the guarantee holds."""
        return [leak for leak in self.nearest if leak.similarity >= NEAR_DUPLICATE]


@dataclass(frozen=True)
class _Group:
    """Rows that stay together, and the split that an earlier data set had them in."""

    rows: list[Row]
    earlier_split: str | None = None

    @property
    def tools(self) -> set[str]:
        return {row.tool for row in self.rows}


def split_rows(
    rows: Sequence[Row], fractions: Sequence[float], seed: int, earlier: EarlierSplits | None = None
) -> Split:
    """Assign every group of rows to one split, then drop held-out rows that are too close to a training row.

    `fractions` are those of train, val and test. The order of rows within a split is shuffled by `seed`. With `earlier`
    no query of its train.json is in val or test, and none of its val.json or test.json is in train.
    """
    random_ = random.Random(f"{seed}/split")
    groups, dropped_as_trained_on = _groups(rows, earlier)
    assigned = _assign(groups, dict(zip(SPLITS, fractions, strict=True)), random_)
    for part in assigned.values():
        random_.shuffle(part)
    checked, is_exhaustive = _check(assigned, earlier.queries["train"] if earlier else ())
    close = {leak.query for leak in checked if leak.similarity >= NEAR_DUPLICATE}
    kept = {
        name: [row for row in part if name == "train" or row.conversation not in close]
        for name, part in assigned.items()
    }
    dropped = sum(map(len, assigned.values())) - sum(map(len, kept.values()))
    # Train stays as it was, and with it the nearest training row of every held-out row that is kept.
    remaining = [leak for leak in checked if leak.query not in close]
    return Split(kept, remaining, dropped, is_exhaustive, _rows_kept_in_place(groups), dropped_as_trained_on)


def _groups(rows: Sequence[Row], earlier: EarlierSplits | None) -> tuple[list[_Group], int]:
    """Return rows by group, and how many were left out: those of the earlier train.json whose group is held out."""
    members: dict[str, list[Row]] = defaultdict(list)
    for number, row in enumerate(rows):
        members[group_of(row, number)].append(row)
    if earlier is None:
        return [_Group(part) for part in members.values()], 0
    groups = []
    for part in members.values():
        split = earlier.split_of(part)
        is_held_out = split in SPLITS[1:]
        kept = [row for row in part if not (is_held_out and earlier.is_in_train(row))]
        if kept:
            groups.append(_Group(kept, split))
    return groups, len(rows) - sum(len(group.rows) for group in groups)


def _rows_kept_in_place(groups: Sequence[_Group]) -> dict[str, int]:
    """Count the rows, by split, of the groups that an earlier data set has placed."""
    counts: Counter[str] = Counter()
    for group in groups:
        if group.earlier_split:
            counts[group.earlier_split] += len(group.rows)
    return {name: counts[name] for name in SPLITS}


def _check(parts: Mapping[str, Sequence[Row]], trained_on: Collection[str] = ()) -> tuple[list[Leak], bool]:
    """Measure the similarity of every held-out row to its nearest training row, those `trained_on` earlier included."""
    train = [compared(row) for row in parts["train"]]
    if trained_on:
        train += map(_compared, sorted(set(trained_on) - {row.identity for row in parts["train"]}))
    held_out = [(name, compared(row)) for name in SPLITS[1:] for row in parts[name]]
    values, indices, is_exhaustive = nearest([text for _, text in held_out], train)
    leaks = [
        Leak(name, _whole(text), _whole(train[index]) if index >= 0 else "", round(float(value), 4))
        for (name, text), value, index in zip(held_out, values, indices, strict=True)
    ]
    return leaks, is_exhaustive


def _compared(identity: str) -> str | Compared:
    return Compared(identity, identity.rpartition("\n")[2]) if "\n" in identity else identity


def _whole(text: str | Compared) -> str:
    return text if isinstance(text, str) else text.conversation


def _assign(groups: list[_Group], fractions: Mapping[str, float], random_: random.Random) -> dict[str, list[Row]]:
    """Assign each group, the largest first, to the split that is furthest behind its target.

    Three targets count alike: the split's size, its rows of the tool, and its rows of the tool's slice. The last keeps
    slices spread, the first two keep sizes right where a slice is too small to be divided. Groups that an earlier data
    set has placed come first.
    """
    groups = list(groups)
    random_.shuffle(groups)
    groups.sort(key=lambda group: (group.earlier_split is None, -len(group.rows)))
    totals = Counter(stratum for group in groups for row in group.rows for stratum in _strata(row))
    filled: dict[str, Counter[str]] = {name: Counter() for name in fractions}
    parts: dict[str, list[_Group]] = {name: [] for name in fractions}
    for group in groups:
        needed = Counter(stratum for row in group.rows for stratum in _strata(row))

        def lag(name: str, needed: Counter[str] = needed) -> float:
            """Return how far `name` is behind its targets, in parts of each, if it were given half the group."""
            behind = 0.0
            for stratum, count in needed.items():
                target = fractions[name] * totals[stratum]
                # A stratum of a few rows has a target below one row; it must not outweigh the two larger targets.
                behind += count * (target - filled[name][stratum] - count / 2) / max(target, 1.0)
            return behind

        name = group.earlier_split or max(fractions, key=lag)
        parts[name].append(group)
        filled[name] += needed
    _reach_every_split(parts)
    return {name: [row for group in part for row in group.rows] for name, part in parts.items()}


def _reach_every_split(parts: dict[str, list[_Group]]) -> None:
    """Move groups so that every tool with a group for each split has rows in each.

    A tool with a few large groups needs this: its share of val and test is less than half a group.
    """
    counts = {name: Counter(tool for group in part for tool in group.tools) for name, part in parts.items()}
    in_all = sum(counts.values(), Counter())
    for tool in sorted(tool for tool, count in in_all.items() if count >= len(parts)):
        for name, part in parts.items():
            if counts[name][tool]:
                continue
            spare = [
                (len(group.rows), at, giver)
                for giver in parts
                for at, group in enumerate(parts[giver])
                if tool in group.tools and not group.earlier_split and all(counts[giver][t] > 1 for t in group.tools)
            ]
            if spare:
                _, at, giver = min(spare, key=lambda item: item[0])
                group = parts[giver].pop(at)
                part.append(group)
                counts[giver].subtract(group.tools)
                counts[name].update(group.tools)


def _strata(row: Row) -> tuple[str, str, str]:
    return "all", row.tool, f"{row.tool}/{row.metadata.get('slice', '')}"
