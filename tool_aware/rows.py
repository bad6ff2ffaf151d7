"""Rows of train.json, val.json and test.json: reading with checks, and writing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tool_aware.console import UserError, listing
from tool_aware.files import write_json
from tool_aware.manifest import read_manifest
from tool_aware.paths import split_name
from tool_aware.prompt import ParsedAnswer, parse_response, query_of, render_response, unwrap_instruction
from tool_aware.tools import Toolbox

SPLITS = ("train", "val", "test")
OPTIONAL = ""  # BFCL's mark among accepted values: the parameter may be left out


@dataclass(frozen=True)
class Row:
    """One example as the JSON files hold it; `metadata` has at least `source` and `tool`."""

    instruction: str
    response: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def query(self) -> str:
        """Return what the user typed: the end of the instruction, or all of it in a file of another origin."""
        return query_of(self.instruction)

    @property
    def answer(self) -> ParsedAnswer:
        """Return the parsed response."""
        return parse_response(self.response)

    @property
    def tool(self) -> str:
        """Return the name of the right tool."""
        return self.metadata["tool"]

    @property
    def acceptable_tools(self) -> tuple[str, ...]:
        """Return every tool that counts as right; more than one only where the query is ambiguous."""
        return tuple(self.metadata.get("acceptable_tools") or (self.tool,))


@dataclass(frozen=True)
class LoadedRows:
    """The rows of one file, its sha256, and how many of them were changed into the form that is trained."""

    rows: list[Row]
    sha256: str
    unwrapped: int = 0  # instructions that carried a Mistral wrapper
    respelled: int = 0  # responses with other spacing or other JSON than `render_response` writes


def load_rows(path: Path, tools: Toolbox) -> LoadedRows:
    """Read a JSON array of rows, check each of them, and spell its response as `render_response` does.

    A model must not learn two spellings of one answer, and other code relies on where the tool's name is in it.

    Raises UserError with all malformed rows (the first 20 shown), or naming the command that makes the file.
    """
    if not path.is_file():
        raise UserError("not found", where=str(path), fix=_how_to_get(path))
    content = path.read_bytes()
    try:
        items = json.loads(content)
    except ValueError as error:
        raise UserError(f"is not JSON: {error}", where=str(path), fix="python prepare_dataset.py") from error
    if not isinstance(items, list) or not items:
        raise UserError("must be a non-empty JSON array of rows", where=str(path), fix="see docs/FORMATS.md")
    rows, problems, unwrapped, respelled = [], [], 0, 0
    for number, item in enumerate(items, start=1):
        row_problems = list(_row_problems(item, tools))
        if row_problems:
            problems += [f"{path}: row {number}: {problem}" for problem in row_problems]
            continue
        instruction, was_wrapped = unwrap_instruction(item["instruction"])
        unwrapped += was_wrapped
        call = parse_response(item["response"]).call
        assert call is not None  # `_row_problems` checked it
        response = render_response(call)
        respelled += response != item["response"]
        details = {"source": "custom", "tool": call.tool, **item.get("metadata", {})}
        rows.append(Row(instruction, response, details))
    if problems:
        raise UserError(listing(problems, "problem"), fix="correct these rows (docs/FORMATS.md shows a good one)")
    return LoadedRows(rows, hashlib.sha256(content).hexdigest(), unwrapped, respelled)


def _how_to_get(path: Path) -> str:
    """Return how to get a split file: by the command that makes it, unless the folder holds files of another origin."""
    written = (read_manifest(path.parent) or {}).get("outputs", {})
    names = [split_name(name) for name in SPLITS]
    foreign = [name for name in names if (path.parent / name).is_file() and name not in written]
    if not foreign:
        return "python prepare_dataset.py"
    return f"write it too, with rows that {' and '.join(foreign)} of yours do not have (docs/FORMATS.md)"


def _row_problems(item: object, tools: Toolbox) -> Iterator[str]:
    if not isinstance(item, dict):
        yield f"is {type(item).__name__}, not an object"
        return
    for key in ("instruction", "response"):
        if not isinstance(item.get(key), str) or not item[key].strip():
            yield f"{key}: must be non-empty text"
    details = item.get("metadata", {})
    if not isinstance(details, dict):
        yield "metadata: must be an object"
        details = {}
    if not isinstance(item.get("response"), str) or not item["response"].strip():
        return
    answer = parse_response(item["response"])
    if not answer.call:
        yield f"response: {answer.problem}"
        return
    yield from (f"response: {problem}" for problem in tools.problems(answer.call))
    if details.get("tool", answer.tool) != answer.tool:
        yield f"metadata.tool: {details['tool']!r} but the response calls {answer.tool!r}"
    acceptable = details.get("acceptable_tools") or [answer.tool]
    if answer.tool not in acceptable:
        yield f"metadata.acceptable_tools: lacks the response's own tool {answer.tool!r}"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as the JSON array that `load_rows` reads."""
    write_json(path, [asdict(row) for row in rows])
