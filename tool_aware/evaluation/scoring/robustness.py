"""The test rows with other prompts: tools in another order, masked names, another opening sentence."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tool_aware.evaluation.scoring.intervals import difference
from tool_aware.evaluation.scoring.judgement import Judgement
from tool_aware.evaluation.scoring.metrics import Metrics
from tool_aware.prompt import render_instruction
from tool_aware.rows import Row
from tool_aware.tools import Tool, Toolbox

REWORDED_TASK = "A user wrote the query at the end. Say which of these tools has to answer it, with its parameters."


@dataclass(frozen=True)
class Variant:
    """A rewritten prompt for each row, the tools it lists, and the real name of each."""

    name: str
    rows: dict[int, Row]
    tools: Toolbox
    real_names: dict[str, str]


@dataclass(frozen=True)
class Shift:
    """Changes of a system's figures under a variant; `changed` is the share of rows that got another tool."""

    variant: str
    accuracy: float
    accuracy_change: float
    macro_f1_change: float
    f1_changes: dict[str, float | None]
    changed: float


def make_variants(rows: Mapping[int, Row], tools: Toolbox, *, seed: int) -> list[Variant]:
    """Rewrite every prompt three ways: tools in another order, masked names, another opening sentence.

    Rows whose instruction this toolkit did not render are left out: the place of their tool list is unknown.
    """
    own = {index: row for index, row in rows.items() if row.instruction == render_instruction(row.query, tools)}
    order = list(tools)
    while len(order) > 1 and order == list(tools):
        random.Random(seed).shuffle(order)
        seed += 1
    masked = {f"tool_{number}": tool.name for number, tool in enumerate(tools, start=1)}
    same = {name: name for name in tools.names}
    hidden = Toolbox(Tool(mask, tools[name].description, tools[name].parameters) for mask, name in masked.items())
    variants = [
        ("tools in another order", Toolbox(order), same, {}),
        ("tool names masked", hidden, masked, {}),
        ("another opening sentence", tools, same, {"task": REWORDED_TASK}),
    ]
    return [
        Variant(
            name,
            {i: replace(row, instruction=render_instruction(row.query, listed, **wording)) for i, row in own.items()},
            listed,
            real_names,
        )
        for name, listed, real_names, wording in variants
        if own
    ]


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
