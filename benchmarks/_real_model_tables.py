"""The tables of benchmarks/real_model.py, in Markdown, from its results."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tool_aware.evaluation.scoring.intervals import Estimate, share

ALL_PROBES = "all probes"
SEED = 0  # of the bootstrap
NAMES = {"routing_probe": "routing", "second_probe": "second", "third_probe": "third"}
SYSTEMS = {  # kind of run -> how the tables call it
    "keyword router": "keyword router",
    "tf-idf": "TF-IDF + logistic regression",
    "base": "base, own template",
    "epochs-1": "tuned, 1 epoch",
    "epochs-3": "tuned, 3 epochs",
    "trl": "TRL, 1 epoch, checkpointing (its default)",
    "trl-no-checkpoints": "TRL, 1 epoch, no checkpointing",
    "speed": "toolkit, 1 epoch, alone, memory as planned",
    "speed-checkpoints": "toolkit, 1 epoch, alone, checkpointing",
}
Results = Mapping[str, Any]
Table = list[tuple[str, ...]]


def markdown(results: Results) -> str:
    """Return all tables for which there are results."""
    tests = [ALL_PROBES, *results["sets"]]
    found = kinds(results)
    heads = [f"{NAMES.get(test, test)} ({len(groups_of(results, test))})" for test in tests]
    parts = [
        (f"Model {results['model']}, {results['train_rows']:,} training rows.", []),
        ("Tool accuracy by probability, in %, with 95 % interval:", choice_table(results, found, tests, heads)),
        ("Whole answers, in %:", answers_table(results, found, tests, heads)),
        ("Spread over the seeds, in % (tool accuracy by probability):", spread_table(results, found, tests, heads)),
        ("Learning curve, tool accuracy by probability in %:", curve_table(results, found)),
        ("By slice of the probes, in %:", slice_table(results, found)),
        ("Recall by tool on the probes, in %:", slice_table(results, found, key="tools")),
        ("Training alone on the card:", speed_table(results)),
    ]
    written = [f"{title}\n\n{lines(table)}" if table else title for title, table in parts if len(table) != 1]
    return "\n\n".join([*written, origins(results)])


def lines(table: Table) -> str:
    """Lay out a table; the first row is its head, and all but the first column are right-aligned."""
    head, *body = table
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def origins(results: Results) -> str:
    """Return machines, commits and versions of the runs."""
    found = {}
    for run in results["runs"].values():
        origin = run.get("origin", {})
        versions = ", ".join(f"{name} {version}" for name, version in origin.get("versions", {}).items())
        found[f"{origin.get('device')}, commit {str(origin.get('commit'))[:7]}, {versions}"] = None
    return "\n".join([*found, f"Last command: {results.get('command')}"])


# ---- figures --------------------------------------------------------------------------------------------


def kinds(results: Results) -> dict[str, list[dict[str, dict[str, str]]]]:
    """Return the flags by set and question of every seed, by kind of run."""
    found: dict[str, list[dict[str, dict[str, str]]]] = {}
    chosen = [(name, {test: {"choice": flags} for test, flags in sets.items()}) for name, sets in _rivals(results)]
    for name, sets in [*chosen, *((name, run["sets"]) for name, run in results["runs"].items())]:
        found.setdefault(re.sub(r"-seed-\d+$", "", name), []).append(_with_all_probes(sets))
    return found


def _rivals(results: Results) -> Iterable[tuple[str, dict[str, str]]]:
    return results.get("rivals", {}).items()


def _with_all_probes(sets: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    probes = [sets[name] for name in NAMES if name in sets]
    questions = [question for question in probes[0] if all(question in probe for probe in probes)] if probes else []
    return {**sets, ALL_PROBES: {question: "".join(probe[question] for probe in probes) for question in questions}}


def groups_of(results: Results, test: str) -> list[str]:
    """Return the group of each row of a set."""
    names = [name for name in results["sets"] if name in NAMES] if test == ALL_PROBES else [test]
    return [f"{name} {group}" for name in _in_order(names) for group in results["sets"][name]["groups"]]


def _in_order(names: Sequence[str]) -> list[str]:
    return [name for name in NAMES if name in names] or list(names)


def estimate(results: Results, seeds: Sequence[Mapping[str, Any]], test: str, question: str) -> Estimate | None:
    """Return the share over all seeds; its interval draws whole groups with the answers of all seeds."""
    flags = [flag == "1" for sets in seeds for flag in sets.get(test, {}).get(question, "")]
    if not flags:
        return None
    groups = groups_of(results, test) * len(seeds)
    figure = share(flags, groups, seed=SEED)
    if len(seeds) == 1 or not isinstance(figure, Estimate):
        return figure if isinstance(figure, Estimate) else None
    # Wilson's interval for the rows of one seed: the same queries in three trainings are no more queries.
    one = len(flags) // len(seeds)
    alone = share([True] * round(figure.value * one) + [False] * (one - round(figure.value * one)),
                  list(map(str, range(one))), seed=SEED)  # fmt: skip
    assert isinstance(alone, Estimate)
    return Estimate(figure.value, min(figure.low, alone.low), max(figure.high, alone.high), one)


def cell(figure: Estimate | None) -> str:
    """Write `92.7 [89.6, 95.0]`."""
    return f"{100 * figure.value:.1f} [{100 * figure.low:.1f}, {100 * figure.high:.1f}]" if figure else ""


def plain(values: Sequence[float]) -> str:
    """Write the mean, and the smallest and largest of several."""
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def shares(seeds: Sequence[Mapping[str, Any]], test: str, question: str = "choice") -> list[float]:
    """Return the share of each seed."""
    flags = [sets.get(test, {}).get(question, "") for sets in seeds]
    return [part.count("1") / len(part) for part in flags if part]


# ---- tables ---------------------------------------------------------------------------------------------


def choice_table(results: Results, found: Mapping[str, Any], tests: list[str], heads: list[str]) -> Table:
    """Return a row a system and a column a set."""
    table: Table = [("system", *heads)]
    for kind, name in SYSTEMS.items():
        if kind in found:
            table.append((name, *(cell(estimate(results, found[kind], test, "choice")) for test in tests)))
    return table


def answers_table(results: Results, found: Mapping[str, Any], tests: list[str], heads: list[str]) -> Table:
    """Return a row a system and question."""
    questions = {"tool": "right tool", "readable": "readable", "schema": "fits the schema", "call": "whole call right"}
    table: Table = [("system", *heads)]
    for kind, name in SYSTEMS.items():
        for question, words in questions.items():
            cells = [cell(estimate(results, found.get(kind, []), test, question)) for test in tests]
            if any(cells):
                table.append((f"{name}: {words}", *cells))
    return table


def spread_table(results: Results, found: Mapping[str, Any], tests: list[str], heads: list[str]) -> Table:
    """Return mean, smallest and largest of the seeds of what was trained several times."""
    table: Table = [("system", *heads)]
    for kind, name in SYSTEMS.items():
        if len(found.get(kind, [])) > 1:
            table.append((f"{name}, {len(found[kind])} seeds", *(plain(shares(found[kind], test)) for test in tests)))
    return table


def curve_table(results: Results, found: Mapping[str, Any]) -> Table:
    """Return a row for each number of training rows."""
    table: Table = [("rows", "epochs", "steps", ALL_PROBES, "test split", "TF-IDF, all probes", "TF-IDF, test split")]
    points = {run["train_rows"]: (kind, run) for kind, run in _curve_runs(results)}
    for rows, (kind, run) in sorted(points.items()):
        rival = "tf-idf" if kind == "epochs-3" else f"tf-idf {kind}"
        cells = [cell(estimate(results, found[kind], test, "choice")) for test in (ALL_PROBES, "test")]
        cells += [plain(shares(found[rival], test)) if rival in found else "" for test in (ALL_PROBES, "test")]
        table.append((f"{rows:,}", f"{run['run']['epochs']:g}", str(run["steps"]), *cells))
    return table


def _curve_runs(results: Results) -> Iterable[tuple[str, dict[str, Any]]]:
    for name, run in results["runs"].items():
        kind = re.sub(r"-seed-\d+$", "", name)
        if kind.startswith("rows-") or kind == "epochs-3":
            yield kind, run


def slice_table(results: Results, found: Mapping[str, Any], key: str = "slices") -> Table:
    """Return the choice accuracy on the probes by slice, or with `key` tools by the right tool."""
    shown = [kind for kind in SYSTEMS if kind in found and not kind.startswith(("speed", "trl"))]
    table: Table = [("slice" if key == "slices" else "tool", "queries", *(SYSTEMS[kind] for kind in shown))]
    names = [name for name in NAMES if name in results["sets"]]
    values = [value for name in names for value in results["sets"][name][key]]
    for value in dict.fromkeys(values):
        at = [number for number, other in enumerate(values) if other == value]
        cells = []
        for kind in shown:
            flags = "".join(sets[ALL_PROBES]["choice"][number] for sets in found[kind] for number in at)
            cells.append(f"{100 * flags.count('1') / len(flags):.1f}")
        table.append((value, str(len(at)), *cells))
    return table


def speed_table(results: Results) -> Table:
    """Return time, memory and losses of the runs that had the card for themselves."""
    table: Table = [("run", "steps", "seconds", "examples/s", "allocated GiB", "reserved GiB", "loss at steps")]
    for kind in ("speed", "speed-checkpoints", "trl-no-checkpoints", "trl"):
        run = results["runs"].get(kind)
        if run is None:
            continue
        training = run["training"]
        wanted = dict(map(tuple, training["losses"]))
        steps = sorted(wanted)
        some = [step for step in (20, 30, 100, steps[-1]) if step in wanted]
        cells = [str(training[key]) for key in ("seconds", "examples_per_s", "allocated_gib", "reserved_gib")]
        losses = ", ".join(f"{step}: {wanted[step]:.3f}" for step in dict.fromkeys(some))
        table.append((SYSTEMS[kind], str(run["steps"]), *cells, losses))
    return table
