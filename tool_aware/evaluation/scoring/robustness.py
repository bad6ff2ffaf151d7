"""The test rows with other prompts: a changed list of tools, tools and queries that were never trained on, other words.

A variant of the same rows is compared with the plain prompts row by row (`Shift`). With a tool more, a tool fewer or
wholly other tools there is nothing to compare row by row: what is asked for is how many choices are right (`OnList`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tool_aware.evaluation.scoring.earlier_turns import LEFT_OUT, without_earlier_turns
from tool_aware.evaluation.scoring.intervals import Figure, difference, proportion
from tool_aware.evaluation.scoring.judgement import Judgement, Prediction
from tool_aware.evaluation.scoring.metrics import Metrics
from tool_aware.rows import Row
from tool_aware.text import spread_evenly
from tool_aware.tool_library import LibraryTool, held_out_tools, held_out_wordings
from tool_aware.tool_lists import ToolList, as_listed, in_another_order, masked, other_names, renamed, without
from tool_aware.tools import Tool, Toolbox

REWORDED_TASK = "A user wrote the query at the end. Say which of these tools has to answer it, with its parameters."
MOST_ROWS = 400  # of the test file in one variant: 95 % intervals are then some 5 points wide to either side
OF_LIBRARY = 1_000_000  # row numbers from here on are queries of the library
ONE_MORE, ONE_FEWER, ALL_OTHERS = "one more tool", "one tool fewer", "five other tools"


@dataclass(frozen=True)
class Variant:
    """Rewritten prompts, the tools they list, and the real name of each.

    `is_same` variants ask for the same choices as the plain prompts. Of the others, `list_name` says what is listed;
    several variants with different tools may share one.
    """

    name: str
    rows: dict[int, Row]
    tools: Toolbox
    real_names: dict[str, str]
    is_same: bool = True
    list_name: str = ""


@dataclass(frozen=True)
class Shift:
    """Changes of a system's figures under a variant; `changed` is the share of rows that got another tool."""

    variant: str
    accuracy: float
    accuracy_change: float
    macro_f1_change: float
    f1_changes: dict[str, float | None]
    changed: float


@dataclass(frozen=True)
class OnList:
    """Right choices with tools that the adapter was not trained with: which are listed, what is asked, how many."""

    listed: str
    asked: str
    accuracy: Figure


def make_variants(rows: Mapping[int, Row], tools: Toolbox, *, seed: int, no_tool: str | None = None) -> list[Variant]:
    """Rewrite prompts of at most MOST_ROWS rows, spread evenly: see the module's docstring.

    Rows whose instruction this toolkit did not render are left out: the place of their tool list is unknown. Rows with
    earlier turns are a variant of their own, without these; none where no row has any.
    """
    alone = _without_earlier_turns(rows, tools)
    own = {index: row for index, row in rows.items() if row.shows(tools)}
    own = {index: own[index] for index in spread_evenly(list(own), MOST_ROWS)}
    if not own:
        return alone
    reworded = {tool.name: held_out_wordings(tool.name).descriptions for tool in tools}
    same = [
        ("tools in another order", in_another_order(tools, seed)),
        ("tools renamed", renamed(tools, {tool.name: _other_name(tool, seed) for tool in tools})),
        ("tool names masked", masked(tools)),
        ("descriptions reworded", as_listed(Toolbox(_reworded(tool, reworded[tool.name], seed) for tool in tools))),
        ("another opening sentence", as_listed(tools, task=REWORDED_TASK)),
    ]
    variants = [Variant(name, _instructed(own, listed), listed.tools, listed.real_names) for name, listed in same]
    if not any(reworded.values()):
        variants = [variant for variant in variants if variant.name != "descriptions reworded"]
    return [*variants, *alone, *_with_other_tools(own, tools, no_tool)]


def _without_earlier_turns(rows: Mapping[int, Row], tools: Toolbox) -> list[Variant]:
    alone = without_earlier_turns(rows)
    shown = {index: alone[index] for index in spread_evenly(list(alone), MOST_ROWS)}
    return [Variant(LEFT_OUT, shown, tools, {name: name for name in tools.names})] if shown else []


def _instructed(rows: Mapping[int, Row], listed: ToolList) -> dict[int, Row]:
    """Return the rows with the prompts of a list; their answers keep the real names, by which they are judged."""
    return {index: replace(row, instruction=listed.instruction(row)) for index, row in rows.items()}


def _other_name(tool: Tool, seed: int) -> str:
    names = list(held_out_wordings(tool.name).names) or other_names(tool.name)
    return random.Random(f"{seed}/{tool.name}").choice(names)


def _reworded(tool: Tool, descriptions: Sequence[str], seed: int) -> Tool:
    if not descriptions:
        return tool
    return tool.shown_as(description=random.Random(f"{seed}/{tool.name}").choice(descriptions))


def _with_other_tools(own: Mapping[int, Row], tools: Toolbox, no_tool: str | None) -> Iterator[Variant]:
    """Yield variants whose tools are others than those trained with, each with its share of the rows."""
    library = [entry for entry in held_out_tools() if entry.tool.name not in tools]
    fifth = [entry for entry in library if entry.set == "fifth_tool"]
    indices = list(own)
    for place, entry in enumerate(fifth):
        listed = as_listed(Toolbox([*tools, entry.tool]))
        share = {index: own[index] for index in indices[place :: len(fifth)]}
        prompts = {**_instructed(share, listed), **_asked_of([entry], listed, -(-len(own) // len(fifth)))}
        yield _others(ONE_MORE, entry.tool.name, prompts, listed)
    removable = [name for name in tools.names if name != no_tool]
    for place, name in enumerate(removable if no_tool in tools and len(tools) > 2 else ()):
        listed = without(tools, name, no_tool)
        share = {index: own[index] for index in indices[place :: len(removable)]}
        rewritten = {index: listed.rewrite(row, row.answer.call) for index, row in share.items() if row.answer.call}
        prompts = {index: row for index, row in rewritten.items() if row}
        yield _others(ONE_FEWER, name, prompts, listed)
    for set_ in ("unseen_five", "second_five"):
        entries = [entry for entry in library if entry.set == set_]
        listed = as_listed(Toolbox(entry.tool for entry in entries))
        yield _others(ALL_OTHERS, set_, _asked_of(entries, listed, -(-len(own) // 2)), listed)


def _others(list_name: str, detail: str, rows: dict[int, Row], listed: ToolList) -> Variant:
    return Variant(f"{list_name}: {detail}", rows, listed.tools, listed.real_names, is_same=False, list_name=list_name)


def _asked_of(entries: Sequence[LibraryTool], listed: ToolList, most: int) -> dict[int, Row]:
    """Return queries of library tools as rows: at most so many, as a few test rows are to stay a quick look."""
    rows = [listed.row_of(asked) for entry in entries for asked in entry.asked]
    return {OF_LIBRARY + number: row for number, row in enumerate(spread_evenly(rows, most))}


def shift(
    variant: str, plain: tuple[Metrics, Sequence[Judgement]], varied: tuple[Metrics, Sequence[Judgement]]
) -> Shift:
    """Compare a system's figures on the variant with those on the plain prompts of the same rows."""
    (before, judged_before), (after, judged_after) = plain, varied
    changed = sum(a.chosen != b.chosen for a, b in zip(judged_before, judged_after, strict=True))
    f1_changes = {tool: difference(after.per_tool[tool].f1, figures.f1) for tool, figures in before.per_tool.items()}
    return Shift(
        variant=variant,
        accuracy=after.accuracy.value,
        accuracy_change=after.accuracy.value - before.accuracy.value,
        macro_f1_change=after.macro_f1.value - before.macro_f1.value,
        f1_changes=f1_changes,
        changed=changed / len(judged_after),
    )


def on_lists(answered: Sequence[tuple[str, Mapping[int, Row], Sequence[Prediction]]]) -> list[OnList]:
    """Return the right choices by list and by whose queries they answer; each item is (list's name, rows, choices)."""
    right: dict[tuple[str, str], list[bool]] = {}
    for list_name, rows, choices in answered:
        for choice in choices:
            row = rows[choice.row]
            right.setdefault((list_name, _asked(list_name, row)), []).append(choice.tool in row.acceptable_tools)
    return [OnList(listed, asked, proportion(sum(found), len(found))) for (listed, asked), found in right.items()]


def _asked(list_name: str, row: Row) -> str:
    if row.metadata["source"] == "library":
        return "queries of the added tool" if list_name == ONE_MORE else "their own queries"
    return "the test rows"
