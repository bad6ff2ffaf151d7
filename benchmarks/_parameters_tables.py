"""The tables of benchmarks/parameters.py, in Markdown, and its answers side by side, from its results."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from _follow_ups_tables import part_of
from _real_model_tables import SEED, Results, Table, cell, kinds, lines, origins

from tool_aware.evaluation.scoring.intervals import Estimate, share
from tool_aware.prompt import parse_response
from tool_aware.reasoning_text import boilerplate

SYSTEMS = {
    "copy": "query copied",
    "base": "base",
    "tuned": "tuned (defaults)",
    "unseen": "tuned without the programs asked for",
    "plain": "tuned, tools as they are",
    "adapter": "the adapter that was given",
}
UNTRAINED = ("copy", "base")
SETS = {"probe": "probe", "fresh": "fresh probe", "test": "test split"}
QUESTIONS = {
    "tool": "right tool, own answer",
    "readable": "JSON readable",
    "schema": "fits the schema",
    "usable": "**usable call**",
    "bfcl": "BFCL",
    "strict": "strict: whole call right",
    "runs": "programs that run",
    "value": "programs that print the right value",
    "evidence": "Reasoning quotes what stands in the query",
    "leads": "Reasoning alone leads to the right tool",
}
GOALS = {"readable": 99.5, "usable": 80.0, "runs": 97.0, "value": 65.0}  # in %, on the probe
MOST_REASONS = 12
MOST_UNREAD = 300  # characters of an answer that cannot be read
Belongs = Callable[[int], bool]  # of a row's number


def markdown(results: Results) -> str:
    """Return all tables for which there are results."""
    found, asked = kinds(results), SETS[_by_hand(results)]
    parts = [
        (f"Model {results['model']}, {taught(results)}.", []),
        ("Given the right tool, in %, with 95 % interval:", main_table(results, found)),
        (f"Goals, on the {asked}:", goals_table(results, found)),
        (f"Usable calls of the {asked} by tool, in %:", by_table(results, found, "tool")),
        ("By kind of parameter, usable ones in %:", kind_table(results)),
        (
            f"Programs of the {asked} that print the right value, by topic, in %:",
            by_table(results, found, "topic", "value"),
        ),
        (f"Usable calls of the {asked} by language, in %:", by_table(results, found, "language")),
        (f"Why calls of the {asked} are not usable, rows of all seeds:", reasons_table(results)),
    ]
    written = [f"{title}\n\n{lines(table)}" if table else title for title, table in parts if len(table) != 1]
    return "\n\n".join([*written, origins(results)])


def _by_hand(results: Results) -> str:
    """Return the set that the tables of one set are of: the first that there is."""
    return next(name for name in SETS if name in results["rows"])


def taught(results: Results) -> str:
    """Write how many rows the trainings had, and how many of them programs."""
    if "taught" not in results:
        return f"{results['train_rows']:,} training rows"
    counted = [
        f"{sum(of_tools.values()):,} training rows{f' of part {part}' * bool(part)}, "
        f"{of_tools.get('code_execution', 0):,} of them programs"
        for part, of_tools in results["taught"].items()
    ]
    return "; ".join(counted)


def figure(
    results: Results, seeds: Sequence[Mapping[str, Any]], test: str, question: str, belongs: Belongs = lambda _: True
) -> str:
    """Write the share of a question over all seeds, on the rows that are asked it and belong to a part."""
    flags = [sets.get(test, {}).get(question) for sets in seeds]
    if not flags or not all(flags):
        return ""
    return part_of(results, seeds, test, question, lambda _, number: flags[0][number] != "-" and belongs(number))


def main_table(results: Results, found: Mapping[str, Any]) -> Table:
    """Return a row a question, a column a system and set."""
    shown = [(kind, test) for test in SETS for kind in SYSTEMS if kind in found and test in results["rows"]]
    heads = [f"{SETS[test]} ({len(results['rows'][test])}), {SYSTEMS[kind]}" for kind, test in shown]
    table: Table = [("given the right tool", *heads)]
    for question, words in QUESTIONS.items():
        table.append((words, *(figure(results, found[kind], test, question) for kind, test in shown)))
    same = [
        "" if kind == "copy" else _boilerplate([run["answers"][test] for run in _runs(results, kind)])
        for kind, test in shown
    ]
    table.append(("Reasoning: the same sentence as another but for a slot", *same))
    return table


def _boilerplate(seeds: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Write the mean share of reasonings that are boilerplate, of the answers that can be read."""
    calls = [[parse_response(answer["text"]).call for answer in answers] for answers in seeds]
    found = [boilerplate([call.reasoning for call in each if call]) for each in calls]
    shares = [100 * each.share for each in found if each]
    return f"{sum(shares) / len(shares):.1f}" if shares else ""


def goals_table(results: Results, found: Mapping[str, Any]) -> Table:
    """Return a row a goal, a column a tuned system."""
    shown = [kind for kind in SYSTEMS if kind in found and kind not in UNTRAINED]
    table: Table = [("figure", "goal", *(SYSTEMS[kind] for kind in shown))] if shown else [()]
    for question, goal in GOALS.items() if shown else ():
        cells = [figure(results, found[kind], _by_hand(results), question) for kind in shown]
        marked = [
            f"{text} {'reached' if float(text.split()[0]) >= goal else 'not reached'}" if text else "" for text in cells
        ]
        table.append((QUESTIONS[question].strip("*"), f"{goal:g}", *marked))
    return table


def by_table(results: Results, found: Mapping[str, Any], key: str, question: str = "usable") -> Table:
    """Return a row for each tool, topic or language of one set, a column a system."""
    shown = [kind for kind in SYSTEMS if kind in found]
    table: Table = [(key, "rows", *(SYSTEMS[kind] for kind in shown))]
    values = [row["metadata"].get(key) for row in results["rows"][_by_hand(results)]]
    for value, count in Counter(value for value in values if value).most_common():

        def belongs(number: int, value: str = value) -> bool:
            return bool(values[number] == value)

        cells = [figure(results, found[kind], _by_hand(results), question, belongs) for kind in shown]
        table.append((str(value), str(count), *cells))
    return table


def kind_table(results: Results) -> Table:
    """Return a row a kind of parameter, a column a system and set; what is missing from an answer counts as wrong."""
    shown = [(kind, test) for test in SETS for kind in SYSTEMS if test in results["rows"] and _runs(results, kind)]
    table: Table = [("kind", *(f"{SETS[test]}, {SYSTEMS[kind]}" for kind, test in shown))]
    for wanted in ("search", "code", "message", "exact"):
        cells = []
        for kind, test in shown:
            flags, groups = [], []
            for run in _runs(results, kind):
                for row, answer in zip(results["rows"][test], run["answers"][test], strict=True):
                    judged = [bool(is_usable) for name, is_usable in answer["parameters"] if name == wanted]
                    flags += judged
                    groups += [
                        str(row["metadata"].get("program") or row["metadata"].get("group") or row["query"])
                    ] * len(judged)
            estimate = share(flags, groups, seed=SEED)
            cells.append(f"{cell(estimate)} of {len(flags)}" if isinstance(estimate, Estimate) else "")
        if any(cells):
            table.append((wanted, *cells))
    return table


def reasons_table(results: Results) -> Table:
    """Return the most frequent reasons for which calls are not usable, a column a system."""
    shown = [kind for kind in SYSTEMS if _runs(results, kind)]
    counts = {
        kind: Counter(
            _general(answer["verdict"])
            for run in _runs(results, kind)
            for answer in run["answers"][_by_hand(results)]
            if answer["verdict"] != "usable"
        )
        for kind in shown
    }
    table: Table = [("reason", *(SYSTEMS[kind] for kind in shown))]
    trained = [counts[kind] for kind in shown if kind not in UNTRAINED]
    together = sum(trained or counts.values(), Counter[str]())
    for reason, _ in together.most_common(MOST_REASONS):
        table.append((reason, *(str(counts[kind][reason]) for kind in shown)))
    return table


def _runs(results: Results, kind: str) -> list[Mapping[str, Any]]:
    return [run for name, run in results["runs"].items() if re.sub(r"-seed-\d+$", "", name) == kind]


def _general(reason: str) -> str:
    """Return a reason without the words, numbers and messages that belong to one row."""
    error = re.match(r"(code: )(\w*(?:Error|Exception|Interrupt))", reason)
    if error:
        return f"{error[1]}{error[2]}"
    return re.sub(r"\b(loses|invents|adds|is not|differs in its keys:) .*", r"\1 ...", reason)[:80].replace("|", "/")


# ---- answers --------------------------------------------------------------------------------------------


def side_by_side(results: Results, run: str) -> str:
    """Write query, reference, answer and verdict of each row, the unusable ones first."""
    blocks = []
    for test, answers in results["runs"][run]["answers"].items():
        pairs = list(zip(results["rows"][test], answers, strict=True))
        pairs.sort(key=lambda pair: pair[1]["verdict"] == "usable")
        blocks.append(f"==== {SETS[test]}, {run}")
        blocks += [_block(row, answer) for row, answer in pairs]
    return "\n\n".join(blocks)


def _block(row: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    call = parse_response(answer["text"]).call
    earlier = [f"   earlier: {query} ({tool})" for query, tool in row.get("history", ())]
    chosen = f"; its own answer chose: {answer['chosen'] or 'nothing'}" if "chosen" in answer else ""
    reference = parse_response(row["response"]).call
    return "\n".join(
        [
            *earlier,
            f"   query: {row['query']}",
            f"reference: {row['metadata']['tool']} {_parameters(reference)}",
            f"  answer: {_parameters(call) if call else repr(answer['text'][:MOST_UNREAD])}",
            f" verdict: {answer['verdict']}{chosen}",
        ]
    )


def _parameters(call: Any) -> str:
    """Write parameters, programs as they are read."""
    if call is None:
        return "?"
    short = json.dumps({k: v for k, v in call.parameters.items() if "\n" not in str(v)}, ensure_ascii=False)
    programs = [f"{key}:\n{value}" for key, value in call.parameters.items() if "\n" in str(value)]
    return "\n".join([*([short] if short != "{}" or not programs else []), *programs])
