"""The chapter about what parameters are worth to an agent: figures by kind, and of each kind the worst side by side."""

from __future__ import annotations

from tool_aware.evaluation.report.chapter_parts import Card, Section, Table, interval, share_percent
from tool_aware.evaluation.results import Results, title
from tool_aware.evaluation.scoring.parameter_kinds import CODE, EXACT, MESSAGE, SEARCH
from tool_aware.evaluation.scoring.worst_parameters import WorstParameter

NAMES = {EXACT: "Exact values", SEARCH: "Search texts", CODE: "Programs", MESSAGE: "Messages"}
MOST_LINES = 12  # of what a program prints


def parameter_kinds(results: Results) -> Section | None:
    """Return the chapter; None where nobody judged what calls are worth."""
    m = results.metrics[results.tuned]
    if not m.kinds:
        return None
    kinds = list(m.kinds.values())
    rows = [
        ["Cases", *(str(k.usable.n) for k in kinds)],
        ["Usable", *(interval(k.usable) for k in kinds)],
        ["Right as text", *(interval(k.same) for k in kinds)],
        ["Programs that run", *(interval(k.runs) for k in kinds)],
        ["Content words kept", *(_share(k.kept) for k in kinds)],
        ["Passages found", *(_share(k.found) for k in kinds)],
        ["Filler words left in", *("–" if k.filler is None else f"{k.filler:.1f}" for k in kinds)],
    ]
    notes = [
        f"Calls that do the agent's job: {interval(m.usable_call)} % of rows, {interval(m.usable_call_given_tool)} % "
        "given the right tool. A search text has to find what the reference finds and to keep names, numbers, times "
        "and negations; a program to print what the reference prints; a message to keep its words and add none; "
        "everything else to be exact.",
        "Below, of each kind those that are farthest from it, the reference on the left and the answer on the right: "
        "struck words are missing in the answer, underlined ones are not in the reference.",
    ]
    table = Table([f"{title(results.tuned)}, given the tool", *(NAMES[kind] for kind in m.kinds)], rows)
    groups = [
        (name, [_card(w) for w in results.worst_parameters if w.verdict.kind == kind]) for kind, name in NAMES.items()
    ]
    shown = [(name, cards) for name, cards in groups if cards]
    return Section("What the parameters are worth", notes if shown else notes[:1], [table], cards=shown)


def _share(value: float | None) -> str:
    return "–" if value is None else share_percent(value)


def _card(worst: WorstParameter) -> Card:
    verdict = worst.verdict
    more = [
        ("Found by the reference alone", list(worst.missed)),
        ("Found by the answer alone", list(worst.only_found)),
        ("The reference prints", _lines(verdict.wanted)),
        ("The answer prints", _lines(verdict.printed) or (["(nothing)"] if verdict.printed is not None else [])),
    ]
    more = [(label, lines) for label, lines in more if lines]
    return Card(f"Row {worst.row}: {worst.parameter}", verdict.reason, worst.query, worst.wanted, worst.given, more)


def _lines(printed: str | None) -> list[str]:
    """Return the first lines of an output."""
    lines = (printed or "").strip().splitlines()
    return [*(line[:300] for line in lines[:MOST_LINES]), *(["…"] if len(lines) > MOST_LINES else [])]
