"""Reads conversations: OpenAI's and Mistral's messages, ShareGPT, Anthropic's blocks, Gemini's parts, xLAM's pairs.

All of them become turns, and of the turns queries with their answers: one for every call that is the first answer to a
query, with the user's earlier turns, or the first answer in words where there are no calls.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tool_aware import prompt
from tool_aware.dataset.imports.calls_in_text import calls_in
from tool_aware.dataset.imports.foreign_calls import calls_of
from tool_aware.dataset.imports.foreign_tools import ForeignTools, tools_of
from tool_aware.dataset.imports.left_out import Call, Candidate, LeftOut, decoded, in_words, is_nothing
from tool_aware.tools import Toolbox

DIRECT_CHAT = "direct_chat"  # the tool of config.yaml that stands for an answer without a call

_ROLES = {
    **dict.fromkeys(("user", "human", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "ai", "agent"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call", "function-call", "tool-call", "tool_calls"), "call"),
    **dict.fromkeys(("tool", "ipython", "observation", "tool_response", "tool_result", "tool_results"), "result"),
    **dict.fromkeys(("function_response", "function-response", "function_result", "tool-response"), "result"),
    **dict.fromkeys(("system", "developer"), "system"),
    "function": "function",  # OpenAI's old role of a result; in some ShareGPT files that of a call
}
_ITEM_ROLES = {"function_call": "call", "function_call_output": "result", "reasoning": "thought"}  # Responses API
_TEXT_PARTS = ("text", "input_text", "output_text", "summary_text")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "think")
_CALL_PARTS = ("toolUse", "functionCall", "function_call", "tool_call")
_RESULT_PARTS = ("toolResult", "functionResponse", "function_response")
_WEIGHTS = ("weight", "loss", "train", "training", "trainable", "loss_weight")
_LISTS = ("messages", "conversations", "conversation", "contents")
_MARKS = ("label", "kto_tag")  # of KTO's data: false for an answer not to learn
_MAY_BE_CALL = re.compile(r"tool|function|call|action", re.IGNORECASE)
_READ_FIELDS = ("tool_calls", "function_call", "tool_call_id")
_TAGGED_TOOLS = re.compile(r"<tools>(.*?)</tools>|\[AVAILABLE_TOOLS\](.*?)\[/AVAILABLE_TOOLS\]", re.DOTALL)
_CHAT_SPEAKER = re.compile(r"(?:^|\n)\s*(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE):")  # Glaive's, all in one text
_CHAT_ROLES = {"SYSTEM": "system", "USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "result"}
_TAG = re.compile(r"</?(?:think|thinking|scratch_pad|scratchpad)>")


@dataclass
class Turn:
    """A text, calls, or both, of one side; `place` is where in the item, `counts` whether it is trained on."""

    role: str
    text: str
    place: str
    calls: list[Call] = field(default_factory=list)
    counts: bool = True


def is_conversation(item: Mapping[str, Any]) -> bool:
    """Check for one of the forms of a conversation by the item's keys."""
    has_turns = any(item.get(key) is not None for key in _LISTS) or isinstance(item.get("chat"), str)
    return has_turns or _pair(item) is not None or is_query_with_answers(item)


def is_query_with_answers(item: Mapping[str, Any]) -> bool:
    """Check for xLAM's form: `query`, `answers` and `tools`."""
    return "query" in item and "answers" in item


def conversation_candidates(
    item: Mapping[str, Any], known: Toolbox
) -> tuple[list[Candidate | LeftOut], ForeignTools | None]:
    """Return the queries, their answers and the tools on offer; `known` are config.yaml's, for an item without its own.

    In place of one that cannot be taken over exactly there is the reason; LeftOut is raised for an item as a whole.
    """
    marked = next((key for key in _MARKS if item.get(key) is False), None)
    if marked:
        raise LeftOut("an answer that is marked as bad", marked, "false")
    if item.get("tool_choice") == "none":
        raise LeftOut("an answer for which tools were forbidden", "tool_choice", "none")
    if is_query_with_answers(item) and all(item.get(key) is None for key in _LISTS):
        return _answered_query(item)
    turns, system = _turns_of(item)
    own = _own_tools(item, [*system, *(turn.text for turn in turns if turn.role == "system")])
    offered = own.toolbox if own else known
    return _in_one_group(_answers(turns, offered, known), turns), own


def _answered_query(item: Mapping[str, Any]) -> tuple[list[Candidate | LeftOut], ForeignTools | None]:
    query, own = item["query"], tools_of(item.get("tools"))
    if not isinstance(query, str):
        raise LeftOut("a query that is not text", "query", in_words(query))
    calls = calls_of(item["answers"], "answers")
    if not calls:
        raise LeftOut("no call and no answer in words", "answers", in_words(item["answers"]))
    if own is None:
        raise LeftOut("no tools", "tools", in_words(item.get("tools")))
    return [Candidate(query.strip(), _only(calls, "answers"), own.toolbox, "xlam")], own


def _only(calls: Sequence[Call], where: str) -> Call:
    if len(calls) > 1:
        raise LeftOut("several tool calls", where, ", ".join(call.name for call in calls))
    return calls[0]


# ---- which tools ----------------------------------------------------------------------------------------


def _own_tools(item: Mapping[str, Any], system_texts: Sequence[str]) -> ForeignTools | None:
    keys = [key for key in ("tools", "functions", "tool_config", "toolConfig") if not is_nothing(item.get(key))]
    if len(keys) > 1:
        raise LeftOut("tools in two fields", " and ".join(keys))
    if keys:
        return tools_of(item[keys[0]], keys[0])
    for text in system_texts:
        tagged = _TAGGED_TOOLS.search(text)
        found = _json_values((tagged[1] or tagged[2]) if tagged else text)
        tools = [tool for value in found for tool in (value if isinstance(value, list) else [value])]
        if tagged or (tools and all(_describes_tool(tool) for tool in tools)):
            own = tools_of(tools, "tools in the system text")
            if own is None:
                raise LeftOut("tools in the system text that cannot be read", "system", in_words(text))
            return own
        if '"parameters"' in text and '"name"' in text:
            raise LeftOut("tools in the system text that cannot be read", "system", in_words(text))
    return None


def _describes_tool(value: Any) -> bool:
    body = value.get("function", value) if isinstance(value, Mapping) else None
    return isinstance(body, Mapping) and isinstance(body.get("name"), str) and "parameters" in body


def _json_values(text: str) -> list[Any]:
    """Return the JSON objects and lists in a text, one after the other, with other text between them left aside."""
    decoder, values, at = json.JSONDecoder(), [], 0
    while match := re.compile(r"[\[{]").search(text, at):
        try:
            value, at = decoder.raw_decode(text, match.start())
            values.append(value)
        except (ValueError, RecursionError):
            at = match.start() + 1
            if text[match.start()] == "{":  # parts of what cannot be read are not tools
                return []
    return [value for value in values if isinstance(value, dict) or (value and isinstance(value[0], dict))]


# ---- turns ----------------------------------------------------------------------------------------------


def _pair(item: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the fields of what was asked and what was answered: TRL's, or those of OpenAI's Responses API."""
    for asked, answered in (("prompt", "completion"), ("input", "output")):
        has_items = any(isinstance(decoded(item.get(key)), list) for key in (asked, answered))
        if item.get(asked) is not None and (has_items and (asked == "input" or item.get(answered) is not None)):
            return asked, answered
    return None


def _turns_of(item: Mapping[str, Any]) -> tuple[list[Turn], list[str]]:
    """Return all turns, and the texts of a system prompt that stands outside them."""
    system = [
        _content(item[key], key)[0]
        for key in ("system", "instructions", "systemInstruction", "system_instruction")
        if item.get(key) is not None
    ]
    key = next((key for key in _LISTS if item.get(key) is not None), None)
    if key:
        return _turns(item[key], key), system
    if isinstance(item.get("chat"), str):
        return _turns_of_chat(item["chat"]), system
    pair = _pair(item)
    assert pair is not None  # `is_conversation` checked it
    asked, answered = (
        _turns_or_text(item.get(name), name, role) for name, role in zip(pair, ("user", "assistant"), strict=True)
    )
    if pair[1] == "completion" or answered:
        for turn in asked:
            turn.counts = False
    return [*asked, *answered], system


def _turns_of_chat(text: str) -> list[Turn]:
    """Return the turns of a text such as Glaive's: `USER: ...`, `ASSISTANT: ...`, `FUNCTION RESPONSE: ...`."""
    before, *parts = _CHAT_SPEAKER.split(text)
    if before.strip() or not parts:
        raise LeftOut("a chat without USER: and ASSISTANT:", "chat", in_words(text))
    return [
        Turn(_CHAT_ROLES[speaker], said.replace("<|endoftext|>", "").strip(), "chat")
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def _turns_or_text(value: Any, name: str, role: str) -> list[Turn]:
    value = decoded(value)
    if isinstance(value, str):
        return [Turn(role, value.strip(), name)]
    return [] if value is None else _turns(value, name)


def _turns(messages: Any, name: str) -> list[Turn]:
    messages = decoded(messages)
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise LeftOut(f"{name} is not a list of objects", name, in_words(messages))
    turns: list[Turn] = []
    for at, message in enumerate(messages):
        turn = _turn(message, f"{name}[{at}]", turns[-1].role if turns else "")
        if turn:
            turns.append(turn)
    return turns


def _turn(message: Mapping[str, Any], where: str, before: str) -> Turn | None:
    """Return a message as a turn; None for a thought, which is neither question nor answer."""
    named = message.get("role") or message.get("from")
    kind = message.get("type")
    role = _ROLES.get(named.strip().lower()) if isinstance(named, str) else _ITEM_ROLES.get(str(kind))
    if role is None:
        raise LeftOut("a message of an unknown role", where, in_words(named if named is not None else kind))
    if role == "thought":
        return None
    if role == "function":
        role = "call" if before == "user" else "result"
    counts = not any(message.get(key) in (0, False, "0", "false") for key in _WEIGHTS if message.get(key) is not None)
    value = next((message[key] for key in ("content", "value", "text", "parts") if message.get(key) is not None), None)
    if role == "call":
        return Turn("assistant", "", where, calls_of(message if named is None else value, where), counts)
    if role == "result":
        return Turn(role, "", where, [], counts)
    text, calls, is_result = _content(value, where)
    if role == "assistant":
        for key in ("tool_calls", "function_call"):
            calls = [*calls, *calls_of(message.get(key), f"{where}.{key}")]
        if not calls:
            _refuse_other_calls(message, where)
        refusal = message.get("refusal")
        text = text or (refusal.strip() if isinstance(refusal, str) else "")
    elif calls:
        raise LeftOut("a call by somebody else than the assistant", where)
    return Turn("result" if is_result else role, text, where, calls, counts)


def _refuse_other_calls(message: Mapping[str, Any], where: str) -> None:
    """Raise LeftOut if a message has a field of another library that may hold a call, such as `toolInvocations`."""
    for key, value in message.items():
        if _MAY_BE_CALL.search(str(key)) and key not in _READ_FIELDS and not is_nothing(value):
            raise LeftOut("a field that may hold a call", f"{where}.{key}", in_words(value))


def _content(value: Any, where: str) -> tuple[str, list[Call], bool]:
    """Return the text of a message, the calls among its parts, and whether it holds a tool's result."""
    if value is None or isinstance(value, str):
        return (value or "").strip(), [], False
    if isinstance(value, Mapping):
        value = value["parts"] if isinstance(value.get("parts"), list) else [value]
    if not isinstance(value, list):
        raise LeftOut("content that is not text", where, in_words(value))
    texts, calls, is_result = [], [], False
    for at, part in enumerate(value):
        place = f"{where}[{at}]"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(part, str):
            texts.append(part)
        elif not isinstance(part, Mapping):
            raise LeftOut("content that is not text", place, in_words(part))
        elif kind in ("tool_use", "function_call"):
            calls += calls_of({key: item for key, item in part.items() if key != "type"}, place)
        elif key := next((key for key in _CALL_PARTS if isinstance(part.get(key), Mapping)), None):
            calls += calls_of(part[key], place)
        elif kind in ("tool_result", "function_call_output") or any(part.get(key) for key in _RESULT_PARTS):
            is_result = True
        elif kind in _THOUGHTS or part.get("thought") is True:
            continue
        elif isinstance(part.get("text"), str) and (kind is None or kind in _TEXT_PARTS):
            texts.append(part["text"])
        else:
            raise LeftOut("content that is not text", place, in_words(kind or part))
    return "\n".join(text.strip() for text in texts).strip(), calls, is_result


# ---- the answers ----------------------------------------------------------------------------------------


@dataclass
class _Asked:
    """The user's words up to an answer, the answer, and the assistant's turns after a tool's result."""

    texts: list[str]
    answer: list[Turn] = field(default_factory=list)
    after_result: list[Turn] = field(default_factory=list)
    result_place: str = ""

    @property
    def query(self) -> str:
        return "\n".join(filter(None, self.texts))

    def spoken(self, offered: Toolbox) -> tuple[list[Call], str]:
        """Return calls and words of the answer, as far as it is trained on."""
        return _spoken([turn for turn in self.answer if turn.counts], offered)

    def turn(self, offered: Toolbox) -> prompt.Turn:
        """Return what a later query shows of this one: the words, and the tool that was called first."""
        calls, _ = _spoken([*self.answer, *self.after_result], offered)
        return prompt.Turn(self.query, next((call.name for call in calls if call.name in offered), None))


def _answers(turns: Sequence[Turn], offered: Toolbox, known: Toolbox) -> list[Candidate | LeftOut]:
    """Return a candidate for every call that is the first answer to a query; without calls the first answer in words.

    In place of one that cannot be taken over there is the reason. Raises LeftOut for a conversation without any answer
    that is trained on.
    """
    asked = _asked([turn for turn in turns if turn.role != "system"])
    trained = [one for one in asked if any(turn.counts for turn in one.answer)]
    if not trained:
        after_result = next((turn for one in asked for turn in one.after_result if turn.counts), None)
        if after_result:
            raise LeftOut("an answer to a tool's result", after_result.place)
        has_any = any(turn.role == "assistant" for turn in turns)
        raise LeftOut("no assistant message that is trained on" if has_any else "no assistant message")
    outcomes: list[Candidate | LeftOut] = []
    history: list[prompt.Turn] = []
    words: _Asked | None = None
    has_calls = any(turn.calls for one in asked for turn in (*one.answer, *one.after_result))
    for one in asked:
        try:
            calls, said = one.spoken(offered) if one in trained else ([], "")
            if calls:
                call = _only(calls, one.answer[0].place)
                outcomes.append(Candidate(one.query, call, offered, "messages", said, history=tuple(history)))
            elif one in trained and words is None:
                words, words_history = one, tuple(history)
            earlier = one.turn(offered)
        except LeftOut as why:
            outcomes.append(why)
            if not _can_be_read(one, offered):
                break  # nobody knows what the later queries follow
            earlier = one.turn(offered)
        has_calls = has_calls or earlier.tool is not None
        history += [earlier] if earlier.query else []
    if not outcomes and words:
        outcomes.append(_in_words(words, words_history, offered, known, has_calls=has_calls))
    return outcomes


def _can_be_read(one: _Asked, offered: Toolbox) -> bool:
    """Check that the calls of an answer, written in its text or not, are known."""
    try:
        one.turn(offered)
    except LeftOut:
        return False
    return True


def _asked(turns: Sequence[Turn]) -> list[_Asked]:
    """Return the user's queries with what followed each. Raises LeftOut for an answer before the first of them."""
    asked: list[_Asked] = []
    for turn in turns:
        if turn.role == "user":
            if not asked or asked[-1].answer or asked[-1].after_result or asked[-1].result_place:
                asked.append(_Asked([]))
            asked[-1].texts.append(turn.text)
        elif not asked:
            if turn.counts:
                raise LeftOut("no user message before the first answer", turn.place)
        elif turn.role == "result":
            asked[-1].result_place = asked[-1].result_place or turn.place
        else:
            (asked[-1].after_result if asked[-1].result_place else asked[-1].answer).append(turn)
    return asked


def _in_words(
    one: _Asked, history: tuple[prompt.Turn, ...], offered: Toolbox, known: Toolbox, *, has_calls: bool
) -> Candidate:
    """Return a candidate for an answer without a call, which direct_chat stands for. Raises LeftOut."""
    where = one.answer[0].place
    _, said = one.spoken(offered)
    if is_nothing(said):
        raise LeftOut("an answer without text and call", where)
    if one.result_place:
        raise LeftOut("a tool's result without its call", one.result_place)
    if has_calls:
        raise LeftOut("an answer in words among calls that are not trained on", where)
    if DIRECT_CHAT not in offered and DIRECT_CHAT not in known:
        raise LeftOut("no tool call and no direct_chat to stand for it", where)
    if DIRECT_CHAT not in offered:
        offered = Toolbox([*offered, known[DIRECT_CHAT]])
    call = Call(DIRECT_CHAT, {"message": one.query})
    return Candidate(one.query, call, offered, "messages", said, history=history)


def _spoken(run: Sequence[Turn], offered: Toolbox) -> tuple[list[Call], str]:
    """Return the calls of assistant turns, those written in their texts among them, and the other text."""
    calls, texts = [], []
    for turn in run:
        in_text, said = calls_in(turn.text, offered.names, turn.place) if turn.text else ([], "")
        calls += [*turn.calls, *in_text]
        texts.append(_TAG.sub(" ", said).strip())
    return calls, "\n".join(filter(None, texts))


def _in_one_group(outcomes: list[Candidate | LeftOut], turns: Sequence[Turn]) -> list[Candidate | LeftOut]:
    """Return several candidates of a conversation with a group in common, so that no split separates them."""
    if sum(isinstance(one, Candidate) for one in outcomes) < 2:
        return outcomes
    said = "\n".join(turn.text for turn in turns if turn.role == "user")
    group = f"conversation-{hashlib.sha256(said.encode(errors='surrogatepass')).hexdigest()[:12]}"
    return [
        replace(one, details={**one.details, "group": group}) if isinstance(one, Candidate) else one for one in outcomes
    ]
