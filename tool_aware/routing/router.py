"""Routing of queries to tools by a tuned model, for an agent: three lines, and no exception for a bad answer.

router = Router.load("output/lora_adapters")
decision = router.route("What does our travel policy say about trains?")
print(decision.tool, decision.parameters, decision.confidence)
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Collection, Generator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import chat_format
from tool_aware.config.environment import read_environment
from tool_aware.console import UserError
from tool_aware.paths import ADAPTER_CONFIG_NAME, MODEL_CONFIG_NAME
from tool_aware.prompt import Turn
from tool_aware.router_settings import RouterSettings, read_router_settings
from tool_aware.routing.deciding import Decider, Engine, Instead, Underway, Wanted
from tool_aware.routing.decision import Acting, Decision, Policy
from tool_aware.routing.feedback import DecisionLog
from tool_aware.routing.loaded import load_engine
from tool_aware.routing.served import connect_engine
from tool_aware.tokenizer import load_tokenizer
from tool_aware.tools import Toolbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        self._decider = Decider(engine, tokenizer, settings, policy, settings.toolbox, instead)
        self.log = log

    @property
    def settings(self) -> RouterSettings:
        """Return the settings of the model."""
        return self._decider.settings

    @property
    def policy(self) -> Policy:
        """Return when the model is sure enough."""
        return self._decider.policy

    @property
    def tools(self) -> Toolbox:
        """Return the tools among which it chooses."""
        return self._decider.tools

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
        from tool_aware.model.libraries import quiet_libraries

        folder, token = Path(folder), read_environment().hf_token
        settings = _settings(folder, config, base)
        model = settings.model
        with quiet_libraries():
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

        It reads their descriptions, which a training with `training.tool_variation` teaches. Their part of the prompt
        is kept while they are among the last ones asked. Confidence is not calibrated (`is_calibrated`).
        """
        other = copy.copy(self)
        other._decider = self._decider.for_tools(tools)
        return other

    def close(self) -> None:
        """Stop; what waits is decided without the model."""
        self._decider.engine.close()

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
            Underway(self._deciding(text, earlier, deadline_s, parameters, session=name, among=among))
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
        one = Underway(self._deciding(query, history, deadline_s, parameters, session=session, among=among))
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
    ) -> Generator[Wanted, Any, Decision]:
        """Yield what is waited for, get it or its error sent, and return the decision, logged, in the end."""
        decision = yield from self._decider.steps(text, history, deadline_s, parameters, among)
        return self.log.record(decision, text, session) if self.log else decision


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
