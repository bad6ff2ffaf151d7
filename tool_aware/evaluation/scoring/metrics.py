"""The figures of one system, from its judgements. Every figure has its interval; a figure without cases is n/a."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from tool_aware.evaluation.scoring.confusion import ConfusionCells, ConfusionCounts
from tool_aware.evaluation.scoring.intervals import (
    NOT_AVAILABLE,
    Estimate,
    Figure,
    f1_proportion,
    group_numbers,
    known,
    proportion,
    resamples_of,
    share,
    widest,
)
from tool_aware.evaluation.scoring.judgement import INVALID, Judgement, ParameterMatch
from tool_aware.evaluation.scoring.parameter_kinds import KINDS, MESSAGE, SEARCH, ParameterVerdict

if TYPE_CHECKING:
    import numpy as np

    from tool_aware.evaluation.scoring.confusion import Statistic
    from tool_aware.evaluation.scoring.reasoning import ReasoningFigures


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
    cells, shares = ConfusionCells.of(judgements, tools), _Shares(judgements, seed)
    counts = cells.counts(resamples_of(shares.groups, cells.kinds, seed=seed))
    per_tool = _per_tool(cells, shares, tools, counts.figures(ConfusionCounts.f1))
    precisions, recalls, f1s = zip(*((m.precision, m.recall, m.f1) for m in per_tool.values()), strict=True)

    def average(statistic: Statistic, parts: Sequence[Figure]) -> Estimate:
        return _average(known(counts.figure(statistic)), parts)

    _, is_answered = shares.verdicts("is_parsed")

    def rate(verdict: str) -> Figure | None:
        return shares.of_verdict(verdict, is_answered) if is_answered.any() else None

    def rate_given_tool(verdict: str) -> Figure | None:
        return shares.of_verdict(verdict, is_answered & cells.is_right) if is_answered.any() else None

    has_usable = bool(shares.verdicts("is_call_usable")[1].any())
    macro_recall = average(ConfusionCounts.macro_recall, recalls)
    return Metrics(
        system=system,
        rows=len(judgements),
        groups=int(shares.groups.max()) + 1,
        accuracy=known(shares.of(cells.is_right, cells.expected >= 0)),
        balanced_accuracy=macro_recall,
        macro_precision=average(ConfusionCounts.macro_precision, precisions),
        macro_recall=macro_recall,
        macro_f1=average(ConfusionCounts.macro_f1, f1s),
        weighted_f1=average(ConfusionCounts.weighted_f1, f1s),
        over_call=_over_call(cells, shares, tools, no_tool),
        under_call=_under_call(cells, shares, tools, no_tool),
        per_tool=per_tool,
        labels=[*tools, INVALID],
        confusion=cells.matrix(),
        names_right_tool=rate("names_right_tool"),
        parse_rate=rate("is_parsed"),
        schema_rate=rate("fits_schema"),
        truncated=sum(j.is_truncated for j in judgements if j.is_parsed is not None),
        call_accuracy=rate("is_call_correct"),
        call_accuracy_given_tool=rate_given_tool("is_call_correct"),
        bfcl_strict=rate("is_bfcl_valid"),
        bfcl_strict_given_tool=rate_given_tool("is_bfcl_valid"),
        usable_call=rate("is_call_usable") if has_usable else None,
        usable_call_given_tool=rate_given_tool("is_call_usable") if has_usable else None,
        reasoning_sound=rate("is_reasoning_sound"),
        kinds=_kind_metrics(judgements, shares.groups, seed),
        parameters=_parameter_metrics(judgements),
        errors=dict(Counter(judgement.error for judgement in judgements if judgement.error).most_common()),
    )


class _Shares:
    """Shares of one system's judgements. The groups of its rows, (rows,), are numbered once for all of them."""

    def __init__(self, judgements: Sequence[Judgement], seed: int) -> None:
        self.groups = group_numbers([judgement.group for judgement in judgements])
        self._judgements, self._seed = judgements, seed

    def of(self, flags: np.ndarray, among: np.ndarray) -> Figure:
        """Return the share of true flags, (rows,), among the rows that are marked, (rows,)."""
        return share(flags[among], self.groups[among], seed=self._seed)

    def of_verdict(self, name: str, among: np.ndarray) -> Figure:
        """Return the share of yes in a field of the judgements, among the rows that are marked and have it."""
        is_yes, is_there = self.verdicts(name)
        return self.of(is_yes, among & is_there)

    def verdicts(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return of a field of the judgements where it is true, and where it is not None, (rows,) each."""
        import numpy as np

        found = list(map(attrgetter(name), self._judgements))
        return np.array(found, bool), np.array([verdict is not None for verdict in found])


# ---- tool choice ------------------------------------------------------------------------------------------


def _average(estimate: Estimate, parts: Sequence[Figure]) -> Estimate:
    """Return an average over tools; if all its resamples agree, with the mean ends of the tools' own intervals."""
    ends = [part for part in parts if isinstance(part, Estimate)]
    if estimate.low != estimate.high or not ends:
        return estimate
    low, high = (sum(values) / len(ends) for values in ([part.low for part in ends], [part.high for part in ends]))
    return Estimate(estimate.value, min(low, estimate.low), max(high, estimate.high), estimate.n)


def _per_tool(
    cells: ConfusionCells, shares: _Shares, tools: Sequence[str], over_groups: Sequence[Figure]
) -> dict[str, ToolMetrics]:
    numbered = zip(tools, range(len(tools)), over_groups, strict=True)
    return {tool: _tool_metrics(cells, shares, number, f1) for tool, number, f1 in numbered}


def _tool_metrics(cells: ConfusionCells, shares: _Shares, tool: int, f1_over_groups: Figure) -> ToolMetrics:
    asked_for, given = cells.expected == tool, cells.credited == tool
    support, predicted, hits = (int(rows.sum()) for rows in (asked_for, given, asked_for & given))
    return ToolMetrics(
        precision=shares.of(cells.is_right, given),
        recall=shares.of(cells.is_right, asked_for),
        # A tool that no row asks for has no F1, however often it was chosen.
        f1=widest(f1_proportion(hits, support + predicted - 2 * hits), f1_over_groups) if support else NOT_AVAILABLE,
        support=support,
        predicted=predicted,
    )


def _over_call(cells: ConfusionCells, shares: _Shares, tools: Sequence[str], no_tool: str | None) -> Figure:
    none = tools.index(no_tool) if no_tool else -1  # which no row has
    return shares.of((cells.credited != none) & (cells.credited != cells.tools), cells.expected == none)


def _under_call(cells: ConfusionCells, shares: _Shares, tools: Sequence[str], no_tool: str | None) -> Figure:
    none = tools.index(no_tool) if no_tool else -1
    return shares.of(cells.credited == none, (cells.expected != none) & (none >= 0))


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


def _kind_metrics(judgements: Sequence[Judgement], groups: np.ndarray, seed: int) -> dict[str, KindMetrics]:
    """Add up the verdicts on parameters by kind; a kind without parameters is left out."""
    by_kind: dict[str, list[tuple[ParameterVerdict, int]]] = {kind: [] for kind in KINDS}
    for judgement, group in zip(judgements, groups.tolist(), strict=True):
        for use in judgement.uses:
            by_kind[use.kind].append((use, group))
    return {kind: _metrics_of_kind(kind, uses, seed) for kind, uses in by_kind.items() if uses}


def _metrics_of_kind(kind: str, uses: Sequence[tuple[ParameterVerdict, int]], seed: int) -> KindMetrics:
    import numpy as np

    def rate(flag: Callable[[ParameterVerdict], bool | None]) -> Figure:
        asked = [(is_yes, group) for use, group in uses if (is_yes := flag(use)) is not None]
        return share([is_yes for is_yes, _ in asked], np.array([group for _, group in asked], np.int64), seed=seed)

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
