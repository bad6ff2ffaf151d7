import math

import numpy as np
import pytest

from tool_aware.config.data_sections import CostsSection
from tool_aware.evaluation.scoring.calibration import (
    calibrate,
    calibration_error,
    choose_threshold,
    cost_matrix,
    fit_temperature,
    reliability,
    risk_coverage,
    routing_thresholds,
)
from tool_aware.inference.name_scores import cheapest
from tool_aware.rows import Row

TOOLS = ["rag", "web", "chat"]


def sample(count, *, sharpened, seed):
    """Rows whose true probabilities are known, and log-scores that are `sharpened` times too sure of them."""
    random = np.random.default_rng(seed)
    true = random.dirichlet([1, 1, 1], size=count)
    right = [random.choice(3, p=p) for p in true]
    scores = [dict(zip(TOOLS, sharpened * np.log(p), strict=True)) for p in true]
    return scores, [Row("q", "r", {"tool": TOOLS[index]}) for index in right]


def test_temperature_undoes_over_and_under_confidence():
    for sharpened in (0.5, 1.0, 3.0):
        scores, rows = sample(3000, sharpened=sharpened, seed=0)
        assert fit_temperature(scores, rows) == pytest.approx(sharpened, rel=0.1)


def test_calibration_fitted_on_val_shows_on_test():
    calibration = calibrate(
        *sample(1500, sharpened=3, seed=1),
        *sample(1500, sharpened=3, seed=2),
        costs=CostsSection(),
        wanted_precision=0.8,
    )
    assert calibration.ece < 0.04 < 0.1 < calibration.ece_before
    assert calibration.threshold.val_precision.value >= 0.8
    assert calibration.threshold.test_precision.value == pytest.approx(0.8, abs=0.04)
    assert 0.1 < calibration.threshold.test_coverage < 1
    assert calibration.costs.least_expected_cost < calibration.costs.always_act


def test_calibration_error_is_the_mean_gap_weighted_by_rows():
    decisions = [(0.95, True)] * 5 + [(0.95, False)] * 5 + [(0.35, True)] * 10
    bins = reliability(decisions)
    assert [(b.low, b.rows, b.accuracy.value) for b in bins] == [(0.3, 10, 1.0), (0.9, 10, 0.5)]
    assert calibration_error(bins) == pytest.approx((0.45 + 0.65) / 2)


def test_risk_falls_to_that_of_the_most_confident_rows():
    curve = risk_coverage([(0.9, True), (0.5, False), (0.7, True), (0.6, False)])
    assert curve == [(0.25, 0), (0.5, 0), (0.75, pytest.approx(1 / 3)), (1, 0.5)]


def test_a_precision_out_of_reach_gives_no_threshold():
    wrong = [(0.9, False), (0.8, False)]
    threshold = choose_threshold(wrong, wrong, 0.9)
    assert threshold.confidence is None
    assert (threshold.test_coverage, threshold.test_precision.value) == (0, None)


def test_a_costly_mistake_is_avoided_even_when_it_is_the_likelier_tool():
    costs = CostsSection(wrong=1, abstain=0.9, pairs={"chat": {"web": 5.0}})
    p = {"rag": 0.0, "web": 0.55, "chat": 0.45}
    assert cheapest(p, cost_matrix(costs, list(p)), 0.9) == "chat"
    assert cheapest(p, cost_matrix(CostsSection(), list(p)), 0.5) == "web"
    assert cheapest(p, cost_matrix(CostsSection(), list(p)), 0.4) is None


def test_the_thresholds_file_lets_another_program_reach_the_same_decision():
    scores, rows = sample(400, sharpened=2, seed=3)
    costs = CostsSection(abstain=0.4)
    calibration = calibrate(scores, rows, scores, rows, costs=costs, wanted_precision=0.7)
    document = routing_thresholds(calibration, costs, TOOLS)
    accepted = right = 0
    for row_scores, row in zip(scores, rows, strict=True):  # exactly what `how_to_apply` says
        weights = {tool: math.exp(score / document["temperature"]) for tool, score in row_scores.items()}
        p = {tool: weight / sum(weights.values()) for tool, weight in weights.items()}
        chosen = max(p, key=p.get)
        if p[chosen] >= document["threshold"]["confidence"]:
            accepted, right = accepted + 1, right + (chosen == row.tool)
    assert right / accepted == pytest.approx(document["threshold"]["test_precision"]["value"])
    assert document["costs"]["right_tool_to_chosen_tool"]["rag"] == {"rag": 0, "web": 1, "chat": 1}
