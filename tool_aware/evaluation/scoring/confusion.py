"""Confusion matrices of right tool and chosen tool, resampled, and the figures of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tool_aware.evaluation.scoring.intervals import Figure, Resamples, estimates
from tool_aware.evaluation.scoring.judgement import INVALID, Judgement

if TYPE_CHECKING:
    import numpy as np

    Statistic: TypeAlias = "Callable[[ConfusionCounts], np.ndarray]"


@dataclass(frozen=True)
class ConfusionCells:
    """The cell of each row in the matrix: the columns of its right and of its chosen tool, (rows,) each.

    Of a resample only the sums of the matrix's rows, columns and diagonal are computed: with hundreds of tools the
    matrices themselves would need gigabytes.
    """

    expected: np.ndarray
    credited: np.ndarray  # `tools` for a row that chose no tool (INVALID)
    tools: int

    @classmethod
    def of(cls, judgements: Sequence[Judgement], tools: Sequence[str]) -> ConfusionCells:
        """Take each judgement's right tool and its chosen tool."""
        import numpy as np

        columns = {name: index for index, name in enumerate([*tools, INVALID])}
        expected, credited = (np.array([columns[name] for name in names]) for names in _names(judgements))
        return cls(expected, credited, len(tools))

    @property
    def is_right(self) -> np.ndarray:
        """Return whether an acceptable tool was chosen, (rows,)."""
        is_right: np.ndarray = self.expected == self.credited
        return is_right

    @property
    def kinds(self) -> np.ndarray:
        """Return the cells as numbers, (rows,): rows with the same number count alike in every figure."""
        return self.expected * (self.tools + 1) + self.credited

    def matrix(self) -> list[list[int]]:
        """Count the rows by right tool and chosen tool, shape (tools, tools + 1), INVALID last."""
        import numpy as np

        counts = np.bincount(self.kinds, minlength=self.tools * (self.tools + 1))
        return counts[: self.tools * (self.tools + 1)].reshape(self.tools, -1).tolist()

    def counts(self, resamples: Resamples) -> ResampledCounts:
        """Return the counts of the rows and of their resamples, once for all statistics: they take longest."""
        import numpy as np

        number = self.tools + 1
        hits = np.where(self.is_right, self.expected, self.tools)
        of_units = [resamples.sums(cells, number)[:, :-1] for cells in (hits, self.expected, self.credited)]
        once, drawn = (units.astype(float) for units in (resamples.once, resamples.draws))
        return ResampledCounts(
            ConfusionCounts(*(once @ counts for counts in of_units)),
            ConfusionCounts(*(drawn @ counts for counts in of_units)),
            resamples.count,
        )


def _names(judgements: Sequence[Judgement]) -> tuple[list[str], list[str]]:
    return [j.expected for j in judgements], [j.credited for j in judgements]


@dataclass(frozen=True)
class ResampledCounts:
    """The counts of `rows` rows, (tools,) each, and of their resamples, (resamples, tools) each."""

    once: ConfusionCounts
    drawn: ConfusionCounts
    rows: int

    def figures(self, statistic: Statistic) -> list[Figure]:
        """Estimate each tool's figure."""
        return estimates(statistic(self.once), statistic(self.drawn), self.rows)

    def figure(self, statistic: Statistic, less: ResampledCounts | None = None) -> Figure:
        """Estimate one figure, or what is left of it without that of other counts of the same resamples."""
        value, drawn = statistic(self.once), statistic(self.drawn)
        if less:
            value, drawn = value - statistic(less.once), drawn - statistic(less.drawn)
        return estimates(value[..., None], drawn[..., None], self.rows)[0]


@dataclass(frozen=True)
class ConfusionCounts:
    """Counts of one confusion matrix a resample, each (..., tools), and its figures, NaN if undefined.

    `hits` is the diagonal, `support` the rows that ask for a tool, `predicted` those that got it.
    F1 = 2 TP / (2 TP + FP + FN). Macro figures average over the tools that occur.
    """

    hits: np.ndarray
    support: np.ndarray
    predicted: np.ndarray

    def f1(self) -> np.ndarray:
        """Return the F1 of each tool, shape (..., tools)."""
        import numpy as np

        support = self.support
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(support > 0, 2 * self.hits / (support + self.predicted), np.nan)

    def accuracy(self) -> np.ndarray:
        """Return the share of rows with the right tool, shape (...)."""
        import numpy as np

        with np.errstate(invalid="ignore", divide="ignore"):
            return self.hits.sum(-1) / self.support.sum(-1)

    def weighted_f1(self) -> np.ndarray:
        """Return the mean F1 weighted by the tools' rows, shape (...)."""
        import numpy as np

        support = self.support
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nansum(self.f1() * support, -1) / support.sum(-1)

    def macro_precision(self) -> np.ndarray:
        """Return the mean precision, shape (...). A tool never chosen counts as 0, as in scikit-learn."""
        import numpy as np

        with np.errstate(invalid="ignore", divide="ignore"):
            return self._macro(np.where(self.predicted > 0, self.hits / self.predicted, 0.0))

    def macro_recall(self) -> np.ndarray:
        """Return the mean recall, shape (...)."""
        import numpy as np

        with np.errstate(invalid="ignore", divide="ignore"):
            return self._macro(self.hits / self.support)

    def macro_f1(self) -> np.ndarray:
        """Return the mean F1, shape (...)."""
        return self._macro(self.f1())

    def _macro(self, per_tool: np.ndarray) -> np.ndarray:
        """Average (..., tools) over the tools that occur in the resample."""
        import numpy as np

        support = self.support
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(support > 0, per_tool, 0.0).sum(-1) / (support > 0).sum(-1)
