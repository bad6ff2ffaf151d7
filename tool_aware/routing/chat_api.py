"""The HTTP interface of a router: OpenAI's /v1/chat/completions and /v1/models, outcomes, /health and /metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tool_aware.console import UserError, warn
from tool_aware.routing.chat_replies import events_of, reply_to
from tool_aware.routing.chat_requests import BadRequest, Question, read_question
from tool_aware.routing.decision import Decision
from tool_aware.routing.outcomes import report_outcome
from tool_aware.routing.router import Router
from tool_aware.routing.served_counts import CONTENT_TYPE, Counts
from tool_aware.secret_values import redacted
from tool_aware.tools import Toolbox

LARGEST_BODY_BYTES = 2**20
_MOST_LISTS = 8  # of other tools than the training's, whose grammars are kept
_MOST_DISCARDED_BYTES = 2**24  # of a larger body: a client reads the refusal once it has sent everything
ID_HEADER = "X-Decision-Id"
_PATHS = "there are /v1/chat/completions, /v1/models and /v1/decisions/ID/outcome"
BODY_TIME_S = 30.0  # for the whole body to arrive


@dataclass(frozen=True)
class Serving:
    """Settings of a server: the model's name in requests, a time for each decision, how many at once, the key."""

    model: str = "tool-router"
    deadline_s: float = 30.0
    at_once: int = 64
    api_key: str | None = field(default=None, repr=False)
    takes_any_tools: bool = False


class _Routers:
    """Routers on one model: that of its own tools, and those of the lists that were asked for last."""

    def __init__(self, own: Router) -> None:
        self.own = own
        self._others: OrderedDict[str, Router] = OrderedDict()

    async def of(self, tools: Toolbox | None) -> Router:
        """Return the router for a list, None for its own. Raises BadRequest for schemas without a grammar."""
        if tools is None:
            return self.own
        key = json.dumps([[tool.name, tool.description, tool.parameters] for tool in tools])
        if key not in self._others:
            try:
                self._others[key] = await asyncio.to_thread(self.own.for_tools, tools)
            except (UserError, ValueError) as error:
                why = str(error).splitlines()[0].removeprefix("tools: ")
                raise BadRequest(f"tools: {why}", "tools") from None
        self._others.move_to_end(key)
        while len(self._others) > _MOST_LISTS:
            self._others.popitem(last=False)
        return self._others[key]


def make_app(router: Router, serving: Serving) -> FastAPI:
    """Return the application; every error is one message in OpenAI's form."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    counts, routers = Counts(), _Routers(router)
    entry = {"id": serving.model, "object": "model", "created": int(time.time()), "owned_by": "tool-aware"}

    async def completions(request: Request) -> Response:
        status = 500
        try:
            _check_key(request, serving.api_key)
            reply = await _completion(request, routers, serving, counts)
            status = reply.status_code
            return reply
        except BadRequest as error:
            status = error.status
            raise
        finally:
            counts.add_request(status)

    async def outcome(request: Request, decision_id: str) -> JSONResponse:
        return await _outcome(request, decision_id, router, serving, counts)

    async def models(request: Request) -> dict[str, Any]:
        _check_key(request, serving.api_key)
        return {"object": "list", "data": [entry]}

    async def model(request: Request, name: str) -> dict[str, Any]:
        _check_key(request, serving.api_key)
        if name != serving.model:
            raise BadRequest(f"{name[:200]!r} is not served; {serving.model!r} is", "model", "model_not_found", 404)
        return entry

    async def health() -> dict[str, str]:
        return {"status": "ok"}

    async def metrics(request: Request) -> PlainTextResponse:
        _check_key(request, serving.api_key)
        return PlainTextResponse(counts.exposition(router.log), media_type=CONTENT_TYPE)

    async def refused(_: Request, error: BadRequest) -> JSONResponse:
        return _error(error)

    async def not_found(request: Request, error: HTTPException) -> JSONResponse:
        what = f"{request.method} {request.url.path[:200]}: {error.detail}; {_PATHS}"
        return _error(BadRequest(what, status=error.status_code))

    async def failed(_: Request, error: Exception) -> JSONResponse:
        return _error(BadRequest(f"this is a bug: {type(error).__name__}; see the server's log", status=500))

    app.post("/v1/chat/completions", response_model=None)(completions)
    app.post("/v1/decisions/{decision_id}/outcome", response_model=None)(outcome)
    app.get("/v1/models")(models)
    app.get("/v1/models/{name:path}")(model)
    app.get("/health")(health)
    app.get("/metrics", response_model=None)(metrics)
    app.exception_handler(BadRequest)(refused)
    app.exception_handler(HTTPException)(not_found)
    app.exception_handler(Exception)(failed)
    return app


async def _completion(request: Request, routers: _Routers, serving: Serving, counts: Counts) -> Response:
    """Answer one request for a completion. Raises BadRequest."""
    if counts.under_way >= serving.at_once:
        raise BadRequest(f"{serving.at_once} requests are under way; try again", code="rate_limit_exceeded", status=429)
    counts.under_way += 1
    try:
        body = await _body(request)
        own, decision = routers.own, None
        question = read_question(
            body, serving.model, own.tools, own.settings.no_tool, takes_any_tools=serving.takes_any_tools
        )
        router = own if question.reply is not None else await routers.of(question.other_tools)
        if question.reply is None:
            decision = await router.route_async(
                question.query,
                question.history,
                deadline_s=serving.deadline_s,
                session=question.session,
                among=question.among,
            )
            counts.add(decision)
            try:
                _refuse_without_answer(decision, question)
            except BadRequest as error:
                error.decision_id = decision.query_id  # it is in the log, and its right tool may be reported
                raise
    finally:
        counts.under_way -= 1
    reply = reply_to(question, decision, model=serving.model, tools=router.tools)
    headers = {ID_HEADER: decision.query_id} if decision and decision.query_id else {}
    if question.stream:
        headers["Cache-Control"] = "no-store"
        return StreamingResponse(events_of(reply), media_type="text/event-stream", headers=headers)
    return JSONResponse(reply, headers=headers)


async def _outcome(
    request: Request, decision_id: str, router: Router, serving: Serving, counts: Counts
) -> JSONResponse:
    """Take the outcome of a decision, which is written later. Raises BadRequest."""
    status = 500
    try:
        _check_key(request, serving.api_key)
        body = await _body(request)
        report_outcome(router.log, decision_id, body, router.tools, takes_any_tools=serving.takes_any_tools)
        status = 202
    except BadRequest as error:
        status = error.status
        raise
    finally:
        counts.add_outcome(status)
    content = {"id": decision_id, "object": "decision.outcome", "status": "accepted"}
    return JSONResponse(content, status, headers={ID_HEADER: decision_id})


def _refuse_without_answer(decision: Decision, question: Question) -> None:
    """Raise BadRequest for a query that cannot be asked, and for one with neither an answer nor a tool to fall back on.

    That the request does not offer the tool for calling none is no reason to say that none is needed.
    """
    if decision.fallback_kind == "query":
        raise BadRequest(f"messages: {decision.fallback}", "messages", "context_length_exceeded")
    if decision.fallback_kind:
        warn(f"decided without the model: {decision.fallback}")
    is_own = decision.fallback is None or decision.confidence is not None
    if decision.tool is None or (decision.tool not in question.offered and not is_own):
        status = 422 if decision.fallback_kind == "answer" else 503  # clients repeat a request after 503
        raise BadRequest(f"no tool could be chosen: {decision.fallback}", code="no_decision", status=status)


async def _body(request: Request) -> bytes:
    """Return the body. Raises BadRequest for one that is too large or does not end in time."""
    size, chunks = 0, []
    try:
        async with asyncio.timeout(BODY_TIME_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= LARGEST_BODY_BYTES:
                    chunks.append(chunk)
                elif size > _MOST_DISCARDED_BYTES:
                    break
    except ClientDisconnect:
        raise BadRequest("the client has gone") from None
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {BODY_TIME_S:g} s", status=408) from None
    if size > LARGEST_BODY_BYTES:
        raise BadRequest(f"the body has more than {LARGEST_BODY_BYTES:,} bytes", status=413)
    return b"".join(chunks)


def _check_key(request: Request, key: str | None) -> None:
    """Raise BadRequest unless the request has the key, or none is needed."""
    if key is None:
        return
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
        raise BadRequest("the API key is missing or another one: send that of TOOL_AWARE_API_KEY", status=401)


def _error(error: BadRequest) -> JSONResponse:
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    headers: Mapping[str, str] = {"Retry-After": "1"} if error.status in (429, 503) else {}
    if error.status == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    if error.decision_id:
        headers = {**headers, ID_HEADER: error.decision_id}
    content = {"message": redacted(error.message), "type": kind, "param": error.param, "code": error.code}
    return JSONResponse({"error": content}, error.status, headers=dict(headers))
