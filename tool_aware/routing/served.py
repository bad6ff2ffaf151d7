"""A served model, asked over HTTP for choices and answers: token ids in, temperature 0, the tokens' probabilities out.

Ids are sent because text would be tokenised once more, by other rules, and control tokens that a user types would be
taken for control tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tool_aware.chat_format import end_id, tool_label_tokens, tool_name_tokens
from tool_aware.chat_server import ChatServer, offered_models
from tool_aware.console import UserError
from tool_aware.inference.name_scores import NameTrie
from tool_aware.router_settings import RouterSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["llama.cpp", "OpenAI"]

_ALTERNATIVES = 20  # most probable tokens that are asked for at each place; vLLM gives no more by default
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
        self._names = tool_name_tokens(tokenizer, settings.toolbox.names)
        self._end_id, self._max_new_tokens = end_id(tokenizer), settings.max_new_tokens
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="router")

    def choose(self, prompt: list[int]) -> Future[dict[str, float]]:
        """Return what becomes tool -> natural log-probability; `prompt` ends where the answer begins."""
        return self._pool.submit(self._choose, prompt)

    def complete(self, prompt: list[int], tool: str) -> Future[str]:
        """Return what becomes the text of the answer that calls `tool`."""
        return self._pool.submit(self._complete, prompt, tool)

    def close(self) -> None:
        """Answer nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _choose(self, prompt: list[int]) -> dict[str, float]:
        longest = max(map(len, self._names.values()))
        reply = self._ask(prompt + self._label, longest, alternatives=_ALTERNATIVES)
        tokens = _tokens(reply, self._kind)
        if not tokens:
            raise UserError("its reply has no probabilities of tokens", where=self._server.shown, fix=_FIX)
        return scores_of(tokens, self._names)

    def _complete(self, prompt: list[int], tool: str) -> str:
        reply = self._ask(prompt + self._label + self._names[tool], self._max_new_tokens)
        return f"Tool: {tool}\n{_text(reply, self._kind, self._server.shown)}"

    def _ask(self, ids: list[int], tokens: int, *, alternatives: int = 0) -> Any:
        if self._kind == "llama.cpp":
            body = {"prompt": ids, "n_predict": tokens, "temperature": 0, "cache_prompt": True}
            if alternatives:
                body["n_probs"] = alternatives
            return self._server.request("completion", body)
        body = {"model": self._model, "prompt": ids, "max_tokens": tokens, "temperature": 0}
        if alternatives:
            body |= {"logprobs": alternatives, "return_tokens_as_token_ids": True}
        return self._server.request("completions", body)


def scores_of(tokens: Sequence[_Token], names: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Return tool -> natural log-probability, from the tokens of one answer with their alternatives.

    A name that leaves the path of the answer has the probability of the path so far times that of the token with which
    it leaves: what follows is taken as certain. A token that is not among the alternatives has at most the least of
    theirs. The error is small where the model was trained on these names: little of a name is open after its beginning.
    """
    trie, scores = NameTrie.of(names), {}
    for name, path in trie.paths.items():
        score = 0.0
        for (_, wanted), token in zip(path, tokens, strict=False):
            score += token.alternatives.get(wanted, min(token.alternatives.values()))
            if token.id != wanted:
                break
        scores[name] = score
    return scores


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
    server = ChatServer(root, api_key, timeout_s, _PAUSES_S, option="the address") if kind == "llama.cpp" else openai
    return RemoteEngine(server, model, kind, tokenizer, settings, at_once=at_once)
