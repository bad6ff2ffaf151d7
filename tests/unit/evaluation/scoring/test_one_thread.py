"""Figures are computed on one thread."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import threadpoolctl

from tool_aware.config.data_sections import KeywordRouterSection
from tool_aware.evaluation.scoring.baselines import baseline_predictions
from tool_aware.evaluation.scoring.one_thread import on_one_thread
from tool_aware.rows import Row


def threads() -> set[int]:
    assert np.__version__, "numpy's BLAS and scipy's are loaded"
    assert scipy.linalg.__name__
    return {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}


def test_threads_are_one_inside_and_as_before_afterwards():
    with threadpoolctl.threadpool_limits(2):
        with on_one_thread():
            assert threads() == {1}
        assert 2 in threads()


@dataclass(frozen=True)
class Watched(Row):
    """A row that notes how many threads there are when its query is read."""

    @property
    def query(self) -> str:
        seen.update(threads())
        return self.instruction


seen: set[int] = set()


def test_baselines_are_fitted_on_one_thread():
    rows = [Watched(f"query {n % 2} about {n}", "", {"tool": f"tool_{n % 2}"}) for n in range(20)]
    with threadpoolctl.threadpool_limits(2):
        found = baseline_predictions(rows, {0: rows[0]}, KeywordRouterSection(), ["tool_0", "tool_1"])
        assert 2 in threads()
    assert len(found) == 3
    assert seen == {1}
