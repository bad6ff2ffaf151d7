"""Take how a decision turned out, as an agent reports it over HTTP: `POST /v1/decisions/{query_id}/outcome`.

The body is an object with any of `success`, `quality`, `tool` (the one that should have been called) and `error`.
"""

from __future__ import annotations

from uuid import UUID

from pydantic import BaseModel, ConfigDict

from tool_aware.console import UserError
from tool_aware.routing.chat_requests import BadRequest, checked, json_object
from tool_aware.routing.feedback import DecisionLog
from tool_aware.text import shortlist
from tool_aware.tools import TOOL_NAME, Toolbox

_NO_LOG = "this server keeps no query log: start it with --log config.yaml"
_NO_ID = "is no id of a decision; it is in the header X-Decision-Id of a reply, and in its decision.query_id"


class _Outcome(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    success: bool | None = None
    quality: float | None = None
    tool: str | None = None
    error: str | None = None


def report_outcome(
    log: DecisionLog | None, decision_id: str, body: bytes, tools: Toolbox, *, takes_any_tools: bool = False
) -> None:
    """Log the outcome that a request reports. Raises BadRequest for one that cannot be taken.

    Whether the decision is in the log is not known yet: its row may still wait to be written.
    """
    if log is None:
        raise BadRequest(_NO_LOG, code="no_query_log", status=404)
    if not _is_id(decision_id):
        raise BadRequest(f"{decision_id[:100]!r} {_NO_ID}", "id", "no_such_decision", 404)
    outcome = checked(_Outcome, json_object(body))
    if outcome.tool is not None and (
        not TOOL_NAME.fullmatch(outcome.tool) if takes_any_tools else outcome.tool not in tools
    ):
        what = f"tool: {outcome.tool[:100]!r} is none of the tools; they are {shortlist(tools.names)}"
        raise BadRequest(what, "tool", "unknown_tool")
    try:
        is_kept = log.report(decision_id, **outcome.model_dump())
    except UserError as error:
        raise BadRequest(f"{error.what}: {error.fix}") from None
    if not is_kept:
        raise BadRequest("the query log cannot be written and too much waits for it", code="log_full", status=503)


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
