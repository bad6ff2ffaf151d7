"""Makes rows from frames: chooses the next frame, fills its slots, adds noise, and renders the call.

Every row is a function of (seed, frame, how often the frame was used before). More rows therefore only add rows, and a
new frame leaves the rows of all other frames as they are.
"""

from __future__ import annotations

import hashlib
import heapq
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from tool_aware.console import UserError, listing
from tool_aware.dataset.synthesis import fillers
from tool_aware.dataset.synthesis.content import COUNT_SLOT, SEARCH_TOOLS, Content, Frame
from tool_aware.dataset.synthesis.frames import Expansion, choose, expand, fill_known, slots_of
from tool_aware.dataset.synthesis.noise import Noise, Noisy
from tool_aware.dataset.synthesis.pools import pools
from tool_aware.dataset.synthesis.qualified_requests import drawn_qualifier, qualified
from tool_aware.dataset.synthesis.qualifiers import OBJECT_SLOT
from tool_aware.dataset.synthesis.search_text import SearchWords
from tool_aware.prompt import render_instruction, render_response
from tool_aware.rows import Row
from tool_aware.text import normalised, shortened, shortlist
from tool_aware.tools import Toolbox, ToolCall

MIN_EXAMPLES = 3  # one for each split
_TYPED_AS_WRITTEN = ("en", "tr", "ja", "zh")  # en has noise of its own; Turkish has letters that Python lowers to two
MAX_STALE_USES = 40  # a frame that yields nothing new this often in a row is exhausted
ROUNDED_SHARE = 0.3  # of the programs that print rounded numbers: so many are asked for a number of decimals
_DECIMALS = (0, 1, 2, 2, 3)  # that are asked for
_DECIMALS_OF_MONEY = (0, 1, "cents", "cents", 2, 2)
_PRINTED = r"(?:round\(\w+, \d\)|\w+(?:\[\d\])?)"
_ROUNDED = re.compile(rf"^ *print\((?=[^\n]*round\(){_PRINTED}(?:, {_PRINTED})*\)\s*\Z", re.MULTILINE)
_PERCENTAGE = re.compile(r"\* 100$", re.MULTILINE)
_NAME = re.compile(r"\b[A-Z]\w{3,}")  # nobody could correct a mistyped name
_COUNT_IN_WORDS_SHARE = 0.4
_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 12, 15, 20, 25)


@dataclass(frozen=True)
class Example:
    """An example query of a tool, as config.yaml gives it."""

    query: str
    parameters: Mapping[str, Any] | None = None
    reasoning: str | None = None


RowKey = tuple[str, int]  # its frame, and how often that was used before


@dataclass(frozen=True)
class Request:
    """One filled frame without noise: what is typed, the call, and the words that decide the tool."""

    frame: Frame
    query: str
    call: ToolCall
    evidence: str


class Generator:
    """Maker of rows for the tools of a config, from content and from the examples in config.yaml."""

    def __init__(
        self,
        content: Content,
        tools: Toolbox,
        *,
        seed: int,
        slices: Sequence[str] | None = None,
        examples: Mapping[str, Sequence[Example]] | None = None,
    ) -> None:
        self._content, self._tools, self._seed = content, tools, seed
        self._slices = None if slices is None else frozenset(slices)
        unknown = sorted((self._slices or frozenset()) - content.mix.keys())
        if unknown:
            raise UserError(
                f"unknown slice {', '.join(unknown)}",
                where="dataset.slices",
                fix=f"choose from {', '.join(content.mix)}",
            )
        self._noise = Noise(content.noise, self._slices)
        self._examples = examples or {}
        self._seen: set[str] = set()
        self._domains_with = cache(content.domains_with)
        self._ahead: dict[RowKey, Row] = {}
        self._recorded: dict[RowKey, Row] | None = None

    def take_from(self, ahead: Mapping[RowKey, Row]) -> None:
        """Take rows that another generator of the same config has made instead of making them again."""
        self._ahead |= ahead

    def recorded(self) -> dict[RowKey, Row]:
        """Return a dictionary that gets every row made from now on, also those that turn out to be duplicates."""
        self._recorded = {}
        return self._recorded

    def rows_for(self, tool: str, count: int) -> list[Row]:
        """Return up to `count` distinct rows whose right answer is `tool`.

        Raises UserError if there is no content for it, and too few examples for rows in every split.
        """
        frames = self._frames_of(tool)
        if count:
            self.check_examples([tool])
        return list(self._rows([*frames, *self._example_frames(tool)], count))

    def _frames_of(self, tool: str) -> list[Frame]:
        return [frame for frame in self._content.frames if frame.tool == tool and self._is_wanted(frame)]

    def check_examples(self, tools: Iterable[str]) -> None:
        """Raise UserError, with all problems, if the examples of some tools do not do to make their rows from."""
        found = {tool: problem for tool in tools if (problem := self._problem_of_examples(tool))}
        fix = (
            f"give it {MIN_EXAMPLES} or more different `examples` in config.yaml, better ten, each with its "
            "`parameters` unless the call takes one text: train, val and test share none"
        )
        if len(found) == 1:
            raise UserError(next(iter(found.values())), where=f"tools: {next(iter(found))}", fix=fix)
        if found:
            what = listing([f"{tool}: {problem}" for tool, problem in found.items()], "problem")
            raise UserError(what, where="tools", fix=fix.replace("give it", "give each"))

    def _problem_of_examples(self, tool: str) -> str | None:
        """Return why a tool's examples do not do: too few without other content, or calls that a query does not say."""
        examples, needed = self._examples.get(tool, ()), self._tools[tool].required
        bare = [f"examples.{at}" for at, example in enumerate(examples) if example.parameters is None]
        if bare and needed and self._tools[tool].text_parameter is None:
            listed = ", ".join(name for name in self._tools[tool].properties if name in needed)
            return f"{shortlist(bare)} without parameters, and a query alone does not say what to send as {listed}"
        distinct = len({normalised(example.query) for example in examples})
        if distinct >= MIN_EXAMPLES or self._frames_of(tool):
            return None
        number = f"{distinct or 'no'} example {'query' if distinct == 1 else 'queries'}"
        return f"{number}, and no other content to make its rows from; {MIN_EXAMPLES} are needed"

    def ambiguous_rows(self, count: int) -> list[Row]:
        """Return up to `count` distinct rows that more than one tool may answer."""
        frames = [frame for frame in self._content.frames if len(self._acceptable(frame)) > 1]
        return list(self._rows(frames, count))

    def frames_for(self, tool: str) -> list[Frame]:
        """Return every frame whose only right answer is `tool`, those of its examples included, whatever the slices."""
        own = [frame for frame in self._content.frames if frame.tool == tool and not frame.acceptable]
        return [*own, *self._example_frames(tool)]

    def search_words(self, language: str) -> SearchWords | None:
        """Return the words that a search text leaves out; None for a language that is written without spaces."""
        return self._content.search_words.get(language)

    def qualifier(self, language: str, tool: str, random_: random.Random) -> str:
        """Return what may stand behind the object of any search with a tool, or nothing."""
        return drawn_qualifier(self._content.qualifiers.get(language), tool, random_)

    def request(self, frame: Frame, draw: str) -> Request:
        """Return the frame filled by a random stream of its own, named `draw`, which moves no row of `rows_for`."""
        random_ = random.Random(f"{self._seed}/{frame.id}/{draw}")
        values, _ = self._values(frame, random_)
        said = self._said(frame, values, random_, draw)
        call, _ = self._call(frame, said, values, Noisy(said.text), random_)
        return Request(frame, said.text, call, shortened(said.evidence or said.argument or said.text))

    def _is_wanted(self, frame: Frame) -> bool:
        return not frame.acceptable and (self._slices is None or frame.slice in self._slices)

    def _acceptable(self, frame: Frame) -> tuple[str, ...]:
        """Return the acceptable tools that the config has; none if it lacks the best one."""
        return tuple(name for name in frame.acceptable if name in self._tools) if frame.tool in self._tools else ()

    # ---- which frame is next ----

    def _rows(self, frames: Sequence[Frame], count: int) -> Iterator[Row]:
        """Yield rows of the frames in turn, each slice as often as its share in mix.yaml says."""
        queue = [
            (hash_unit(self._seed, frame.group) / rate, frame.id, 0, 0, frame, rate)
            for frame, rate in self._rates(frames)
        ]
        heapq.heapify(queue)
        made = 0
        while queue and made < count:
            time_, identity, use, stale, frame, rate = heapq.heappop(queue)
            row = self._row(frame, use)
            key = normalised(row.query)
            if key in self._seen:
                stale += 1
            else:
                self._seen.add(key)
                stale = 0
                made += 1
                yield row
            if stale < MAX_STALE_USES:
                heapq.heappush(queue, (time_ + 1 / rate, identity, use + 1, stale, frame, rate))

    def _rates(self, frames: Sequence[Frame]) -> list[tuple[Frame, float]]:
        """Return how often each frame comes; a program that is asked for in few words comes oftener in these."""
        ways = Counter((frame.slice, frame.program) for frame in frames if frame.program)
        shares = [frame.share / math.sqrt(ways[frame.slice, frame.program] or 1) for frame in frames]
        weights: dict[str, float] = {}
        for frame, share in zip(frames, shares, strict=True):
            weights[frame.slice] = weights.get(frame.slice, 0.0) + share
        return [
            (frame, self._content.share(frame.slice, frame.tool) * share / weights[frame.slice])
            for frame, share in zip(frames, shares, strict=True)
        ]

    def _example_frames(self, tool: str) -> Iterator[Frame]:
        for number, example in enumerate(self._examples.get(tool, ())):
            identity = f"example-{tool}-{number}"
            yield Frame(
                id=identity,
                group=identity,
                tool=tool,
                slice="plain",
                language="en",
                kind="example",
                pattern="{example}",
                slots={"example": [example.query]},
            )

    # ---- one row ----

    def _row(self, frame: Frame, use: int) -> Row:
        row = self._ahead.pop((frame.id, use), None) or self._made(frame, use)
        if self._recorded is not None:
            self._recorded[frame.id, use] = row
        return row

    def _made(self, frame: Frame, use: int) -> Row:
        """Return a row, which depends on the frame and the number of its use alone."""
        # Both sides of a contrast pair draw the same fillers, so that they differ by the deciding words only.
        key = frame.group if frame.kind == "contrast" else frame.id
        values, domain = self._values(frame, random.Random(f"{self._seed}/{key}/{use}"))
        random_ = random.Random(f"{self._seed}/{frame.id}/{use}/text")
        said = self._said(frame, values, random_, str(use))
        if frame.code and prints_rounded(frame.code):
            frame, said = rounded(frame, said, random.Random(f"{self._seed}/{frame.id}/{use}/decimals"))
        noisy = Noisy(said.text)
        if frame.is_wrapped and frame.language == "en":
            noisy = self._noise.apply(
                said.text,
                tool=frame.tool,
                other_tools=[name for name in self._tools.names if name not in (frame.tool, *frame.acceptable)],
                protected=self._protected(frame, values),
                random_=random_,
                names=" ".join(_NAME.findall(said.text)),
            )
        elif frame.is_wrapped and frame.language not in _TYPED_AS_WRITTEN and not frame.code:
            noisy = self._noise.typed(said.text, random_=random_, names=" ".join(_NAME.findall(said.text)))
        query = noisy.text
        slice_ = noisy.slice if noisy.slice and frame.slice in ("plain", "terse", "qualified") else frame.slice
        call, accepted = self._call(frame, said, values, noisy, random_)
        details = {
            "source": "synthetic",
            "tool": frame.tool,
            "slice": slice_,
            "language": frame.language,
            "template": frame.id,
            "group": frame.group,
            **({"program": frame.program} if frame.program else {}),
            **({"domain": domain} if domain else {}),
            **({"acceptable_tools": list(self._acceptable(frame))} if frame.acceptable else {}),
            **({"accepted_parameters": accepted} if accepted else {}),
        }
        return Row(render_instruction(query, self._tools), render_response(call), details)

    def _said(self, frame: Frame, values: Mapping[str, fillers.Value], random_: random.Random, draw: str) -> Expansion:
        """Return the frame's sentence with these values, perhaps with qualifiers; these have a stream of their own."""
        said = expand(frame.pattern, {slot: value.text for slot, value in values.items()}, random_)
        return qualified(
            frame,
            said,
            values,
            self._content.qualifiers.get(frame.language),
            words=self.search_words(frame.language),
            stream=partial(random.Random, f"{self._seed}/{frame.id}/{draw}/qualifiers"),
        )

    def _protected(self, frame: Frame, values: Mapping[str, fillers.Value]) -> str:
        """Return the words that the call repeats literally, which noise must not change."""
        example = self._example(frame)
        if example and example.parameters:
            return " ".join(map(str, example.parameters.values()))
        return " ".join(value.text for value in values.values()) if frame.code else ""

    def _values(self, frame: Frame, random_: random.Random) -> tuple[dict[str, fillers.Value], str | None]:
        slots = dict.fromkeys([*slots_of(frame.pattern), *(frame.slots or {})])
        local, common = frame.slots or {}, self._content.common
        from_domain = [
            slot
            for slot in slots
            if slot not in local and slot not in common and slot != COUNT_SLOT and not slot.startswith(OBJECT_SLOT)
        ]
        domain = random_.choice(self._domains_with(tuple(from_domain))) if from_domain else None
        sources = (local, common, self._content.domains[domain] if domain else {})
        values = {}
        for slot in slots:
            if slot == COUNT_SLOT and slot not in local:
                number, words = random_.choice(_COUNTS), pools()["counts"].get(frame.language, {})
                is_word = number in words and random_.random() < _COUNT_IN_WORDS_SHARE
                values[slot] = fillers.Value(words[number] if is_word else str(number), str(number))
            elif slot.startswith(OBJECT_SLOT):
                text = self._content.qualifiers[frame.language].object(slot.removeprefix(OBJECT_SLOT), random_)
                values[slot] = fillers.Value(text, repr(text))
            else:
                spec = next(source[slot] for source in sources if slot in source)
                values[slot] = fillers.draw(spec, random_, frame.language)
        return values, domain

    def _call(
        self, frame: Frame, said: Expansion, values: Mapping[str, fillers.Value], noisy: Noisy, random_: random.Random
    ) -> tuple[ToolCall, dict[str, list[Any]]]:
        tool = self._tools[frame.tool]
        example = self._example(frame)
        accepted: dict[str, list[Any]] = {}
        if example and example.parameters is not None:
            parameters = tool.in_order(example.parameters)
        elif frame.code is not None and "code" in tool.required:  # the other side of a pair takes text
            code = fill_known(frame.code, {slot: value.code for slot, value in values.items()}).strip()
            parameters = {"code": code}
        else:
            parameters, accepted = self._text_parameters(frame, said, values, noisy)
        reasoning = (example and example.reasoning) or self._reasoning(frame, said, noisy, random_)
        call = ToolCall(frame.tool, parameters, reasoning)
        problems = self._tools.problems(call)
        if problems:
            raise UserError(
                f"{problems[0]} (in a row made from {frame.id})",
                where=f"tools: {frame.tool}",
                fix="keep the tool's parameters as the content expects them, or rename the tool and give it `examples` "
                "with their `parameters`",
            )
        return call, accepted

    def _text_parameters(
        self, frame: Frame, said: Expansion, values: Mapping[str, fillers.Value], noisy: Noisy
    ) -> tuple[dict[str, Any], dict[str, list[Any]]]:
        """Return the parameters of a tool that takes one text and perhaps a count, and other values that are as good.

        A search gets the content words of the request, any other tool the request itself, both as they are typed.
        """
        tool = self._tools[frame.tool]
        text_name = next((name for name in tool.properties if name in tool.required), None)
        if text_name is None:
            return {}, {}
        text = whole = noisy.as_typed(said.text)
        corrected = text
        if frame.tool not in SEARCH_TOOLS:
            text = corrected = noisy.as_typed(said.argument or said.text)
        elif said.search is not None:
            text, corrected = noisy.span(said.search, said.text), noisy.in_its_letters(said.search)
        parameters: dict[str, Any] = {text_name: text}
        count_name = next((name for name, schema in tool.properties.items() if schema.get("type") == "integer"), None)
        if count_name and COUNT_SLOT in values:
            parameters[count_name] = int(values[COUNT_SLOT].code)
        return parameters, {text_name: list(dict.fromkeys([text, corrected, whole]))}

    def _example(self, frame: Frame) -> Example | None:
        if frame.kind != "example":
            return None
        return self._examples[frame.tool][int(frame.id.rpartition("-")[2])]

    def _reasoning(self, frame: Frame, said: Expansion, noisy: Noisy, random_: random.Random) -> str:
        evidence = shortened(noisy.quoted(said.evidence or said.text))
        if frame.kind == "example":
            return f'"{evidence}" is what {frame.tool} is there for.'
        pattern = choose(random_.choice(self._content.reasons[frame.tool][frame.kind]), random_)
        return pattern.format(evidence=evidence)


def hash_unit(seed: int, text: str) -> float:
    """Return a number in [0, 1) for a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{text}".encode()).digest()[:6], "big") / 2**48


@cache
def prints_rounded(code: str) -> bool:
    """Return whether a program prints rounded numbers, and nothing behind them."""
    return _ROUNDED.search(code) is not None


def rounded(frame: Frame, said: Expansion, random_: random.Random) -> tuple[Frame, Expansion]:
    """Return frame and sentence, of some programs with a number of decimals that is asked for and printed.

    It is said behind the sentence, or before the colon and the lines of a table. Money is asked for to the cent, too.
    """
    ways: Mapping[object, Sequence[str]] | None = pools()["rounding"].get(frame.language)
    sentence, table = said.text.partition(":\n")[::2] if ":\n" in said.text else (said.text, "")
    if not (ways and frame.code and prints_rounded(frame.code) and "\n" not in sentence):
        return frame, said
    if random_.random() >= ROUNDED_SHARE:
        return frame, said
    cents = pools()["to_the_cent"].get(frame.language) if is_money(frame) else None
    decimals = random_.choice(_DECIMALS_OF_MONEY if cents else _DECIMALS)
    behind = random_.choice(cents if cents and decimals == "cents" else ways[decimals])
    digits = f", {2 if decimals == 'cents' else decimals}" if decimals else ""
    text = sentence.rstrip(" ?.!？。")
    if text.endswith("="):  # x = ?
        text = sentence
    text += f"{'、' if frame.language in ('ja', 'zh') else ', '}{behind}{sentence[len(text) :].strip()}"
    code = _ROUNDED.sub(lambda printed: re.sub(r", \d\)", f"{digits})", printed[0]), frame.code)
    return replace(frame, code=code), replace(said, text=f"{text}:\n{table}" if table else text)


def is_money(frame: Frame) -> bool:
    """Return whether a program computes an amount of money, and no percentage, from its slots."""
    specs = [spec for spec in (frame.slots or {}).values() if isinstance(spec, Mapping)]
    return any("amount" in spec or "priced" in spec for spec in specs) and not _PERCENTAGE.search(frame.code or "")
