"""Answers from an OpenAI-compatible server (vLLM, llama.cpp, Ollama), several at a time, with retries."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

from tool_aware.chat_server import ChatReply, ChatServer, chat_reply, offered_models
from tool_aware.console import Fallbacks, Progress, UserError
from tool_aware.evaluation.answering.predictions import PredictionLog, note_wrappings
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.prompt import COMMON_CONTROLS, escape_controls
from tool_aware.rows import Row

RETRY_WAITS_S = (0.5, 2.0, 8.0)
TIMEOUT_S = 300.0
IDENTITY_TIMEOUT_S = 10.0
ROWS_ASKED_AGAIN = 8
# Of an entry of /v1/models. `created` and `permission` of vLLM and llama.cpp are new with every request.
_OF_MODEL = ("id", "root", "parent", "owned_by", "max_model_len", "meta")
_OF_SERVER = ("model_path", "model_ftype", "build_info")  # of llama.cpp's /props
_SAYS_NOTHING = {"id", "owned_by"}  # every server has these


@dataclass(frozen=True)
class Endpoint:
    """A server and the model name to ask it for. `api_key` goes into the Authorization header and nowhere else."""

    url: str
    served_name: str
    max_new_tokens: int
    concurrency: int
    api_key: str | None = field(default=None, repr=False)
    controls: Collection[str] = COMMON_CONTROLS  # the control tokens of the model there

    @property
    def server(self) -> ChatServer:
        """Return the server at `url`; /v1 is added to an address that does not end so."""
        base, mark, query = self.url.rstrip("/").partition("?")
        base = base.rstrip("/") if base.rstrip("/").endswith("/v1") else f"{base.rstrip('/')}/v1"
        return ChatServer(f"{base}{mark}{query}", self.api_key, TIMEOUT_S, RETRY_WAITS_S, option="--endpoint")

    def check(self) -> None:
        """Raise UserError if the server cannot be reached or does not offer the model."""
        server = self.server
        offered = offered_models(server.request("models"))
        if offered is None:
            fix = "is that the address of a server with OpenAI's interface?"
            raise UserError("its reply is no list of models", where=f"{server.shown}/models", fix=fix)
        if self.served_name not in offered:
            raise UserError(
                f"does not serve {self.served_name!r}; it serves {', '.join(offered) or 'nothing'}",
                where=server.shown,
                fix="--served-model NAME",
            )

    def identity(self) -> dict[str, Any]:
        """Return what the server says of the model and of itself: weights, adapters, versions, as far as it does."""
        listed = self.server.request("models")
        entries = listed.get("data") if isinstance(listed, dict) else None
        named = [item for item in entries or () if isinstance(item, dict) and item.get("id") == self.served_name]
        entry = named[0] if named else {}
        says = {key: entry[key] for key in _OF_MODEL if entry.get(key) is not None}
        props = self._optional("props")
        says |= {key: props[key] for key in _OF_SERVER if key in props} if isinstance(props, dict) else {}
        adapters = self._optional("lora-adapters")
        says |= {"adapters": adapters} if isinstance(adapters, list) and adapters else {}
        version = self._optional("version")
        return says | ({"version": version["version"]} if isinstance(version, dict) and "version" in version else {})

    def _optional(self, path: str) -> Any:
        """Return the reply of an interface that some servers have beside /v1; None from others."""
        base, mark, query = self.server.address.partition("?")
        address = f"{base.rstrip('/').removesuffix('/v1')}{mark}{query}"
        try:
            return ChatServer(address, self.api_key, IDENTITY_TIMEOUT_S, (), option="--endpoint").request(path)
        except UserError:
            return None

    def answered_otherwise(self, rows: Mapping[int, Row], log: PredictionLog) -> list[int]:
        """Ask some of the rows in `log` again, and return those that are answered otherwise now."""
        known = sorted(rows.keys() & log.done.keys())
        asked = known[:: -(-len(known) // ROWS_ASKED_AGAIN)] if known else []
        return [index for index in asked if self.answer(index, rows[index].instruction).text != log.done[index].text]

    def answer(self, row: int, instruction: str) -> Prediction:
        """Ask for the greedy answer to one row."""
        return self._timed_answer(row, instruction)[0]

    def _timed_answer(self, row: int, instruction: str) -> tuple[Prediction, str | None]:
        begun_s = time.perf_counter()
        reply = self.ask(instruction)
        seconds = time.perf_counter() - begun_s
        prediction = Prediction(
            row, reply.text, new_tokens=reply.new_tokens, is_truncated=reply.is_truncated, seconds=seconds
        )
        return prediction, reply.empty_because

    def ask(self, instruction: str) -> ChatReply:
        """Ask for one greedy answer. Raises UserError if the server gives none."""
        body = {
            "model": self.served_name,
            "messages": [{"role": "user", "content": escape_controls(instruction, self.controls)}],
            "temperature": 0,
            "max_tokens": self.max_new_tokens,
        }
        server = self.server
        return chat_reply(server.request("chat/completions", body), server.shown)

    def answer_rows(
        self, rows: Mapping[int, Row], log: PredictionLog, fallbacks: Fallbacks | None = None
    ) -> list[Prediction]:
        """Answer what `log` does not hold yet, `concurrency` at a time, and return all answers in row order.

        Answers whose text the server has put elsewhere are empty; their number goes to `fallbacks`.
        """
        empty: Counter[str] = Counter()
        missing = [index for index in rows if index not in log.done]
        progress = Progress(self.served_name, len(missing))
        with log.appending() as append, ThreadPoolExecutor(self.concurrency) as pool:
            waiting = [pool.submit(self._timed_answer, index, rows[index].instruction) for index in missing]
            try:
                for done, future in enumerate(as_completed(waiting), start=1):
                    prediction, empty_because = future.result()
                    append([prediction])
                    if empty_because:
                        empty[empty_because] += 1
                    progress.update(done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        progress.close()
        for reason, count in empty.items():
            (Fallbacks() if fallbacks is None else fallbacks).add(
                f"{count} of {len(missing)} answers have no text: {reason}"
            )
        answers = [log.done[index] for index in rows]
        note_wrappings(answers, Fallbacks() if fallbacks is None else fallbacks)
        return answers


def is_unknown(says: Mapping[str, Any]) -> bool:
    """Return whether a server says no more of itself than every other does."""
    return says.keys() <= _SAYS_NOTHING
