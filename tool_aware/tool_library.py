"""Tools that the agent does not have, with queries of their own: to be offered beside its tools, or instead of them.

A model that only ever sees one list of tools learns which words go with which name, and does not read the list. The
library is what other lists are made of in training; a part of it is kept for evaluation and never trained on.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tool_aware.config.yaml_file import shipped_yaml
from tool_aware.tools import Tool, ToolCall

_FOLDER = Path(__file__).with_name("tool_library_data")
_HELD_OUT_NAMES = 2  # of each tool's other names and descriptions, the last ones
_TRAINING, _HELD_OUT, _WORDINGS = "training_*.yaml", "held_out.yaml", "wordings.yaml"


@dataclass(frozen=True)
class Asked:
    """A query with its right call."""

    query: str
    call: ToolCall
    language: str = "en"


@dataclass(frozen=True)
class LibraryTool:
    """A tool, other names and descriptions it may have, and queries that it answers; `set` groups held-out tools."""

    tool: Tool
    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    asked: tuple[Asked, ...]
    set: str = ""


@dataclass(frozen=True)
class Wordings:
    """Other names and descriptions that one of the agent's tools may have."""

    names: tuple[str, ...] = ()
    descriptions: tuple[str, ...] = ()


_NO_WORDINGS = Wordings()


@functools.cache
def training_tools() -> tuple[LibraryTool, ...]:
    """Return the tools that training may offer."""
    return tuple(tool for path in sorted(_FOLDER.glob(_TRAINING)) for tool in _read(path))


@functools.cache
def held_out_tools() -> tuple[LibraryTool, ...]:
    """Return the tools that are for evaluation only."""
    return _read(_FOLDER / _HELD_OUT)


def training_wordings(tool: str) -> Wordings:
    """Return names and descriptions of a default tool that training may use; none for others."""
    return _wordings().get(tool, (_NO_WORDINGS, _NO_WORDINGS))[0]


@functools.cache
def _wordings() -> dict[str, tuple[Wordings, Wordings]]:
    """Return the wordings for training and for evaluation by the tool's name; the last few of each are held out."""
    entries = _yaml(_FOLDER / _WORDINGS)
    return {
        entry["name"]: (
            Wordings(tuple(entry["names"][:-_HELD_OUT_NAMES]), tuple(entry["descriptions"][:-_HELD_OUT_NAMES])),
            Wordings(tuple(entry["names"][-_HELD_OUT_NAMES:]), tuple(entry["descriptions"][-_HELD_OUT_NAMES:])),
        )
        for entry in entries
    }


def held_out_wordings(tool: str) -> Wordings:
    """Return names and descriptions of a default tool that training does not use; none for others."""
    return _wordings().get(tool, (_NO_WORDINGS, _NO_WORDINGS))[1]


@functools.cache
def library_sha256() -> str:
    """Return the identity of all that training takes from the library."""
    paths = [*sorted(_FOLDER.glob(_TRAINING)), _FOLDER / _WORDINGS]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _yaml(path: Path) -> Any:
    return shipped_yaml(path)


def _read(path: Path) -> tuple[LibraryTool, ...]:
    return tuple(map(_library_tool, _yaml(path)))


def _library_tool(entry: Mapping[str, Any]) -> LibraryTool:
    tool = Tool(entry["name"], entry["description"], entry["parameters"])
    asked = tuple(_asked(tool.name, item) for item in entry["queries"])
    return LibraryTool(tool, tuple(entry["names"]), tuple(entry["descriptions"]), asked, entry.get("set", ""))


def _asked(name: str, item: Mapping[str, Any]) -> Asked:
    call = ToolCall(name, item["parameters"], " ".join(item["reasoning"].split()))
    return Asked(item["query"], call, item.get("language", "en"))


def queries_of(tools: Sequence[LibraryTool]) -> list[tuple[LibraryTool, Asked]]:
    """Return every query of some tools, with its tool."""
    return [(tool, asked) for tool in tools for asked in tool.asked]
