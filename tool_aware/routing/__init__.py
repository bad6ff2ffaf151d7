"""The tuned model in an agent: `Router.load(folder).route(query)`."""

from tool_aware.prompt import Turn
from tool_aware.routing.decision import Decision
from tool_aware.routing.feedback import DecisionLog
from tool_aware.routing.router import Router

__all__ = ["Decision", "DecisionLog", "Router", "Turn"]
