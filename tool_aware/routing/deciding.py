"""The steps of one decision: the prompt, the choice, the parameters, and what stands in where the model gives none.

Steps are a generator that yields what it waits for, so that threads, coroutines and many queries at once share them.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tool_aware.chat_format import encode_prompt
from tool_aware.history import shown_turns
from tool_aware.keyword_rules import keyword_rules
from tool_aware.prompt import Turn, parse_response, render_instruction
from tool_aware.router_settings import RouterSettings
from tool_aware.routing.decision import Choice, Decision, FallbackKind, Policy
from tool_aware.secret_values import redacted
from tool_aware.tools import Toolbox, ToolCall

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Instead = Literal["no_tool", "keywords"]

_MOST_CHARACTERS = 12  # a token holds that many at most, or nearly; a longer query is not even tokenised


class Engine(Protocol):
    """Where the model runs. Both methods return at once; what they return may hold an exception."""

    def choose(self, prompt: list[int]) -> Future[dict[str, float]]:
        """Return what becomes tool -> natural log-probability; `prompt` ends where the answer begins."""

    def complete(self, prompt: list[int], tool: str) -> Future[str]:
        """Return what becomes the text of the answer that calls `tool`."""

    def for_tools(self, tools: Toolbox) -> Engine:
        """Return the same model asked about other tools."""

    def close(self) -> None:
        """Answer nothing more."""


class _Unanswered(Exception):
    """The reason why a query has no answer of the model."""


@dataclass(frozen=True)
class _Query:
    """A query as the model is asked it, and until when."""

    prompt: list[int]
    until_s: float | None

    @property
    def left_s(self) -> float | None:
        """Return the seconds until its deadline; None without one."""
        return None if self.until_s is None else max(0.0, self.until_s - time.monotonic())


@dataclass(frozen=True)
class Wanted:
    """A result that a query waits for."""

    future: Future[Any]
    query: _Query


class Underway:
    """A query on its way to a decision: it waits for `wanted`, or has its decision."""

    def __init__(self, steps: Generator[Wanted, Any, Decision]) -> None:
        self._steps = steps
        self.wanted: Wanted | None = None
        self.decision: Decision | None = None
        self.go_on()

    def go_on(self, result: Any = None, *, error: Exception | None = None) -> None:
        """Take what was waited for, or why it does not come."""
        if self.wanted and error:
            self.wanted.future.cancel()
        try:
            self.wanted = self._steps.throw(error) if error else self._steps.send(result)
        except StopIteration as end:
            self.wanted, self.decision = None, end.value


@dataclass(frozen=True, eq=False)
class Decider:
    """Decides with a model: the tools it is asked about, when it is sure enough, and who decides where it cannot."""

    engine: Engine
    tokenizer: PreTrainedTokenizerBase
    settings: RouterSettings
    policy: Policy
    tools: Toolbox
    instead: Instead = "no_tool"

    def for_tools(self, tools: Toolbox) -> Decider:
        """Return the same model asked about other tools, for which nothing is calibrated."""
        policy = replace(self.policy, is_calibrated=False)
        return replace(self, engine=self.engine.for_tools(tools), tools=tools, policy=policy)

    def steps(
        self,
        text: str,
        history: Sequence[Turn],
        deadline_s: float | None,
        parameters: bool,
        among: Collection[str] | None,
    ) -> Generator[Wanted, Any, Decision]:
        """Yield what is waited for, get it or its error sent, and return the decision in the end."""
        begun_s = time.monotonic()
        names = self._offered(among)
        choice, reason = None, ""
        kind: FallbackKind = "answer"
        try:
            query = self._query(text, history, begun_s, deadline_s)
            if among is not None and len(names) == 1:
                choice = Choice(names[0], None, False, {})
            else:
                scores = yield Wanted(self.engine.choose(query.prompt), query)
                choice = self.policy.choose({name: scores[name] for name in names})
            if not parameters or not self.tools[choice.tool].properties:
                return self._decision(ToolCall(choice.tool, {}, "-"), choice, begun_s)
            answer = parse_response((yield Wanted(self.engine.complete(query.prompt, choice.tool), query)))
            problems = self.tools.problems(answer.call) if answer.call else [answer.problem or "no call"]
            if answer.call and not problems:
                return self._decision(answer.call, choice, begun_s)
            reason = f"the model's answer is no call: {'; '.join(problems)[:200]}"
        except (TimeoutError, CancelledError):
            reason = f"no answer within {deadline_s:g} s" if deadline_s is not None else "the router was closed"
            kind = "deadline" if deadline_s is not None else "error"
        except _Unanswered as error:
            reason, kind = str(error), "query"
        except Exception as error:  # of the model, its server, its memory: an agent needs a decision all the same
            reason = redacted(str(error)).splitlines()[0] if str(error) else type(error).__name__
            kind = "error"
        return replace(self._without_answer(text, choice, reason, begun_s, names), fallback_kind=kind)

    def _is_calibrated(self, choice: Choice) -> bool:
        return self.policy.is_calibrated and len(choice.probabilities) == len(self.tools)

    def _offered(self, among: Collection[str] | None) -> tuple[str, ...]:
        """Return the names among which to choose, in the order of the tools."""
        unknown = [name for name in among or () if name not in self.tools]
        if unknown or (among is not None and not among):
            raise ValueError(f"among={unknown or among!r} are no tools; the tools are {', '.join(self.tools.names)}")
        return tuple(name for name in self.tools.names if among is None or name in among)

    def _query(self, text: str, history: Sequence[Turn], begun_s: float, deadline_s: float | None) -> _Query:
        """Return the query with its prompt. Raises _Unanswered for one that the model cannot be asked."""
        if not text.strip():
            raise _Unanswered("the query is empty")
        limit = self.settings.model.max_seq_length
        if len(text) > limit * _MOST_CHARACTERS:
            raise _Unanswered(f"the query has {len(text):,} characters; the model takes {limit:,} tokens")
        shown = shown_turns(history, self.settings.conversation)
        for oldest in range(len(shown) + 1):
            instruction = render_instruction(text, self.tools, shown[oldest:])
            prompt = encode_prompt(self.tokenizer, instruction)
            if len(prompt) < limit:
                until_s = None if deadline_s is None else begun_s + deadline_s
                return _Query(prompt, until_s)
        raise _Unanswered(f"the prompt has {len(prompt):,} tokens; the model takes {limit:,}")

    def _decision(self, call: ToolCall, choice: Choice, begun_s: float, fallback: str | None = None) -> Decision:
        return Decision(
            call.tool,
            call.parameters,
            "" if call.reasoning == "-" else call.reasoning,
            choice.confidence,
            choice.abstained,
            fallback,
            choice.probabilities,
            time.monotonic() - begun_s,
            is_calibrated=self._is_calibrated(choice),
        )

    def _without_answer(
        self, text: str, choice: Choice | None, reason: str, begun_s: float, offered: Sequence[str]
    ) -> Decision:
        """Decide by the model's choice if it has made one, else by `instead`; the query is the parameter.

        Where that is no whole call, it is the tool that stands for calling none.
        """
        rules = keyword_rules(self.settings.keyword_router, offered)
        names = [choice.tool if choice else None, rules(text) if self.instead == "keywords" else None]
        for name in [*names, self.settings.no_tool]:
            parameter = self.tools[name].text_parameter if name and name in offered else None
            if name and parameter and not self.tools[name].parameter_problems({parameter: text}):
                chosen = choice if choice and choice.tool == name else None
                return Decision(
                    name,
                    {parameter: text},
                    "",
                    chosen.confidence if chosen else None,
                    chosen.abstained if chosen else True,
                    reason,
                    choice.probabilities if choice else {},
                    time.monotonic() - begun_s,
                    is_calibrated=chosen is not None and self._is_calibrated(chosen),
                )
        return Decision(None, {}, "", None, True, reason, seconds=time.monotonic() - begun_s)
