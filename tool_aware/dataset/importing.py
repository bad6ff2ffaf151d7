"""Converts tool-calling data of others into rows: conversations with tool calls, BFCL questions with answers.

    messages, conversations    a conversation, in OpenAI's, Mistral's, Anthropic's, Gemini's or ShareGPT's form
    query, answers, tools      xLAM
    id, question, function     BFCL, with its answers in a second file
    input, output              OpenAI's Responses API;  prompt, completion: TRL

An item may bring its own tools; then its instruction shows those and not config.yaml's. Items are read one by one. What
our format cannot hold exactly is left out: counted by reason, the first few named with place, field and finding.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from tool_aware.config.data_sections import ConversationSection
from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.dataset.imports.bfcl_files import Answers, bfcl_candidate, is_question, read_answers
from tool_aware.dataset.imports.conversations import conversation_candidates, is_conversation
from tool_aware.dataset.imports.foreign_files import Item, read_items, without_nulls
from tool_aware.dataset.imports.foreign_tools import ForeignTools
from tool_aware.dataset.imports.left_out import Call, Candidate, LeftOut, in_words
from tool_aware.dataset.redaction import Redactor, SecretInParameter
from tool_aware.history import shown_turns
from tool_aware.prompt import render_instruction, render_response
from tool_aware.rows import Row, row_problems
from tool_aware.text import shortened
from tool_aware.tools import Tool, Toolbox, ToolCall

_SAID_CHARACTERS = 200
_NAMED_OF_A_REASON = 3  # items that are named for each reason


@dataclass
class Imported:
    """Rows, what could not be taken over, the tools that config.yaml lacks, and what was changed on the way."""

    rows: list[Row] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Items left out, by reason."""
    named: dict[str, list[str]] = field(default_factory=dict)
    """The first items of each reason, with place, field and finding."""
    foreign_tools: Sequence[Tool] = ()
    redefined: set[str] = field(default_factory=set)
    """Tools that items define in several ways, or otherwise than config.yaml."""
    renamed: dict[str, str] = field(default_factory=dict)
    """Names of tools with characters that ours may not have -> the names in the rows."""
    further_rows: int = 0
    """Rows beyond the first one of their item."""
    further_left_out: Counter[str] = field(default_factory=Counter)
    """Answers left out, by reason, of items that have rows."""
    turns_not_shown: int = 0
    """Earlier turns beyond what `conversation` in config.yaml lets a row show."""
    redactor: Redactor = field(default_factory=Redactor)
    """Replaces secrets in the rows and counts them by kind."""

    def add(self, place: str, rows: Sequence[Row], reasons: Sequence[LeftOut]) -> None:
        """Add the rows of an item; one without any is left out for the first of the reasons."""
        self.rows += rows
        if rows:
            self.further_rows += len(rows) - 1
            self.further_left_out.update(why.reason for why in reasons)
        else:
            self.leave_out(place, reasons[0])

    def leave_out(self, place: str, why: LeftOut) -> None:
        """Count an item that is left out, and name it if it is one of the first of its reason."""
        self.skipped[why.reason] += 1
        named = self.named.setdefault(why.reason, [])
        if len(named) < _NAMED_OF_A_REASON:
            named.append(f"{place}: {Redactor().redact(why.in_words())}")


def import_file(
    source: Path,
    tools: Toolbox,
    answers: Path | None = None,
    *,
    encoding: str | None = None,
    split: str | None = None,
    token: str | None = None,
    conversation: ConversationSection = ConversationSection(),  # noqa: B008 - it cannot be changed
) -> Imported:
    """Read all items of a source and convert them; BFCL questions together with their `answers`.

    Rows show the earlier turns that `conversation` allows.
    Raises UserError for a source that cannot be read, that is empty, and for BFCL questions without any answers.
    """
    truths = _bfcl_answers(source, answers, encoding)
    items = _not_empty(read_items(source, encoding, split=split, token=token), source)
    imported = _converted(items, tools, truths, conversation)
    if truths is None and not imported.rows and "a BFCL question without a file of answers" in imported.skipped:
        place = answers_beside(source)
        raise UserError("BFCL questions need their answers", where=str(place), fix="name the file with --answers FILE")
    if truths and truths.unreadable:
        imported.skipped["an unreadable line of the answers"] = truths.unreadable
    return imported


def answers_beside(source: Path) -> Path:
    """Return where BFCL keeps the answers to the questions in a file."""
    return source.parent / "possible_answer" / source.name


def _bfcl_answers(source: Path, answers: Path | None, encoding: str | None) -> Answers | None:
    place = answers or answers_beside(source)
    if not answers and not place.is_file():
        return None
    return read_answers(read_items(place, encoding))


def _not_empty(items: Iterator[Item], source: Path) -> Iterator[Item]:
    is_empty = True
    for item in items:
        is_empty = False
        yield item
    if is_empty:
        raise UserError("has no rows", where=str(source))


def _converted(
    items: Iterable[Item], tools: Toolbox, truths: Answers | None, conversation: ConversationSection
) -> Imported:
    imported = Imported()
    known = {tool.name: tool for tool in tools}
    seen_ids: dict[str, str] = {}
    for item in items:
        try:
            outcomes, own = _candidates(item, tools, truths)
        except LeftOut as why:
            outcomes, own = [why], None
        except RecursionError:
            outcomes, own = [LeftOut("nested too deeply")], None
        rows, reasons = [], []
        for outcome in outcomes:
            try:
                if isinstance(outcome, LeftOut):
                    raise outcome
                _refuse_repeated_id(outcome, item.place, seen_ids)
                candidate = _shown(_redacted(outcome, imported.redactor), conversation)
                rows.append(_row(candidate, known))
            except LeftOut as why:
                reasons.append(why)
                continue
            except RecursionError:
                reasons.append(LeftOut("nested too deeply"))
                continue
            imported.turns_not_shown += len(outcome.history) - len(candidate.history)
            for tool in candidate.offered:
                if known.setdefault(tool.name, tool) != tool:  # the first definition of a name stays
                    imported.redefined.add(tool.name)
            imported.renamed.update(own.renamed if own else {})
        imported.add(item.place, rows, reasons)
    imported.foreign_tools = tuple(tool for name, tool in known.items() if name not in tools)
    return imported


def _candidates(
    item: Item, tools: Toolbox, truths: Answers | None
) -> tuple[Sequence[Candidate | LeftOut], ForeignTools | None]:
    """Return the candidates of an item, whichever form it has. Raises LeftOut."""
    if item.problem:
        raise LeftOut(item.problem.partition(":")[0], found=item.problem.partition(":")[2].strip())
    value = item.value
    if not isinstance(value, Mapping):
        raise LeftOut("not an object", found=in_words(value))
    if is_question(value):
        candidate, own = bfcl_candidate(value, truths)
        return [candidate], own
    if is_conversation(value):
        return conversation_candidates(value, tools)
    for key in ("messages", "conversations"):
        if key in value:
            raise LeftOut(f"{key} is not a list of objects", key, in_words(value[key]))
    if {"instruction", "response"} <= value.keys():
        raise LeftOut("a row of this toolkit already; see --check", found=in_words(value))
    raise LeftOut(
        "none of the forms that are read: expected messages (and tools), or see docs/FORMATS.md", found=in_words(value)
    )


def _refuse_repeated_id(candidate: Candidate, place: str, seen: dict[str, str]) -> None:
    """Raise LeftOut for a second BFCL question with the id of an earlier one: one of the two has not this answer."""
    key = candidate.details.get("bfcl_id")
    if key is not None and seen.setdefault(str(key), candidate.query) != candidate.query:
        raise LeftOut("another question with the id of an earlier one", "id", str(key))


def _redacted(candidate: Candidate, redactor: Redactor) -> Candidate:
    """Return a candidate without secrets, the same ones replaced alike in query and call. Raises LeftOut."""
    texts = (candidate.said, dict(candidate.details), [turn.query for turn in candidate.history])
    try:
        query, arguments, said, details, earlier = redactor.redact_call(
            candidate.query, candidate.call.arguments, texts
        )
    except SecretInParameter as why:
        raise LeftOut("a parameter that is a secret and cannot be replaced", candidate.call.name, str(why)) from None
    history = tuple(replace(turn, query=text) for turn, text in zip(candidate.history, earlier, strict=True))
    call = Call(candidate.call.name, arguments)
    return replace(candidate, query=query, call=call, said=said, details=details, history=history)


def _shown(candidate: Candidate, conversation: ConversationSection) -> Candidate:
    """Return a candidate with the turns that a row may show. Raises LeftOut if it has some and may show none."""
    history = shown_turns(candidate.history, conversation)
    if candidate.history and not history:
        raise LeftOut("earlier turns, of which conversation.max_turns or max_tokens lets none be shown")
    return replace(candidate, history=history)


def _row(candidate: Candidate, known: Mapping[str, Tool]) -> Row:
    """Return a candidate as a row. Raises LeftOut for a call that its schema, or that of an earlier row, refuses."""
    query, call, offered = candidate.query, candidate.call, candidate.offered
    if not query:
        raise LeftOut("an empty query")
    if call.name not in offered:
        raise LeftOut("unknown tool", found=call.name)
    arguments = offered[call.name].in_order(_fitting(call, offered[call.name]))
    kept = known.get(call.name, offered[call.name])  # the definition that the next steps will check with
    if kept.parameter_problems(arguments):
        raise LeftOut("the same tool name with another schema", found=call.name)
    said = shortened(candidate.said, _SAID_CHARACTERS) if candidate.said.strip(" .?!\n") else ""
    details = {"source": candidate.source, "tool": call.name, "slice": "imported", **candidate.details}
    try:
        made = ToolCall(call.name, arguments, said or f'"{shortened(query)}" is what {call.name} is there for.')
        row = Row(render_instruction(query, offered, candidate.history), render_response(made), details)
        if candidate.history:
            details["history"] = list(map(asdict, row.history))
    except ValueError as error:
        raise LeftOut("a call that cannot be written down", found=str(error)[:80]) from None
    item = {"instruction": row.instruction, "response": row.response, "metadata": row.metadata}
    if why := next(row_problems(item, Toolbox([kept])), None):
        raise LeftOut("a row that cannot be trained on", found=why[:160])
    return row


def _fitting(call: Call, tool: Tool) -> dict[str, Any]:
    """Return arguments that fit the schema: as they are, or else without nulls, as Arrow writes absent keys."""
    problems = _problems(tool, call.arguments)
    if not problems:
        return call.arguments
    without = without_nulls(call.arguments)
    if without != call.arguments and not _problems(tool, without):
        return without
    raise LeftOut("parameters against the schema", call.name, problems[0][:120])


def _problems(tool: Tool, arguments: Mapping[str, Any]) -> list[str]:
    try:
        return tool.parameter_problems(arguments)
    except RecursionError:
        raise
    except Exception as error:  # a reference to nothing, a pattern that is none: each has its own class
        raise LeftOut("a tool whose schema cannot be used", tool.name, str(error)[:120]) from error


# ---- the config of an import ----------------------------------------------------------------------------


class _QuotingDumper(yaml.SafeDumper):
    """Writes every text in quotes that YAML 1.1 or 1.2 could read as something else."""


def _quoted(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    is_plain = text[:1].isalpha() and text.lower() not in ("true", "false", "null", "yes", "no", "on", "off", "y", "n")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else '"')


_QuotingDumper.add_representer(str, _quoted)


def config_with_tools(config: Config, base: Path, foreign: Sequence[Tool], folder: Path) -> str:
    """Return the text of a config file in `folder` that extends `base` by the `foreign` tools of an import."""
    tools = [tool.model_dump(exclude_defaults=True) for tool in config.tools] + [
        {"name": tool.name, "description": tool.description or tool.name, "parameters": dict(tool.parameters)}
        for tool in foreign
    ]
    extended = {"extends": os.path.relpath(base, folder), "tools": tools}
    return yaml.dump(extended, Dumper=_QuotingDumper, sort_keys=False, allow_unicode=True)
