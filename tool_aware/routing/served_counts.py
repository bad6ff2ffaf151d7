"""Counters of what a server has answered, for Prometheus (text format 0.0.4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from tool_aware.routing.decision import Decision
from tool_aware.routing.feedback import DecisionLog, LogCounts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Counts:
    """Counters of one server. For one event loop: nothing is locked."""

    def __init__(self) -> None:
        self.under_way = 0
        self._requests: Counter[str] = Counter()
        self._decisions: Counter[str] = Counter()
        self._fallbacks: Counter[str] = Counter({"query": 0, "deadline": 0, "answer": 0, "error": 0})
        self._outcomes: Counter[str] = Counter()
        self._abstentions = 0
        self._buckets: Counter[float] = Counter()
        self._seconds = 0.0

    def add_request(self, status: int) -> None:
        """Count a request for a completion by the status of its reply."""
        self._requests[str(status)] += 1

    def add_outcome(self, status: int) -> None:
        """Count a report of an outcome by the status of its reply."""
        self._outcomes[str(status)] += 1

    def add(self, decision: Decision) -> None:
        """Count a decision, the model's own or not."""
        self._decisions[decision.tool or ""] += 1
        self._abstentions += decision.abstained
        if decision.fallback_kind:
            self._fallbacks[decision.fallback_kind] += 1
        self._seconds += decision.seconds
        self._buckets[next((bound for bound in _BOUNDS_S if decision.seconds <= bound), float("inf"))] += 1

    def exposition(self, log: DecisionLog | None = None) -> str:
        """Write all counters as Prometheus reads them, those of the query log too if there is one."""
        return "\n".join((*self._lines(), *(_log_lines(log.counts) if log else ()))) + "\n"

    def _lines(self) -> Iterator[str]:
        yield from _counter("requests_total", "Requests for a completion.", "status", self._requests)
        yield from _counter("decisions_total", "Decisions by tool; empty: no tool.", "tool", self._decisions)
        yield from _counter("fallbacks_total", "Decisions not by the model.", "kind", self._fallbacks)
        yield from _counter("outcomes_total", "Reports of outcomes.", "status", self._outcomes)
        yield from _head("abstentions_total", "Decisions that are not sure enough to act on.", "counter")
        yield f"tool_router_abstentions_total {self._abstentions}"
        yield from _head("under_way", "Requests that wait for a decision.", "gauge")
        yield f"tool_router_under_way {self.under_way}"
        yield from _head("decision_seconds", "Time from question to decision.", "histogram")
        total = 0
        for bound in (*_BOUNDS_S, float("inf")):
            total += self._buckets[bound]
            yield f'tool_router_decision_seconds_bucket{{le="{"+Inf" if bound == float("inf") else bound}"}} {total}'
        yield f"tool_router_decision_seconds_sum {self._seconds:.6f}"
        yield f"tool_router_decision_seconds_count {total}"


def _log_lines(counts: LogCounts) -> Iterator[str]:
    kinds = asdict(counts)
    waiting = kinds.pop("waiting")
    yield from _counter("log_entries_total", "Entries of the query log by what became of them.", "kind", kinds)
    yield from _head("log_waiting", "Entries that wait for the query log.", "gauge")
    yield f"tool_router_log_waiting {waiting}"


def _counter(name: str, text: str, label: str, values: Mapping[str, int]) -> Iterator[str]:
    yield from _head(name, text, "counter")
    yield from (f'tool_router_{name}{{{label}="{key}"}} {count}' for key, count in sorted(values.items()))


def _head(name: str, text: str, kind: str) -> Iterator[str]:
    yield f"# HELP tool_router_{name} {text}"
    yield f"# TYPE tool_router_{name} {kind}"
