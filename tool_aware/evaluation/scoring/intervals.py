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


def share(flags: Sequence[bool], groups: Sequence[str], *, seed: int) -> Figure:
    """Return the share of true flags: Wilson's interval, widened to the bootstrap's where rows share a group."""
    import numpy as np

    estimate = proportion(sum(flags), len(flags))
    if len(set(groups)) == len(flags):
        return estimate
    draws, group_of_row = _drawn_groups(groups, seed, RESAMPLES)
    counts = np.stack([np.bincount(group_of_row, flags), np.bincount(group_of_row)], axis=1)  # (groups, hits and rows)
    return widest(estimate, bootstrap(lambda drawn: _ratio(drawn, counts), draws))


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


def bootstrap_weights(groups: Sequence[str], *, seed: int, resamples: int = RESAMPLES) -> np.ndarray:
    """Draw how often each row occurs in each resample, shape (resamples, rows).

    Whole groups are drawn, not rows: rows of one template stand or fall together, and drawing them one by one would
    make the interval too narrow. With as many groups as rows this is the ordinary bootstrap (Efron 1979).
    """
    draws, group_of_row = _drawn_groups(groups, seed, resamples)
    return draws[:, group_of_row]


def _drawn_groups(groups: Sequence[str], seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each group is drawn, shape (resamples, groups), and the number of each row's group."""
    import numpy as np

    _, group_of_row = np.unique(np.asarray(groups), return_inverse=True)
    return _draws(int(group_of_row.max()) + 1, seed, resamples), group_of_row


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


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> Figure:
    """Estimate `statistic`, which maps weights (..., rows) to values (...), with a percentile interval.

    Resamples in which it is undefined (NaN) are left out.
    """
    return bootstrap_each(lambda weights: statistic(weights)[..., None], weights)[0]


def bootstrap_each(statistic: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> list[Figure]:
    """Estimate each column of `statistic`, which maps weights (..., rows) to values (..., columns)."""
    import numpy as np

    rows = weights.shape[-1]
    values, resampled = statistic(np.ones(rows, dtype=weights.dtype)), statistic(weights)
    tail = 100 * (1 - CONFIDENCE) / 2
    figures: list[Figure] = []
    for value, drawn in zip(values.tolist(), resampled.T, strict=True):
        if np.isnan(value):
            figures.append(NOT_AVAILABLE)
            continue
        low, high = np.nanpercentile(drawn, [tail, 100 - tail])
        figures.append(Estimate(value, float(low), float(high), rows))
    return figures
