"""Makes rows whose query asks for two things that need two tools.

The call is that of the request that stands first, and the reasoning names what remains. Where the second thing is
needed for the first ("a reply with the conditions from our contract"), the call is that of what is needed.

The first request is a sentence of the frames, whose group the row belongs to. The second is one of
`content/double_requests.yaml`, which is a request by itself in no other row. Keys there, by language:
    slots            values of the second requests
    after, between   how the two are joined after a mark, and otherwise: {first}, {second}, {Second}
    second           tool -> imperatives, "look up the next train => the next train"; after `=>` in English what remains
    needs            both in one: `tools` (called, remaining), `say` with `=> text to send` or `code`, and `rest`
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tool_aware.console import UserError, listing
from tool_aware.dataset.synthesis import fillers, frames
from tool_aware.dataset.synthesis.content import CONTENT_DIR, SEARCH_TOOLS, Frame
from tool_aware.dataset.synthesis.dialogues import REASONS_FILE, calm_frames, read_yaml
from tool_aware.dataset.synthesis.follow_ups import text_call
from tool_aware.dataset.synthesis.frames import choose, expand, fill_known
from tool_aware.dataset.synthesis.generator import Generator, hash_unit
from tool_aware.dataset.synthesis.search_text import continued_search_text
from tool_aware.prompt import render_instruction, render_response
from tool_aware.rows import Row
from tool_aware.text import normalised, shortened
from tool_aware.tools import Toolbox, ToolCall

SLICE = "two requests"
TWO_REQUESTS_FILE = CONTENT_DIR / "double_requests.yaml"
TOOLS = ("rag_retrieval", "web_search", "code_execution", "direct_chat")

_ENGLISH_SHARE = 0.5
_NEEDS_SHARE = 0.2  # of a pair of tools in a language: one request that needs the other
_ATTEMPTS = 20
_MAX_FIRST = 110  # characters of the first request
_MARKS = ".?!…。？！"
_UNFIT_KINDS = ("talk", "run", "transform", "coding", "example")  # what follows a text to work on would belong to it


def load_two_requests(path: Path = TWO_REQUESTS_FILE) -> Mapping[str, Any]:
    """Read, check and return the second requests by language. Raises UserError listing every problem."""
    content = read_yaml(path)
    problems = []
    for language, part in content["languages"].items():
        known = part.get("slots", {})
        lines = [(tool, line) for tool, lines in part["second"].items() for line in lines]
        problems += [f"{language}: no second requests for {tool}" for tool in TOOLS if tool not in part["second"]]
        for tool, line in [*lines, *(("needs", one["say"]) for one in part.get("needs", ()))]:
            slots = {**known, **next((one.get("slots", {}) for one in part.get("needs", ()) if one["say"] == line), {})}
            problems += [f"{language}: {line!r}: {problem}" for problem in frames.problems_of(line, slots)]
            if tool != "needs" and " => " not in line:
                problems.append(f"{language}: {line!r}: does not say what remains")
    if problems:
        raise UserError(listing(problems, "problem"), where=str(path))
    return content


class TwoRequests:
    """Maker of rows with two requests, for the tools of a config."""

    def __init__(self, content: Mapping[str, Any], generator: Generator, tools: Toolbox, *, seed: int) -> None:
        self._content, self._generator, self._tools, self._seed = content, generator, tools, seed
        self._small_talk = read_yaml(REASONS_FILE)["small_talk"]
        self._seen: set[str] = set()

    def rows(self, count: int) -> list[Row]:
        """Return up to `count` distinct rows, every ordered pair of tools about as often."""
        return list(self._rows(count)) if count else []

    def _rows(self, count: int) -> Iterator[Row]:
        firsts = self._firsts()
        cells = {
            (language, first, then): rate
            for language, rate in self._rates().items()
            for first, then in itertools.permutations([tool for tool in TOOLS if tool in self._tools], 2)
            if firsts[language, first]
        }
        queue = [(hash_unit(self._seed, f"{SLICE}/{cell}") / rate, cell, 0, 0) for cell, rate in cells.items()]
        heapq.heapify(queue)
        made = 0
        while queue and made < count:
            time_, cell, use, stale = heapq.heappop(queue)
            frames_ = firsts[cell[0], cell[1]]
            row = self._row(cell, frames_[hash_index(self._seed, f"{cell}/{use}", len(frames_))], use)
            stale = 0 if row else stale + 1
            if row:
                made += 1
                yield row
            if stale < _ATTEMPTS:
                heapq.heappush(queue, (time_ + 1 / cells[cell] if row else time_, cell, use + 1, stale))

    def _rates(self) -> dict[str, float]:
        languages = self._content["languages"]
        other = (1 - _ENGLISH_SHARE) / max(1, len(languages) - 1)
        return {language: _ENGLISH_SHARE if language == "en" else other for language in languages}

    def _firsts(self) -> dict[tuple[str, str], list[Frame]]:
        """Return the frames that a first request is made from, by language and tool."""
        frames = {tool: self._generator.frames_for(tool) for tool in TOOLS if tool in self._tools}
        return {
            (language, tool): [
                frame
                for frame in calm_frames(frames[tool], language, self._small_talk)
                if frame.kind not in _UNFIT_KINDS
            ]
            for language in self._content["languages"]
            for tool in TOOLS
            if tool in self._tools
        }

    def _row(self, cell: tuple[str, str, str], frame: Frame, use: int) -> Row | None:
        language, first, then = cell
        random_ = random.Random(f"{self._seed}/{SLICE}/{language}/{first}/{then}/{use}")
        needs = [one for one in self._content["languages"][language].get("needs", ()) if one["tools"] == [first, then]]
        if needs and random_.random() < _NEEDS_SHARE:
            made = self._needed(language, random_.choice(needs), random_)
        else:
            made = self._joined(language, frame, then, random_)
        if made is None or (key := normalised(made[0])) in self._seen:
            return None
        self._seen.add(key)
        query, call, group = made
        details = {
            "source": "synthetic",
            "tool": call.tool,
            "slice": SLICE,
            "language": language,
            "template": group,
            "group": group,
            "then_tool": then,
        }
        return Row(render_instruction(query, self._tools), render_response(call), details)

    def _joined(
        self, language: str, frame: Frame, then: str, random_: random.Random
    ) -> tuple[str, ToolCall, str] | None:
        """Return a sentence of a frame with a second request after it, its call, and its group."""
        request = self._generator.request(frame, f"{SLICE}/{random_.random()}")
        first, part = request.query, self._content["languages"][language]
        if len(first) > _MAX_FIRST or first[-1] in "!！" or any(mark in first for mark in '\n:"'):
            return None  # a greeting, or a text to work on, which the second request would seem to belong to
        said = expand(random_.choice(part["second"][then]), self._slots(part, random_), random_)
        joint = random_.choice(part["after" if first[-1] in _MARKS else "between"])
        second = said.text
        initial = "İ" if language == "tr" and second[0] == "i" else second[0].upper()
        query = joint.format(first=first, second=second, Second=initial + second[1:])
        reason = self._reason(
            "joined", random_, evidence=request.evidence, first=frame.tool, rest=said.argument or "", then=then
        )
        return query, ToolCall(frame.tool, request.call.parameters, reason), frame.group

    def _needed(
        self, language: str, block: Mapping[str, Any], random_: random.Random
    ) -> tuple[str, ToolCall, str] | None:
        """Return a request that needs another one first, the call of that one, and its group."""
        first, then = block["tools"]
        part = self._content["languages"][language]
        values = {
            slot: fillers.draw(spec, random_) for slot, spec in {**part["slots"], **block.get("slots", {})}.items()
        }
        said = expand(block["say"], {slot: value.text for slot, value in values.items()}, random_)
        sent = said.argument or ""
        if first in SEARCH_TOOLS:
            words = self._generator.search_words(language)
            sent = continued_search_text(said.text, "", sent, words, [value.text for value in values.values()])
        if "code" in block:
            sent = fill_known(block["code"], {slot: value.code for slot, value in values.items()}).strip()
        reason = self._reason(
            "needed", random_, evidence=said.evidence or said.text, first=first, rest=block["rest"], then=then
        )
        group = f"{language}-needs-{hash_index(0, block['say'], 10**8)}"
        return said.text, text_call(self._tools, first, sent, reason), group

    def _slots(self, part: Mapping[str, Any], random_: random.Random) -> dict[str, str]:
        return {slot: fillers.draw(spec, random_).text for slot, spec in part.get("slots", {}).items()}

    def _reason(self, kind: str, random_: random.Random, *, evidence: str, first: str, rest: str, then: str) -> str:
        reasons = self._content["reasons"]
        return choose(random_.choice(reasons[kind]), random_).format(
            evidence=shortened(evidence),
            needs=reasons["needs"][first],
            rest=rest,
            Rest=rest[0].upper() + rest[1:],
            remains=reasons["remains"][then],
        )


def hash_index(seed: int, text: str, size: int) -> int:
    """Return an index below `size` for a text, the same on every machine."""
    return int(hash_unit(seed, text) * size)
