"""The tables that evaluate.py prints, as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tool_aware.console import table
from tool_aware.evaluation.scoring.earlier_turns import EarlierTurns
from tool_aware.evaluation.scoring.intervals import NOT_AVAILABLE, Estimate, Figure, difference
from tool_aware.evaluation.scoring.judgement import ERRORS
from tool_aware.evaluation.scoring.metrics import Metrics
from tool_aware.evaluation.scoring.reasoning import ReasoningFigures
from tool_aware.evaluation.scoring.significance import Comparison
from tool_aware.evaluation.scoring.two_requests import TwoRequests

MOST_IN_MATRIX = 20  # tools
RULE = "=" * 42


def comparison_table(base: Metrics, tuned: Metrics, comparison: Comparison) -> str:
    """Write base against tuned: accuracy, improvement with its interval, F1 per tool, and the verdict."""
    gain = tuned.accuracy.value - base.accuracy.value
    relative = f" ({100 * gain / base.accuracy.value:+.1f}%)" if base.accuracy.value else ""
    low, high = comparison.accuracy_difference.low, comparison.accuracy_difference.high
    lines = [
        "COMPARISON",
        RULE,
        f"Base Model Accuracy:       {100 * base.accuracy.value:.2f}%",
        f"Fine-tuned Model Accuracy: {100 * tuned.accuracy.value:.2f}%",
        f"Improvement:               {100 * gain:+.2f}%{relative}",
        f"95% Interval:              {100 * low:+.2f}% to {100 * high:+.2f}%",
        "",
        "Per-Tool F1 Score Comparison:",
        f"{'Tool':<20} {'Base':<12} {'Fine-tuned':<12} Δ",
    ]
    for tool, ours in base.per_tool.items():
        theirs = tuned.per_tool[tool]
        change = difference(theirs.f1, ours.f1)
        shown = "n/a" if change is None else f"{change:+.2f}"
        lines.append(f"{tool:<20} {_figure(ours.f1):<12} {_figure(theirs.f1):<12} {shown}")
    return "\n".join([*lines, "", comparison.verdict()])


def systems_table(systems: Sequence[Metrics]) -> str:
    """Write all systems side by side; `-` where a system gives no whole answer."""
    rows = [
        [
            m.system,
            *map(_interval, (m.accuracy, m.macro_f1)),
            *map(_percent, (m.parse_rate, m.usable_call, m.call_accuracy, m.call_accuracy_given_tool, m.bfcl_strict)),
        ]
        for m in systems
    ]
    headers = [
        "System",
        "Tool accuracy [95 %]",
        "Macro-F1 [95 %]",
        "Parsed",
        "Usable call",
        "Whole call",
        "..given tool",
        "BFCL strict",
    ]
    return table(headers, rows)


def per_tool_table(metrics: Metrics) -> str:
    """Write one system's precision, recall and F1 for each tool."""
    rows = [
        [tool, *map(_interval, (figures.precision, figures.recall, figures.f1)), figures.support, figures.predicted]
        for tool, figures in metrics.per_tool.items()
    ]
    return table(["Tool", "Precision [95 %]", "Recall [95 %]", "F1 [95 %]", "Rows", "Chosen"], rows)


def kinds_table(metrics: Metrics) -> str:
    """Write one system's parameters by kind, given the right tool; `-` where a figure has no sense."""
    rows = [
        [kind, k.usable.n, _interval(k.usable), *map(_percent, (k.same, k.runs)), _share(k.kept), _share(k.found)]
        for kind, k in metrics.kinds.items()
    ]
    return table(["Kind", "Parameters", "Usable [95 %]", "As strict", "Runs", "Words kept", "Passages found"], rows)


def confusion_table(metrics: Metrics) -> str:
    """Write one system's confusion matrix: right tool down, chosen tool across, `invalid` last."""
    if len(metrics.confusion) > MOST_IN_MATRIX:
        return _confused_table(metrics)
    rows = [[tool, *map(str, counts)] for tool, counts in zip(metrics.labels, metrics.confusion, strict=False)]
    return table(["Right \\ chosen", *metrics.labels], rows)


def _confused_table(metrics: Metrics) -> str:
    """Write the pairs that are confused most, where the matrix has more columns than a line holds."""
    cells = [
        (right, chosen, count)
        for right, counts in zip(metrics.labels, metrics.confusion, strict=False)
        for chosen, count in zip(metrics.labels, counts, strict=True)
        if count and right != chosen
    ]
    rows = sorted(cells, key=lambda cell: -cell[2])[:MOST_IN_MATRIX]
    if not rows:
        return "every row got its tool"
    return table(["Right", "Chosen (most frequent errors)", "Rows"], rows)


def errors_table(systems: Mapping[str, Metrics]) -> str:
    """Write how often each kind of error was made."""
    kinds = [kind for kind in ERRORS if any(kind in metrics.errors for metrics in systems.values())]
    rows = [[kind, *(str(metrics.errors.get(kind, 0)) for metrics in systems.values())] for kind in kinds]
    return table(["Error", *systems], rows)


def earlier_turns_table(kinds: Sequence[EarlierTurns]) -> str:
    """Write right choices for the same rows with their earlier turns and without, a line a kind of follow-up."""
    rows = [
        [k.kind, k.with_turns.n, *map(_interval, (k.with_turns, k.without_turns)), k.only_with, k.only_without]
        for k in kinds
    ]
    return table(["Follow-up", "Rows", "With [95 %]", "Without [95 %]", "Right only with", "Only without"], rows)


def two_requests_table(systems: Mapping[str, TwoRequests]) -> str:
    """Write what each system does with queries that ask for two things; `-` where a system gives no whole answer."""
    rows = [
        [
            name,
            s.first.n,
            *map(_interval, (s.first, s.second)),
            *map(_percent, (s.malformed, s.several_calls, s.names_rest)),
        ]
        for name, s in systems.items()
    ]
    headers = [
        "System",
        "Rows",
        "First tool [95 %]",
        "Second tool [95 %]",
        "Malformed",
        "..two calls",
        "Names the rest",
    ]
    return table(headers, rows)


def reasoning_table(systems: Mapping[str, ReasoningFigures]) -> str:
    """Write of each system's reasonings how often evidence stands in the query, and how many are the same sentence."""
    rows = [
        [name, r.evidence_in_query.n, *map(_interval, (r.evidence_in_query, r.leads_to_tool or NOT_AVAILABLE))]
        + ["-" if r.boilerplate is None else f"{100 * r.boilerplate:.1f} %", f"{r.sentences} of {r.reasonings}"]
        for name, r in systems.items()
    ]
    headers = ["Reasoning", "Read", "Evidence in query [95 %]", "Leads to tool [95 %]", "Boilerplate", "Sentences"]
    return table(headers, rows)


def _figure(figure: Figure) -> str:
    return f"{figure.value:.2f}" if isinstance(figure, Estimate) else "n/a"


def _percent(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{100 * figure.value:.1f} %" if isinstance(figure, Estimate) else "n/a"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _interval(figure: Figure) -> str:
    if not isinstance(figure, Estimate):
        return "n/a"
    return f"{100 * figure.value:.1f} [{100 * figure.low:.0f}-{100 * figure.high:.0f}]"
