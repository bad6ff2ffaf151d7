"""The decision about one query, and when it says that it is not sure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tool_aware.files import read_as
from tool_aware.inference.name_scores import cheapest, probabilities
from tool_aware.paths import THRESHOLDS_NAME

Acting = Literal["threshold", "costs", "always"]
FallbackKind = Literal["query", "deadline", "answer", "error"]


@dataclass(frozen=True)
class Decision:
    """The tool for a query, what to send it, and why.

    `tool` is None only if no tool could be chosen at all. `confidence` is the probability of `tool`, `probabilities`
    are those of all tools; None and empty where no model has chosen. `is_calibrated`: evaluate.py has fitted them, for
    a choice among all tools of the training, as this one is. `abstained`: the model is not sure enough to act on it.
    `fallback` says why the decision is not the model's own, None if it is, and `fallback_kind` where that lies: the
    query (it cannot be asked), the deadline, the model's answer (it is no call), an error. `seconds` is the time from
    question to decision. `query_id` is its id in the query log; None if the router has none.
    """

    tool: str | None
    parameters: Mapping[str, Any]
    reasoning: str
    confidence: float | None
    abstained: bool
    fallback: str | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    query_id: str | None = None
    fallback_kind: FallbackKind | None = None
    is_calibrated: bool = False


@dataclass(frozen=True)
class Choice:
    """A tool chosen from probabilities, before its parameters are known; without them where there was one tool only."""

    tool: str
    confidence: float | None
    abstained: bool
    probabilities: Mapping[str, float]


@dataclass(frozen=True)
class _Threshold:
    confidence: float | None


@dataclass(frozen=True)
class _Costs:
    right_tool_to_chosen_tool: dict[str, dict[str, float]]
    abstain: float


@dataclass(frozen=True)
class _Thresholds:
    """The part of routing_thresholds.json that is applied."""

    temperature: float
    threshold: _Threshold
    costs: _Costs


@dataclass(frozen=True)
class Policy:
    """When to act on a choice: above a confidence, where it costs least, or always; temperature calibrates."""

    acting: Acting = "always"
    temperature: float = 1.0
    confidence: float | None = None
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    abstain_cost: float = 0.0
    is_calibrated: bool = False
    """Whether the temperature is of an evaluation with the tools that are chosen among."""

    @classmethod
    def read(cls, folder: Path, acting: Acting) -> Policy:
        """Read routing_thresholds.json, which evaluate.py writes; without it every choice is acted on."""
        found = read_as(folder / THRESHOLDS_NAME, _Thresholds, fix="run evaluate.py again, which writes it")
        if found is None:
            return cls()
        costs = found.costs
        confidence = found.threshold.confidence
        return cls(acting, found.temperature, confidence, costs.right_tool_to_chosen_tool, costs.abstain, True)

    def choose(self, log_scores: Mapping[str, float]) -> Choice:
        """Choose a tool; `log_scores` are tool -> natural log-probability.

        With costs, and a tool that they do not know, it is chosen as with a threshold. Without a confidence that
        reached the wanted precision in the evaluation, nothing is sure enough.
        """
        p = probabilities(log_scores, temperature=self.temperature)
        best = max(p, key=p.__getitem__)
        if self.acting == "always":
            return Choice(best, p[best], False, p)
        if self.acting == "costs" and p.keys() <= self.costs.keys():
            cheap = cheapest(p, self.costs, self.abstain_cost)
            return Choice(cheap or best, p[cheap or best], cheap is None, p)
        return Choice(best, p[best], self.confidence is None or p[best] < self.confidence, p)
