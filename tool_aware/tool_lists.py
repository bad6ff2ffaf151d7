"""Other lists of tools for the same rows: in another order, renamed, masked, reworded, fewer, more, wholly others.

Training draws lists at random, so that the model reads what is offered; evaluation has fixed ones. In a list that lacks
a row's tool, the right answer is the first of its acceptable tools that is there, else the tool that stands for calling
none (`evaluation.no_tool`), which takes the query as its text; a row that has neither is left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tool_aware.prompt import Turn, question_of, render_preamble, render_question, render_response
from tool_aware.rows import Row
from tool_aware.tool_library import Asked, LibraryTool, training_wordings
from tool_aware.tools import Tool, Toolbox, ToolCall
from tool_aware.validator import validator_of

NOT_OFFERED = "No tool on the list can do that, so it is answered without one."


@dataclass(frozen=True)
class ToolList:
    """A list of tools as a prompt shows it; `shown` is real name -> shown name, without the tools that are missing.

    `old_defaults`, by real name, are those of parameters that have another default in this list.
    """

    tools: Toolbox
    shown: Mapping[str, str]
    no_tool: str | None = None  # real name of the tool that stands for calling none
    wording: Mapping[str, str] = field(default_factory=dict)  # of `render_instruction`
    old_defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def preamble(self) -> str:
        """Return what every prompt with this list begins with."""
        return render_preamble(self.tools, **self.wording)

    @property
    def real_names(self) -> dict[str, str]:
        """Return shown name -> real name."""
        return {shown: real for real, shown in self.shown.items()}

    def rewrite(self, row: Row, call: ToolCall) -> Row | None:
        """Return a row whose right call is `call` as it reads with this list; None if no tool of the list is right."""
        answer = self.answer(call, row.query, row.acceptable_tools)
        if answer is None:
            return None
        acceptable = [self.shown[name] for name in row.acceptable_tools if name in self.shown]
        details = {**row.metadata, "tool": answer.tool}
        if "acceptable_tools" in details:
            details["acceptable_tools"] = acceptable or [answer.tool]
        if "then_tool" in details:
            details["then_tool"] = self.shown.get(details["then_tool"], details["then_tool"])
        return Row(self.instruction(row), render_response(answer), details)

    def instruction(self, row: Row) -> str:
        """Return the prompt of a row with this list; an earlier turn keeps the name of a tool that is not on it."""
        query, history = question_of(row.instruction)
        shown = [Turn(turn.query, self.shown.get(turn.tool or "", turn.tool)) for turn in history]
        return self.preamble + render_question(query, shown)

    def row_of(self, asked: Asked) -> Row:
        """Return a query of the library as a row; its tool has to be on the list."""
        answer = self.answer_of(asked)
        details = {"source": "library", "tool": answer.tool, "language": asked.language}
        return Row(self.preamble + render_question(asked.query), render_response(answer), details)

    def answer_of(self, asked: Asked) -> ToolCall:
        """Return the right call for a query of the library; its tool has to be on the list."""
        answer = self.answer(asked.call, asked.query, (asked.call.tool,))
        assert answer is not None, "the caller takes queries of tools on the list"
        return answer

    def answer(self, call: ToolCall, query: str, acceptable: Sequence[str]) -> ToolCall | None:
        """Return `call` with the list's names and defaults, or the call that is right where its tool is missing."""
        if call.tool in self.shown:
            return self._as_shown(call, query)
        others = [name for name in acceptable if name in self.shown]
        name = next(iter(others), self.no_tool if self.no_tool in self.shown else None)
        if name is None:
            return None
        parameter = self.tools[self.shown[name]].text_parameter
        if parameter is None:
            return None
        reasoning = NOT_OFFERED if not others else call.reasoning
        return ToolCall(self.shown[name], {parameter: query}, reasoning)

    def _as_shown(self, call: ToolCall, query: str) -> ToolCall:
        shown = self.shown[call.tool]
        defaults, given = self.tools[shown].defaults, dict(call.parameters)
        for name, old in self.old_defaults.get(call.tool, {}).items():
            if name not in given and _mentions(query, old):  # left out because it was the default
                given[name] = old
        kept = {
            name: value
            for name, value in given.items()
            if not (name in defaults and defaults[name] == value and type(defaults[name]) is type(value))
        }
        reasoning = call.reasoning
        for real, name in self.shown.items():
            if real != name and real in reasoning:
                reasoning = re.sub(rf"\b{re.escape(real)}\b", name, reasoning)
        return ToolCall(shown, kept, reasoning)


_NUMBER_WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight", 10: "ten", 20: "twenty"}


def _mentions(query: str, number: Any) -> bool:
    words = "|".join(filter(None, (re.escape(str(number)), _NUMBER_WORDS.get(number))))
    return bool(re.search(rf"\b(?:{words})\b", query, re.IGNORECASE))


# ---- lists that are not drawn at random ---------------------------------------------------------------------


def as_listed(tools: Toolbox, *, no_tool: str | None = None, **wording: str) -> ToolList:
    """Return the tools as they are; `wording` is that of `render_instruction`."""
    return ToolList(tools, {name: name for name in tools.names}, no_tool, wording)


def in_another_order(tools: Toolbox, seed: int) -> ToolList:
    """Return the tools in another order, if they have one."""
    order = list(tools)
    while len(order) > 1 and order == list(tools):
        random.Random(seed).shuffle(order)
        seed += 1
    return as_listed(Toolbox(order))


def renamed(tools: Toolbox, names: Mapping[str, str]) -> ToolList:
    """Return the tools under other names; `names` is real name -> other name."""
    return ToolList(Toolbox(tool.shown_as(name=names.get(tool.name)) for tool in tools), dict(names))


def masked(tools: Toolbox) -> ToolList:
    """Return the tools as `tool_1`, `tool_2`, ... in their order."""
    return renamed(tools, {name: f"tool_{number}" for number, name in enumerate(tools.names, start=1)})


def without(tools: Toolbox, name: str, no_tool: str | None) -> ToolList:
    """Return the tools but for one."""
    return as_listed(Toolbox(tool for tool in tools if tool.name != name), no_tool=no_tool)


def other_names(tool: str) -> list[str]:
    """Return other names for a tool: known ones, or its own words in another order and spelling."""
    known = training_wordings(tool).names
    if known:
        return list(known)
    words = [word for word in re.split(r"[_\W]+|(?<=[a-z])(?=[A-Z])", tool) if word]
    camel = words[0].lower() + "".join(word.capitalize() for word in words[1:])
    made = ["_".join(reversed(words)), camel, f"{tool}_tool", f"call_{tool}", f"{tool}_v2", "-".join(words)]
    made += [f"{tool[:60]}_v2"]  # of a name as long as names can be
    return [name for name in dict.fromkeys(made) if name != tool and len(name) <= 64]


def other_descriptions(tool: Tool) -> list[str]:
    """Return known rewordings of a tool's description; none for a tool of the user's own."""
    return list(training_wordings(tool.name).descriptions)


# ---- a list drawn at random -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DrawnList:
    """A random list with queries of the library that go with it; `own_share` of a step's rows stay the agent's own."""

    tools: ToolList
    library: tuple[Asked, ...]
    own_share: float
    changes: tuple[str, ...]  # in words, for the plan and the run card


# In percent; chosen by docs/benchmarks/quality.md: masked names and strange tools teach most.
_KINDS, _KIND_SHARES = ("same tools", "one missing", "more tools", "other tools"), (28, 10, 36, 26)
_NAMINGS, _NAMING_SHARES = ("real", "renamed", "masked"), (15, 25, 60)


def draw_list(tools: Toolbox, library: Sequence[LibraryTool], random_: random.Random, no_tool: str | None) -> DrawnList:
    """Draw a list: other order, names, descriptions, defaults, and perhaps one tool fewer, some more, or all others."""
    changes: list[str] = []
    kind = random_.choices(_KINDS, _KIND_SHARES)[0]
    own: list[Tool] = list(tools)
    if kind == "one missing":
        removable = [tool for tool in own if tool.name != no_tool]
        kind = kind if len(removable) > 1 else "same tools"
        if kind == "one missing":
            own.remove(random_.choice(removable))
    added: list[LibraryTool] = []
    if kind == "more tools":
        added = random_.sample(library, min(len(library), random_.randint(1, 4)))
    elif kind == "other tools":
        added, own = random_.sample(library, min(len(library), random_.randint(4, 6))), []
    taken = {tool.name for tool in own}
    added = [entry for entry in added if entry.tool.name not in taken]
    changes += [kind] if kind != "same tools" else []

    listed = [*own, *(entry.tool for entry in added)]
    if random_.random() < 0.8:
        random_.shuffle(listed)
        changes.append("order")
    words = {entry.tool.name: entry for entry in added}
    if random_.random() < 0.5:
        listed = [_reworded(tool, words.get(tool.name), random_) for tool in listed]
        changes.append("descriptions")
    old_defaults: dict[str, dict[str, Any]] = {}
    if random_.random() < 0.3:
        before, listed = listed, [_other_defaults(tool, random_) for tool in listed]
        for old, new in zip(before, listed, strict=True):
            old_defaults[old.name] = {
                name: value for name, value in old.defaults.items() if new.defaults[name] != value
            }
        changes.append("defaults")
    naming = random_.choices(_NAMINGS, _NAMING_SHARES)[0]
    shown = _drawn_names([tool.name for tool in listed], words, naming, random_)
    changes += [naming] if naming != "real" else []
    box = Toolbox(tool.shown_as(name=shown[tool.name]) for tool in listed)
    asked = tuple(query for entry in added for query in entry.asked)
    tool_list = ToolList(box, shown, no_tool, old_defaults=old_defaults)
    return DrawnList(tool_list, asked, len(own) / len(listed), tuple(changes))


def _reworded(tool: Tool, entry: LibraryTool | None, random_: random.Random) -> Tool:
    choices = list(entry.descriptions) if entry else other_descriptions(tool)
    return tool.shown_as(description=random_.choice([tool.description, *choices]))


# Keywords beside which a number between the bounds is a value that the schema allows.
_OF_BOUNDED_NUMBERS = {"type", "default", "minimum", "maximum", "title", "description"}


def _other_defaults(tool: Tool, random_: random.Random) -> Tool:
    """Return a tool with other defaults for its integers; calls that leave a parameter out still do."""
    changed: dict[str, Any] = {}
    for name, schema in tool.properties.items():
        default = schema.get("default")
        if schema.get("type") == "integer" and isinstance(default, int) and "enum" not in schema:
            low, high = schema.get("minimum", 1), schema.get("maximum", max(20, 2 * default))
            choices = [number for number in (1, 2, 3, 4, 5, 6, 8, 10, 15, 20) if low <= number <= high]
            if not schema.keys() <= _OF_BOUNDED_NUMBERS:
                choices = [number for number in choices if validator_of(schema).is_valid(number)]
            changed[name] = random_.choice(choices or [default])
    return tool.with_defaults(changed)


_MASKS = ("tool_{}", "function_{}", "fn{}", "t{}", "option_{}", "action_{}")


def _drawn_names(
    names: Sequence[str], words: Mapping[str, LibraryTool], naming: str, random_: random.Random
) -> dict[str, str]:
    """Return real name -> shown name, all different."""
    if naming == "masked":
        form, numbers = random_.choice(_MASKS), list(range(1, len(names) + 1))
        if random_.random() < 0.5:
            random_.shuffle(numbers)
        return {name: form.format(number) for name, number in zip(names, numbers, strict=True)}
    if naming == "real":
        return {name: name for name in names}
    shown: dict[str, str] = {}
    for name in names:
        entry = words.get(name)
        choices = _free([*(entry.names if entry else other_names(name)), name], {*shown.values(), *names} - {name})
        shown[name] = random_.choice(choices) if choices else name
    return shown


def _free(choices: Iterable[str], taken: set[str]) -> list[str]:
    return [name for name in choices if name not in taken]
