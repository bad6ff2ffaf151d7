"""The figures of one system, from its judgements. Every figure has its interval; a figure without cases is n/a."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tool_aware.evaluation.scoring.confusion import ConfusionCells, ConfusionCounts
from tool_aware.evaluation.scoring.intervals import (
    NOT_AVAILABLE,
    Estimate,
    Figure,
    bootstrap,
    bootstrap_each,
    f1_proportion,
    known,
    proportion,
    resamples_of,
    share,
    widest,
)
from tool_aware.evaluation.scoring.judgement import INVALID, Judgement, ParameterMatch
from tool_aware.evaluation.scoring.parameter_kinds import KINDS, MESSAGE, SEARCH, ParameterVerdict

if TYPE_CHECKING:
    from tool_aware.evaluation.scoring.confusion import Statistic
    from tool_aware.evaluation.scoring.reasoning import ReasoningFigures

Question = Callable[[Judgement], bool | None]  # about one judgement; None where it does not apply


@dataclass(frozen=True)
class ToolMetrics:
    """One tool's figures: `support` rows ask for it, `predicted` rows got it."""

    precision: Figure
    recall: Figure
    f1: Figure
    support: int
    predicted: int


@dataclass(frozen=True)
class ParameterMetrics:
    """One parameter's figures under the router's policy, given the right tool.

    `overall_f1` is over all rows of its tool: where another tool was chosen, the parameter is missing.
    """

    precision: Figure
    recall: Figure
    f1: float | None
    overall_f1: float | None
    token_f1: float | None


@dataclass(frozen=True)
class KindMetrics:
    """The parameters of one kind, given the right tool: whether a call does its job with them, and what that rests on.

    `same`: right under the strict policy. `kept` (content words) and `found` (top passages) are means over those of the
    reference; `filler` is the mean number of function words more than the reference has; `adds_words` the share that
    has content words which neither the reference nor the user has; `runs` the share of programs that end well.
    """

    usable: Figure
    same: Figure
    kept: float | None
    found: float | None
    filler: float | None
    adds_words: Figure | None
    runs: Figure | None


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
    over_call: Figure
    under_call: Figure
    per_tool: dict[str, ToolMetrics]
    labels: list[str]
    confusion: list[list[int]]
    names_right_tool: Figure | None
    parse_rate: Figure | None
    schema_rate: Figure | None
    truncated: int
    call_accuracy: Figure | None
    call_accuracy_given_tool: Figure | None
    bfcl_strict: Figure | None
    bfcl_strict_given_tool: Figure | None
    usable_call: Figure | None
    usable_call_given_tool: Figure | None
    reasoning_sound: Figure | None
    kinds: dict[str, KindMetrics]
    parameters: dict[str, ParameterMetrics]
    errors: dict[str, int]
    reasoning: ReasoningFigures | None = None  # added by results.py, as it needs the answers and the training rows

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def summarise(
    system: str, judgements: Sequence[Judgement], tools: Sequence[str], *, no_tool: str | None, seed: int
) -> Metrics:
    """Add up `judgements`, at least one, of the system called `system`; `no_tool` names the tool for plain chat."""
    cells = ConfusionCells.of(judgements, tools)
    resamples = resamples_of([judgement.group for judgement in judgements], cells.kinds, seed=seed)
    per_tool = _per_tool(
        judgements, tools, bootstrap_each(cells.statistic(ConfusionCounts.f1, resamples), resamples), seed
    )
    precisions, recalls, f1s = zip(*((m.precision, m.recall, m.f1) for m in per_tool.values()), strict=True)

    def average(statistic: Statistic, parts: Sequence[Figure]) -> Estimate:
        return _average(known(bootstrap(cells.statistic(statistic, resamples), resamples)), parts)

    answered = [j for j in judgements if j.is_parsed is not None]
    right = [j for j in answered if j.is_tool_right]

    def rate(question: Question, among: Sequence[Judgement] = answered) -> Figure | None:
        return _rate(question, among, seed) if answered else None

    usable = rate(lambda j: j.is_call_usable) if any(j.is_call_usable is not None for j in answered) else None
    macro_recall = average(ConfusionCounts.macro_recall, recalls)
    return Metrics(
        system=system,
        rows=len(judgements),
        groups=len({judgement.group for judgement in judgements}),
        accuracy=known(_rate(lambda j: j.is_tool_right, judgements, seed)),
        balanced_accuracy=macro_recall,
        macro_precision=average(ConfusionCounts.macro_precision, precisions),
        macro_recall=macro_recall,
        macro_f1=average(ConfusionCounts.macro_f1, f1s),
        weighted_f1=average(ConfusionCounts.weighted_f1, f1s),
        over_call=_over_call(judgements, no_tool, seed),
        under_call=_under_call(judgements, no_tool, seed),
        per_tool=per_tool,
        labels=[*tools, INVALID],
        confusion=cells.matrix(),
        names_right_tool=rate(lambda j: j.names_right_tool),
        parse_rate=rate(lambda j: j.is_parsed),
        schema_rate=rate(lambda j: j.fits_schema),
        truncated=sum(j.is_truncated for j in answered),
        call_accuracy=rate(lambda j: j.is_call_correct),
        call_accuracy_given_tool=rate(lambda j: j.is_call_correct, right),
        bfcl_strict=rate(lambda j: j.is_bfcl_valid),
        bfcl_strict_given_tool=rate(lambda j: j.is_bfcl_valid, right),
        usable_call=usable,
        usable_call_given_tool=rate(lambda j: j.is_call_usable, right) if usable else None,
        reasoning_sound=rate(lambda j: j.is_reasoning_sound),
        kinds=_kind_metrics(judgements, seed),
        parameters=_parameter_metrics(judgements),
        errors=dict(Counter(judgement.error for judgement in judgements if judgement.error).most_common()),
    )


def _rate(question: Question, judgements: Sequence[Judgement], seed: int) -> Figure:
    """Return the share of judgements answered yes, among those that the question applies to."""
    answers = [(is_yes, j.group) for j in judgements if (is_yes := question(j)) is not None]
    return share([is_yes for is_yes, _ in answers], [group for _, group in answers], seed=seed)


# ---- tool choice ------------------------------------------------------------------------------------------


def _average(estimate: Estimate, parts: Sequence[Figure]) -> Estimate:
    """Return an average over tools; if all its resamples agree, with the mean ends of the tools' own intervals."""
    ends = [part for part in parts if isinstance(part, Estimate)]
    if estimate.low != estimate.high or not ends:
        return estimate
    low, high = (sum(values) / len(ends) for values in ([part.low for part in ends], [part.high for part in ends]))
    return Estimate(estimate.value, min(low, estimate.low), max(high, estimate.high), estimate.n)


def _per_tool(
    judgements: Sequence[Judgement], tools: Sequence[str], over_groups: Sequence[Figure], seed: int
) -> dict[str, ToolMetrics]:
    return {tool: _tool_metrics(tool, judgements, f1, seed) for tool, f1 in zip(tools, over_groups, strict=True)}


def _tool_metrics(tool: str, judgements: Sequence[Judgement], f1_over_groups: Figure, seed: int) -> ToolMetrics:
    asked_for = [j for j in judgements if j.expected == tool]
    given = [j for j in judgements if j.credited == tool]
    hits = sum(j.is_tool_right for j in asked_for)
    misses = len(asked_for) + len(given) - 2 * hits
    return ToolMetrics(
        precision=_rate(lambda j: j.is_tool_right, given, seed),
        recall=_rate(lambda j: j.is_tool_right, asked_for, seed),
        # A tool that no row asks for has no F1, however often it was chosen.
        f1=widest(f1_proportion(hits, misses), f1_over_groups) if asked_for else NOT_AVAILABLE,
        support=len(asked_for),
        predicted=len(given),
    )


def _over_call(judgements: Sequence[Judgement], no_tool: str | None, seed: int) -> Figure:
    needing_none = [j for j in judgements if j.expected == no_tool]
    return _rate(lambda j: j.credited not in (no_tool, INVALID), needing_none, seed)


def _under_call(judgements: Sequence[Judgement], no_tool: str | None, seed: int) -> Figure:
    needing_one = [j for j in judgements if j.expected != no_tool] if no_tool else []
    return _rate(lambda j: j.credited == no_tool, needing_one, seed)


# ---- parameters -------------------------------------------------------------------------------------------


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


def _kind_metrics(judgements: Sequence[Judgement], seed: int) -> dict[str, KindMetrics]:
    """Add up the verdicts on parameters by kind; a kind without parameters is left out."""
    found = [(use, judgement.group) for judgement in judgements for use in judgement.uses]
    by_kind = {kind: [(use, group) for use, group in found if use.kind == kind] for kind in KINDS}
    return {kind: _metrics_of_kind(kind, uses, seed) for kind, uses in by_kind.items() if uses}


def _metrics_of_kind(kind: str, uses: Sequence[tuple[ParameterVerdict, str]], seed: int) -> KindMetrics:
    def rate(flag: Callable[[ParameterVerdict], bool | None]) -> Figure:
        asked = [(is_yes, group) for use, group in uses if (is_yes := flag(use)) is not None]
        return share([is_yes for is_yes, _ in asked], [group for _, group in asked], seed=seed)

    def mean(values: Sequence[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return sum(there) / len(there) if there else None

    return KindMetrics(
        usable=rate(lambda use: use.is_usable),
        same=rate(lambda use: use.is_same),
        kept=mean([use.kept for use, _ in uses]),
        found=mean([use.found for use, _ in uses]),
        filler=mean([use.filler for use, _ in uses]),
        adds_words=rate(lambda use: bool(use.added)) if kind in (SEARCH, MESSAGE) else None,
        runs=rate(lambda use: use.runs) if any(use.runs is not None for use, _ in uses) else None,
    )


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
