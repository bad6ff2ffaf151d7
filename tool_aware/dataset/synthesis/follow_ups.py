"""Makes rows whose query follows earlier turns: what it leaves out is completed from them.

Ellipses, pronouns, corrections and follow-ups for another tool come from dialogues with slots, so that what is sent is
exact. Repeated requests, thanks and changes of topic follow or precede a sentence of the frames. Around them stand
turns of other dialogues, as in a real conversation.

A row belongs to the group of its dialogue or frame, and no two groups share the text of a turn, so that the splits
share none either. Rows come from a random stream of their own, and more rows only add rows.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tool_aware.config.data_sections import ConversationSection
from tool_aware.console import UserError
from tool_aware.dataset.synthesis import fillers
from tool_aware.dataset.synthesis.content import COUNT_SLOT, SEARCH_TOOLS, Frame
from tool_aware.dataset.synthesis.dialogues import Continuation, Dialogue, FollowUpContent, calm_frames
from tool_aware.dataset.synthesis.frames import choose, expand, fill, fill_known
from tool_aware.dataset.synthesis.generator import Generator, Request, hash_unit
from tool_aware.dataset.synthesis.qualified_requests import behind_object
from tool_aware.dataset.synthesis.search_text import continued_search_text, search_text
from tool_aware.history import shown_turns
from tool_aware.prompt import Turn, render_instruction, render_response
from tool_aware.rows import Row
from tool_aware.text import normalised, shortened
from tool_aware.tools import Toolbox, ToolCall

SLICE = "follow-up"
# Shares of the kinds and of the right tools within them: every tool is right about as often, and the tool of the turn
# before is right in about half of the rows.
_SHARES: Mapping[str, tuple[float, Mapping[str, float]]] = {
    "ellipsis": (0.20, {"rag_retrieval": 0.27, "web_search": 0.27, "code_execution": 0.26, "direct_chat": 0.20}),
    "pronoun": (0.13, {"rag_retrieval": 0.28, "web_search": 0.28, "code_execution": 0.20, "direct_chat": 0.24}),
    "correction": (0.18, {"rag_retrieval": 0.28, "web_search": 0.27, "code_execution": 0.25, "direct_chat": 0.20}),
    "topic_change": (0.22, {"rag_retrieval": 0.25, "web_search": 0.25, "code_execution": 0.25, "direct_chat": 0.25}),
    "thanks": (0.06, {"direct_chat": 1.0}),
    "retry": (0.08, {"rag_retrieval": 0.35, "web_search": 0.35, "code_execution": 0.30}),
    "other_tool": (0.13, {"rag_retrieval": 0.25, "web_search": 0.25, "code_execution": 0.25, "direct_chat": 0.25}),
}
KINDS = tuple(_SHARES)
_ENGLISH_SHARE = 0.45  # the other languages share the rest alike
_OWN_TOOL_SHARE = 0.2  # of a tool of one's own within the kinds that its examples allow
_OF_FRAMES = ("topic_change", "retry", "thanks")
_CHAIN_SHARE = 0.3  # of ellipses: after another ellipsis
_MORE_SHARE = 0.5  # of repeated searches: with more results
_OPENER_SHARE = 0.6  # of changes of topic: said in words
_OTHER_TOPIC_SHARE = 0.8  # of changes of topic: after a turn of another tool
_TURNS = (1, 1, 1, 1, 2, 2, 2, 3, 3)
_MORE = (8, 10, 12, 15, 20, 25)  # results of a search that is repeated
_ATTEMPTS = 20
_MAX_QUERY = 160  # characters of a frame's sentence beside other turns


@dataclass(frozen=True)
class _Made:
    """A follow-up, the turns that it cannot do without, and the group and template that it is of."""

    query: str
    call: ToolCall
    needed: tuple[Turn, ...]
    group: str
    template: str


_Maker = Callable[[random.Random], _Made]


class FollowUps:
    """Maker of follow-up rows for the tools of a config."""

    def __init__(
        self, content: FollowUpContent, generator: Generator, tools: Toolbox, *, seed: int, limits: ConversationSection
    ) -> None:
        self._content, self._generator, self._tools, self._seed = content, generator, tools, seed
        self._limits = limits
        self._frames = {tool: generator.frames_for(tool) for tool in tools.names}
        self._calm_of: dict[tuple[str, str], list[Frame]] = {}  # by tool and language
        self._owners: dict[str, str] = {}  # text of a turn -> the one group that has it
        self._seen: set[str] = set()

    def rows(self, count: int) -> list[Row]:
        """Return up to `count` distinct rows; none where a prompt may not show an earlier turn."""
        return list(self._rows(count)) if count and self._limits.max_turns else []

    # ---- which row is next ----

    def _rows(self, count: int) -> Iterator[Row]:
        makers = {(kind, lang, tool): (made, rate) for kind, lang, tool, rate, made in self._cells()}
        queue = [
            (hash_unit(self._seed, f"{SLICE}/{'/'.join(cell)}") / rate, cell, 0, 0)
            for cell, (_, rate) in makers.items()
        ]
        heapq.heapify(queue)
        made = 0
        while queue and made < count:
            time_, cell, use, stale = heapq.heappop(queue)
            among, rate = makers[cell]
            row = self._row(cell, among[use % len(among)], use)
            stale = 0 if row else stale + 1
            if row:
                made += 1
                yield row
            if stale < _ATTEMPTS:  # what gives nothing new is tried again at once, to keep its share
                heapq.heappush(queue, (time_ + 1 / rate if row else time_, cell, use + 1, stale))

    def _cells(self) -> Iterator[tuple[str, str, str, float, list[_Maker]]]:
        """Yield kind, language and right tool, their share, and the makers of such rows in a shuffled order."""
        others = max(1, len(self._content.languages) - 1)
        for kind, (share, by_tool) in _SHARES.items():
            own = dict.fromkeys(self._tools.names, _OWN_TOOL_SHARE) if kind in ("topic_change", "retry") else {}
            tools = {**own, **by_tool} if kind == "topic_change" else {**own, "direct_chat": 0.0, **by_tool}
            for language in self._content.languages:
                part = _ENGLISH_SHARE if language == "en" else (1 - _ENGLISH_SHARE) / others
                for tool, tool_share in tools.items():
                    makers = self._makers(kind, language, tool) if tool in self._tools and tool_share else []
                    random.Random(f"{self._seed}/{SLICE}/{kind}/{language}/{tool}").shuffle(makers)
                    if makers:
                        yield kind, language, tool, share * part * tool_share, makers

    def _makers(self, kind: str, language: str, tool: str) -> list[_Maker]:
        """Return what makes rows of a kind: of dialogues for most, of frames where any request will do."""
        if kind in _OF_FRAMES:
            among = self._tools.names if kind == "thanks" else [tool]
            make = {"thanks": self._thanks, "retry": self._retry, "topic_change": self._topic_change}[kind]
            return [partial(make, frame) for name in among for frame in self._calm(name, language)]
        dialogues = [one for one in self._content.languages[language].dialogues if one.tool in self._tools]
        makers: list[_Maker] = []
        for dialogue in dialogues:
            makers += [
                partial(self._continued, dialogue, more)
                for more in dialogue.then
                if (more.kind, more.tool) == (kind, tool)
            ]
            if dialogue.tool == tool and kind in ("ellipsis", "correction"):
                makers += [partial(self._changed, kind, dialogue, slot) for slot in dialogue.replies]
            if dialogue.tool == tool and kind == "correction":
                mistaken = [wrong for wrong in dialogue.mistaken if wrong in self._tools]
                makers += [partial(self._redirected, dialogue, wrong) for wrong in mistaken]
        return makers

    def _calm(self, tool: str, language: str) -> list[Frame]:
        if (tool, language) not in self._calm_of:
            found = calm_frames(self._frames[tool], language, self._content.reasons["small_talk"])
            self._calm_of[tool, language] = found
        return self._calm_of[tool, language]

    # ---- one row ----

    def _row(self, cell: tuple[str, str, str], make: _Maker, use: int) -> Row | None:
        """Return the row with turns of other dialogues around it, or None if it repeats or cannot be shown."""
        kind, language, tool = cell
        random_ = random.Random(f"{self._seed}/{SLICE}/{kind}/{language}/{tool}/{use}")
        made = make(random_)
        turns = min(random_.choice(_TURNS), self._limits.max_turns) - len(made.needed)
        wanted = [*self._others(language, made, turns, random_), *made.needed]
        history = shown_turns(wanted, self._limits)
        if len(history) < len(made.needed) or not history or not self._is_own(history, made):
            return None
        row = Row(
            render_instruction(made.query, self._tools, history),
            render_response(made.call),
            {
                "source": "synthetic",
                "tool": made.call.tool,
                "slice": SLICE,
                "language": language,
                "template": made.template,
                "group": made.group,
                "follow_up": kind,
                "history": [{"query": turn.query, "tool": turn.tool} for turn in history],
            },
        )
        key = normalised(row.conversation)
        if key in self._seen or len(made.query) > _MAX_QUERY or "\n" in "".join(turn.query for turn in history):
            return None
        self._seen.add(key)
        self._owners.update({normalised(turn.query): made.group for turn in history})
        return row

    def _is_own(self, history: Sequence[Turn], made: _Made) -> bool:
        """Return whether no other group has one of the turns."""
        return all(self._owners.get(normalised(turn.query), made.group) == made.group for turn in history)

    def _others(self, language: str, made: _Made, count: int, random_: random.Random) -> list[Turn]:
        """Return turns of other dialogues that no other group has, `count` of them or fewer."""
        dialogues = [
            one
            for one in self._content.languages[language].dialogues
            if one.tool in self._tools and one.id != made.group
        ]
        turns = []
        for dialogue in random_.sample(dialogues, min(len(dialogues), max(0, count))):
            for _ in range(_ATTEMPTS):
                turn = Turn(
                    _filled(_wording(dialogue, random_), _drawn(dialogue.slots, random_, dialogue.language)),
                    dialogue.tool,
                )
                if self._is_own([turn], made):
                    turns.append(turn)
                    break
        return turns

    def _sent(self, dialogue: Dialogue, wording: str, values: Mapping[str, fillers.Value]) -> str:
        """Return what the request sends for these values: a program, a search text, or the request as worded."""
        if dialogue.is_code:
            return fill_known(dialogue.send, {slot: value.code for slot, value in values.items()}).strip()
        asked, words = _filled(wording, values), self._generator.search_words(dialogue.language)
        if dialogue.tool not in SEARCH_TOOLS:
            return asked
        return search_text(asked, words, _fixed(values)) if words else fill(dialogue.send, _texts(values))

    def _reason(self, kind: str, evidence: str, about: str, tool: str, random_: random.Random, **more: str) -> str:
        reasons = self._content.reasons
        words = {
            "evidence": shortened(evidence),
            "about": about,
            "which": reasons["which"].get(tool, reasons["which"]["other"]),
            "needs": reasons["needs"].get(tool, reasons["needs"]["other"]),
            **more,
        }
        return choose(random_.choice(reasons["kinds"][kind]), random_).format(**words)

    # ---- from dialogues ----

    def _changed(self, kind: str, dialogue: Dialogue, slot: str, random_: random.Random) -> _Made:
        """Return a follow-up that names another value of a slot: the request is sent again with that value."""
        values = _drawn(dialogue.slots, random_, dialogue.language)
        asked, wording = values[slot].text, _wording(dialogue, random_, slot)
        request, more = self._added(dialogue.language, dialogue.tool, _filled(wording, values), values, random_)
        needed = [Turn(request, dialogue.tool)]
        if kind == "ellipsis" and self._limits.max_turns > 1 and random_.random() < _CHAIN_SHARE:
            first = random_.choice([one for one in dialogue.replies if f"{{{one}}}" in wording] or [slot])
            values, said, _ = self._replaced(dialogue, first, dialogue.replies[first], values, random_)
            needed.append(Turn(said, dialogue.tool))
        phrases = self._content.languages[dialogue.language]
        patterns = phrases.corrections["value"] if kind == "correction" else dialogue.replies[slot]
        if kind == "correction" and dialogue.is_code and len(dialogue.replies) > 1:
            # Of several numbers it must be said which one is wrong.
            patterns = [pattern for pattern in patterns if "{old}" in pattern] or patterns
        values, said, evidence = self._replaced(dialogue, slot, patterns, values, random_, asked=asked)
        if not more:
            said, more = self._added(dialogue.language, dialogue.tool, said, values, random_)
        evidence = evidence if evidence in said else said
        what = self._content.reasons["changed"][slot]
        key = "value" if kind == "correction" else "ellipsis"
        reason = self._reason(key, evidence, dialogue.about, dialogue.tool, random_, what=what)
        call = text_call(self._tools, dialogue.tool, self._sent(dialogue, wording, values) + more, reason)
        return _Made(said, call, tuple(needed), dialogue.id, f"{dialogue.id}-{slot}")

    def _added(
        self, language: str, tool: str, said: str, values: Mapping[str, fillers.Value], random_: random.Random
    ) -> tuple[str, str]:
        """Return what is said, perhaps with a qualifier behind its object, and this qualifier."""
        more = self._generator.qualifier(language, tool, random_)
        longer = behind_object(said, more, self._generator.search_words(language), values)
        return (longer, more) if longer else (said, "")

    def _replaced(
        self,
        dialogue: Dialogue,
        slot: str,
        patterns: Sequence[str],
        values: Mapping[str, fillers.Value],
        random_: random.Random,
        *,
        asked: str = "",
    ) -> tuple[dict[str, fillers.Value], str, str]:
        """Return the values with another one for `slot`, the words that say so, and the evidence among them.

        `asked` is a value that was asked about before, too.
        """
        new = values[slot]
        for _ in range(_ATTEMPTS):
            new = fillers.draw(dialogue.slots[slot], random_, dialogue.language)
            if new.text not in (values[slot].text, asked):
                break
        named = {"new": new.text, "old": values[slot].text}
        said = expand(random_.choice(patterns), named, random_)
        return {**values, slot: new}, said.text, said.evidence or said.text

    def _redirected(self, dialogue: Dialogue, wrong: str, random_: random.Random) -> _Made:
        """Return a correction of the tool: the same is sent to the right one."""
        values, wording = _drawn(dialogue.slots, random_, dialogue.language), _wording(dialogue, random_)
        request, more = self._added(dialogue.language, dialogue.tool, _filled(wording, values), values, random_)
        asked = Turn(request, wrong)
        patterns = self._content.languages[dialogue.language].corrections[dialogue.tool]
        said = expand(random_.choice(patterns), {}, random_)
        reason = self._reason("redirected", said.evidence or said.text, dialogue.about, dialogue.tool, random_)
        call = text_call(self._tools, dialogue.tool, self._sent(dialogue, wording, values) + more, reason)
        return _Made(said.text, call, (asked,), dialogue.id, f"{dialogue.id}-{wrong}")

    def _continued(self, dialogue: Dialogue, more: Continuation, random_: random.Random) -> _Made:
        """Return a follow-up that was written for this dialogue."""
        values = _drawn({**dialogue.slots, **(more.slots or {})}, random_, dialogue.language)
        asked = Turn(_filled(_wording(dialogue, random_), values), dialogue.tool)
        said = expand(more.say, _texts(values), random_)
        sent, query = said.argument or said.text, said.text
        if more.tool in SEARCH_TOOLS:
            words = self._generator.search_words(dialogue.language)
            query, added = self._added(dialogue.language, more.tool, query, values, random_)
            sent = continued_search_text(asked.query, said.text, sent, words, _fixed(values)) + added
        if more.code:
            sent = fill_known(more.code, {slot: value.code for slot, value in values.items()}).strip()
        kind = "continued" if more.kind in ("ellipsis", "correction") else more.kind
        evidence = said.evidence if said.evidence and said.evidence in query else query
        reason = self._reason(kind, evidence, dialogue.about, more.tool, random_)
        return _Made(
            query, text_call(self._tools, more.tool, sent, reason), (asked,), dialogue.id, f"{dialogue.id}-then"
        )

    # ---- from frames ----

    def _retry(self, frame: Frame, random_: random.Random) -> _Made:
        """Return the same request again after it failed, of a search perhaps with more results."""
        request = self._request(frame, random_)
        call, tool = request.call, self._tools[frame.tool]
        phrases = self._content.languages[frame.language]
        count_name = next((name for name, schema in tool.properties.items() if schema.get("type") == "integer"), None)
        before = call.parameters.get(count_name, tool.defaults.get(count_name)) if count_name else None
        more = [number for number in _MORE if isinstance(before, int) and number > before]
        parameters, patterns, values = dict(call.parameters), phrases.retry, {}
        if count_name and more and random_.random() < _MORE_SHARE:
            number = random_.choice(more)
            parameters[count_name], patterns, values = number, phrases.retry_more, {COUNT_SLOT: str(number)}
        said = expand(random_.choice(patterns), values, random_)
        about = f'that says "{request.evidence}"'
        reason = self._reason("retry", said.evidence or said.text, about, frame.tool, random_)
        needed = (Turn(request.query, frame.tool),)
        return _Made(said.text, ToolCall(frame.tool, parameters, reason), needed, frame.group, frame.id)

    def _thanks(self, frame: Frame, random_: random.Random) -> _Made:
        """Return thanks after any request, which are answered directly."""
        request = self._request(frame, random_)
        phrases = self._content.languages[frame.language]
        said = expand(random_.choice(phrases.thanks), {}, random_)
        about = f'that says "{request.evidence}"'
        reason = self._reason("thanks", said.evidence or said.text, about, "direct_chat", random_)
        call = text_call(self._tools, "direct_chat", said.text, reason)
        return _Made(said.text, call, (Turn(request.query, frame.tool),), frame.group, frame.id)

    def _topic_change(self, frame: Frame, random_: random.Random) -> _Made:
        """Return a request that stands alone, with or without words that say so, after turns on something else."""
        request = self._request(frame, random_)
        query, kind = request.query, "topic_change"
        if random_.random() < _OPENER_SHARE:
            opener = random_.choice(self._content.languages[frame.language].openers)
            query, kind = fill(choose(opener, random_), {"request": query}), "topic_opened"
        phrases = self._content.languages[frame.language]
        others = [one for one in phrases.dialogues if one.tool in self._tools]
        different = [one for one in others if one.tool != frame.tool]
        last = random_.choice(different if different and random_.random() < _OTHER_TOPIC_SHARE else others)
        asked = Turn(_filled(_wording(last, random_), _drawn(last.slots, random_, last.language)), last.tool)
        reason = self._reason(kind, request.evidence, last.about, frame.tool, random_)
        call = ToolCall(frame.tool, request.call.parameters, reason)
        return _Made(query, call, (asked,), frame.group, frame.id)

    def _request(self, frame: Frame, random_: random.Random) -> Request:
        return self._generator.request(frame, f"{SLICE}/{random_.random()}")


def text_call(tools: Toolbox, tool: str, text: str, reasoning: str) -> ToolCall:
    """Return the call with `text` in the tool's first required parameter.

    Raises UserError if the call does not fit the tool, which has other parameters than the content expects.
    """
    name = next((name for name in tools[tool].properties if name in tools[tool].required), None)
    call = ToolCall(tool, {name: text} if name else {}, reasoning)
    if problems := tools.problems(call):
        fix = "keep the tool's parameters as the content expects them, or rename the tool"
        raise UserError(problems[0], where=f"tools: {tool}", fix=fix)
    return call


def _drawn(slots: Mapping[str, Any], random_: random.Random, language: str) -> dict[str, fillers.Value]:
    return {slot: fillers.draw(spec, random_, language) for slot, spec in slots.items()}


def _texts(values: Mapping[str, fillers.Value]) -> dict[str, str]:
    return {slot: value.text for slot, value in values.items()}


def _fixed(values: Mapping[str, fillers.Value]) -> list[str]:
    return [value.text for value in values.values()]


def _wording(dialogue: Dialogue, random_: random.Random, slot: str | None = None) -> str:
    """Return one wording of the request with its slots; one that has `slot`, if any has."""
    among = [pattern for pattern in dialogue.ask if slot is None or f"{{{slot}}}" in pattern] or dialogue.ask
    return choose(random_.choice(among), random_)


def _filled(wording: str, values: Mapping[str, fillers.Value]) -> str:
    return expand(wording, _texts(values), random.Random(0)).text
