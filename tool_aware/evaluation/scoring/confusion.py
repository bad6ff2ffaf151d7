"""Confusion matrices of right tool and chosen tool, resampled, and the figures that each of them gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from tool_aware.evaluation.scoring.judgement import INVALID, Judgement

if TYPE_CHECKING:
    import numpy as np

    Statistic: TypeAlias = "Callable[[ConfusionCounts], np.ndarray]"


@dataclass(frozen=True)
class ConfusionCells:
    """The right and the chosen tool of each row, each as one-hot rows, shape (rows, tools).

    Of a resample only the sums of the matrix's rows, columns and diagonal are computed: with hundreds of tools the
    matrices themselves would need gigabytes.
    """

    expected: np.ndarray
    credited: np.ndarray  # a row that chose no tool (INVALID) is all zeros

    @classmethod
    def of(cls, judgements: Sequence[Judgement], tools: Sequence[str]) -> ConfusionCells:
        """Mark each judgement's right tool and its chosen tool."""
        import numpy as np

        columns = {name: index for index, name in enumerate([*tools, INVALID])}
        marks = np.eye(len(columns))[:, : len(tools)]
        expected, credited = ([columns[name] for name in names] for names in _names(judgements))
        return cls(marks[expected], marks[credited])

    def matrix(self) -> list[list[int]]:
        """Count the rows by right tool and chosen tool, shape (tools, tools + 1), INVALID last."""
        import numpy as np

        invalid = 1 - self.credited.sum(1, keepdims=True)
        counts = self.expected.T @ np.hstack([self.credited, invalid])
        return counts.astype(int).tolist()

    def statistic(self, statistic: Statistic) -> Callable[[np.ndarray], np.ndarray]:
        """Return `statistic` as a function of the rows' weights: (..., rows) -> (...)."""
        return lambda weights: statistic(self._weighted(weights.astype(float)))

    def _weighted(self, weights: np.ndarray) -> ConfusionCounts:
        hits = self.expected * self.credited
        return ConfusionCounts(weights @ hits, weights @ self.expected, weights @ self.credited)


def _names(judgements: Sequence[Judgement]) -> tuple[list[str], list[str]]:
    return [j.expected for j in judgements], [j.credited for j in judgements]


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
