"""Answers from an OpenAI-compatible server (vLLM, llama.cpp, Ollama), several at a time, with retries."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
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
        """Ask for one greedy answer."""
        begun_s = time.perf_counter()
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
        return Prediction(
            row,
            text,
            new_tokens=(reply.get("usage") or {}).get("completion_tokens") or 0,
            is_truncated=choice.get("finish_reason") == "length",
            seconds=time.perf_counter() - begun_s,
        )

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
        """GET, or POST `body`, with retries where the server may recover."""
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


# ---- is it the tuned model that answers? ------------------------------------------------------------------

PROBE_ROWS = 8


def make_probe(
    rows: Mapping[int, Row], base: Sequence[Prediction], tuned: Sequence[Prediction]
) -> list[dict[str, str]]:
    """Pick prompts that base and tuned model answer differently: they tell which of the two a server runs."""
    differing = [(b, t) for b, t in zip(base, tuned, strict=True) if b.text.strip() != t.text.strip()]
    differing.sort(key=lambda pair: pair[0].text.split("\n")[0] == pair[1].text.split("\n")[0])  # other tool first
    return [
        {"instruction": rows[b.row].instruction, "base": b.text.strip(), "tuned": t.text.strip()}
        for b, t in differing[:PROBE_ROWS]
    ]


def run_probe(endpoint: Endpoint, probe: Sequence[Mapping[str, str]]) -> dict[str, int]:
    """Ask the probe's prompts and count whose answer each reply resembles.

    Another engine's rounding may change a word, so a reply counts for the answer with which it shares more text.

    Raises UserError if the server answers as the base model does.
    """
    from difflib import SequenceMatcher

    counts = {"tuned": 0, "base": 0, "neither": 0}
    for number, item in enumerate(probe):
        reply = endpoint.answer(number, item["instruction"]).text.strip()
        base, tuned = (SequenceMatcher(None, reply, item[key], autojunk=False).ratio() for key in ("base", "tuned"))
        counts["neither" if base == tuned else "base" if base > tuned else "tuned"] += 1
    if counts["base"] > counts["tuned"]:
        raise UserError(
            f"answers as the base model does ({counts['base']} of {len(probe)} probe prompts, {counts['tuned']} as the "
            "fine-tuned one): the adapter is not applied",
            where=f"{endpoint.url}, model {endpoint.served_name}",
            fix="vLLM: --enable-lora --lora-modules NAME=output/lora_adapters, then --served-model NAME",
        )
    return counts
