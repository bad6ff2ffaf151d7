"""Answers from an OpenAI-compatible server (vLLM, llama.cpp, Ollama), several at a time, with retries."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from tool_aware.console import Progress, UserError
from tool_aware.evaluation.answering.predictions import PredictionLog
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.rows import Row

RETRY_WAITS_S = (0.5, 2.0, 8.0)
RETRIED_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Reply:
    """One answer of a server. `is_truncated`: the limit of new tokens came before its end."""

    text: str
    new_tokens: int
    is_truncated: bool


@dataclass(frozen=True)
class Endpoint:
    """A server and the model name to ask it for. `api_key` goes into the Authorization header and nowhere else."""

    url: str
    served_name: str
    max_new_tokens: int
    concurrency: int
    api_key: str | None = None

    def check(self) -> None:
        """Raise UserError if the server cannot be reached or does not offer the model."""
        offered = [model["id"] for model in self._request("models").get("data", [])]
        if self.served_name not in offered:
            raise UserError(
                f"does not serve {self.served_name!r}; it serves {', '.join(offered) or 'nothing'}",
                where=self.url,
                fix="--served-model NAME",
            )

    def answer(self, row: int, instruction: str) -> Prediction:
        """Ask for the greedy answer to one row."""
        begun_s = time.perf_counter()
        reply = self.ask(instruction)
        seconds = time.perf_counter() - begun_s
        return Prediction(
            row, reply.text, new_tokens=reply.new_tokens, is_truncated=reply.is_truncated, seconds=seconds
        )

    def ask(self, instruction: str) -> Reply:
        """Ask for one greedy answer. Raises UserError if the server gives none."""
        body = {
            "model": self.served_name,
            "messages": [{"role": "user", "content": instruction}],
            "temperature": 0,
            "max_tokens": self.max_new_tokens,
        }
        reply = self._request("chat/completions", body)
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise UserError(f"its reply holds no answer: {json.dumps(reply)[:200]}", where=self.url) from error
        new_tokens = (reply.get("usage") or {}).get("completion_tokens") or 0
        return Reply(text, new_tokens, is_truncated=choice.get("finish_reason") == "length")

    def answer_rows(self, rows: Mapping[int, Row], log: PredictionLog) -> list[Prediction]:
        """Answer what `log` does not hold yet, `concurrency` at a time, and return all answers in row order."""
        missing = [index for index in rows if index not in log.done]
        progress = Progress(self.served_name, len(missing))
        with log.appending() as append, ThreadPoolExecutor(self.concurrency) as pool:
            waiting = [pool.submit(self.answer, index, rows[index].instruction) for index in missing]
            try:
                for done, future in enumerate(as_completed(waiting), start=1):
                    append([future.result()])
                    progress.update(done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        progress.close()
        return [log.done[index] for index in rows]

    def _request(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON answer to a GET, or to a POST if there is a `body`; retry where the server may recover."""
        base = self.url.rstrip("/")
        base = base if base.endswith("/v1") else f"{base}/v1"
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        for wait_s in (*RETRY_WAITS_S, None):
            try:
                request = urllib.request.Request(f"{base}/{path}", data=data, headers=headers)
                with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:
                    return json.loads(reply.read())
            except urllib.error.HTTPError as error:
                if error.code not in RETRIED_STATUS or wait_s is None:
                    raise UserError(_explain(error), where=f"{base}/{path}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                if wait_s is None:
                    raise UserError(
                        f"cannot be reached: {error}", where=base, fix="start the server, or correct --endpoint"
                    ) from None
            time.sleep(wait_s)
        raise AssertionError("the last round returns or raises")


def _explain(error: urllib.error.HTTPError) -> str:
    detail = error.read(500).decode(errors="replace").strip()
    advice = "; set OPENAI_API_KEY to the server's key" if error.code in (401, 403) else ""
    return f"answered {error.code} {error.reason}{advice}: {detail}"
