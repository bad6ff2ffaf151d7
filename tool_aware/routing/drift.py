"""Logged decisions held against the evaluation: tool shares, confidence, the rules by words, and what to label next."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tool_aware.dataset.redaction import Redactor
from tool_aware.routing.decision_rows import LoggedDecision
from tool_aware.text import normalised, one_line

_NORMAL_95 = 1.96  # standard deviations of a normal distribution that hold 95 % of it


@dataclass(frozen=True)
class Reference:
    """The tools and confidences that decisions are compared with."""

    kind: str
    """evaluation or training."""
    name: str
    tools: Mapping[str, int]
    """Tool to the rows for which it was chosen."""
    mean_confidence: float | None = None
    tenths: Mapping[int, int] | None = None
    """Tenth of 0-1 to the rows whose confidence lies in it."""
    threshold: float | None = None
    rows_above: int | None = None


@dataclass(frozen=True)
class Share:
    """A share of the decisions beside that of the reference."""

    name: str
    count: int
    share: float
    before: float | None
    is_beyond_chance: bool
    """Whether they differ by more than 95 % of the pairs of samples of one population would (two-proportion z-test)."""


@dataclass(frozen=True)
class ToLabel:
    """A query that a person should say the right tool for, redacted."""

    id: str | None
    query: str
    tool: str
    confidence: float | None
    why: str


@dataclass(frozen=True)
class Drift:
    """Everything that is shown; shares of confidence are empty where none is logged."""

    decisions: int
    first: str | None
    last: str | None
    reference: str
    reference_kind: str
    tools: list[Share]
    mean_confidence: float | None
    mean_confidence_before: float | None
    confidence: list[Share]
    threshold: float | None
    below_threshold: Share | None
    without_confidence: int
    outcomes: Mapping[str, int]
    rules_disagree: int | None
    """Decisions for which the rules by words choose another tool; None without rules."""
    rules_instead: Mapping[str, int]
    label_next: list[ToLabel]


def compare(
    decisions: Sequence[LoggedDecision],
    reference: Reference,
    rules: Callable[[str], str] | None,
    *,
    label: int,
) -> Drift:
    """Return what `decisions` (one or more, the newest first) show beside the reference; `label` queries at most."""
    times = sorted(one.timestamp for one in decisions if one.timestamp)
    known = [one.confidence for one in decisions if one.confidence is not None]
    below = sum(confidence < reference.threshold for confidence in known) if reference.threshold is not None else 0
    rows = sum((reference.tenths or {}).values())
    others = [(one, rules(one.query)) for one in decisions] if rules else []
    instead = Counter(f"{tool} instead of {one.tool}" for one, tool in others if tool != one.tool)
    return Drift(
        decisions=len(decisions),
        first=times[0].isoformat(sep=" ", timespec="minutes") if times else None,
        last=times[-1].isoformat(sep=" ", timespec="minutes") if times else None,
        reference=reference.name,
        reference_kind=reference.kind,
        tools=shares(Counter(one.tool for one in decisions), reference.tools),
        mean_confidence=sum(known) / len(known) if known else None,
        mean_confidence_before=reference.mean_confidence,
        confidence=_confidence_shares(known, reference.tenths),
        threshold=reference.threshold,
        below_threshold=None
        if reference.threshold is None or not known
        else share_beside(
            "below the threshold",
            (below, len(known)),
            (rows - reference.rows_above, rows) if reference.rows_above is not None else (0, 0),
        ),
        without_confidence=len(decisions) - len(known),
        outcomes=dict(Counter(one.left_out or "learnt from" for one in decisions).most_common()),
        rules_disagree=instead.total() if rules else None,
        rules_instead=dict(instead.most_common(5)),
        label_next=label_next(decisions, rules, reference.threshold, most=label),
    )


def shares(now: Mapping[str, int], before: Mapping[str, int]) -> list[Share]:
    """Return the share of each name in `now` beside that in `before`, in the order of `before`, new names last."""
    names = [*before, *sorted(now.keys() - before.keys())]
    totals = sum(now.values()), sum(before.values())
    return [share_beside(name, (now.get(name, 0), totals[0]), (before.get(name, 0), totals[1])) for name in names]


def share_beside(name: str, now: tuple[int, int], before: tuple[int, int]) -> Share:
    """Return one share, given as (count, of how many) both times; nothing to compare with if `before` is of none."""
    (count, total), (earlier, of) = now, before
    share = count / total
    if not of:
        return Share(name, count, share, None, is_beyond_chance=False)
    pooled = (count + earlier) / (total + of)
    error = math.sqrt(pooled * (1 - pooled) * (1 / total + 1 / of))
    return Share(name, count, share, earlier / of, abs(share - earlier / of) > _NORMAL_95 * error)


def _confidence_shares(known: Sequence[float], before: Mapping[int, int] | None) -> list[Share]:
    """Return the share of decisions in each tenth of confidence that has any."""
    if not known:
        return []
    now = Counter(min(int(confidence * 10), 9) for confidence in known)
    tenths = sorted(now.keys() | (before or {}).keys())
    named = {f"{tenth / 10:.1f} to {(tenth + 1) / 10:.1f}": tenth for tenth in tenths}
    total = sum((before or {}).values())
    return [
        share_beside(name, (now[tenth], len(known)), ((before or {}).get(tenth, 0), total))
        for name, tenth in named.items()
    ]


def label_next(
    decisions: Iterable[LoggedDecision], rules: Callable[[str], str] | None, threshold: float | None, *, most: int
) -> list[ToLabel]:
    """Return the queries to label, each once: failures, then the least confident, then those the rules disagree on.

    What the next data set learns from already is left out.
    """
    seen: set[str] = set()
    found: list[tuple[LoggedDecision, str]] = []
    for one in decisions:
        key = normalised(one.query)
        if one.left_out is None or key in seen:
            continue
        seen.add(key)
        other = rules(one.query) if rules else one.tool
        reasons = [
            (one.left_out or "").replace("_", " ") if one.went_badly else "",
            "below the threshold" if one.confidence is not None and one.confidence < (threshold or 0) else "",
            f"rules: {other}" if other != one.tool else "",
        ]
        why = ", ".join(reason for reason in reasons if reason)
        if why or one.confidence is not None:
            found.append((one, why or "unsure"))
    found.sort(key=lambda pair: (not pair[0].went_badly, 1.0 if pair[0].confidence is None else pair[0].confidence))
    redact = Redactor().redact
    return [ToLabel(one.id, redact(one_line(one.query)), one.tool, one.confidence, why) for one, why in found[:most]]
