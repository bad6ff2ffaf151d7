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
    """The cell of the confusion matrix that each row falls into; `one_hot` is (rows, tools * (tools + 1))."""

    one_hot: np.ndarray
    tools: int

    @classmethod
    def of(cls, judgements: Sequence[Judgement], tools: Sequence[str]) -> ConfusionCells:
        """Mark each judgement's cell: its right tool down, its chosen tool (or INVALID, the last column) across."""
        import numpy as np

        columns = {name: index for index, name in enumerate([*tools, INVALID])}
        cells = [columns[j.expected] * len(columns) + columns[j.credited] for j in judgements]
        return cls(np.eye(len(tools) * len(columns), dtype=np.int64)[cells], len(tools))

    def matrix(self) -> list[list[int]]:
        """Count the rows by right tool and chosen tool, shape (tools, tools + 1)."""
        return self.one_hot.sum(0).reshape(self.tools, self.tools + 1).tolist()

    def statistic(self, statistic: Statistic) -> Callable[[np.ndarray], np.ndarray]:
        """Return `statistic` as a function of the rows' weights: (..., rows) -> (...)."""
        return lambda weights: statistic(self._weighted(weights))

    def _weighted(self, weights: np.ndarray) -> ConfusionCounts:
        counts = (weights @ self.one_hot).reshape(*weights.shape[:-1], self.tools, self.tools + 1)
        return ConfusionCounts(counts.astype(float))


@dataclass(frozen=True)
class ConfusionCounts:
    """One confusion matrix a resample, shape (..., tools, tools + 1), and figures of each of them, NaN if undefined.

    F1 = 2 TP / (2 TP + FP + FN). Macro figures average over the tools that occur.
    """

    counts: np.ndarray

    @property
    def _hits(self) -> np.ndarray:
        import numpy as np

        return np.diagonal(self.counts, axis1=-2, axis2=-1)  # (..., tools)

    @property
    def _support(self) -> np.ndarray:
        return self.counts.sum(-1)  # (..., tools)

    @property
    def _predicted(self) -> np.ndarray:
        return self.counts.sum(-2)[..., : self.counts.shape[-2]]  # (..., tools)

    def f1(self) -> np.ndarray:
        """Return the F1 of each tool, shape (..., tools)."""
        import numpy as np

        support = self._support
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(support > 0, 2 * self._hits / (support + self._predicted), np.nan)

    def accuracy(self) -> np.ndarray:
        """Return the share of rows with the right tool, shape (...)."""
        import numpy as np

        with np.errstate(invalid="ignore", divide="ignore"):
            return self._hits.sum(-1) / self._support.sum(-1)

    def weighted_f1(self) -> np.ndarray:
        """Return the mean F1 weighted by the tools' rows, shape (...)."""
        import numpy as np

        support = self._support
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.nansum(self.f1() * support, -1) / support.sum(-1)

    def macro_precision(self) -> np.ndarray:
        """Return the mean precision, shape (...). A tool never chosen counts as 0, as in scikit-learn."""
        import numpy as np

        with np.errstate(invalid="ignore", divide="ignore"):
            return self._macro(np.where(self._predicted > 0, self._hits / self._predicted, 0.0))

    def macro_recall(self) -> np.ndarray:
        """Return the mean recall, shape (...)."""
        import numpy as np

        with np.errstate(invalid="ignore", divide="ignore"):
            return self._macro(self._hits / self._support)

    def macro_f1(self) -> np.ndarray:
        """Return the mean F1, shape (...)."""
        return self._macro(self.f1())

    def _macro(self, per_tool: np.ndarray) -> np.ndarray:
        """Average (..., tools) over the tools that occur in the resample."""
        import numpy as np

        support = self._support
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(support > 0, per_tool, 0.0).sum(-1) / (support > 0).sum(-1)
