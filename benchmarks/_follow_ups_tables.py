"""The tables of benchmarks/follow_ups.py, in Markdown, from its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from _real_model_tables import ALL_PROBES, NAMES, Results, Table, cell, estimate, kinds, lines, origins

SYSTEMS = {
    "base": "base",
    "without": "trained without follow-ups and two requests",
    "with": "trained with them (default)",
}
CONVERSATIONS, ALONE, TWO = "conversations", "conversations alone", "two requests"
QUESTIONS = {"choice": "by probability", "tool": "whole answers", "readable": "readable", "call": "whole call right"}
SECOND = {  # question -> what the table calls it
    "choice": "first tool, by probability (right)",
    "choice_second": "second tool, by probability",
    "tool": "first tool, whole answers (right)",
    "second": "second tool, whole answers",
    "malformed": "malformed",
    "several": "of these, more than one call",
    "named": "Reasoning names what remains",
    "rerouted": "what Reasoning says remains, asked alone, gets the second tool",
    "reference_rerouted": "the same with the Reasoning of the reference",
}
Part = Callable[[Mapping[str, Any], int], bool]  # of a described set, by row number


def markdown(results: Results) -> str:
    """Return all tables for which there are results."""
    found = {name: [_with_malformed(sets) for sets in seeds] for name, seeds in kinds(results).items()}
    parts = [
        (f"Model {results['model']}, {results['train_rows']:,} training rows.", []),
        ("Right tool in %, with 95 % interval:", main_table(results, found)),
        ("Conversations by kind of follow-up, right tool by probability in %:", by(results, found, "kinds")),
        ("Conversations by language, right tool by probability in %:", by(results, found, "languages")),
        ("Two requests in one query, hand-written, in %:", second_table(results, found)),
    ]
    written = [f"{title}\n\n{lines(table)}" if table else title for title, table in parts if len(table) != 1]
    return "\n\n".join([*written, origins(results)])


def _with_malformed(sets: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    swapped = str.maketrans("01", "10")
    return {
        name: {**asked, "malformed": asked["readable"].translate(swapped)} if "readable" in asked else asked
        for name, asked in sets.items()
    }


def part_of(results: Results, seeds: Sequence[Mapping[str, Any]], test: str, question: str, belongs: Part) -> str:
    """Write the share of the rows of a set that belong to a part of it, with its interval."""
    described = results["sets"][test]
    numbers = [number for number in range(described["rows"]) if belongs(described, number)]
    flags = [sets.get(test, {}).get(question) for sets in seeds]
    if not numbers or not all(flags):
        return ""
    name = "part"
    smaller = {"sets": {name: {"groups": [described["groups"][number] for number in numbers]}}}
    chosen = [{name: {question: "".join(found[number] for number in numbers)}} for found in flags if found]
    return cell(estimate(smaller, chosen, name, question))


def _slice(wanted: Sequence[str]) -> Part:
    return lambda described, number: described["slices"][number] in wanted


def _is_plain(described: Mapping[str, Any], number: int) -> bool:
    return described["slices"][number] not in ("follow-up", TWO)


def _all(described: Mapping[str, Any], number: int) -> bool:
    return True


def main_table(results: Results, found: Mapping[str, Any]) -> Table:
    """Return a row a system and question, a column a set."""
    columns: dict[str, tuple[str, Part]] = {
        "test split, other rows": ("test", _is_plain),
        "its follow-ups": ("test", _slice(["follow-up"])),
        "its two requests": ("test", _slice([TWO])),
        "conversations": (CONVERSATIONS, _all),
        "without their earlier turns": (ALONE, _all),
        "two requests": (TWO, _all),
    }
    heads = []
    for name, (test, belongs) in columns.items():
        described = results["sets"][test]
        heads.append(f"{name} ({sum(belongs(described, number) for number in range(described['rows']))})")
    probes = sum(results["sets"][name]["rows"] for name in NAMES)
    table: Table = [("system", f"probes ({probes})", *heads)]
    for kind, system in SYSTEMS.items():
        for question, words in QUESTIONS.items():
            seeds = found.get(kind, [])
            cells = [part_of(results, seeds, test, question, belongs) for test, belongs in columns.values()]
            if any(cells):
                table.append((f"{system}: {words}", cell(estimate(results, seeds, ALL_PROBES, question)), *cells))
    return table


def by(results: Results, found: Mapping[str, Any], key: str) -> Table:
    """Return a row for each kind or language of the conversations: with and without earlier turns, of each system."""
    shown = [kind for kind in SYSTEMS if kind in found]
    heads = [f"{SYSTEMS[kind]}: {words}" for kind in shown for words in ("with earlier turns", "without")]
    table: Table = [(key.removesuffix("s"), "rows", *heads)]
    values = results["sets"][CONVERSATIONS][key]
    for value in dict.fromkeys(values):

        def belongs(described: Mapping[str, Any], number: int, value: str = value) -> bool:
            return bool(described[key][number] == value)

        cells = [
            part_of(results, found[kind], test, "choice", belongs) for kind in shown for test in (CONVERSATIONS, ALONE)
        ]
        table.append((value, str(values.count(value)), *cells))
    return table


def second_table(results: Results, found: Mapping[str, Any]) -> Table:
    """Return a row a question on the queries that ask for two things, a column a system."""
    shown = [kind for kind in SYSTEMS if kind in found]
    table: Table = [(f"{results['sets'][TWO]['rows']} queries", *(SYSTEMS[kind] for kind in shown))]
    for question, words in SECOND.items():
        cells = [cell(estimate(results, found[kind], TWO, question)) for kind in shown]
        if any(cells):
            table.append((words, *cells))
    return table
