"""A request in OpenAI's form as a question to the router: the query, the earlier turns, the tools it may choose.

Rules: system and developer messages are ignored, the model was trained without. The query is the last user message.
Earlier ones are turns, with the first tool that the assistant called after them, or the tool that stands for calling
none. A request that ends with results of tools is answered with these results as text, so that an agent's loop ends.
`metadata.session` names the conversation in the query log.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tool_aware.prompt import Turn
from tool_aware.schema_check import against_metaschema
from tool_aware.text import shortlist
from tool_aware.text_files import parse_json
from tool_aware.tools import TOOL_NAME, Tool, Toolbox

Form = TypeVar("Form", bound=BaseModel)

_ANY = "or start the server with --any-tools, if the model was trained with training.tool_variation"


class BadRequest(Exception):
    """A request that cannot be answered as it is: what is wrong with it, in one message, and in which field."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status
        self.decision_id: str | None = None  # in the query log, of a decision that cannot be sent


@dataclass(frozen=True)
class Question:
    """A query to decide on. `offered` are the request's tools by name, `among` those that may be chosen."""

    query: str
    history: tuple[Turn, ...]
    among: tuple[str, ...]
    offered: Mapping[str, Tool]
    session: str | None = None  # the conversation's name in the query log
    reply: str | None = None  # the answer, if there is nothing to decide
    stream: bool = False
    other_tools: Toolbox | None = None  # to choose from, where they are not those of the training


# ---- the form --------------------------------------------------------------------------------------------


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Called(_Part):
    name: str


class _Call(_Part):
    function: _Called


class _Message(_Part):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[_Call] | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        if value is None or isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise ValueError("must be a text, or a list of parts such as {'type': 'text', 'text': '...'}")
        texts = []
        for place, part in enumerate(value):
            text = part.get("text") if isinstance(part, dict) and part.get("type") in ("text", "input_text") else part
            if not isinstance(text, str):
                raise ValueError(f"part {place} is no text; pictures, sound and files cannot be routed")
            texts.append(text)
        return "\n".join(texts)


class _Function(_Part):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class _OfferedTool(_Part):
    type: Literal["function"]
    function: _Function


class _Request(_Part):
    model: str
    messages: list[_Message] = Field(min_length=1)
    tools: list[_OfferedTool] | None = Field(default=None, min_length=1)
    tool_choice: Any = "auto"
    stream: bool | None = False
    n: int | None = 1
    response_format: Any = None
    metadata: Any = None
    functions: Any = None
    function_call: Any = None

    @property
    def session(self) -> str | None:
        """Return `metadata.session`, which names the conversation."""
        session = self.metadata.get("session") if isinstance(self.metadata, dict) else None
        return session if isinstance(session, str) else None


def json_object(body: bytes) -> dict[str, Any]:
    """Return the object that a body is. Raises BadRequest."""
    try:
        content = parse_json(body)
        json.dumps(content, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None
    if not isinstance(content, dict):
        raise BadRequest(f"the body is a JSON {type(content).__name__}, not an object", code="invalid_json")
    return content


def checked(form: type[Form], content: Mapping[str, Any]) -> Form:
    """Return an object as its form. Raises BadRequest that names the first field which does not fit."""
    try:
        return form.model_validate(content)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        place = ".".join(map(str, first["loc"]))
        more = f" (and {len(others)} more problems)" if others else ""
        raise BadRequest(f"{place}: {first['msg'].removeprefix('Value error, ')}{more}", place) from None


def _checked(body: bytes) -> _Request:
    request = checked(_Request, json_object(body))
    if request.n not in (None, 1):
        raise BadRequest(f"n: {request.n}; a decision is one answer: leave n out", "n")
    if request.functions is not None or request.function_call is not None:
        raise BadRequest("functions and function_call are not read: use tools and tool_choice", "functions")
    form = request.response_format
    if form is not None and not (isinstance(form, dict) and form.get("type") == "text"):
        raise BadRequest("response_format: only text; what this server answers with is a tool call", "response_format")
    return request


# ---- the question ----------------------------------------------------------------------------------------


def read_question(
    body: bytes, model: str, tools: Toolbox, no_tool: str | None, *, takes_any_tools: bool = False
) -> Question:
    """Return what a request asks. Raises BadRequest for one that cannot be answered.

    With `takes_any_tools`, tools that are not those of the training are a list of their own, with `no_tool` added.
    """
    request = _checked(body)
    if request.model != model:
        raise BadRequest(f"model: {request.model!r} is not served; {model!r} is", "model", "model_not_found")
    offered, refusal = _offered(request.tools, tools)
    other = None
    if refusal and not takes_any_tools:
        raise refusal
    if refusal:
        own = [tools[no_tool]] if no_tool is not None and no_tool in tools and no_tool not in offered else []
        other = tools = Toolbox([*offered.values(), *own])
    choice = _choice(request.tool_choice, offered)
    among = _among(choice, offered, tools, no_tool)
    said = [message for message in request.messages if message.role not in ("system", "developer")]
    users = [place for place, message in enumerate(said) if message.role == "user"]
    if not users:
        raise BadRequest("messages: none of them is a user's; the last one is what is routed", "messages")
    last = said[-1]
    if last.role == "assistant":
        raise BadRequest("messages: the last one is the assistant's; it must be a user's or a tool's", "messages")
    query = said[users[-1]].content or ""
    reply = None
    if last.role == "tool":
        results = [message.content or "" for message in said[users[-1] :] if message.role == "tool"]
        reply = "\n".join(results)
    elif not query.strip():
        raise BadRequest("messages: the last user message is empty", "messages")
    elif choice == "none":
        reply = NOTHING_TO_CALL
    return Question(
        query, _history(said, users, no_tool), among, offered, request.session, reply, bool(request.stream), other
    )


NOTHING_TO_CALL = "No tool is called. This server chooses tools and writes no answers: let your chat model answer."


def _history(said: Sequence[_Message], users: Sequence[int], no_tool: str | None) -> tuple[Turn, ...]:
    turns = []
    for start, end in itertools.pairwise(users):
        answers = [message for message in said[start + 1 : end] if message.role == "assistant"]
        names = [call.function.name for message in answers for call in message.tool_calls or ()]
        named = [name for name in names if TOOL_NAME.fullmatch(name)]
        text = said[start].content or ""
        if text.strip():
            turns.append(Turn(text, named[0] if named else no_tool if answers else None))
    return tuple(turns)


def _offered(listed: Sequence[_OfferedTool] | None, tools: Toolbox) -> tuple[dict[str, Tool], BadRequest | None]:
    """Return the request's tools by name, and why they are not those of the training; None if they are."""
    if listed is None:
        return {tool.name: tool for tool in tools}, None
    names = [entry.function.name for entry in listed]
    if len(set(names)) < len(names):
        raise BadRequest("tools: two of them have the same name", "tools")
    offered = {entry.function.name: _as_tool(entry.function, place, tools) for place, entry in enumerate(listed)}
    if unknown := [name for name in names if name not in tools]:
        what = f"tools: the model was not trained with {shortlist(unknown)}; its tools are {shortlist(tools.names)}"
        fix = "offer some of these, or none for all of them, or add the tool to config.yaml and train again"
        return offered, BadRequest(f"{what}; {fix}; {_ANY}", "tools", "unknown_tool")
    for place, theirs in enumerate(offered.values()):
        if difference := _difference(tools[theirs.name], theirs):
            field = f"tools.{place}.function.parameters"
            fix = f"leave parameters out, or offer it as the model knows it: {_shown(tools[theirs.name])}"
            return offered, BadRequest(f"{field}: {theirs.name} {difference}; {fix}; {_ANY}", field, "other_tool")
    return offered, None


def _as_tool(function: _Function, place: int, tools: Toolbox) -> Tool:
    """Return a tool of the request; one of the training is complete without its parameters."""
    field = f"tools.{place}.function"
    if not TOOL_NAME.fullmatch(function.name):
        raise BadRequest(f"{field}.name: {function.name[:100]!r} does not match {TOOL_NAME.pattern}", field)
    if function.parameters is None and function.name in tools:
        return tools[function.name]
    try:
        tool = Tool(function.name, function.description or "", function.parameters or {})
        problems = against_metaschema(tool.parameters, function.name)
    except ValueError as error:
        problems = [str(error)]
    if problems:
        raise BadRequest(f"{field}.parameters: {'; '.join(problems)}", f"{field}.parameters")
    return tool


def _difference(own: Tool, theirs: Tool) -> str | None:
    """Return how a tool's parameters differ from those of the training; None if calls of the one can fit the other.

    Texts, bounds, and which parameters are required may differ, and optional ones may be missing: the finished call is
    checked against both.
    """
    names, known = theirs.properties.keys(), own.properties.keys()
    if names - known or own.required - names:
        return f"has the parameters {', '.join(names) or 'none'}"
    for name in names:
        if _kinds(own.properties[name]) != _kinds(theirs.properties[name]):
            return f"has another type or other values for {name}"
    return None


def _kinds(schema: Mapping[str, Any]) -> set[str]:
    """Return the types and fixed values of a parameter, however a union of types is written."""
    if "enum" in schema or "const" in schema:
        return {json.dumps(value) for value in schema.get("enum", [schema.get("const")])}
    parts = schema.get("anyOf", schema.get("oneOf", ()))
    kinds = schema.get("type", [])
    return {*([kinds] if isinstance(kinds, str) else kinds)}.union(*map(_kinds, parts))


def _shown(tool: Tool) -> str:
    return json.dumps(tool.parameters, ensure_ascii=False)[:500]


def _choice(choice: Any, offered: Mapping[str, Tool]) -> str:
    """Return `auto`, `none`, `required`, or behind a colon the one tool that is to be called."""
    if choice is None or (isinstance(choice, str) and choice in ("auto", "none", "required")):
        return choice or "auto"
    function = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        what = "auto, none, required, or {'type': 'function', 'function': {'name': '...'}}"
        raise BadRequest(f"tool_choice: must be {what}", "tool_choice")
    if name not in offered:
        raise BadRequest(f"tool_choice: {name!r} is not offered; {shortlist(list(offered))} are", "tool_choice")
    return f":{name}"


def _among(choice: str, offered: Mapping[str, Tool], tools: Toolbox, no_tool: str | None) -> tuple[str, ...]:
    """Return the tools to choose from. The one for calling none is always among them unless a call is required."""
    if choice.startswith(":"):
        return (choice[1:],)
    if choice == "required":
        return tuple(name for name in offered if name != no_tool) or tuple(offered)
    return tuple(name for name in tools.names if name in offered or name == no_tool)
