"""A served model, asked over HTTP for choices and answers: token ids in, temperature 0, the tokens' probabilities out.

Ids are sent because text would be tokenised once more, by other rules, and control tokens that a user types would be
taken for control tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tool_aware.chat_format import tool_label_tokens, tool_name_tokens
from tool_aware.chat_server import ChatServer, Connections, offered_models
from tool_aware.console import UserError
from tool_aware.inference.grammar import gbnf_behind_name, regex_behind_name
from tool_aware.inference.name_scores import probabilities
from tool_aware.router_settings import RouterSettings
from tool_aware.tools import Toolbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["llama.cpp", "OpenAI"]

_ALTERNATIVES = 20  # most probable tokens that are asked for at each place; vLLM gives no more by default
_NEGLIGIBLE = 0.005  # a tool whose probability has this upper bound is not looked at more closely
_PAUSES_S = (0.2, 1.0)
_FIX = "vLLM and llama.cpp (llama-server) give what is needed; for others use evaluate.py --endpoint"


@dataclass(frozen=True)
class _Token:
    """A token that the server has chosen, and the natural log-probabilities of the likeliest ones there, by id."""

    id: int
    alternatives: Mapping[int, float]


class RemoteEngine:
    """A model behind vLLM's /v1/completions or llama.cpp's /completion."""

    def __init__(
        self,
        server: ChatServer,
        model: str,
        kind: Kind,
        tokenizer: PreTrainedTokenizerBase,
        settings: RouterSettings,
        *,
        at_once: int,
    ) -> None:
        self._server, self._model, self._kind = server, model, kind
        self._label = tool_label_tokens(tokenizer)
        self._tokenizer = tokenizer
        self._ask_about(settings.toolbox)
        self._max_new_tokens = settings.max_new_tokens
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="router")

    def choose(self, prompt: list[int]) -> Future[dict[str, float]]:
        """Return what becomes tool -> natural log-probability; `prompt` ends where the answer begins."""
        return self._pool.submit(self._choose, prompt)

    def complete(self, prompt: list[int], tool: str) -> Future[str]:
        """Return what becomes the text of the answer that calls `tool`."""
        return self._pool.submit(self._complete, prompt, tool)

    def for_tools(self, tools: Toolbox) -> RemoteEngine:
        """Return the same server asked about other tools; closing either closes both."""
        other = copy.copy(self)
        other._ask_about(tools)
        return other

    def _ask_about(self, tools: Toolbox) -> None:
        write = gbnf_behind_name if self._kind == "llama.cpp" else regex_behind_name
        self._names = tool_name_tokens(self._tokenizer, tools.names)
        self._grammars = {tool.name: write(tool) for tool in tools}

    def close(self) -> None:
        """Answer nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._server.connections:
            self._server.connections.close()

    def _choose(self, prompt: list[int]) -> dict[str, float]:
        """Ask for the likeliest name, then for those that their first tokens leave likely."""
        scores = {name: _Score(0.0, 0) for name in self._names}
        first: Sequence[int] | None = ()
        while first is not None:
            begun = {name: ids for name, ids in self._names.items() if list(ids[: len(first)]) == list(first)}
            longest = max(map(len, begun.values())) - len(first)
            reply = self._ask([*prompt, *self._label, *first], longest, alternatives=_ALTERNATIVES)
            tokens = _tokens(reply, self._kind)
            if not tokens:
                raise UserError("its reply has no probabilities of tokens", where=self._server.shown, fix=_FIX)
            scores |= {name: scores[name].read_on(ids, tokens, len(first)) for name, ids in begun.items()}
            name = most_open(scores, self._names)
            first = self._names[name][: scores[name].known] if name else None
        return {name: score.log_p for name, score in scores.items()}

    def _complete(self, prompt: list[int], tool: str) -> str:
        ids = prompt + self._label + self._names[tool]
        reply = self._ask(ids, self._max_new_tokens, grammar=self._grammars[tool])
        return f"Tool: {tool}\n{_text(reply, self._kind, self._server.shown)}"

    def _ask(self, ids: list[int], tokens: int, *, alternatives: int = 0, grammar: str | None = None) -> Any:
        body: dict[str, Any] = {"prompt": ids, "temperature": 0}
        if self._kind == "llama.cpp":
            body |= {"n_predict": tokens, "cache_prompt": True}
            body |= {"n_probs": alternatives} if alternatives else {}
            body |= {"grammar": grammar} if grammar else {}
            return self._server.request("completion", body)
        body |= {"model": self._model, "max_tokens": tokens}
        body |= {"logprobs": alternatives, "return_tokens_as_token_ids": True} if alternatives else {}
        body |= {"structured_outputs": {"regex": grammar}} if grammar else {}
        return self._server.request("completions", body)


@dataclass(frozen=True)
class _Score:
    """The natural log-probability of the first `known` tokens of a name: an upper bound of the whole name's."""

    log_p: float
    known: int

    def read_on(self, ids: Sequence[int], tokens: Sequence[_Token], start: int) -> _Score:
        """Add what an answer's tokens, the first of them at place `start` of the name, say of the next ones.

        A token that is not among the alternatives has at most the least of their probabilities.
        """
        log_p, known = self.log_p, self.known
        for place, token in enumerate(tokens, start):
            if place == known < len(ids):
                log_p += token.alternatives.get(ids[place], min(token.alternatives.values()))
                known += 1
            if place >= len(ids) or token.id != ids[place]:
                break
        return _Score(log_p, known)


def most_open(scores: Mapping[str, _Score], names: Mapping[str, Sequence[int]]) -> str | None:
    """Return the likeliest name whose last tokens are not known yet; None if none of these could matter."""
    p = probabilities({name: score.log_p for name, score in scores.items()})
    is_open = [name for name, ids in names.items() if scores[name].known < len(ids) and p[name] > _NEGLIGIBLE]
    return max(is_open, key=p.__getitem__, default=None)


def _tokens(reply: Any, kind: Kind) -> list[_Token]:
    """Return the tokens of a reply with their alternatives; none of one that does not have them."""
    try:
        if kind == "llama.cpp":
            return [
                _Token(place["id"], {other["id"]: float(other["logprob"]) for other in place["top_logprobs"]})
                for place in reply["completion_probabilities"]
                if place["top_logprobs"]
            ]
        found = reply["choices"][0]["logprobs"]
        return [
            _Token(_id(token), {_id(other): float(p) for other, p in likeliest.items()})
            for token, likeliest in zip(found["tokens"], found["top_logprobs"], strict=True)
        ]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return []


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def _text(reply: Any, kind: Kind, where: str) -> str:
    text = reply.get("content") if kind == "llama.cpp" and isinstance(reply, dict) else None
    if kind == "OpenAI":
        choices = reply.get("choices") if isinstance(reply, dict) else None
        text = (
            choices[0].get("text") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
        )
    if not isinstance(text, str):
        raise UserError("its reply holds no text", where=where, fix=_FIX)
    return text


def connect_engine(
    url: str,
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    settings: RouterSettings,
    *,
    api_key: str | None,
    timeout_s: float,
    at_once: int,
) -> RemoteEngine:
    """Return an engine for the server at `url`. Raises UserError if it is not there or does not serve `model`."""
    root = url.rstrip("/").removesuffix("/v1")
    openai = ChatServer(f"{root}/v1", api_key, timeout_s, _PAUSES_S, option="the address")
    reply = openai.request("models")
    offered = offered_models(reply)
    if offered is None or model not in offered:
        names = ", ".join(offered or []) or "nothing"
        raise UserError(f"does not serve {model!r}; it serves {names}", where=openai.shown, fix="name one of these")
    listed = reply.get("data") if isinstance(reply, dict) else None
    owners = {entry.get("owned_by") for entry in listed or () if isinstance(entry, dict)}
    kind: Kind = "llama.cpp" if "llamacpp" in owners else "OpenAI"
    server = replace(openai, address=root if kind == "llama.cpp" else openai.address, connections=Connections())
    return RemoteEngine(server, model, kind, tokenizer, settings, at_once=at_once)
