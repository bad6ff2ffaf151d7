"""Calibrated confidence of the chosen tools, its reliability and cost, and a threshold to act on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tool_aware.config.data_sections import CostsSection
from tool_aware.evaluation.scoring.intervals import Estimate, Figure, known, proportion
from tool_aware.inference.name_scores import cheapest, probabilities
from tool_aware.rows import Row

BINS = 10
TEMPERATURES = (0.05, 20.0)  # search range; a best value at its end means that no temperature helps
FEWEST_VAL_ROWS = 20

LogScores = Mapping[str, float]


@dataclass(frozen=True)
class Bin:
    """Rows whose confidence lies in one tenth of 0-1: their mean confidence and their accuracy."""

    low: float
    high: float
    rows: int
    confidence: float
    accuracy: Estimate


@dataclass(frozen=True)
class Threshold:
    """Act only above `confidence`; None where no threshold reaches the wanted precision on val."""

    wanted_precision: float
    confidence: float | None
    val_precision: Figure
    val_coverage: float
    test_precision: Figure
    test_coverage: float


@dataclass(frozen=True)
class CostPolicy:
    """Mean cost per test row: always acting, or choosing what costs least in expectation, abstaining included."""

    always_act: float
    least_expected_cost: float
    abstained: int


@dataclass(frozen=True)
class Calibration:
    """The calibrated probabilities of the chosen tools. `risk_coverage` lists (coverage, error rate) points."""

    temperature: float
    val_rows: int
    test_rows: int
    ece_before: float
    ece: float
    reliability: list[Bin]
    risk_coverage: list[tuple[float, float]]
    area_under_risk: float
    threshold: Threshold
    costs: CostPolicy

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def calibrate(
    val: Sequence[LogScores],
    val_rows: Sequence[Row],
    test: Sequence[LogScores],
    test_rows: Sequence[Row],
    *,
    costs: CostsSection,
    wanted_precision: float,
) -> Calibration:
    """Fit the temperature and the threshold on val, and show on test what they do."""
    temperature = fit_temperature(val, val_rows)
    before = _decisions(test, test_rows, 1.0)
    on_val, on_test = _decisions(val, val_rows, temperature), _decisions(test, test_rows, temperature)
    curve = risk_coverage(on_test)
    return Calibration(
        temperature=temperature,
        val_rows=len(val),
        test_rows=len(test),
        ece_before=calibration_error(reliability(before)),
        ece=calibration_error(reliability(on_test)),
        reliability=reliability(on_test),
        risk_coverage=curve,
        area_under_risk=sum(risk for _, risk in curve) / len(curve),
        threshold=choose_threshold(on_val, on_test, wanted_precision),
        costs=_cost_policy([probabilities(row, temperature=temperature) for row in test], test_rows, costs),
    )


def fit_temperature(scores: Sequence[LogScores], rows: Sequence[Row]) -> float:
    """Find the temperature that makes the right tools of `rows` most probable (Guo et al. 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        total = 0.0
        for row_scores, row in zip(scores, rows, strict=True):
            p = probabilities(row_scores, temperature=math.exp(log_temperature))
            total -= math.log(max(sum(p.get(tool, 0.0) for tool in row.acceptable_tools), 1e-12))
        return total

    return math.exp(minimize_scalar(loss, bounds=tuple(map(math.log, TEMPERATURES)), method="bounded").x)


def _decisions(scores: Sequence[LogScores], rows: Sequence[Row], temperature: float) -> list[tuple[float, bool]]:
    """Return, for each row, the confidence in the chosen tool and whether that tool is acceptable."""
    decisions = []
    for row_scores, row in zip(scores, rows, strict=True):
        p = probabilities(row_scores, temperature=temperature)
        chosen = max(p, key=p.__getitem__)
        decisions.append((p[chosen], chosen in row.acceptable_tools))
    return decisions


def reliability(decisions: Sequence[tuple[float, bool]]) -> list[Bin]:
    """Group decisions by tenths of confidence; empty tenths are left out."""
    bins = []
    for index in range(BINS):
        low, high = index / BINS, (index + 1) / BINS
        inside = [d for d in decisions if low < d[0] <= high or (index == 0 and d[0] == 0)]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = known(proportion(sum(is_right for _, is_right in inside), len(inside)))
            bins.append(Bin(low, high, len(inside), confidence, accuracy))
    return bins


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error: mean gap of confidence and accuracy by rows (Naeini et al. 2015)."""
    total = sum(b.rows for b in bins)
    return sum(b.rows * abs(b.confidence - b.accuracy.value) for b in bins) / total


def risk_coverage(decisions: Sequence[tuple[float, bool]]) -> list[tuple[float, float]]:
    """Return the error rate of the most confident rows for every share acted on (El-Yaniv and Wiener 2010)."""
    ordered = sorted(decisions, key=lambda decision: -decision[0])
    wrong, curve = 0, []
    for count, (_, is_right) in enumerate(ordered, start=1):
        wrong += not is_right
        curve.append((count / len(ordered), wrong / count))
    return curve


def choose_threshold(
    val: Sequence[tuple[float, bool]], test: Sequence[tuple[float, bool]], wanted_precision: float
) -> Threshold:
    """Take the lowest confidence at and above which val reaches the wanted precision."""
    confidence = None
    for candidate in sorted({c for c, _ in val}):
        accepted = [is_right for c, is_right in val if c >= candidate]
        if sum(accepted) >= wanted_precision * len(accepted):
            confidence = candidate
            break
    return Threshold(wanted_precision, confidence, *_accepted(val, confidence), *_accepted(test, confidence))


def _accepted(decisions: Sequence[tuple[float, bool]], threshold: float | None) -> tuple[Figure, float]:
    accepted = [is_right for confidence, is_right in decisions if threshold is not None and confidence >= threshold]
    return proportion(sum(accepted), len(accepted)), len(accepted) / len(decisions)


# ---- costs ------------------------------------------------------------------------------------------------


def cost_matrix(costs: CostsSection, tools: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return right tool -> chosen tool -> the cost of that choice."""
    return {right: {chosen: _cost_of(costs, right, chosen) for chosen in tools} for right in tools}


def _cost_of(costs: CostsSection, right: str, chosen: str) -> float:
    return 0.0 if right == chosen else costs.pairs.get(right, {}).get(chosen, costs.wrong)


def _cost_policy(test: Sequence[Mapping[str, float]], rows: Sequence[Row], costs: CostsSection) -> CostPolicy:
    def paid(chosen: str | None, row: Row) -> float:
        if chosen is None:
            return costs.abstain
        return 0.0 if chosen in row.acceptable_tools else _cost_of(costs, row.tool, chosen)

    acting = [paid(max(p, key=p.__getitem__), row) for p, row in zip(test, rows, strict=True)]
    matrix = cost_matrix(costs, list(test[0]))
    careful = [cheapest(p, matrix, costs.abstain) for p in test]
    return CostPolicy(
        always_act=sum(acting) / len(test),
        least_expected_cost=sum(paid(chosen, row) for chosen, row in zip(careful, rows, strict=True)) / len(test),
        abstained=careful.count(None),
    )


def routing_thresholds(
    calibration: Calibration, costs: CostsSection, tools: Sequence[str], **origin: Any
) -> dict[str, Any]:
    """Return what an agent needs to act on the router's confidence: numbers, and how to apply them."""
    matrix = cost_matrix(costs, tools)
    return {
        "temperature": calibration.temperature,
        "threshold": asdict(calibration.threshold),
        "costs": {
            "right_tool_to_chosen_tool": matrix,
            "abstain": costs.abstain,
            **asdict(calibration.costs),
        },
        "how_to_apply": [
            "score(tool) = sum of log-probabilities of the tokens of ' <tool>\\n' behind the prompt and 'Tool:'",
            "p = softmax(score / temperature) over the tools; the confidence is the largest p",
            "confidence >= threshold.confidence: call that tool; below it: ask back or hand over",
            "or, with costs: call the tool with the least sum over right tools of p[right] * cost[right][tool], "
            "and abstain if that sum is above costs.abstain",
        ],
        **origin,
    }
