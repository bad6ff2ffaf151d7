"""Holds what an item of another project becomes: a call to learn, or the reason why it is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tool_aware.prompt import Turn
from tool_aware.text import shortened
from tool_aware.text_files import parse_json
from tool_aware.tools import Toolbox

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_ENCODED_AT_MOST = 3  # times that JSON is found written as a JSON string


class LeftOut(ValueError):
    """An item that our format cannot hold exactly: the reason, which is counted, the field, and what was found."""

    def __init__(self, reason: str, field: str = "", found: str = "") -> None:
        super().__init__(reason)
        self.reason, self.field, self.found = reason, field, found

    def in_words(self) -> str:
        """Return field, reason and finding in one line."""
        text = f"{self.field}: {self.reason}" if self.field else self.reason
        return f"{text} ({self.found})" if self.found else text


@dataclass(frozen=True)
class Call:
    """A call as another project wrote it: the tool's name in our letters, and the arguments."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A query, the call that answers it, and the tools on offer; not yet checked against their schemas."""

    query: str
    call: Call
    offered: Toolbox
    source: str
    said: str = ""
    """What the assistant said with the call, or its whole answer."""
    details: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Turn, ...] = ()
    """The user's earlier turns, the newest last."""


def usable_name(name: str) -> str:
    """Return a tool's name with `_` for every character that names may not have, as BFCL does for OpenAI's models."""
    return _NOT_IN_NAMES.sub("_", name.strip())


def decoded(value: Any) -> Any:
    """Return the value that a string holds as JSON, however often it was encoded; any other string as it is."""
    for _ in range(_ENCODED_AT_MOST):
        if not isinstance(value, str) or not value.lstrip().startswith(("{", "[", '"')):
            break
        try:
            value = parse_json(value)
        except ValueError:
            break
    return value


def is_nothing(value: Any) -> bool:
    """Check for what stands for an absent field: null, an empty text, list or object, also as JSON in a string."""
    return value is None or value in ("", [], {}, "[]", "{}", "null")


def in_words(value: Any) -> str:
    """Return a JSON value in a few words."""
    if isinstance(value, str):
        return json.dumps(shortened(value, 60) if value.strip() else value)
    if isinstance(value, Mapping):
        return f"an object with {shortened(', '.join(map(str, value)), 60)}" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return "null" if value is None else shortened(json.dumps(value, default=str), 60)
