"""What the judgements of one system add up to. Every figure carries its interval; what has no cases is n/a."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tool_aware.evaluation.scoring.intervals import (
    NOT_AVAILABLE,
    Estimate,
    bootstrap,
    bootstrap_weights,
    f1_proportion,
    proportion,
    share,
    widest,
)
from tool_aware.evaluation.scoring.judgement import INVALID, Judgement, ParameterMatch

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ToolMetrics:
    """One tool's figures: `support` rows ask for it, `predicted` rows got it."""

    precision: Estimate
    recall: Estimate
    f1: Estimate
    support: int
    predicted: int


@dataclass(frozen=True)
class ParameterMetrics:
    """One parameter's figures under the router's policy, given the right tool.

    `overall_f1` is over all rows of its tool: where another tool was chosen, the parameter is missing.
    """

    precision: Estimate
    recall: Estimate
    f1: float | None
    overall_f1: float | None
    token_f1: float | None


@dataclass(frozen=True)
class Metrics:
    """All figures of one system.

    `confusion` counts rows by right tool (its rows) and chosen tool (its columns, the last one INVALID).
    `over_call`: of the rows that need no tool, how many called one; `under_call`: of those that need one, how many got
    plain chat. Figures about whole answers are None for systems that only choose a tool.
    """

    system: str
    rows: int
    groups: int
    accuracy: Estimate
    balanced_accuracy: Estimate
    macro_precision: Estimate
    macro_recall: Estimate
    macro_f1: Estimate
    weighted_f1: Estimate
    over_call: Estimate
    under_call: Estimate
    per_tool: dict[str, ToolMetrics]
    labels: list[str]
    confusion: list[list[int]]
    names_right_tool: Estimate | None
    parse_rate: Estimate | None
    schema_rate: Estimate | None
    truncated: int
    call_accuracy: Estimate | None
    call_accuracy_given_tool: Estimate | None
    bfcl_strict: Estimate | None
    bfcl_strict_given_tool: Estimate | None
    reasoning_sound: Estimate | None
    parameters: dict[str, ParameterMetrics]
    errors: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def summarise(
    system: str, judgements: Sequence[Judgement], tools: Sequence[str], *, no_tool: str | None, seed: int
) -> Metrics:
    """Add up `judgements` of the system called `system`; `no_tool` names the tool that stands for plain chat."""
    counts = count_confusion(judgements, tools)
    cells = one_hot(judgements, tools)
    weights = bootstrap_weights([judgement.group for judgement in judgements], seed=seed)
    per_tool = {
        tool: _tool_metrics(
            tool, judgements, bootstrap(partial(confusion_figure, cells, len(tools), f"f1:{k}"), weights), seed
        )
        for k, tool in enumerate(tools)
    }

    def average(figure: str, ends: str) -> Estimate:
        """Bootstrap an average over tools; if all resamples agree, average the ends of the tools' own intervals."""
        estimate = bootstrap(partial(confusion_figure, cells, len(tools), figure), weights)
        parts = [getattr(m, ends) for m in per_tool.values() if getattr(m, ends).value is not None]
        if estimate.low != estimate.high or not parts:
            return estimate
        low, high = (sum(getattr(part, end) for part in parts) / len(parts) for end in ("low", "high"))
        return Estimate(estimate.value, min(low, estimate.low), max(high, estimate.high), estimate.n)

    return Metrics(
        system=system,
        rows=len(judgements),
        groups=len({judgement.group for judgement in judgements}),
        accuracy=_share([j.is_tool_right for j in judgements], judgements, seed),
        balanced_accuracy=average("macro_recall", "recall"),
        macro_precision=average("macro_precision", "precision"),
        macro_recall=average("macro_recall", "recall"),
        macro_f1=average("macro_f1", "f1"),
        weighted_f1=average("weighted_f1", "f1"),
        **_call_rates(judgements, no_tool, seed),
        per_tool=per_tool,
        labels=[*tools, INVALID],
        confusion=counts.tolist(),
        **_answer_figures(judgements, seed),
        parameters=_parameter_metrics(judgements),
        errors=dict(Counter(judgement.error for judgement in judgements if judgement.error).most_common()),
    )


def _share(flags: Sequence[bool], judgements: Sequence[Judgement], seed: int) -> Estimate:
    return share(flags, [judgement.group for judgement in judgements], seed=seed)


# ---- tool choice ------------------------------------------------------------------------------------------


def one_hot(judgements: Sequence[Judgement], tools: Sequence[str]) -> np.ndarray:
    """Mark each row's cell of the confusion matrix, shape (rows, tools * (tools + 1))."""
    import numpy as np

    columns = {name: index for index, name in enumerate([*tools, INVALID])}
    cells = [columns[j.expected] * len(columns) + columns[j.credited] for j in judgements]
    return np.eye(len(tools) * len(columns), dtype=np.int64)[cells]


def count_confusion(judgements: Sequence[Judgement], tools: Sequence[str]) -> np.ndarray:
    """Count rows by right tool and chosen tool, shape (tools, tools + 1)."""
    return one_hot(judgements, tools).sum(0).reshape(len(tools), len(tools) + 1)


def confusion_figure(cells: np.ndarray, tools: int, figure: str, weights: np.ndarray) -> np.ndarray:
    """Compute one figure per resample: `weights` (..., rows) -> (...). NaN where it is undefined.

    `figure` is accuracy, macro_precision, macro_recall, macro_f1, weighted_f1, or f1:INDEX.
    F1 = 2 TP / (2 TP + FP + FN); macro figures average over the tools that occur.
    """
    import numpy as np

    counts = (weights @ cells).reshape(*weights.shape[:-1], tools, tools + 1).astype(float)
    hits = np.diagonal(counts, axis1=-2, axis2=-1)  # (..., tools)
    support, predicted = counts.sum(-1), counts.sum(-2)[..., :tools]
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(support > 0, 2 * hits / (support + predicted), np.nan)
        if figure.startswith("f1:"):
            return f1[..., int(figure[3:])]
        if figure == "accuracy":
            return hits.sum(-1) / support.sum(-1)
        if figure == "weighted_f1":
            return np.nansum(f1 * support, -1) / support.sum(-1)
        per_tool = {
            # A tool that is never chosen has no precision; the average counts it as 0, as scikit-learn does.
            "macro_precision": np.where(predicted > 0, hits / predicted, 0.0),
            "macro_recall": hits / support,
            "macro_f1": f1,
        }[figure]
        occurring = np.where(support > 0, per_tool, 0.0).sum(-1)
        return occurring / (support > 0).sum(-1)


def _tool_metrics(tool: str, judgements: Sequence[Judgement], f1_over_groups: Estimate, seed: int) -> ToolMetrics:
    asked_for = [j for j in judgements if j.expected == tool]
    given = [j for j in judgements if j.credited == tool]
    hits = sum(j.is_tool_right for j in asked_for)
    return ToolMetrics(
        precision=_share([j.is_tool_right for j in given], given, seed),
        recall=_share([j.is_tool_right for j in asked_for], asked_for, seed),
        # A tool that no row asks for has no F1, however often it was chosen.
        f1=widest(
            f1_proportion(hits, len(asked_for) + len(given) - 2 * hits) if asked_for else NOT_AVAILABLE, f1_over_groups
        ),
        support=len(asked_for),
        predicted=len(given),
    )


def _call_rates(judgements: Sequence[Judgement], no_tool: str | None, seed: int) -> dict[str, Estimate]:
    idle = [j for j in judgements if j.expected == no_tool]
    busy = [j for j in judgements if j.expected != no_tool] if no_tool else []
    return {
        "over_call": _share([j.credited not in (no_tool, INVALID) for j in idle], idle, seed),
        "under_call": _share([j.credited == no_tool for j in busy], busy, seed),
    }


# ---- whole answers ----------------------------------------------------------------------------------------


def _answer_figures(judgements: Sequence[Judgement], seed: int) -> dict[str, Any]:
    answered = [j for j in judgements if j.is_parsed is not None]
    right = [j for j in answered if j.is_tool_right]

    def rate(attribute: str, among: Sequence[Judgement] = answered) -> Estimate | None:
        judged = [j for j in among if getattr(j, attribute) is not None]
        return _share([getattr(j, attribute) for j in judged], judged, seed) if answered else None

    return {
        "names_right_tool": rate("names_right_tool"),
        "parse_rate": rate("is_parsed"),
        "schema_rate": rate("fits_schema"),
        "truncated": sum(j.is_truncated for j in answered),
        "call_accuracy": rate("is_call_correct"),
        "call_accuracy_given_tool": rate("is_call_correct", right),
        "bfcl_strict": rate("is_bfcl_valid"),
        "bfcl_strict_given_tool": rate("is_bfcl_valid", right),
        "reasoning_sound": rate("is_reasoning_sound"),
    }


def _parameter_metrics(judgements: Sequence[Judgement]) -> dict[str, ParameterMetrics]:
    given_tool = _matches_by_name([j for j in judgements if j.is_tool_right])
    overall = _matches_by_name(judgements)
    metrics = {}
    for name, every_match in sorted(overall.items()):
        matches = given_tool.get(name, [])
        hits, given, expected = _match_counts(matches)
        overlaps = [match.token_f1 for match in matches if match.token_f1 is not None]
        metrics[name] = ParameterMetrics(
            precision=proportion(hits, given),
            recall=proportion(hits, expected),
            f1=_f1(hits, given, expected),
            overall_f1=_f1(*_match_counts(every_match)),
            token_f1=sum(overlaps) / len(overlaps) if overlaps else None,
        )
    return metrics


def _matches_by_name(judgements: Sequence[Judgement]) -> dict[str, list[ParameterMatch]]:
    by_name: dict[str, list[ParameterMatch]] = {}
    for judgement in judgements:
        for match in judgement.parameters:
            by_name.setdefault(f"{judgement.expected}.{match.name}", []).append(match)
    return by_name


def _match_counts(matches: Sequence[ParameterMatch]) -> tuple[int, int, int]:
    """Count matches, parameters given and parameters asked for."""
    hits = sum(match.is_match for match in matches)
    asked_for = sum(match.is_expected or match.is_match for match in matches)
    return hits, sum(match.is_given for match in matches), asked_for


def _f1(hits: int, given: int, expected: int) -> float | None:
    return 2 * hits / (given + expected) if given + expected else None
