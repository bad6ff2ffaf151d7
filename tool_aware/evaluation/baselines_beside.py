"""The cheap baselines, which another process works out while models answer elsewhere, or many answers are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tool_aware.beside import Beside, usable_cores
from tool_aware.config.data_sections import KeywordRouterSection
from tool_aware.evaluation.scoring.baselines import baseline_choices, baseline_predictions, predictions_of
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.rows import Row

MANY_ROWS = 20_000  # to test: their baselines take ten seconds, a process of their own one second and 300 MiB
MANY_WHILE_IDLE = 2_000  # to train on and to test, where nothing else needs the core: they take one second themselves

Baselines = Callable[[], Mapping[str, Sequence[Prediction]]]  # waits for them


def begin_baselines(
    train: Sequence[Row],
    test: Mapping[int, Row],
    router: KeywordRouterSection,
    tools: Sequence[str],
    *,
    is_idle: bool = False,
) -> Baselines:
    """Return what returns `baseline_predictions`; of many rows, and with a second core, another process begins now.

    `is_idle`: the cores have little to do meanwhile, as a GPU or a server answers the rows.
    """
    is_worth_it = len(test) >= MANY_ROWS or (is_idle and len(train) + len(test) >= MANY_WHILE_IDLE)
    if not is_worth_it or usable_cores() < 2:
        return partial(baseline_predictions, train, test, router, tools)
    learnt, queries = [(row.query, row.tool) for row in train], [row.query for row in test.values()]
    choices = Beside(baseline_choices, learnt, queries, router, tools)
    return lambda: predictions_of(choices.result(), test)
