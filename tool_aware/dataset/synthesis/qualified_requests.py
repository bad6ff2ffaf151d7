"""Puts qualifiers and closing politeness behind the object of a request, and makes its search text.

The search text is the span of the request that search_text.py finds, and the qualifiers behind it. Politeness is no
part of it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tool_aware.dataset.synthesis.content import COUNT_SLOT, SEARCH_TOOLS, Frame
from tool_aware.dataset.synthesis.fillers import Value
from tool_aware.dataset.synthesis.frames import Expansion
from tool_aware.dataset.synthesis.qualifiers import OBJECT_SLOT, Qualifiers
from tool_aware.dataset.synthesis.search_text import SearchWords, search_text, span_end

_SHARES = {"own": (0.2, 0.37, 0.43), "by slot": (0.45, 0.32, 0.23), "any": (0.68, 0.3, 0.02)}  # of none, one, two
_POLITE_SHARE = 0.14
_FOLLOW_UP_SHARE = 0.5
_UNFIT_KINDS = ("contrast", "ambiguous", "example", "talk")  # pairs differ by the deciding words only
_STORIES = ("several_sentences", "chatty")  # whose last sentence may be about something else
_ENDS_CLAUSE = re.compile(r"\s*(?:$|[.?!,;:。？！、，]|\s[-–—]\s)")
_FINAL_MARKS = " ?.!？。！"


def qualified(
    frame: Frame,
    said: Expansion,
    values: Mapping[str, Value],
    qualifiers: Qualifiers | None,
    *,
    words: SearchWords | None,
    stream: Callable[[], random.Random],
) -> Expansion:
    """Return a request, perhaps with qualifiers behind its object and closing politeness, and with its search text.

    `stream` begins the random stream that they are drawn from; for most requests it need not, which takes its time.
    Nothing is added where the object stands in the middle of a sentence, or behind a text to work on.
    """
    is_search = frame.tool in SEARCH_TOOLS and frame.kind != "example"
    fixed = [value.text for slot, value in values.items() if slot != COUNT_SLOT]
    search = search_text(said.text, words, fixed, about=said.argument) if is_search else None
    said = replace(said, search=search) if is_search else said
    classes = qualifiers.classes.get(frame.tool, {}) if qualifiers else {}
    if not qualifiers or not classes or frame.kind in _UNFIT_KINDS or "\n" in said.text:
        return said
    end = span_end(said.text, words, fixed, about=said.argument) if is_search else _end_of_message(said)
    if end is None or not _may_end(said.text[end:], qualifiers.politeness):
        return said
    class_, how = _class_of(frame, said.text[:end], values, qualifiers, classes)
    if class_ is None or (how == "any" and frame.slice in _STORIES):
        return said
    random_ = stream()
    count = random_.choices((0, 1, 2), _SHARES[how])[0]
    added = "".join(qualifiers.drawn(classes[class_], count, random_))
    text = f"{said.text[:end]}{added}{said.text[end:]}"
    if said.evidence and said.evidence not in text:
        return said
    if is_search and random_.random() < _POLITE_SHARE and not said.text[end:].strip(_FINAL_MARKS):
        text = _with_politeness(text, random_.choice(qualifiers.politeness), random_)
    return replace(said, text=text, search=f"{search}{added}" if is_search else None)


def drawn_qualifier(qualifiers: Qualifiers | None, tool: str, random_: random.Random) -> str:
    """Return a qualifier that suits any search with a tool, for some of the follow-ups; else nothing."""
    kinds = qualifiers.classes.get(tool, {}).get("follow_up") if qualifiers and tool in SEARCH_TOOLS else None
    if not qualifiers or not kinds or random_.random() >= _FOLLOW_UP_SHARE:
        return ""
    return qualifiers.drawn(kinds, 1, random_)[0]


def behind_object(text: str, qualifier: str, words: SearchWords | None, values: Mapping[str, Value]) -> str | None:
    """Return a request with a qualifier behind what it is about; None where that stands within a clause."""
    end = span_end(text, words, [value.text for value in values.values()]) if words and qualifier else None
    if end is None or not _ENDS_CLAUSE.match(text[end:]):
        return None
    return f"{text[:end]}{qualifier}{text[end:]}"


def _class_of(
    frame: Frame, before: str, values: Mapping[str, Value], qualifiers: Qualifiers, classes: Mapping[str, Sequence[str]]
) -> tuple[str | None, str]:
    """Return the class of what stands before a qualifier, and by what it is known."""
    own = [slot.removeprefix(OBJECT_SLOT) for slot in values if slot.startswith(OBJECT_SLOT)]
    if own and own[-1] in classes:
        return own[-1], "own"
    slot = next((slot for slot in values if values[slot].text and before.endswith(values[slot].text)), "")
    class_ = qualifiers.of_slots.get(slot)
    if class_ in classes:
        return class_, "by slot"
    return ("any", "any") if "any" in classes else (None, "any")


def _end_of_message(said: Expansion) -> int | None:
    return None if said.argument or said.text[-1] in "\"'»”)" else len(said.text.rstrip(_FINAL_MARKS))


def _may_end(rest: str, politeness: Sequence[str]) -> bool:
    """Return whether a clause ends where `rest` begins, but for a mark or closing politeness."""
    return bool(_ENDS_CLAUSE.match(rest)) or rest.strip(_FINAL_MARKS) in politeness


def _with_politeness(text: str, politeness: str, random_: random.Random) -> str:
    base = text.rstrip(_FINAL_MARKS)
    mark = text[len(base) :].strip()
    joined = politeness if politeness[0] in ",，、。" else f" {politeness}"
    is_behind_mark = politeness[0] not in ",，、-" and random_.random() < 0.6
    return f"{base}{mark if is_behind_mark else ''}{joined}"
