"""Loads what follow-ups are made of: dialogues with slots, and phrases that fit after any request.

Below `content/follow_ups/`:
    reasons.yaml     one-sentence patterns by kind of follow-up, and the words they need
    en.yaml ...      one file a language

Keys of a language file, all of whose patterns are written as frames are (see frames.py):
    slots            values that several dialogues use
    replies          slot -> follow-ups that name only another value of it, `{new}`: "and {new}?"
    corrections      `value` -> the same for a mistake, with `{new}` and perhaps `{old}`; tool -> "no, on the web"
    retry, retry_more, thanks, openers
                     phrases after any request; `retry_more` has `{count}`, `openers` has `{request}`
    dialogues        a list of dialogues

Keys of a dialogue:
    tool, about      the right tool, and in English what the request is about
    ask              the request, in several wordings, with slots
    send or code     what it sends to the tool, with the same slots: a follow-up that changes a slot sends this again
    slots            values of its own
    change           slots that a follow-up may change; `replies` may give their follow-ups words of its own
    mistaken         tools that the request is wrongly given to, before a correction names the right one
    then             kind or tool -> follow-ups with what they send, "is it open on Mondays? => museum open on Mondays"
                     or {say, code, slots}. `pronoun`, `ellipsis` and `correction` stay with the dialogue's tool.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tool_aware.config.yaml_file import shipped_yaml
from tool_aware.console import UserError, listing
from tool_aware.dataset.synthesis import fillers, frames
from tool_aware.dataset.synthesis.content import CONTENT_DIR, Frame

FOLLOW_UPS_DIR = CONTENT_DIR / "follow_ups"
REASONS_FILE = FOLLOW_UPS_DIR / "reasons.yaml"
SAME_TOOL = ("ellipsis", "pronoun", "correction")  # kinds in `then` that stay with the dialogue's tool

_FILE_KEYS = {"slots", "replies", "corrections", "retry", "retry_more", "thanks", "openers", "dialogues"}
_DIALOGUE_KEYS = {"tool", "about", "ask", "send", "code", "slots", "change", "replies", "mistaken", "then"}
_THEN_KEYS = {"say", "code", "slots"}
_CALM = ("plain", "terse", "language", "qualified")  # slices whose sentences stand well beside other turns


@dataclass(frozen=True)
class Continuation:
    """A follow-up of one dialogue: its words, with `=> text` for what to send, or a program."""

    kind: str
    tool: str
    say: str
    code: str | None = None
    slots: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Dialogue:
    """A request with slots, and its follow-ups. `id` is made from its words, so that others may be added anywhere."""

    id: str
    language: str
    tool: str
    about: str
    ask: tuple[str, ...]
    send: str
    is_code: bool
    slots: Mapping[str, Any]
    replies: Mapping[str, Sequence[str]]  # by slot that may change
    mistaken: tuple[str, ...]
    then: tuple[Continuation, ...]


@dataclass(frozen=True)
class Phrases:
    """The phrases of one language that fit after any request, and its dialogues."""

    corrections: Mapping[str, Sequence[str]]
    retry: Sequence[str]
    retry_more: Sequence[str]
    thanks: Sequence[str]
    openers: Sequence[str]
    dialogues: tuple[Dialogue, ...]


@dataclass(frozen=True)
class FollowUpContent:
    """Everything below `content/follow_ups/`, checked."""

    languages: Mapping[str, Phrases]
    reasons: Mapping[str, Any]


def load_follow_ups(directory: Path = FOLLOW_UPS_DIR) -> FollowUpContent:
    """Read, check and return the content of follow-ups. Raises UserError listing every problem."""
    problems: list[str] = []
    reasons = read_yaml(directory / REASONS_FILE.name)
    paths = sorted(path for path in directory.glob("*.yaml") if path.name != REASONS_FILE.name)
    languages = {path.stem: _phrases(path.stem, read_yaml(path), problems) for path in paths}
    for language, phrases in languages.items():
        for dialogue in phrases.dialogues:
            where = f"{language}.yaml: {dialogue.ask[0]!r:.60}"
            problems += [f"{where}: {problem}" for problem in _dialogue_problems(dialogue, reasons)]
    if problems:
        raise UserError(listing(problems, "problem"), where=str(directory))
    return FollowUpContent(languages, reasons)


@cache
def read_yaml(path: Path) -> Any:
    """Return the plain values of a YAML file. Raises UserError if it cannot be read."""
    try:
        return shipped_yaml(path)
    except (OSError, yaml.YAMLError) as error:
        raise UserError(str(error), where=str(path)) from error


def _phrases(language: str, file: Mapping[str, Any], problems: list[str]) -> Phrases:
    problems += [f"{language}.yaml: unknown key {key}" for key in file.keys() - _FILE_KEYS]
    problems += [f"{language}.yaml: no {key}" for key in _FILE_KEYS - {"slots"} - file.keys()]
    for block in file.get("dialogues", ()):
        problems += [f"{language}.yaml: unknown key {key}" for key in block.keys() - _DIALOGUE_KEYS]
    return Phrases(
        corrections=file.get("corrections", {}),
        retry=file.get("retry", ()),
        retry_more=file.get("retry_more", ()),
        thanks=file.get("thanks", ()),
        openers=file.get("openers", ()),
        dialogues=tuple(_dialogue(language, block, file) for block in file.get("dialogues", ())),
    )


def _dialogue(language: str, block: Mapping[str, Any], file: Mapping[str, Any]) -> Dialogue:
    ask = (block["ask"],) if isinstance(block["ask"], str) else tuple(block["ask"])
    replies = {**file["replies"], **block.get("replies", {})}
    return Dialogue(
        id=f"{language}-follow-up-{hashlib.sha256(ask[0].encode()).hexdigest()[:8]}",
        language=language,
        tool=block["tool"],
        about=block["about"],
        ask=ask,
        send=str(block.get("code", block.get("send", ""))),
        is_code="code" in block,
        slots={**file.get("slots", {}), **block.get("slots", {})},
        replies={slot: replies.get(slot, ()) for slot in block.get("change", ())},
        mistaken=tuple(block.get("mistaken", ())),
        then=tuple(_continuations(block)),
    )


def _continuations(block: Mapping[str, Any]) -> Iterator[Continuation]:
    for key, lines in block.get("then", {}).items():
        kind, tool = (key, block["tool"]) if key in SAME_TOOL else ("other_tool", key)
        for line in lines:
            more: Mapping[str, Any] = {"say": line} if isinstance(line, str) else line
            for say in [more["say"]] if isinstance(more["say"], str) else more["say"]:
                yield Continuation(kind, tool, say, more.get("code"), more.get("slots"))


def _dialogue_problems(dialogue: Dialogue, reasons: Mapping[str, Any]) -> Iterator[str]:
    if not dialogue.send:
        yield "neither send nor code"
    known = dialogue.slots.keys()
    for pattern in dialogue.ask:
        yield from frames.problems_of(pattern, known)
    if not dialogue.is_code:
        yield from (f"send: {problem}" for problem in frames.problems_of(dialogue.send, known))
    for slot, replies in dialogue.replies.items():
        if not replies:
            yield f"no replies for {slot}"
        if slot not in reasons["changed"]:
            yield f"reasons.yaml has no word for {slot}"
        if f"{{{slot}}}" not in dialogue.send:
            yield f"{slot} may change but is not sent"
    for more in dialogue.then:
        yield from frames.problems_of(more.say, {*known, *(more.slots or {})})
        if not more.code and " => " not in more.say:
            yield f"{more.say!r} does not say what it sends"
        if more.tool == dialogue.tool and more.kind == "other_tool":
            yield f"{more.say!r} needs no other tool"
    for slot, spec in dialogue.slots.items():
        problem = fillers.problem_of(spec)
        if problem:
            yield f"slot {slot}: {problem}"


def calm_frames(frames: Sequence[Frame], language: str, small_talk: Collection[str]) -> list[Frame]:
    """Return the frames of a language whose sentences are requests that stand well beside other turns and requests.

    `small_talk` is what frames mark as evidence where nothing is asked for.
    """
    marked = _any_marked(tuple(small_talk))
    return [
        frame
        for frame in frames
        if frame.language == language
        and frame.slice in _CALM
        and frame.kind != "talk"
        and not marked.search(frame.pattern)
    ]


@cache
def _any_marked(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Return what finds any of the texts marked as evidence; looking for them one by one takes ten times as long."""
    return re.compile("|".join(re.escape(f"*{text}*") for text in texts) or "(?!)")
