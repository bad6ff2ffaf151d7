"""Figures with their 95 % intervals: Wilson for shares of rows, bootstrap over groups of rows for everything else.

Where rows share a template, a share gets the wider ends of both: Wilson treats the rows as independent, and a bootstrap
of rows that are all right (or all wrong) has no width at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tool_aware.units import MIB

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95
BLOCK = 256  # resamples that are added up at a time
MOST_KEPT_BYTES = 128 * MIB  # of draws: those of 200 numbers of groups of some 300 groups each, or of one of 67,000
RESAMPLES = 2000  # the interval's ends then wobble by about a tenth of its width from seed to seed
MOST_DRAWN_APART = 1024  # groups of rows; of more, those that count alike are drawn together


@dataclass(frozen=True)
class Estimate:
    """A known figure and its 95 % interval, over `n` cases."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def percent(self) -> str:
        """Write it as `87.65 % [82.1, 91.9]`."""
        return f"{100 * self.value:.2f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class NotAvailable:
    """A figure that has no cases: n/a, never 0 or 1. Its fields are those of an Estimate, for JSON."""

    value: None = None
    low: None = None
    high: None = None
    n: int = 0

    def __str__(self) -> str:
        return "n/a"

    def percent(self) -> str:
        """Write `n/a`."""
        return "n/a"


Figure: TypeAlias = Estimate | NotAvailable
Groups: TypeAlias = "Sequence[str] | np.ndarray"  # of rows: a name or a number each; numbers are those of group_numbers
_KEPT: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()  # draws by (groups, seed, resamples)

NOT_AVAILABLE = NotAvailable()


def known(figure: Figure) -> Estimate:
    """Return a figure that has cases by construction. Raises ValueError if it has none."""
    if not isinstance(figure, Estimate):
        raise ValueError("a figure over no cases")
    return figure


def difference(figure: Figure, other: Figure) -> float | None:
    """Return `figure` less `other`; None if one of them is n/a."""
    if isinstance(figure, Estimate) and isinstance(other, Estimate):
        return figure.value - other.value
    return None


def proportion(hits: int, n: int) -> Figure:
    """Return `hits` of `n` with Wilson's score interval (Wilson 1927), which stays inside 0-1, also for small n."""
    from scipy.stats import binomtest

    if not n:
        return NOT_AVAILABLE
    interval = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), n)


def share(flags: Sequence[bool] | np.ndarray, groups: Groups, *, seed: int) -> Figure:
    """Return the share of true flags: Wilson's interval, widened to the bootstrap's where rows share a group."""
    import numpy as np

    is_hit = np.asarray(flags, bool).astype(np.int64)
    estimate = proportion(int(is_hit.sum()), len(is_hit))
    numbers, count = _those_that_occur(groups)
    if count == len(is_hit):
        return estimate
    resamples = resamples_of(numbers, is_hit, seed=seed)
    misses_and_hits = resamples.sums(is_hit, 2)
    counts = np.stack([misses_and_hits[:, 1], misses_and_hits.sum(1)], axis=1)  # (units, hits and rows)
    return widest(estimate, bootstrap(lambda drawn: _ratio(drawn, counts), resamples))


def _ratio(draws: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return hits per row of each resample; a block at a time, as only a product of floats is fast."""
    import numpy as np

    blocks = np.array_split(np.atleast_2d(draws), max(1, len(np.atleast_2d(draws)) // BLOCK))
    sums = np.concatenate([block.astype(float) @ counts for block in blocks])
    return (sums[:, 0] / sums[:, 1]).reshape(draws.shape[:-1])


def f1_proportion(hits: int, misses: int) -> Figure:
    """Return F1 of `hits` true positives and `misses` false positives and negatives, with an interval by Wilson's.

    J = TP / (TP + FP + FN) is a share of rows, and F1 = 2 J / (1 + J) rises with it, so its ends can be mapped.
    """
    j = proportion(hits, hits + misses)
    if isinstance(j, NotAvailable):
        return NOT_AVAILABLE
    value, low, high = (2 * x / (1 + x) for x in (j.value, j.low, j.high))
    return Estimate(value, low, high, j.n)


def widest(one: Figure, other: Figure) -> Figure:
    """Return the first figure with the outer ends of both intervals."""
    if isinstance(one, NotAvailable) or isinstance(other, NotAvailable):
        return one
    return Estimate(one.value, min(one.low, other.low), max(one.high, other.high), one.n)


@dataclass(frozen=True)
class Resamples:
    """Counts of how often each unit of rows is drawn in each resample.

    Whole groups are drawn, not rows: rows of one template stand or fall together, and drawing them one by one would
    make the interval too narrow. With as many groups as rows this is the ordinary bootstrap (Efron 1979).

    A unit is a group, or, of more than MOST_DRAWN_APART groups, all groups whose rows count alike: how many of these a
    resample has is multinomial as well, so the distribution is the same, and there are dozens of numbers to draw
    instead of tens of thousands. `once` says how many groups a unit stands for; `rows` are those of one of them.
    """

    draws: np.ndarray  # (resamples, units)
    once: np.ndarray  # (units,)
    rows: np.ndarray  # (K,)
    unit_of_row: np.ndarray  # (K,)
    count: int  # of all rows

    def sums(self, kinds: np.ndarray, number: int) -> np.ndarray:
        """Count the rows of each kind, 0 to `number` - 1, in one group of each unit: (all rows,) -> (units, number)."""
        import numpy as np

        places = self.unit_of_row * number + kinds[self.rows]
        return np.bincount(places, minlength=len(self.once) * number).reshape(-1, number)


def resamples_of(groups: Groups, kinds: np.ndarray, *, seed: int, resamples: int = RESAMPLES) -> Resamples:
    """Draw resamples of groups of rows. Rows of one kind, (rows,) integers, count alike in every figure."""
    import numpy as np

    numbers, count = _those_that_occur(groups)
    if count <= MOST_DRAWN_APART:
        draws, once = _draws(count, seed, resamples), np.ones(count, np.int64)
        return Resamples(draws, once, np.arange(len(groups)), numbers, len(groups))
    _, first, once = np.unique(_types(numbers, kinds), return_index=True, return_counts=True)
    unit_of_group = np.full(count, -1)
    unit_of_group[first] = np.arange(len(first))
    rows = np.flatnonzero(unit_of_group[numbers] >= 0)
    draws = np.random.default_rng(seed).multinomial(count, once / count, size=resamples)
    return Resamples(draws, once, rows, unit_of_group[numbers[rows]], len(groups))


def group_numbers(names: Sequence[str]) -> np.ndarray:
    """Return the number of each row's group, (rows,), by name: for several figures, also of parts of the rows."""
    import numpy as np

    number = {name: at for at, name in enumerate(sorted(set(names)))}
    return np.fromiter(map(number.__getitem__, names), np.int64, len(names))


def _those_that_occur(groups: Groups) -> tuple[np.ndarray, int]:
    """Return the rows' groups numbered from 0 without a gap, (rows,), in the same order, and how many there are."""
    import numpy as np

    numbers = groups if isinstance(groups, np.ndarray) else group_numbers(groups)
    is_there = np.bincount(numbers) > 0
    return (np.cumsum(is_there) - 1)[numbers], int(is_there.sum())


def _types(numbers: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return a number for each group, (groups,), the same for groups with as many rows of each kind."""
    import numpy as np

    order = np.argsort(numbers * (int(kinds.max()) + 1) + kinds)
    kinds, sizes = kinds[order], np.bincount(numbers)
    starts = np.cumsum(sizes) - sizes
    types, used = np.zeros(len(sizes), np.int64), 1
    for place in range(int(sizes.max())):  # the row at this place within its group; fewer and fewer groups have one
        there = np.flatnonzero(sizes > place)
        pairs = types[there] * (int(kinds.max()) + 1) + kinds[starts[there] + place]
        _, found = np.unique(pairs, return_inverse=True)
        types[there] = used + found
        used += len(there)
    return types


def _draws(count: int, seed: int, resamples: int) -> np.ndarray:
    """Draw as many groups as there are, for each resample; the draws of a number of groups and seed are kept.

    Most figures of an evaluation are over the same numbers of groups, and drawing takes most of their time.
    """
    import numpy as np

    key = (count, seed, resamples)
    if key not in _KEPT:
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        _KEPT[key] = drawn.astype(np.min_scalar_type(int(drawn.max())))
    _KEPT.move_to_end(key)
    while len(_KEPT) > 1 and sum(draws.nbytes for draws in _KEPT.values()) > MOST_KEPT_BYTES:
        _KEPT.popitem(last=False)
    return _KEPT[key]


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], resamples: Resamples) -> Figure:
    """Estimate `statistic`, which maps how often units occur, (..., units), to values (...); a percentile interval.

    Resamples in which it is undefined (NaN) are left out.
    """
    value, drawn = statistic(resamples.once), statistic(resamples.draws)
    return estimates(value[..., None], drawn[..., None], resamples.count)[0]


def estimates(values: np.ndarray, resampled: np.ndarray, rows: int) -> list[Figure]:
    """Estimate figures of `rows` rows from their values, (figures,), and those of resamples, (resamples, figures)."""
    import numpy as np

    tail = 100 * (1 - CONFIDENCE) / 2
    figures: list[Figure] = []
    for value, drawn in zip(values.tolist(), resampled.T, strict=True):
        if np.isnan(value):
            figures.append(NOT_AVAILABLE)
            continue
        low, high = np.nanpercentile(drawn, [tail, 100 - tail])
        figures.append(Estimate(value, float(low), float(high), rows))
    return figures
