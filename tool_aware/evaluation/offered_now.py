"""The rows of a data set as they read with the tools that config.yaml lists now, if these differ from the data's.

What `dataset.dir` holds stays as it is. Rows whose instruction this toolkit rendered for the earlier tools are rendered
for today's, with today's names, and with the answer that is right where their tool is gone (tool_lists.ToolList).
Examples of a new tool in config.yaml become test rows, so that one sees at once whether it is chosen.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tool_aware.config.data_sections import ToolSection
from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.evaluation.held_out import TestSet
from tool_aware.evaluation.tool_changes import Earlier
from tool_aware.prompt import render_instruction, render_response
from tool_aware.rows import Row
from tool_aware.text import normalised, shortlist
from tool_aware.tool_lists import ToolList
from tool_aware.tools import Toolbox, ToolCall

EXAMPLE = "example"  # metadata.source of rows that are made from a tool's examples
_REASON = "One of the example queries that config.yaml gives for this tool."


def readable_tools(config: Config, earlier: Sequence[Earlier]) -> Toolbox:
    """Return the tools that rows of the data can call: today's, and those that are gone."""
    known = {tool.name: tool for tools in (*(e.tools for e in earlier), config.toolbox) for tool in tools}
    return Toolbox(known.values())


def with_tools_of_now(
    test: TestSet, config: Config, earlier: Sequence[Earlier], *, adds_examples: bool
) -> tuple[TestSet, list[str]]:
    """Return the rows with today's tools, and in words what was done to them; as they are if no tools differ.

    `earlier` are the tools of the data and of the training, as far as they are known.
    """
    if not any(e.change for e in earlier):
        return test, []
    now = _Now.of(config, earlier)
    rows = {index: offered for index, row in test.rows.items() if (offered := now.row(row))}
    counts = Counter(now.counts)
    val = {index: offered for index, row in test.val.items() if (offered := now.row(row))}
    train = [offered for row in test.train if (offered := now.row(row))]
    examples = _example_rows(config, earlier, [*rows.values(), *train]) if adds_examples else []
    if not rows:
        what = f"none of the {len(test.rows)} test rows can be answered with the tools that the config lists now"
        raise UserError(what, where=str(test.path), fix="python prepare_dataset.py")
    left_out = len(test.rows) - len(rows)
    rows |= {test.total + number: row for number, row in enumerate(examples)}
    changed = replace(test, rows=rows, val=val, train=train, left_out=left_out, added=len(examples))
    if (rows, val) != (test.rows, test.val):
        changed = replace(changed, rendered=_digest([*rows.values(), *val.values()]))
    return changed, _said(counts, examples, config.tools)


def _said(counts: Counter[str], examples: Sequence[Row], tools: Sequence[ToolSection]) -> list[str]:
    texts = {
        "rendered": "{} test rows are shown with the tools that the config lists, not with those of their file",
        "answered otherwise": "the tool of {} test rows is gone: their next acceptable one, or no_tool, counts",
        "left out": "{} test rows are left out: their tool is gone and no other is right",
        "as they are": "{} test rows list tools of their own, in words that this toolkit did not write; they stay so",
    }
    said = [text.format(counts[key]) for key, text in texts.items() if counts[key]]
    if examples:
        made = Counter(row.tool for row in examples)
        given = {tool.name: len(tool.examples) for tool in tools}
        names = shortlist([f"{count} of the {given[name]} of {name}" for name, count in made.items()])
        said.append(f"test rows are also made from the examples that the config gives for new tools: {names}")
    return said


def _digest(rows: Iterable[Row]) -> str:
    return hashlib.sha256(json.dumps([asdict(row) for row in rows]).encode()).hexdigest()


@dataclass
class _Now:
    """Today's tools, the beginnings of instructions that were rendered for earlier ones, and what was done so far."""

    listed: ToolList
    today: str
    before: Sequence[str]
    counts: Counter[str]

    @classmethod
    def of(cls, config: Config, earlier: Sequence[Earlier]) -> _Now:
        """Prepare for rows that were made for any of the earlier lists."""
        tools = config.toolbox
        shown = {name: name for name in tools.names}
        old_defaults: dict[str, dict[str, Any]] = {}
        for one in reversed(earlier):  # what the data says counts more than what the training says
            shown |= {old: new for old, new in (one.change.renamed or {}).items() if old not in tools}
            for tool in one.tools:
                if tool.name in tools:
                    new = tools[tool.name].defaults
                    changed = {name: value for name, value in tool.defaults.items() if new.get(name, value) != value}
                    old_defaults[tool.name] = changed
        listed = ToolList(tools, shown, config.evaluation.no_tool, old_defaults=old_defaults)
        return cls(
            listed, render_instruction("", tools), [render_instruction("", one.tools) for one in earlier], Counter()
        )

    def row(self, row: Row) -> Row | None:
        """Return a row as it is asked and answered today; None if no tool is right."""
        tools = self.listed.tools
        acceptable = all(name in tools for name in row.acceptable_tools)
        if row.tool in tools and acceptable and row.instruction.startswith(self.today):
            return row
        if not row.instruction.startswith((self.today, *self.before)):
            self.counts["as they are" if row.tool in tools else "left out"] += 1
            return _without_gone(row, tools) if row.tool in tools else None
        call = row.answer.call
        offered = self.listed.rewrite(row, call) if call else None
        if offered is None or offered.answer.call is None or tools.problems(offered.answer.call):
            self.counts["left out"] += 1
            return None
        self.counts["rendered" if row.tool in self.listed.shown else "answered otherwise"] += 1
        if row.tool in self.listed.shown:
            return offered
        details = {key: value for key, value in offered.metadata.items() if key != "accepted_parameters"}
        return replace(offered, metadata=details)


def _without_gone(row: Row, tools: Toolbox) -> Row:
    if "acceptable_tools" not in row.metadata:
        return row
    kept = [name for name in row.acceptable_tools if name in tools]
    return replace(row, metadata={**row.metadata, "acceptable_tools": kept})


def _example_rows(config: Config, earlier: Sequence[Earlier], others: Iterable[Row]) -> list[Row]:
    """Return the examples of tools that are new to data and training, without queries that other rows have.

    A tool that has test rows needs no examples.
    """
    new = [tool for tool in config.tools if all(tool.name in one.change.added for one in earlier)]
    known = {row.tool for row in others}
    queries = {row.identity for row in others}
    tools = config.toolbox
    return [
        Row(
            render_instruction(example.query, tools),
            render_response(ToolCall(tool.name, parameters, example.reasoning or _REASON)),
            {"source": EXAMPLE, "tool": tool.name},
        )
        for tool in new
        if tool.name not in known
        for example in tool.examples
        if (parameters := _parameters(tool, example.query, example.parameters)) is not None
        and normalised(example.query) not in queries
    ]


def _parameters(tool: ToolSection, query: str, given: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return an example's parameters; the query for a tool that needs one text; None where they cannot be known."""
    if given is not None:
        return tool.as_tool().in_order(given)
    name = tool.as_tool().text_parameter
    return {name: query} if name else ({} if not tool.as_tool().required else None)
