"""Prompt text, made here and nowhere else, and the parser that reads an answer back.

A training example is one user turn (`instruction`: tools, answer format, earlier turns if there are any, query) and one
answer (`response`). What the model's chat template writes around them is added at tokenisation (chat_format.py), never
as text in a row.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

from tool_aware.tool_lines import one_line, tool_line, without_inst
from tool_aware.tools import TOOL_NAME, Toolbox, ToolCall

_TASK = "Choose the one tool that should handle the query below and extract the parameters of its call."
_ANSWER_FORMAT = (
    "Answer in three lines:\n"
    "Tool: <tool name>\n"
    "Parameters: <JSON object; leave out what has a default unless the query asks for another value>\n"
    "Reasoning: <one sentence naming the evidence in the query>"
)
_HISTORY_LABEL = "\n\nEarlier in this conversation, oldest first:\n"
_QUERY_LABEL = "\n\nQuery: "
_NO_TOOL = "(none)"  # in place of an earlier turn's tool; no tool can have this name
_TURN_LENGTH = 400  # characters of an earlier query that are shown
_MAX_NESTING = 64  # of a call's parameters; code that walks them recursively must not meet Python's own limit
_WRAPPED = re.compile(r"\s*(?:<s>)?\s*\[INST\](?P<instruction>.*?)\[/INST\]\s*", re.DOTALL)
# What ends an answer in the templates of Mistral, ChatML, Llama and others; EOS is added during tokenisation.
_END_MARKS = re.compile(r"(?:\s*(?:</s>|<\|(?:im_end|eot_id|end_of_text|endoftext|end)\|>))+\s*\Z")
COMMON_CONTROLS = (  # where the tokenizer is not known: Mistral's, ChatML's, Llama's, Gemma's
    *("<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>", "<|endoftext|>"),
    *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
)
_TURN = re.compile(rf"- (?P<tool>{TOOL_NAME.pattern}|{re.escape(_NO_TOOL)}): (?P<query>.*)")


@dataclass(frozen=True)
class Turn:
    """An earlier turn of a conversation: what the user typed, and the tool that was chosen; None where none was."""

    query: str
    tool: str | None = None

    def as_shown(self) -> str:
        """Return the turn as the one line that a prompt shows; of a long query the beginning."""
        query = one_line(self.query)
        if len(query) > _TURN_LENGTH:
            query = query[:_TURN_LENGTH].rstrip() + "…"
        return f"- {self.tool or _NO_TOOL}: {query}"


# ---- text -----------------------------------------------------------------------------------------------


def render_instruction(query: str, tools: Toolbox, history: Sequence[Turn] = (), *, task: str = _TASK) -> str:
    """Write the user turn: the task, the tools, the answer format, the earlier turns if there are any, then the query.

    What differs from row to row comes last so that all rows of a dataset share one long prefix. `[INST]` and `[/INST]`
    are ordinary text to Mistral's v0.1/v0.2 tokenizer, so inside a query they are written `(INST)` and `(/INST)`.
    `history` has the newest turn last. `task` is the opening sentence; evaluation rewords it to measure how much
    depends on it.
    """
    return render_preamble(tools, task=task) + render_question(query, history)


def render_question(query: str, history: Sequence[Turn] = ()) -> str:
    """Write what follows the tools: the earlier turns, a line each and nothing if there are none, then the query."""
    earlier = _HISTORY_LABEL + "\n".join(turn.as_shown() for turn in history) if history else ""
    return earlier + _QUERY_LABEL + without_inst(query.strip())


@lru_cache(maxsize=8)  # rows are rendered by the hundred thousand, for one list of tools
def render_preamble(tools: Toolbox, *, task: str = _TASK) -> str:
    """Write everything of the user turn that precedes the query."""
    descriptions = "\n".join(map(tool_line, tools))
    return f"{task}\n\nTools:\n{descriptions}\n\n{_ANSWER_FORMAT}"


def render_template(tools: Toolbox) -> str:
    """Write the user turn with `{query}` where the query goes, for agents that do not import this package."""
    return render_preamble(tools) + _QUERY_LABEL + "{query}"


def escape_controls(text: str, controls: Collection[str] = COMMON_CONTROLS) -> str:
    """Return a text that holds none of `controls`, a tokenizer's control tokens: `</s>` becomes `< /s>`.

    For those who send text to a server, which reads a control token that a user types as one. A space is put behind
    its first character. Who sends token ids need not do this: encode_prompt keeps what users type as text.
    """
    longest_first = sorted((mark for mark in controls if len(mark) > 1), key=len, reverse=True)
    mark = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
    while mark.search(text):  # what is left may make another one
        text = mark.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
    return text


def query_of(instruction: str) -> str:
    """Return the query inside a rendered instruction, or the whole instruction if someone else wrote it."""
    return question_of(instruction)[0]


def question_of(instruction: str) -> tuple[str, tuple[Turn, ...]]:
    """Return the query of a rendered instruction and its earlier turns as shown, the newest last.

    An instruction that someone else wrote is a query as a whole.
    """
    return question_of_parts(*split_instruction(instruction))


def split_instruction(instruction: str) -> tuple[str, str]:
    """Return what precedes the question of a rendered instruction, which rows share, and the question with the turns.

    Of an instruction that someone else wrote the first part is empty.
    """
    head, found, question = instruction.partition(_ANSWER_FORMAT)
    is_rendered = found and question.startswith((_QUERY_LABEL, _HISTORY_LABEL))
    return (head + found, question) if is_rendered else ("", instruction)


def question_of_parts(head: str, question: str) -> tuple[str, tuple[Turn, ...]]:
    """Return the same as `question_of`, of an instruction that `split_instruction` has divided."""
    if head and question.startswith(_QUERY_LABEL):
        return question.removeprefix(_QUERY_LABEL), ()
    if head and question.startswith(_HISTORY_LABEL):
        lines, labelled, query = question.removeprefix(_HISTORY_LABEL).partition(_QUERY_LABEL)
        turns = [_TURN.fullmatch(line) for line in lines.split("\n")]
        if labelled and all(turns):
            return query, tuple(Turn(turn["query"], _tool_or_none(turn["tool"])) for turn in turns if turn)
    return head + question, ()


def with_history(instruction: str, history: Sequence[Turn]) -> str:
    """Return a rendered instruction with other earlier turns; one that someone else wrote stays as it is."""
    head, question = split_instruction(instruction)
    query, _ = question_of_parts(head, question)
    return head + render_question(query, history) if query != instruction else instruction


def _tool_or_none(name: str) -> str | None:
    return None if name == _NO_TOOL else name


def render_response(call: ToolCall) -> str:
    """Write an answer: three lines, the parameters as JSON on one of them."""
    parameters = _encoder().encode(call.parameters)
    return f"Tool: {call.tool}\nParameters: {parameters}\nReasoning: {call.reasoning}"


@dataclass(frozen=True)
class ParsedAnswer:
    """The parts of an answer that could be read. `problem` is None exactly if `call` is a whole, well-formed call.

    `tool` is set as soon as the first line names something that looks like a tool, even if the rest is malformed.
    """

    tool: str | None = None
    parameters: Mapping[str, Any] | None = None
    reasoning: str | None = None
    problem: str | None = None

    @cached_property
    def call(self) -> ToolCall | None:
        """Return the call; None if the answer does not contain a whole one."""
        if self.problem or self.tool is None or self.parameters is None or self.reasoning is None:
            return None
        return ToolCall(self.tool, self.parameters, self.reasoning)


@lru_cache(maxsize=16_384)
def read_response(text: str) -> ParsedAnswer:
    """Return what `parse_response` does, of equal texts the same object: for those who change nothing in it."""
    return parse_response(text)


def parse_response(text: str) -> ParsedAnswer:
    """Parse an answer: the exact inverse of `render_response`, tolerant of white space. Raises nothing.

    Text after the reasoning's first line makes the answer malformed: an agent would have to guess its meaning.
    """
    head = text.lstrip()
    if not head.startswith("Tool:"):
        return ParsedAnswer(problem="no Tool line")
    name, _, below = head.removeprefix("Tool:").partition("\n")
    tool, below = name.lstrip(" \t").rstrip(" \t\r"), below.lstrip()
    if not below.startswith("Parameters:"):
        is_name = TOOL_NAME.fullmatch(tool)
        return ParsedAnswer(tool if is_name else None, problem="no Parameters line" if is_name else "no Tool line")
    if not TOOL_NAME.fullmatch(tool):
        return ParsedAnswer(problem=f"{tool[:80]!r} is not a tool name")
    rest = below.removeprefix("Parameters:").lstrip(" \t")
    try:
        parameters, end = _decoder().raw_decode(rest)
    except (ValueError, RecursionError) as error:
        return ParsedAnswer(tool, problem=f"parameters are not JSON: {str(error)[:120]}")
    if not isinstance(parameters, dict):
        return ParsedAnswer(tool, problem=f"parameters are {type(parameters).__name__}, not an object")
    if _nesting(parameters) > _MAX_NESTING:
        return ParsedAnswer(tool, problem=f"parameters are nested more than {_MAX_NESTING} levels deep")
    tail = rest[end:].lstrip(" \t\r")
    if not (tail.startswith("\n") and tail.lstrip().startswith("Reasoning:")):
        return ParsedAnswer(tool, parameters, problem="no Reasoning line")
    reasoning = tail.lstrip().removeprefix("Reasoning:").strip()
    try:
        call = ToolCall(tool, parameters, reasoning)
    except (ValueError, RecursionError) as error:
        return ParsedAnswer(tool, parameters, reasoning or None, problem=str(error)[:120])
    answer = ParsedAnswer(call.tool, call.parameters, call.reasoning)
    vars(answer)["call"] = call  # where `cached_property` keeps it: checking a call twice takes as long as parsing it
    return answer


def _nesting(value: object) -> int:
    """Return how many objects and arrays contain one another; stops one level above the limit."""
    level = [value]
    for depth in range(_MAX_NESTING + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return depth
    return _MAX_NESTING + 1


@cache
def _encoder() -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=False, allow_nan=False)


@cache
def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def unwrap_instruction(text: str) -> tuple[str, bool]:
    """Return a user turn without `<s>[INST] ... [/INST]` around it, and whether it had that."""
    match = _WRAPPED.fullmatch(text)
    return (match["instruction"].strip(), True) if match else (text, False)


def unwrap_response(text: str) -> str:
    """Return an answer without the mark that ends it in a chat template, such as `</s>`."""
    return _END_MARKS.sub("", text) if text.rstrip().endswith(">") else text
