"""Routing of queries to tools by a tuned model, for an agent: three lines, and no exception for a bad answer.

router = Router.load("output/lora_adapters")
decision = router.route("What does our travel policy say about trains?")
print(decision.tool, decision.parameters, decision.confidence)
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections import deque
from collections.abc import Collection, Generator, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tool_aware.chat_format import chat_format, encode_prompt
from tool_aware.config.environment import read_environment
from tool_aware.console import UserError
from tool_aware.history import shown_turns
from tool_aware.keyword_rules import keyword_rules
from tool_aware.paths import ADAPTER_CONFIG_NAME, MODEL_CONFIG_NAME
from tool_aware.prompt import Turn, parse_response, render_instruction
from tool_aware.router_settings import RouterSettings, read_router_settings
from tool_aware.routing.decision import Acting, Choice, Decision, FallbackKind, Policy
from tool_aware.routing.feedback import DecisionLog
from tool_aware.routing.loaded import load_engine
from tool_aware.routing.served import connect_engine
from tool_aware.secret_values import redacted
from tool_aware.tokenizer import load_tokenizer
from tool_aware.tool_lists import text_parameter
from tool_aware.tools import Tool, Toolbox, ToolCall

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
class _Wanted:
    """A result that a query waits for."""

    future: Future[Any]
    query: _Query


class _Underway:
    """A query on its way to a decision: it waits for `wanted`, or has its decision."""

    def __init__(self, steps: Generator[_Wanted, Any, Decision]) -> None:
        self._steps = steps
        self.wanted: _Wanted | None = None
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


class Router:
    """Chooses the tool for a query and extracts the parameters of its call.

    May be used from any number of threads and coroutines at once. `instead` says who decides where the model cannot:
    the tool that stands for calling none, or the agent's present rules by words. `acting` says when the model is sure
    enough (see `Policy`); it matters once evaluate.py has calibrated the adapter. Decisions are written to `log`, which
    stays open when the router closes.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        settings: RouterSettings,
        policy: Policy,
        *,
        instead: Instead = "no_tool",
        log: DecisionLog | None = None,
    ) -> None:
        self._engine, self._tokenizer, self.settings, self.policy = engine, tokenizer, settings, policy
        self.tools = settings.toolbox
        self._instead, self._log = instead, log

    # ---- making one -----------------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        folder: str | Path = "output/lora_adapters",
        *,
        config: str | Path | None = None,
        base: str | None = None,
        acting: Acting = "threshold",
        instead: Instead = "no_tool",
        log: DecisionLog | None = None,
        batch_size: int = 16,
    ) -> Router:
        """Load an adapter on its base model, quantised as in training, or a merged model, on this machine.

        `base` is where the base model lies now, if it was moved since the training. Settings are those of the training
        unless `config` names a file. Raises UserError if something is missing or does not fit.
        """
        from tool_aware.model.adapter import check_saved_adapter
        from tool_aware.model.adapter_record import refuse_another_chat_format
        from tool_aware.model.base import check_model_available

        folder, token = Path(folder), read_environment().hf_token
        settings = _settings(folder, config, base)
        model = settings.model
        check_model_available(model.name, revision=model.revision, hf_token=token)
        tokenizer = load_tokenizer(model.name, revision=model.revision, token=token)
        if (folder / ADAPTER_CONFIG_NAME).is_file():
            refuse_another_chat_format(folder, chat_format(tokenizer), model.name)
            check_saved_adapter(folder, model, is_moved=base is not None)
        engine = load_engine(folder, settings, tokenizer, hf_token=token, batch_size=batch_size)
        return cls(engine, tokenizer, settings, Policy.read(folder, acting), instead=instead, log=log)

    @classmethod
    def connect(
        cls,
        url: str,
        model: str,
        folder: str | Path = "output/lora_adapters",
        *,
        config: str | Path | None = None,
        acting: Acting = "threshold",
        instead: Instead = "no_tool",
        log: DecisionLog | None = None,
        timeout_s: float = 60.0,
        at_once: int = 64,
    ) -> Router:
        """Use the model that vLLM or llama.cpp serves at `url` under the name `model`.

        `folder` is that of the served adapter or merged model: its tokenizer makes the prompts, which are sent as ids.
        The key is that of OPENAI_API_KEY. Raises UserError if the server is not there or does not serve the model.
        """
        folder = Path(folder)
        settings = _settings(folder, config, None)
        tokenizer = load_tokenizer(str(folder))
        key = read_environment().openai_api_key
        engine = connect_engine(url, model, tokenizer, settings, api_key=key, timeout_s=timeout_s, at_once=at_once)
        return cls(engine, tokenizer, settings, Policy.read(folder, acting), instead=instead, log=log)

    def for_tools(self, tools: Toolbox) -> Router:
        """Return a router for other tools on the same model; only the first one need be closed.

        It reads their descriptions, which a training with `training.tool_variation` teaches. Confidence is calibrated
        for the tools of the training only.
        """
        other = copy.copy(self)
        other._engine, other.tools = self._engine.for_tools(tools), tools
        return other

    def close(self) -> None:
        """Stop; what waits is decided without the model."""
        self._engine.close()

    def __enter__(self) -> Router:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ---- routing --------------------------------------------------------------------------------------------

    def route(
        self,
        query: str,
        history: Sequence[Turn] = (),
        *,
        deadline_s: float | None = None,
        parameters: bool = True,
        session: str | None = None,
        among: Collection[str] | None = None,
    ) -> Decision:
        """Decide on one query; `history` has the earlier turns of its conversation, the newest last.

        After `deadline_s` it is decided without the model. `parameters=False` chooses the tool alone, which takes one
        forward pass. With `among`, only these tools are chosen; probabilities are then those among them, and of a
        single one only the parameters are asked for. `session` is the conversation's name in the query log. Raises
        ValueError for a name that is no tool.
        """
        return self.route_many(
            [query], [history], deadline_s=deadline_s, parameters=parameters, sessions=[session], among=among
        )[0]

    def route_many(
        self,
        queries: Iterable[str],
        histories: Iterable[Sequence[Turn]] | None = None,
        *,
        deadline_s: float | None = None,
        parameters: bool = True,
        sessions: Iterable[str | None] | None = None,
        among: Collection[str] | None = None,
    ) -> list[Decision]:
        """Decide on many queries together. Raises ValueError if there are not as many histories, or sessions."""
        texts = list(queries)
        turns = [()] * len(texts) if histories is None else list(histories)
        names = [None] * len(texts) if sessions is None else list(sessions)
        if len(turns) != len(texts) or len(names) != len(texts):
            raise ValueError(f"{len(turns)} histories and {len(names)} sessions for {len(texts)} queries")
        underway = [
            _Underway(self._deciding(text, earlier, deadline_s, parameters, session=name, among=among))
            for text, earlier, name in zip(texts, turns, names, strict=True)
        ]
        waiting = deque(underway)  # in turns, so that the model always has all of them before it
        while waiting:
            one = waiting.popleft()
            if one.wanted is None:
                continue
            try:
                one.go_on(one.wanted.future.result(one.wanted.query.left_s))
            except Exception as error:
                one.go_on(error=error)
            waiting.append(one)
        return [one.decision for one in underway if one.decision]

    async def route_async(
        self,
        query: str,
        history: Sequence[Turn] = (),
        *,
        deadline_s: float | None = None,
        parameters: bool = True,
        session: str | None = None,
        among: Collection[str] | None = None,
    ) -> Decision:
        """Decide as `route` does, while other coroutines run."""
        one = _Underway(self._deciding(query, history, deadline_s, parameters, session=session, among=among))
        while one.wanted:
            try:
                async with asyncio.timeout(one.wanted.query.left_s):
                    one.go_on(await asyncio.wrap_future(one.wanted.future))
            except Exception as error:
                one.go_on(error=error)
        assert one.decision is not None, "the last step leaves a decision"
        return one.decision

    def _deciding(
        self,
        text: str,
        history: Sequence[Turn],
        deadline_s: float | None,
        parameters: bool,
        *,
        session: str | None,
        among: Collection[str] | None,
    ) -> Generator[_Wanted, Any, Decision]:
        """Yield what is waited for, get it or its error sent, and return the decision, logged, in the end."""
        decision = yield from self._answering(text, history, deadline_s, parameters, among)
        return self._log.record(decision, text, session) if self._log else decision

    def _answering(
        self,
        text: str,
        history: Sequence[Turn],
        deadline_s: float | None,
        parameters: bool,
        among: Collection[str] | None,
    ) -> Generator[_Wanted, Any, Decision]:
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
                scores = yield _Wanted(self._engine.choose(query.prompt), query)
                choice = self.policy.choose({name: scores[name] for name in names})
            if not parameters or not self.tools[choice.tool].properties:
                return self._decision(ToolCall(choice.tool, {}, "-"), choice, begun_s)
            answer = parse_response((yield _Wanted(self._engine.complete(query.prompt, choice.tool), query)))
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
            prompt = encode_prompt(self._tokenizer, instruction)
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
        )

    def _without_answer(
        self, text: str, choice: Choice | None, reason: str, begun_s: float, offered: Sequence[str]
    ) -> Decision:
        """Decide by the model's choice if it has made one, else by `instead`; the query is the parameter.

        Where that is no whole call, it is the tool that stands for calling none.
        """
        rules = keyword_rules(self.settings.keyword_router, offered)
        names = [choice.tool if choice else None, rules(text) if self._instead == "keywords" else None]
        for name in [*names, self.settings.no_tool]:
            parameter = query_parameter(self.tools[name]) if name and name in offered else None
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
                )
        return Decision(None, {}, "", None, True, reason, seconds=time.monotonic() - begun_s)


def query_parameter(tool: Tool) -> str | None:
    """Return the one parameter of a tool that may hold a query as it was typed; None if its call needs more."""
    name = text_parameter(tool)
    return None if name is None or "contentMediaType" in tool.properties[name] else name


def _settings(folder: Path, config: str | Path | None, base: str | None) -> RouterSettings:
    """Return the settings of the model in `folder`; of a merged model, which is its own base and not quantised."""
    settings = read_router_settings(folder, Path(config) if config else None)
    is_adapter = (folder / ADAPTER_CONFIG_NAME).is_file()
    if not is_adapter and not (folder / MODEL_CONFIG_NAME).is_file():
        what = f"holds neither an adapter ({ADAPTER_CONFIG_NAME}) nor a model ({MODEL_CONFIG_NAME})"
        raise UserError(what, where=str(folder), fix="name output/lora_adapters or output/final_model")
    if not is_adapter:
        model = settings.model.model_copy(update={"name": str(folder), "revision": None})
        plain = settings.quantization.model_copy(update={"load_in_4bit": False, "load_in_8bit": False})
        return settings.model_copy(update={"model": model, "quantization": plain})
    if base:
        return settings.model_copy(update={"model": settings.model.model_copy(update={"name": base})})
    return settings
