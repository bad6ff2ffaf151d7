"""A decision in OpenAI's form: one completion with `tool_calls` or a text, whole or as the events of a stream.

`decision` beside `choices` has what OpenAI has no field for; `message.reasoning` has the model's reasoning.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from tool_aware.routing.chat_requests import Question
from tool_aware.routing.decision import Decision
from tool_aware.tools import Toolbox

NO_TOOL_NEEDED = "No tool is needed. This server chooses tools and writes no answers: let your chat model answer."


def reply_to(question: Question, decision: Decision | None, *, model: str, tools: Toolbox) -> dict[str, Any]:
    """Return the completion; without a decision it is the text that the question itself demands."""
    message: dict[str, Any]
    reply = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
    }
    if decision is None or decision.tool not in question.offered:
        text = question.reply if decision is None else NO_TOOL_NEEDED
        message, end = {"role": "assistant", "content": text}, "stop"
        details = decision and _details(decision, [])
    else:
        arguments, problems = _arguments(question, decision, tools)
        function = {"name": decision.tool, "arguments": json.dumps(arguments, ensure_ascii=False)}
        call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
        message, end = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
        details = _details(decision, problems)
    if decision is not None and decision.reasoning:
        message["reasoning"] = decision.reasoning
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end}
    return {**reply, "choices": [choice], "decision": details}


def events_of(reply: Mapping[str, Any]) -> Iterator[str]:
    """Yield a completion as server-sent events: the role, the call or text, why it ends, [DONE]."""
    head = {key: reply[key] for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    (choice,) = reply["choices"]
    message = choice["message"]
    said = {key: message[key] for key in ("content", "reasoning") if message.get(key)}
    if calls := message.get("tool_calls"):
        said["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    for delta, end in (
        ({"role": "assistant", "content": None if calls else ""}, None),
        (said, None),
        ({}, choice["finish_reason"]),
    ):
        chunk = {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": end}]}
        if end:
            chunk["decision"] = reply["decision"]
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def _arguments(question: Question, decision: Decision, tools: Toolbox) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments, with defaults that the request's schema demands, and how they do not fit that schema.

    The model leaves out what has a default; strict schemas, as agents make them, require every parameter.
    """
    assert decision.tool is not None, "the caller has looked"
    own, theirs = tools[decision.tool], question.offered[decision.tool]
    wanted = {name: value for name, value in own.defaults.items() if name in theirs.required}
    arguments = {**wanted, **decision.parameters}
    return arguments, [] if theirs is own else theirs.parameter_problems(arguments)


def _details(decision: Decision, problems: list[str]) -> dict[str, Any]:
    return {
        "tool": decision.tool,
        "confidence": decision.confidence,
        "is_calibrated": decision.is_calibrated,
        "abstained": decision.abstained,
        "fallback": decision.fallback,
        "fallback_kind": decision.fallback_kind,
        "problems": problems,  # of the arguments, with the schema that the request has
        "probabilities": dict(decision.probabilities),
        "seconds": round(decision.seconds, 6),
        "query_id": decision.query_id,
    }
