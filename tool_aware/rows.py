"""Rows of train.json, val.json and test.json: reading with checks, and writing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tool_aware.console import UserError, listing
from tool_aware.files import write_json
from tool_aware.json_values import unusable
from tool_aware.manifest import read_manifest
from tool_aware.paths import split_name
from tool_aware.prompt import (
    ParsedAnswer,
    Turn,
    question_of,
    question_of_parts,
    read_response,
    render_instruction,
    render_response,
    split_instruction,
    unwrap_instruction,
    unwrap_response,
)
from tool_aware.text import normalised, shortened
from tool_aware.text_files import JsonLine, is_json_array, json_items, read_json_text, text_format
from tool_aware.tools import Tool, Toolbox

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

SPLITS = ("train", "val", "test")
OPTIONAL = ""  # BFCL's mark among accepted values: the parameter may be left out


@lru_cache(maxsize=256)
def _once(head: str) -> str:
    """Return of equal texts the same object."""
    return head


class _Instruction:
    """Holds a row's instruction in two parts, of which the first, with the tools, is the same object in many rows.

    It is most of a row: without this half a million rows take some 600 MB more.
    """

    def __get__(self, row: Row | None, owner: type[Row]) -> str:
        if row is None:
            raise AttributeError("instruction")  # to dataclass() this means that the field has no default
        return row._head + row._question

    def __set__(self, row: Row, instruction: str) -> None:
        head, question = split_instruction(instruction)
        object.__setattr__(row, "_head", _once(head))
        object.__setattr__(row, "_question", question)


@dataclass(frozen=True)
class Row:
    """One example as the JSON files hold it; `metadata` has at least `source` and `tool`."""

    if TYPE_CHECKING:
        _head: ClassVar[str]  # the two parts of the instruction
        _question: ClassVar[str]
        instruction: str
    else:
        instruction: str = _Instruction()
    response: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> tuple[str, tuple[Turn, ...]]:
        """Return the query and the earlier turns."""
        return question_of_parts(self._head, self._question)

    @property
    def query(self) -> str:
        """Return what the user typed: the end of the instruction, or all of it in a file of another origin."""
        return self.question[0]

    @property
    def history(self) -> tuple[Turn, ...]:
        """Return the earlier turns that the instruction shows, the newest last."""
        return self.question[1]

    @property
    def conversation(self) -> str:
        """Return the earlier queries and the query, a line each: what makes a row another one than its neighbours."""
        query, history = self.question
        return "\n".join([*(turn.query for turn in history), query])

    @property
    def identity(self) -> str:
        """Return what equal rows have in common: see `identity_of`."""
        return identity_of_question(*self.question)

    @property
    def is_choice_only(self) -> bool:
        """Return whether only the tool is known to be right: then nothing else is learnt, or judged by its values."""
        return bool(self.metadata.get("choice_only"))

    def shows(self, tools: Toolbox) -> bool:
        """Return whether the instruction is the one that this toolkit renders for these tools."""
        query, history = self.question
        return self.instruction == render_instruction(query, tools, history)

    @property
    def answer(self) -> ParsedAnswer:
        """Return the parsed response."""
        return read_response(self.response)

    @property
    def tool(self) -> str:
        """Return the name of the right tool."""
        return self.metadata["tool"]

    @property
    def acceptable_tools(self) -> tuple[str, ...]:
        """Return every tool that counts as right; more than one only where the query is ambiguous."""
        return tuple(self.metadata.get("acceptable_tools") or (self.tool,))


def identity_of(instruction: str) -> str:
    """Return the earlier queries and the query as `normalised` spells them, a line each.

    Equal ones are the same conversation. The last line is the query's, and without history the only one.
    """
    return identity_of_question(*question_of(instruction))


def identity_of_question(query: str, history: Sequence[Turn]) -> str:
    """Return the same of a query and its earlier turns."""
    return "\n".join(normalised(text) for text in (*(turn.query for turn in history), query))


@dataclass(frozen=True)
class LoadedRows:
    """The rows of one file, the sha256 of the bytes read, and how many were changed into the form that is trained."""

    rows: list[Row]
    sha256: str
    unwrapped: int = 0  # instructions that carried a Mistral wrapper
    respelled: int = 0  # responses with other spacing or other JSON than `render_response` writes
    stored_as: str = ""  # JSON Lines, UTF-16, gzip; empty for an array in UTF-8


def load_rows(path: Path, tools: Toolbox) -> LoadedRows:
    """Read an array of rows, or JSON Lines, check each row, and spell its response as `render_response` does.

    A model must not learn two spellings of one answer, and other code relies on where the tool's name is in it.
    What training and evaluation take from a row is in this form afterwards: see METADATA.

    Raises UserError with all malformed rows (the first 20 shown), or naming the command that makes the file.
    """
    if not path.is_file():
        raise UserError("not found", where=str(path), fix=_how_to_get(path))
    rows, problems, unwrapped, respelled, digest = [], [], 0, 0, hashlib.sha256()
    for where, item, unread in _items(path, digest):
        found = [unread] if unread else list(row_problems(item, tools))
        if found:
            problems += [f"{where}: {problem}" for problem in found]
            continue
        row, was_wrapped, was_respelled = _as_read(item)
        rows.append(row)
        unwrapped += was_wrapped
        respelled += was_respelled
    if problems:
        raise UserError(listing(problems, "problem"), fix="correct these rows (docs/FORMATS.md shows a good one)")
    return LoadedRows(rows, digest.hexdigest(), unwrapped, respelled, _stored_as(path))


def row_of(item: object, tools: Toolbox) -> Row | None:
    """Return one row as `load_rows` reads it from a file; None if it is malformed."""
    if not isinstance(item, dict) or any(row_problems(item, tools)):
        return None
    return _as_read(item)[0]


def _as_read(item: Mapping[str, Any]) -> tuple[Row, bool, bool]:
    """Return a well-formed item as a row, and whether it was unwrapped and respelled."""
    instruction, was_wrapped = unwrap_instruction(item["instruction"])
    call = read_response(unwrap_response(item["response"])).call
    assert call is not None, "`row_problems` checked it"
    response = render_response(call)
    details = {"source": "custom", "tool": call.tool, **_tidied(item.get("metadata") or {})}
    return Row(instruction, response, details), was_wrapped, response != item["response"]


def row_objects(path: Path, digest: Digest | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file as they stand, with an instruction but otherwise unchecked.

    For files that may have been written for other tools than config.yaml lists now; `digest` gets the bytes as they
    are read. Raises UserError for all else.
    """
    for where, item, unread in _items(path, digest):
        if unread or not isinstance(item, dict) or not isinstance(item.get("instruction"), str):
            raise UserError(unread or "is no row: it has no instruction", where=where, fix="see docs/FORMATS.md")
        if not isinstance(item.get("metadata") or {}, dict):
            raise UserError("metadata: must be an object", where=where, fix="see docs/FORMATS.md")
        yield item


def _items(path: Path, digest: Digest | None) -> Iterator[tuple[str, Any, str | None]]:
    """Yield place and value of each item of a file, and the problem that keeps it from being read, if any.

    Raises UserError for an empty file, one that is not JSON, and one whose first row is of another known format.
    """
    is_array, is_first = is_json_array(path), True
    for item in json_items(path, digest=digest):
        if is_first:
            _refuse_other_formats(path, item, is_array=is_array)
        is_first = False
        repeated = f"{', '.join(item.repeated)}: given twice" if item.repeated else None
        yield f"{path}: {'row' if is_array else 'line'} {item.number}", item.value, item.problem or repeated
    if is_first:
        raise UserError("must be a non-empty JSON array of rows", where=str(path), fix="see docs/FORMATS.md")


def _stored_as(path: Path) -> str:
    """Return what is unusual about how a file is stored, to be said to the user; empty for an array in UTF-8."""
    return ", ".join(filter(None, ("" if is_json_array(path) else "JSON Lines", str(text_format(path)))))


def _how_to_get(path: Path) -> str:
    """Return how to get a split file: by the command that makes it, unless the folder holds files of another origin."""
    written = (read_manifest(path.parent) or {}).get("outputs", {})
    names = [split_name(name) for name in SPLITS]
    foreign = [name for name in names if (path.parent / name).is_file() and name not in written]
    if not foreign:
        return "python prepare_dataset.py"
    return f"write it too, with rows that {' and '.join(foreign)} of yours do not have (docs/FORMATS.md)"


# ---- rows of other formats ------------------------------------------------------------------------------------

_CONVERT = "python prepare_dataset.py --import {path}"
_OTHER_FORMATS: tuple[tuple[frozenset[str], str, str], ...] = (  # keys of a row, what it looks like, what to do
    (frozenset({"messages"}), "chat messages", _CONVERT),
    (frozenset({"conversations"}), "ShareGPT's conversations", _CONVERT),
    (frozenset({"question", "function"}), "BFCL questions", _CONVERT),
    (frozenset({"instruction", "output"}), "Alpaca's format", "rename output to response; append input to instruction"),
    (frozenset({"prompt", "completion"}), "prompts and completions", "rename the keys to instruction and response"),
    (frozenset({"prompt", "chosen"}), "preferences", "rename prompt to instruction and chosen to response"),
    (frozenset({"query", "answers"}), "xLAM's format", _CONVERT),
    (frozenset({"query_text"}), "an export of the query log", "python prepare_dataset.py --logs {path}"),
)


def _refuse_other_formats(path: Path, first: JsonLine, *, is_array: bool) -> None:
    """Raise UserError if the first item of a file shows that the file holds no rows, saying what it looks like."""
    value = first.value if is_array or first.problem is None else _whole_object(path)
    if not isinstance(value, dict):
        return
    if {"instruction", "response"} <= value.keys():
        if first.problem:
            raise UserError("is one row, not an array of rows", where=str(path), fix="put it in [ ]")
        return
    for keys, name, fix in _OTHER_FORMATS:
        if keys <= value.keys():
            what = f"looks like {name}: its rows have {', '.join(list(value)[:6])}"
            raise UserError(what, where=str(path), fix=fix.format(path=path))
    inside = [key for key, items in value.items() if isinstance(items, list) and items and isinstance(items[0], dict)]
    if not is_array and inside:
        what = f"is one object with {', '.join(inside)}, not an array of rows"
        raise UserError(what, where=str(path), fix=f"write the array alone: jq '.{inside[0]}' {path} > NEW")


def _whole_object(path: Path) -> dict[str, Any] | None:
    """Return the object that a file is as a whole, over several lines; None if it is none."""
    try:
        value = read_json_text(path)
    except UserError:
        return None
    return value if isinstance(value, dict) else None


# ---- checks ---------------------------------------------------------------------------------------------------


def _is_label(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_value_lists(value: object) -> bool:
    return isinstance(value, dict) and all(values is None or isinstance(values, list) for values in value.values())


_LABEL = (_is_label, "must be text or a number")

# Keys of metadata that the toolkit reads, with their shape. null counts as absent; any other key may hold anything.
METADATA: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "tool": (lambda value: isinstance(value, str), "must be the name of a tool"),
    "source": _LABEL,
    "slice": _LABEL,
    "language": _LABEL,
    "group": _LABEL,
    "session": _LABEL,
    "template": _LABEL,
    "program": _LABEL,
    "domain": _LABEL,
    "follow_up": _LABEL,
    "then_tool": (lambda value: isinstance(value, str), "must be the name of a tool"),
    "choice_only": (lambda value: isinstance(value, bool), "must be true or false"),
    "acceptable_tools": (_is_names, "must be a list of tools' names"),
    "accepted_parameters": (_is_value_lists, "must be an object of lists, {parameter: [value, ...]}"),
}


def _tidied(details: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata without nulls at known keys, with labels as text."""
    tidied = {
        key: str(value) if METADATA.get(key) is _LABEL else value
        for key, value in details.items()
        if value is not None or key not in METADATA
    }
    if isinstance(accepted := tidied.get("accepted_parameters"), dict):
        tidied["accepted_parameters"] = {name: values for name, values in accepted.items() if values is not None}
    return tidied


def row_problems(item: object, tools: Toolbox) -> Iterator[str]:
    """Yield what keeps an item of a data file from being trained on, each with its key."""
    if not isinstance(item, dict):
        yield f"is {type(item).__name__}, not an object"
        return
    if fault := unusable(item):
        yield fault
        return
    for key in ("instruction", "response"):
        if not isinstance(item.get(key), str) or not item[key].strip():
            yield f"{key}: must be non-empty text" + ("" if key in item else ", and is missing")
    details = item.get("metadata")
    if not isinstance(details, dict | None):
        yield "metadata: must be an object"
        details = None
    details = details or {}
    misshapen = [
        f"metadata.{key}: {words}, not {shortened(json.dumps(details[key], ensure_ascii=False))}"
        for key, (fits, words) in METADATA.items()
        if key in details and details[key] is not None and not fits(details[key])
    ]
    yield from misshapen
    if not isinstance(item.get("response"), str) or not item["response"].strip():
        return
    answer = read_response(unwrap_response(item["response"]))
    if not answer.call:
        yield f"response: {answer.problem}"
        return
    yield from (f"response: {problem}" for problem in tools.problems(answer.call))
    if not misshapen and answer.call.tool in tools:
        yield from _contradictions(details, tools[answer.call.tool], tools)


def _contradictions(details: Mapping[str, Any], tool: Tool, tools: Toolbox) -> Iterator[str]:
    """Yield what well-formed metadata says that the response or the tools contradict."""
    if details.get("tool") not in (None, tool.name):
        yield f"metadata.tool: {details['tool']!r} but the response calls {tool.name!r}"
    acceptable = details.get("acceptable_tools") or [tool.name]
    if tool.name not in acceptable:
        yield f"metadata.acceptable_tools: lacks the response's own tool {tool.name!r}"
    if unknown := [name for name in acceptable if name not in tools]:
        names = ", ".join(map(repr, unknown))
        yield f"metadata.acceptable_tools: {names} not among the tools, {', '.join(tools.names)}"
    accepted = details.get("accepted_parameters") or {}
    unknown = [name for name, values in accepted.items() if values and name not in tool.properties]
    if unknown and not tool.parameters.get("additionalProperties"):
        names = ", ".join(map(repr, unknown))
        yield f"metadata.accepted_parameters: {tool.name} has no parameter {names}"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as the JSON array that `load_rows` reads."""
    write_json(path, [asdict(row) for row in rows])
