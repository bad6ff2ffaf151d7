"""The report, section by section, as text, tables and charts; `markdown.py` and `html.py` write it out."""

from __future__ import annotations

from tool_aware.evaluation.report import charts
from tool_aware.evaluation.report.chapter_parts import Section, Table, interval, share_percent
from tool_aware.evaluation.report.kinds_chapter import parameter_kinds
from tool_aware.evaluation.results import Results, title
from tool_aware.evaluation.scoring.intervals import Estimate
from tool_aware.evaluation.scoring.judgement import ERRORS, INVALID
from tool_aware.evaluation.scoring.metrics import Metrics
from tool_aware.evaluation.scoring.robustness import MOST_ROWS


def build_report(results: Results) -> list[Section]:
    """Return all sections, the verdict first."""
    sections = [
        Section("Verdict", paragraphs=[" ".join(results.headline()), *_evidence(results), *results.notes]),
        _systems(results),
        _per_tool(results),
        _confusions(results),
        _parameters(results),
        parameter_kinds(results),
        _reasoning(results),
        _errors(results),
        _calibration(results),
        _breakdown(results),
        _robustness(results),
        _earlier_turns(results),
        _two_requests(results),
        _other_tools(results),
        _worst(results),
    ]
    return [section for section in sections if section is not None]


def _evidence(results: Results) -> list[str]:
    """Return what the comparison says beyond tool accuracy."""
    comparison = results.comparison
    if comparison is None:
        return []
    change, calls = comparison.macro_f1_difference, comparison.whole_call
    sentences = [f"Macro-F1 changes by {_points(change.value)} points [{_points(change.low)}, {_points(change.high)}]."]
    if calls:
        sentences.append(
            f"Whole calls are right for {comparison.second} alone in {calls.only_second} rows and for "
            f"{comparison.first} alone in {calls.only_first} (exact McNemar p = {calls.p_value:.2g})."
        )
    if usable := comparison.usable_call:
        sentences.append(
            f"Usable ones are {comparison.second}'s alone in {usable.only_second} rows and {comparison.first}'s alone "
            f"in {usable.only_first} (p = {usable.p_value:.2g})."
        )
    return [" ".join(sentences)]


def _systems(results: Results) -> Section:
    of_calls = ["Usable call", "Whole call", "BFCL strict"]
    headers = ["System", "Tool accuracy", "Macro-F1", "Parsed", *of_calls]
    rows = []
    for name, m in results.metrics.items():
        speed = results.seconds_per_token.get(name)
        calls = [m.usable_call, m.call_accuracy, m.bfcl_strict]
        figures = [m.accuracy, m.macro_f1, m.parse_rate, *calls]
        rows.append([title(name), *map(interval, figures), f"{1000 * speed:.2f}" if speed else "–"])
    notes = [
        "Percent, with 95 % intervals (Wilson for shares, widened by a bootstrap over groups of rows). Rows are "
        f"{results.metrics[results.tuned].rows} in {results.metrics[results.tuned].groups} groups. "
        "“Usable call” is the right tool with parameters that do the agent's job; “Whole call” asks for every "
        "parameter right under the router's policy; “BFCL strict” is the same under the rules of the Berkeley "
        "Function-Calling Leaderboard. “–”: the system only chooses a tool."
    ]
    return Section("All systems on the same rows", notes, [Table([*headers, "ms per token"], rows)])


def _per_tool(results: Results) -> Section:
    main = {title(name): results.metrics[name] for name in results.main}
    tables = []
    for name, m in main.items():
        rows = [
            [tool, interval(f.precision), interval(f.recall), interval(f.f1), str(f.support), str(f.predicted)]
            for tool, f in m.per_tool.items()
        ]
        tables.append(Table([name, "Precision", "Recall", "F1", "Rows", "Chosen"], rows))
    rates = [
        f"{name}: calls a tool where none is needed in {interval(m.over_call)} % of those rows, answers itself where a "
        f"tool is needed in {interval(m.under_call)} %; balanced accuracy {interval(m.balanced_accuracy)} %."
        for name, m in main.items()
        if isinstance(m.over_call, Estimate) or isinstance(m.under_call, Estimate)
    ]
    rates += [
        f"{name}: the first line names the right tool in {interval(m.names_right_tool)} % of rows, whether or not the "
        "rest can be read. All other figures ask for a call that an agent could make."
        for name, m in main.items()
        if m.names_right_tool and m.names_right_tool.value != m.accuracy.value
    ]
    return Section("By tool", rates, tables, [("F1 by tool with 95 % intervals", charts.tool_bars(main))])


def _confusions(results: Results) -> Section:
    notes = ["Right tool down, chosen tool across. “invalid” counts answers that name no tool an agent could call."]
    drawn = [
        (f"{title(name)}: {results.metrics[name].accuracy.percent()}", charts.confusion(results.metrics[name]))
        for name in results.main
    ]
    tables = [
        Table([title(name), *results.metrics[name].labels], _confusion_rows(results.metrics[name]))
        for name in results.main
    ]
    return Section("Confusion", notes, tables, drawn)


def _confusion_rows(m: Metrics) -> list[list[str]]:
    return [[tool, *map(str, counts)] for tool, counts in zip(m.labels, m.confusion, strict=False)]


def _parameters(results: Results) -> Section | None:
    m = results.metrics[results.tuned]
    if not m.parameters:
        return None
    rows = [
        [
            name,
            interval(p.precision),
            interval(p.recall),
            share_percent(p.f1),
            share_percent(p.overall_f1),
            share_percent(p.token_f1),
        ]
        for name, p in m.parameters.items()
    ]
    notes = [
        "Router's policy: numbers and enums exact, defaults equal omission, text by words without case and outer "
        "punctuation, programs by syntax tree. “F1 overall” counts the parameters of rows with another tool as "
        "missing; word F1 tells how near texts come.",
        f"All parameters right: {interval(m.call_accuracy)} % of rows, {interval(m.call_accuracy_given_tool)} % given "
        f"the right tool; by BFCL's rules {interval(m.bfcl_strict)} % and {interval(m.bfcl_strict_given_tool)} %.",
    ]
    headers = [f"{title(results.tuned)}, given the tool", "Precision", "Recall", "F1", "F1 overall", "Word F1"]
    return Section("Parameters", notes, [Table(headers, rows)])


def _reasoning(results: Results) -> Section | None:
    reasonings, m = results.reasonings(), results.metrics[results.tuned]
    if not reasonings:
        return None
    rows = [
        [name, interval(found.quotes_evidence), interval(found.evidence_in_query), interval(found.leads_to_tool)]
        + [share_percent(found.boilerplate), f"{found.sentences} of {found.reasonings}"]
        for name, found in reasonings.items()
    ]
    notes = [
        f"Present, one sentence, naming no other tool: {interval(m.reasoning_sound)} % of the answers of "
        f"{title(results.tuned)}. Below, of the answers that can be read. Evidence is what stands in quotation marks; "
        "it counts if all of it stands in the query or an earlier turn. “Leads to the tool”: a classifier that reads "
        "nothing but the reasoning, trained on the references with tool names masked, chooses the tool that is called. "
        "Boilerplate: the same sentence as another reasoning, but for evidence, names and numbers.",
    ]
    headers = ["Reasoning", "Quotes", "Evidence in the query", "Leads to the tool", "Boilerplate", "Sentences"]
    return Section("Reasoning", notes, [Table(headers, rows)])


def _errors(results: Results) -> Section:
    shown = [
        name for name in ("base", "base_constrained", "finetuned", "finetuned_constrained") if name in results.metrics
    ]
    shown = shown or list(results.main)
    kinds = [kind for kind in ERRORS if any(kind in results.metrics[name].errors for name in shown)]
    rows = [[kind, *(str(results.metrics[name].errors.get(kind, 0)) for name in shown)] for kind in kinds]
    advice = [confusion.advice() + "." for confusion in results.confusions]
    notes = ["Each wrong row counts once, under the first thing that is wrong with it."]
    if advice:
        notes.append("What to add to the data next:")
    return Section("Why it errs", notes, [Table(["Error", *map(title, shown)], rows)] if rows else [], items=advice)


def _calibration(results: Results) -> Section | None:
    calibration = results.calibration
    if calibration is None:
        return None
    t, c = calibration.threshold, calibration.costs
    if t.confidence is None:
        act = f"No threshold reaches a precision of {100 * t.wanted_precision:.0f} % on val."
    else:
        act = (
            f"Acting only at a confidence of {t.confidence:.3f} and above, chosen on val for a precision of "
            f"{100 * t.wanted_precision:.0f} %, covers {100 * t.test_coverage:.0f} % of the test rows with a precision "
            f"of {interval(t.test_precision)} %."
        )
    notes = [
        f"Probability of the chosen tool, temperature {calibration.temperature:.2f} fitted on "
        f"{calibration.val_rows} val rows: expected calibration error {100 * calibration.ece:.1f} points "
        f"(uncalibrated {100 * calibration.ece_before:.1f}).",
        act,
        f"Mean cost per row under the cost matrix of config.yaml: {c.always_act:.3f} when always acting, "
        f"{c.least_expected_cost:.3f} when the cheapest choice is taken ({c.abstained} rows left to someone else).",
    ]
    drawn = [
        ("Reliability: how often it is right at each confidence", charts.reliability(calibration)),
        ("Risk and coverage: error rate among the most confident rows", charts.risk_coverage(calibration)),
    ]
    return Section("When to trust it", notes, charts=drawn)


def _breakdown(results: Results) -> Section | None:
    if not results.parts:
        return None
    rows = [
        [f"{part.property}: {part.value}", str(part.rows), *(interval(part.accuracy[name]) for name in results.main)]
        for part in results.parts
    ]
    return Section("By slice", tables=[Table(["Rows with", "Rows", *map(title, results.main)], rows)])


def _robustness(results: Results) -> Section | None:
    if not results.shifts:
        return None
    tables = []
    for system, shifts in results.shifts.items():
        columns = [
            [
                f"{100 * s.accuracy:.1f}",
                *map(_points, (s.accuracy_change, s.macro_f1_change, *s.f1_changes.values())),
                f"{100 * s.changed:.1f} %",
            ]
            for s in shifts
        ]
        tools = [f"F1 {tool}" for tool in shifts[0].f1_changes]
        labels = ["Accuracy", "Change of accuracy", "Macro-F1", *tools, "Rows with another tool"]
        rows = [[label, *figures] for label, *figures in zip(labels, *columns, strict=True)]
        tables.append(Table([f"{title(system)}, choice only", *(s.variant for s in shifts)], rows))
    notes = [
        "The same rows with a changed prompt; changes are in points against the plain prompt. At most "
        f"{MOST_ROWS} rows, spread evenly over the test file."
    ]
    return Section("How much hangs on the wording of the prompt", notes, tables)


def _earlier_turns(results: Results) -> Section | None:
    if not results.earlier_turns:
        return None
    tables = [
        Table(
            [f"{title(system)}, choice only", "Rows", "With them", "Without", "Right only with", "Only without"],
            [
                [
                    found.kind,
                    str(found.with_turns.n),
                    *map(interval, (found.with_turns, found.without_turns)),
                    str(found.only_with),
                    str(found.only_without),
                ]
                for found in kinds
            ],
        )
        for system, kinds in results.earlier_turns.items()
    ]
    notes = [
        "Right choices for the rows that show earlier turns of their conversation, and for the same rows with these "
        f"left out; by kind of follow-up where the data names it. At most {MOST_ROWS} rows. The cheap baselines above "
        "see the query alone, without the earlier turns."
    ]
    return Section("With the earlier turns of the conversation and without", notes, tables)


def _two_requests(results: Results) -> Section | None:
    if not results.two_requests:
        return None
    rows = [
        [title(name), str(found.first.n), interval(found.first), interval(found.second)]
        + [interval(figure) for figure in (found.malformed, found.several_calls, found.names_rest)]
        for name, found in results.two_requests.items()
    ]
    notes = [
        "Queries that ask for two things with two tools. Right is the call of the request that stands first; Reasoning "
        "names the other one. An answer with two calls is malformed. What remains is named if the right tool is called "
        "and Reasoning has at least half of the words by which the row's own Reasoning names it."
    ]
    headers = ["System", "Rows", "First tool (right)", "Second tool", "Malformed", "… with two calls", "Names the rest"]
    return Section("Two requests in one query", notes, [Table(headers, rows)])


def _other_tools(results: Results) -> Section | None:
    if not results.on_lists:
        return None
    systems = list(results.on_lists)
    found = {system: {(f.listed, f.asked): f.accuracy for f in lists} for system, lists in results.on_lists.items()}
    kinds = dict.fromkeys(kind for figures in found.values() for kind in figures)
    rows = [[*kind, *(interval(found[system].get(kind)) for system in systems)] for kind in kinds]
    notes = [
        "Right choices, with tools and queries that no training of this toolkit sees. One tool fewer: the right answer "
        "is the next acceptable tool, else the one that stands for calling none."
    ]
    headers = ["Listed", "Asked", *(f"{title(system)}, choice only" for system in systems)]
    return Section("Tools it was not trained with", notes, [Table(headers, rows)])


def _worst(results: Results) -> Section | None:
    if not results.worst:
        return None
    rows = [
        [
            str(j.row),
            _short(results.rows[j.row].query),
            j.expected,
            j.chosen or INVALID,
            j.error or "",
            _short(j.detail),
        ]
        for j in results.worst
    ]
    return Section("The worst rows", tables=[Table(["Row", "Query", "Right", "Chosen", "Error", "Detail"], rows)])


# ---- cells ------------------------------------------------------------------------------------------------


def _points(change: float | None) -> str:
    return "n/a" if change is None else f"{100 * change:+.1f}"


def _short(text: str, limit: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
