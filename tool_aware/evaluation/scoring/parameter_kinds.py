"""The kinds of parameters: judged exactly, by what a search finds, by what a program prints, or by the words kept.

The kind follows from the parameter's JSON Schema and, for free strings, from its name; `evaluation.judged_as` in
config.yaml has the last word. No name of a tool is written here.

    exact     enum, const, pattern, format (date, uuid, email ...), numbers, booleans, null; names such as `user_id`,
              `path`, `date`, `currency`; and every free string that no other rule names: a wrong guess would pass
              wrong answers
    search    free strings named `query`, `search_terms`, `keywords`, `topic`, `question` and the like
    code      contentMediaType text/x-python; free strings named `python_code`, `program`, `script` whose description
              says that Python runs
    message   free strings named `message`, `text`, `body`, `prompt`, `note`, `description`, `summary` and the like

Arrays and objects are judged by their parts, whose kind follows from `items` and `properties`; the items of an array
of free strings have the kind that the array's own name gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tool_aware.tools import PYTHON_MEDIA_TYPE

EXACT, SEARCH, CODE, MESSAGE = "exact", "search", "code", "message"
KINDS = (EXACT, SEARCH, CODE, MESSAGE)

_EXACT_KEYWORDS = ("enum", "const", "pattern", "format")
_EXACT_NAMES = frozenset({
    "id", "ids", "uuid", "guid", "key", "keys", "sku", "code", "isbn", "iban", "email", "mail", "url", "uri", "link",
    "path", "file", "filename", "folder", "date", "dates", "day", "time", "timestamp", "datetime", "start", "end",
    "from", "to", "until", "since", "phone", "number", "lang", "language", "locale", "currency", "unit", "units",
    "username", "user", "hash", "token", "version", "timezone", "zone", "sort", "order",
})  # fmt: skip
_SEARCH_NAMES = frozenset({
    "query", "queries", "search", "searches", "keyword", "keywords", "term", "terms", "topic", "topics", "question",
    "q",
})  # fmt: skip
_MESSAGE_NAMES = frozenset({
    "message", "messages", "text", "texts", "body", "content", "contents", "prompt", "note", "notes", "comment",
    "comments", "reply", "answer", "description", "summary", "context", "instruction", "instructions", "reason",
    "title", "subject", "caption", "details",
})  # fmt: skip
_CODE_NAMES = frozenset({
    "code", "program", "script", "python", "source", "snippet",
})  # fmt: skip
_SAYS_PYTHON = re.compile(r"\bpython\b|\bprogram\b", re.IGNORECASE)
_NAME_PARTS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


@dataclass(frozen=True, slots=True)
class ParameterVerdict:
    """The verdict on one parameter, or on one part of an array or object (`filters.city`, `tags.0`).

    `is_same`: right under the strict policy. `is_usable`: the call does its job, as far as this parameter goes, by
    `reason`. What the verdict rests on is given where it was looked at: `kept` is the share (0-1) of the reference's
    content words that the answer keeps, `found` the share of its top passages that the answer finds as well; `lost`
    and `added` are words; `runs` and `printed` say what the answered program did, `wanted` what the reference printed.
    """

    name: str
    kind: str
    is_same: bool
    is_usable: bool
    reason: str = ""
    kept: float | None = None
    found: float | None = None
    lost: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    filler: int | None = None
    runs: bool | None = None
    printed: str | None = None
    wanted: str | None = None


@dataclass(frozen=True)
class CallUse:
    """The verdict on a call, does it do the job that the agent has, and on each of its parameters."""

    is_usable: bool
    parameters: tuple[ParameterVerdict, ...] = ()

    @property
    def reason(self) -> str:
        """Return why the call is not usable; empty if it is."""
        return next((f"{p.name}: {p.reason}" for p in self.parameters if not p.is_usable), "")


def kind_of(name: str, schema: Any) -> str:
    """Return the kind of a parameter whose value is a string; other values are judged exactly, or by their parts."""
    parts = list(alternatives_for_text(schema))
    if any(part.get("contentMediaType") == PYTHON_MEDIA_TYPE for part in parts):
        return CODE
    if not parts or any(keyword in part for part in parts for keyword in _EXACT_KEYWORDS):
        return EXACT
    words = [word.casefold() for word in _NAME_PARTS.findall(name)] or [name.casefold()]
    says = " ".join(str(part.get("description", "")) for part in parts)
    if set(words) & _CODE_NAMES and _SAYS_PYTHON.search(f"{' '.join(words)} {says}"):
        return CODE
    # The last word says what a thing is: `query_id` is an id, `search_text` a text to search for.
    if words[-1] in _EXACT_NAMES:
        return EXACT
    if set(words) & _SEARCH_NAMES:
        return SEARCH
    return MESSAGE if words[-1] in _MESSAGE_NAMES else EXACT


def alternatives_for_text(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the schemas of a union, at any depth, that a string may fit; a schema that is no union is the only one."""
    if not isinstance(schema, Mapping):
        return
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    if alternatives and not schema.keys() & {"enum", "const"}:
        for part in alternatives:
            yield from alternatives_for_text(part)
        return
    kinds = schema.get("type", "string")
    if "string" in ([kinds] if isinstance(kinds, str) else kinds):
        yield schema


def inner_schema(schema: Any, *path: str) -> Any:
    """Return the schema at a path (`items`, or `properties` and a name), also in an alternative; {} if none is."""
    if not isinstance(schema, Mapping):
        return {}
    for part in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        inner: Any = part
        for key in path:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if inner is not None:
            return inner
    return {}
