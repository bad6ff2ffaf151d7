"""Requests to a server with OpenAI's interface (vLLM, llama.cpp, Ollama, hosted ones), and what its replies say."""

from __future__ import annotations

import base64
import http.client
import json
import math
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from tool_aware.config.environment import problem_of_url
from tool_aware.console import UserError
from tool_aware.secret_values import keep_secret, keep_url_secrets, redacted, without_login
from tool_aware.text_files import parse_json

LARGEST_REPLY_BYTES = 64 * 2**20
LONGEST_PAUSE_S = 60.0  # of those that a Retry-After header may ask for
_RETRIED_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_SHOWN_CHARACTERS = 300
_TEXT_PARTS = ("text", "output_text")  # kinds of content parts that are the answer; others are thoughts or pictures


class _Unusable(Exception):
    """A reply that another attempt may better: cut off, or not JSON."""


class _Hopeless(Exception):
    """A reply that no other attempt will better: of another kind of server."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: urllib would send the key along to whichever host is named, and a POST as a GET."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class ChatServer:
    """The base address of a server, ending in /v1 for most, and its key, which goes into a header and nowhere else.

    A login in the address (`http://user:password@host`) is sent as Basic authentication if there is no key.
    After a fault that may pass, a request is repeated once after each of `pauses_s`.
    """

    address: str = field(repr=False)
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 300.0
    pauses_s: Sequence[float] = (0.5, 2.0, 8.0)
    option: str = "the address"  # that the user gave the address with

    def __post_init__(self) -> None:
        keep_secret(self.api_key)
        keep_url_secrets(self.address)
        problem = problem_of_url(self.address)
        if problem:
            raise UserError(problem, where=self.option, fix="for example http://localhost:8000/v1")

    @property
    def shown(self) -> str:
        """Return the address as it may be shown: without login and query."""
        return without_login(self.address)

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the JSON reply to a GET, or to a POST if there is a `body`. Raises UserError if there is none."""
        where = f"{self.shown.rstrip('/')}/{path}"
        for planned_s in (*self.pauses_s, None):
            pause_s = planned_s
            try:
                return self._send(path, body)
            except urllib.error.HTTPError as error:
                if error.code not in _RETRIED_STATUS or planned_s is None:
                    raise UserError(_refusal(error), where=where, fix=_advice(error.code, self.option)) from None
                pause_s = _wished_pause_s(error, planned_s)
            except _Hopeless as error:
                raise UserError(str(error), where=where, fix=_advice(404, self.option)) from None
            except _Unusable as error:
                if planned_s is None:
                    fix = "look at the server's log, then run again: what is answered already is kept"
                    raise UserError(f"gave no usable answer: {error}", where=where, fix=fix) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                if planned_s is None:
                    reason = redacted(str(getattr(error, "reason", error)) or type(error).__name__)
                    fix = f"start the server, or correct {self.option}"
                    raise UserError(f"cannot be reached: {reason}", where=self.shown, fix=fix) from None
            time.sleep(pause_s or 0.0)
        raise AssertionError("the last round returns or raises")

    def _send(self, path: str, body: Mapping[str, Any] | None) -> Any:
        parts = urlsplit(self.address)
        login, _, host = parts.netloc.rpartition("@")
        url = urlunsplit((parts.scheme, host, f"{parts.path.rstrip('/')}/{path}", parts.query, ""))
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        elif login:
            headers["Authorization"] = f"Basic {base64.b64encode(unquote(login).encode()).decode()}"
        data = None if body is None else json.dumps(body).encode()
        opener = urllib.request.build_opener(_NoRedirects)
        deadline_s = time.monotonic() + self.timeout_s
        request = urllib.request.Request(url, data=data, headers=headers)
        with opener.open(request, timeout=self.timeout_s) as reply:
            return _checked(_json_of(_read(reply, deadline_s), reply.headers))


# ---- one reply --------------------------------------------------------------------------------------------


def _read(reply: Any, deadline_s: float) -> bytes:
    """Return the body. A server that sends without end, or a byte now and then, is given up."""
    chunks, size = [], 0
    try:
        while chunk := reply.read1(2**20):
            chunks.append(chunk)
            size += len(chunk)
            if size > LARGEST_REPLY_BYTES:
                raise _Hopeless(f"sent more than {LARGEST_REPLY_BYTES // 2**20} MiB as one reply")
            if time.monotonic() > deadline_s:
                raise _Unusable("its reply did not end in time")
    except (http.client.IncompleteRead, ConnectionError) as error:
        raise _Unusable("the connection ended within the reply") from error
    if reply.length:  # what Content-Length promised and did not come
        raise _Unusable(f"the connection ended {reply.length} bytes before the end of the reply")
    return b"".join(chunks)


def _json_of(content: bytes, headers: Message) -> Any:
    if headers.get("Content-Encoding", "").lower() in ("gzip", "deflate", "x-gzip"):  # though nobody asked for it
        try:
            content = zlib.decompressobj(47).decompress(content, LARGEST_REPLY_BYTES)
        except zlib.error as error:
            raise _Unusable(f"its reply cannot be unpacked: {error}") from error
    charset = headers.get_content_charset()
    try:
        is_plain = charset in (None, "utf-8", "us-ascii")
        return parse_json(content if is_plain or charset is None else content.decode(charset))
    except (ValueError, LookupError) as error:
        shown = _excerpt(content)
        if content.lstrip()[:1] == b"<":
            raise _Hopeless(f"answered with a web page instead of JSON: {shown}") from error
        raise _Unusable(f"its reply is not JSON: {shown or 'it is empty'}") from error


def _checked(reply: Any) -> Any:
    """Return a reply. Raises _Hopeless for one that only says what went wrong, with status 200."""
    if isinstance(reply, dict) and reply.get("error") and not reply.get("choices") and not reply.get("data"):
        raise _Hopeless(f"answered with an error: {_excerpt_of_value(reply['error'])}")
    return reply


def _refusal(error: urllib.error.HTTPError) -> str:
    if 300 <= error.code < 400:
        target = without_login(error.headers.get("Location", "") or "nowhere")
        return f"answered {error.code}: it is moved to {redacted(target)}; redirects are not followed"
    try:
        content = error.read(64 * 1024)
    except (OSError, http.client.HTTPException):
        content = b""
    detail = _excerpt(content)
    return f"answered {error.code} {redacted(str(error.reason))}" + (f": {detail}" if detail else "")


def _advice(status: int, option: str) -> str:
    if status in (401, 403):
        return "the key was refused: set OPENAI_API_KEY to the server's key"
    if 300 <= status < 400 or status in (404, 405):
        return f"correct {option}: most servers have their interface below /v1"
    return "look at the server's log, then run again: what is answered already is kept"


def _wished_pause_s(error: urllib.error.HTTPError, pause_s: float) -> float:
    try:
        wished_s = float(error.headers.get("Retry-After", ""))
    except ValueError:
        return pause_s
    return min(max(wished_s, 0.0), LONGEST_PAUSE_S) if math.isfinite(wished_s) else pause_s


def _excerpt(content: bytes) -> str:
    text = " ".join(redacted(content.decode(errors="replace")).split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _excerpt_of_value(value: object) -> str:
    message = value.get("message") if isinstance(value, dict) else value
    return _excerpt((message if isinstance(message, str) else json.dumps(value)).encode(errors="replace"))


# ---- what replies say -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChatReply:
    """One answer. `empty_because` says where the text may have gone, if there is none."""

    text: str
    new_tokens: int
    is_truncated: bool
    empty_because: str | None = None


def chat_reply(reply: Any, where: str) -> ChatReply:
    """Return the answer that a reply of chat/completions holds. Raises UserError if it is no such reply."""
    choices = reply.get("choices") if isinstance(reply, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict) or not _is_content(message.get("content")):
        shown = _excerpt(json.dumps(reply).encode())
        fix = "is that the address of a chat server, as OpenAI, vLLM, llama.cpp and Ollama have it?"
        raise UserError(f"its reply holds no answer: {shown}", where=where, fix=fix)
    # A lone half of a surrogate pair is no character: it could be neither written nor tokenised.
    text = text_of(message.get("content")).encode(errors="surrogatepass").decode(errors="replace")
    usage = reply.get("usage")
    new_tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    is_truncated = choice.get("finish_reason") == "length"
    return ChatReply(text, _count(new_tokens), is_truncated, None if text else _why_empty(message))


def _is_content(content: object) -> bool:
    return content is None or isinstance(content, str | list)


def text_of(content: object) -> str:
    """Return the text of a message's content: a text, a list of parts, or None."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS]
    return "".join(text for text in texts if isinstance(text, str))


def _count(value: object) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return int(value) if is_number else 0  # type: ignore[call-overload]


def _why_empty(message: Mapping[str, Any]) -> str | None:
    for key, parser in (("tool_calls", "tool-call parser"), ("reasoning_content", "reasoning parser")):
        if message.get(key):
            return f"it is in {key}: start the server without a {parser}"
    return "it is in reasoning: start the server without a reasoning parser" if message.get("reasoning") else None


def offered_models(reply: Any) -> list[str] | None:
    """Return the names that a reply of `models` lists; None if it is no such list."""
    listed = reply.get("data", reply.get("models", ())) if isinstance(reply, dict) else reply
    if listed is None:
        return []
    if not isinstance(listed, list | tuple):
        return None
    names = [item.get("id", item.get("name")) if isinstance(item, dict) else item for item in listed]
    return [name for name in names if isinstance(name, str)]
