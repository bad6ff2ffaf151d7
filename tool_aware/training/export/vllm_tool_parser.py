"""Read this model's answers as tool calls, in vLLM: a plugin that is copied beside the weights and needs no other file.

    vllm serve output/final_model --enable-auto-tool-choice --tool-call-parser tool_aware \
      --tool-parser-plugin output/final_model/vllm_tool_parser.py \
      --chat-template output/final_model/chat_template_tools.jinja

An answer has three lines, `Tool: name`, `Parameters: {...}`, `Reasoning: ...`. The first two become the call, the third
the content beside it. An answer that is no call of an offered tool is left as it is, as content. `tool_choice` with a
function or `required` puts the names under a grammar. Written for vLLM 0.32.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.sampling_params import StructuredOutputsParams
from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager

NAME = "tool_aware"
_TOOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_HEADS = ("Tool:", "Parameters:", "Reasoning:")


@dataclass(frozen=True)
class Answer:
    """An answer, or the beginning of one; `is_broken` if it can no longer become a call."""

    tool: str | None = None
    arguments: str | None = None
    reasoning: str | None = None  # so far; None until its line begins
    is_broken: bool = False


def read_answer(text: str) -> Answer:
    """Read an answer or its beginning, by the rules of the toolkit's own `parse_response`. Raises nothing."""
    head = text.lstrip()
    if not head.startswith(_HEADS[0]):
        return Answer(is_broken=not _HEADS[0].startswith(head))
    name, end, below = head.removeprefix(_HEADS[0]).partition("\n")
    tool = name.strip(" \t\r")
    if not end:
        return Answer()
    if not _TOOL_NAME.fullmatch(tool):
        return Answer(is_broken=True)
    below = below.lstrip()
    if not below.startswith(_HEADS[1]):
        return Answer(is_broken=not _HEADS[1].startswith(below))
    rest = below.removeprefix(_HEADS[1]).lstrip(" \t")
    try:
        parameters, stop = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(rest)
    except json.JSONDecodeError as error:
        return Answer(tool, is_broken="\n" in rest and error.pos < len(rest.rstrip()))  # its line has ended
    except (ValueError, RecursionError):
        return Answer(tool, is_broken=True)
    if not isinstance(parameters, dict):
        return Answer(tool, is_broken=True)
    tail = rest[stop:].lstrip(" \t\r")
    below = tail.lstrip()
    if (tail and not tail.startswith("\n")) or not (below.startswith(_HEADS[2]) or _HEADS[2].startswith(below)):
        return Answer(tool, is_broken=True)
    if not below.startswith(_HEADS[2]):
        return Answer(tool)
    reasoning = below.removeprefix(_HEADS[2]).strip()
    if "\n" in reasoning:
        return Answer(tool, is_broken=True)
    return Answer(tool, json.dumps(parameters, ensure_ascii=False), reasoning)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def names_of(tools: Iterable[Any] | None) -> list[str]:
    """Return the names of a request's tools, of either of OpenAI's interfaces."""
    return [tool.function.name if hasattr(tool, "function") else tool.name for tool in tools or ()]


def regex_of(names: Sequence[str]) -> str:
    """Return what an answer that calls one of `names` matches; the space is the one of SentencePiece."""
    choice = "|".join(map(re.escape, names))
    return rf" ?Tool: ({choice})\nParameters: \{{[^\n]*\}}\nReasoning: [^\n]+"


class ToolAwareParser(ToolParser):
    """Turns answers in three lines into tool calls."""

    supports_required_and_named = False  # calls are not the JSON that vLLM would ask for

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._sent = 0  # characters of content
        self._has_called = False

    def adjust_request(self, request: Any) -> Any:
        """Put the names under a grammar where the request demands a call."""
        request = super().adjust_request(request)
        choice, names = request.tool_choice, names_of(request.tools)
        if not isinstance(choice, str) and choice is not None:
            wanted = choice.function.name if hasattr(choice, "function") else choice.name
            names = [name for name in names if name == wanted]
        elif choice != "required":
            return request
        if names and not getattr(request, "structured_outputs", None):
            request.structured_outputs = StructuredOutputsParams(regex=regex_of(names))
        return request

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """Return the call of a whole answer, or the answer as content."""
        answer = read_answer(model_output)
        if answer.tool not in names_of(request.tools) or not answer.arguments or not answer.reasoning:
            return ExtractedToolCallInformation(tools_called=False, tool_calls=[], content=model_output)
        call = ToolCall(function=FunctionCall(name=str(answer.tool), arguments=answer.arguments))
        return ExtractedToolCallInformation(tools_called=True, tool_calls=[call], content=answer.reasoning)

    def extract_tool_calls_streaming(  # noqa: PLR0917 - vLLM's signature
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        """Return the call once its parameters are whole, then the reasoning; at once what is no call."""
        answer = read_answer(current_text)
        if not self._has_called:
            if answer.is_broken or (answer.tool is not None and answer.tool not in names_of(request.tools)):
                return self._content(current_text)
            if answer.tool is None or answer.arguments is None:
                return None
            self._has_called = True
            self.prev_tool_call_arr = [{"name": answer.tool, "arguments": answer.arguments}]
            self.streamed_args_for_tool = [answer.arguments]
            self.current_tool_id = 0
            whole = ToolCall(function=FunctionCall(name=answer.tool, arguments=answer.arguments))
            function = DeltaFunctionCall(name=answer.tool, arguments=answer.arguments)
            call = DeltaToolCall(index=0, type="function", id=whole.id, function=function)
            self._sent = len(answer.reasoning or "")
            return DeltaMessage(tool_calls=[call], content=answer.reasoning or None)
        return self._content(answer.reasoning or "")

    def _content(self, text: str) -> DeltaMessage | None:
        more, self._sent = text[self._sent :], max(self._sent, len(text))
        return DeltaMessage(content=more) if more else None


ToolParserManager.register_module(NAME, module=ToolAwareParser)
