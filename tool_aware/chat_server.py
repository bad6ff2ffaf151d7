"""Requests to a server with OpenAI's interface (vLLM, llama.cpp, Ollama, hosted ones), and what its replies say."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import math
import ssl
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from tool_aware.config.environment import problem_of_url
from tool_aware.console import UserError
from tool_aware.secret_values import keep_secret, keep_url_secrets, redacted, without_login
from tool_aware.text_files import parse_json

if TYPE_CHECKING:
    import httpx2

LARGEST_REPLY_BYTES = 8 * 2**20  # as JSON it can take twenty times as much memory
LARGEST_COMPLAINT_BYTES = 64 * 1024
LONGEST_PAUSE_S = 60.0  # of those that a Retry-After header may ask for
_RETRIED_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}
_SHOWN_CHARACTERS = 300
_TEXT_PARTS = ("text", "output_text")  # kinds of content parts that are the answer; others are thoughts or pictures


class _Unusable(Exception):
    """A reply that another attempt may better: cut off, late, or not JSON."""


class _Hopeless(Exception):
    """A reply that no other attempt will better: of another kind of server."""


class _Unreachable(Exception):
    """There is no reply: no server, or one that does not speak HTTP or not in time."""


@dataclass(frozen=True)
class _Reply:
    """One reply, read to its end or to the limit of what is read."""

    status: int
    reason: str
    headers: httpx2.Headers
    content: bytes


class _Refused(Exception):
    """A reply whose status is not that of success."""

    def __init__(self, reply: _Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


@dataclass(frozen=True)
class ChatServer:
    """The base address of a server, ending in /v1 for most, and its key, which goes into a header and nowhere else.

    A login in the address (`http://user:password@host`) is sent as Basic authentication if there is no key.
    After a fault that may pass, a request is repeated once after each of `pauses_s`, unless it has then taken
    `timeout_s`. One attempt, from looking up the host to the last byte, takes `timeout_s` at most. Redirects are not
    followed: the key would be sent to whichever host they name. Proxies are those of HTTP_PROXY, HTTPS_PROXY,
    ALL_PROXY and NO_PROXY.
    """

    address: str = field(repr=False)
    api_key: str | None = field(default=None, repr=False)
    timeout_s: float = 300.0
    pauses_s: Sequence[float] = (0.5, 2.0, 8.0)
    option: str = "the address"  # that the user gave the address with
    connections: Connections | None = field(default=None, repr=False, compare=False)  # None = one a request

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
        begun_s = time.monotonic()
        for planned_s in (*self.pauses_s, None):
            pause_s = planned_s
            try:
                return self._send(path, body)
            except _Refused as error:
                if error.reply.status not in _RETRIED_STATUS or planned_s is None or self._is_over(begun_s):
                    fix = _advice(error.reply.status, self.option)
                    raise UserError(_refusal(error.reply), where=where, fix=fix) from None
                pause_s = _wished_pause_s(error.reply, planned_s)
            except _Hopeless as error:
                raise UserError(str(error), where=where, fix=_advice(404, self.option)) from None
            except _Unusable as error:
                if planned_s is None or self._is_over(begun_s):
                    fix = "look at the server's log, then run again: what is answered already is kept"
                    raise UserError(f"gave no usable answer: {error}", where=where, fix=fix) from None
            except _Unreachable as error:
                if planned_s is None or self._is_over(begun_s):
                    fix = f"start the server, or correct {self.option}"
                    raise UserError(f"cannot be reached: {redacted(str(error))}", where=self.shown, fix=fix) from None
            time.sleep(pause_s or 0.0)
        raise AssertionError("the last round returns or raises")

    def _is_over(self, begun_s: float) -> bool:
        return time.monotonic() - begun_s >= self.timeout_s

    def _send(self, path: str, body: Mapping[str, Any] | None) -> Any:
        parts = urlsplit(self.address)
        login, _, host = parts.netloc.rpartition("@")
        url = urlunsplit((parts.scheme, host, f"{parts.path.rstrip('/')}/{path}", parts.query, ""))
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        elif login:
            headers["Authorization"] = f"Basic {base64.b64encode(unquote(login).encode()).decode()}"
        data = None if body is None else json.dumps(body).encode()
        if self.connections:
            reply = self.connections.exchanged(url, headers, data, self.timeout_s)
        else:
            reply = asyncio.run(_exchanged(url, headers, data, self.timeout_s))
        if not 200 <= reply.status < 300:
            raise _Refused(reply)
        return _checked(_json_of(reply))


# ---- one reply --------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _certificates() -> ssl.SSLContext:
    """Return the authorities that this machine trusts; SSL_CERT_FILE names others."""
    return ssl.create_default_context()


class Connections:
    """Connections that stay open between requests, in a thread of their own; for any number of threads that ask.

    One request costs some 0.5 ms with them, and 8 ms with a new client each time.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._client: httpx2.AsyncClient | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="connections", daemon=True)
        self._thread.start()

    def exchanged(self, url: str, headers: Mapping[str, str], data: bytes | None, timeout_s: float) -> _Reply:
        """Send a request and return the reply."""
        return asyncio.run_coroutine_threadsafe(self._send(url, headers, data, timeout_s), self._loop).result()

    def close(self) -> None:
        """Close all connections and end the thread; requests under way fail."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _send(self, url: str, headers: Mapping[str, str], data: bytes | None, timeout_s: float) -> _Reply:
        import httpx2

        if self._client is None:
            self._client = httpx2.AsyncClient(timeout=timeout_s, verify=_certificates())
        return await _exchanged(url, headers, data, timeout_s, self._client)

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._client:
            await self._client.aclose()


async def _exchanged(
    url: str,
    headers: Mapping[str, str],
    data: bytes | None,
    timeout_s: float,
    kept: httpx2.AsyncClient | None = None,
) -> _Reply:
    """Send a request and return the reply, over connections that are kept or over one of its own.

    asyncio's timeout holds for all of it; those of sockets begin anew with each byte.
    """
    import httpx2

    begun: list[_Reply] = []
    try:
        own = contextlib.nullcontext(kept) if kept else httpx2.AsyncClient(timeout=timeout_s, verify=_certificates())
        async with asyncio.timeout(timeout_s), own as client:
            method = "GET" if data is None else "POST"
            async with client.stream(method, url, content=data, headers=dict(headers)) as reply:
                begun.append(_Reply(reply.status_code, reply.reason_phrase, reply.headers, b""))
                return _Reply(reply.status_code, reply.reason_phrase, reply.headers, await _content(reply))
    except TimeoutError:
        raise _Unusable("its reply did not end in time") if begun else _Unreachable("no reply in time") from None
    except httpx2.HTTPError as error:
        if begun:
            raise _Unusable(f"the connection ended within the reply: {_reason(error)}") from error
        raise _Unreachable(_reason(error)) from error
    except (httpx2.InvalidURL, ImportError, ValueError, OSError) as error:  # a proxy's address, its protocol; a key
        raise _Unreachable(_reason(error)) from error


async def _content(reply: httpx2.Response) -> bytes:
    """Return the body; of one that is no success, the beginning."""
    chunks, size = [], 0
    async for chunk in reply.aiter_raw():
        chunks.append(chunk)
        size += len(chunk)
        if not reply.is_success and size > LARGEST_COMPLAINT_BYTES:
            break
        if size > LARGEST_REPLY_BYTES:
            raise _Hopeless(f"sent more than {LARGEST_REPLY_BYTES // 2**20} MiB as one reply")
    return b"".join(chunks)


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _json_of(reply: _Reply) -> Any:
    content = reply.content
    if reply.headers.get("Content-Encoding", "").lower() in ("gzip", "deflate", "x-gzip"):  # though nobody asked for it
        try:
            unpacked = zlib.decompressobj(47)
            content = unpacked.decompress(content, LARGEST_REPLY_BYTES)
        except zlib.error as error:
            raise _Unusable(f"its reply cannot be unpacked: {error}") from error
        if unpacked.unconsumed_tail:
            raise _Hopeless(f"sent more than {LARGEST_REPLY_BYTES // 2**20} MiB, packed, as one reply")
    charset = _charset(reply.headers.get("Content-Type", ""))
    try:
        is_plain = charset in (None, "utf-8", "us-ascii")
        return parse_json(content if is_plain or charset is None else content.decode(charset))
    except (ValueError, LookupError) as error:
        shown = _excerpt(content)
        if content.lstrip()[:1] == b"<":
            raise _Hopeless(f"answered with a web page instead of JSON: {shown}") from error
        raise _Unusable(f"its reply is not JSON: {shown or 'it is empty'}") from error


def _charset(content_type: str) -> str | None:
    header = Message()
    header["Content-Type"] = content_type
    return header.get_content_charset()


def _checked(reply: Any) -> Any:
    """Return a reply. Raises _Hopeless for one that only says what went wrong, with status 200."""
    if isinstance(reply, dict) and reply.get("error") and not reply.get("choices") and not reply.get("data"):
        raise _Hopeless(f"answered with an error: {_excerpt_of_value(reply['error'])}")
    return reply


def _refusal(reply: _Reply) -> str:
    if 300 <= reply.status < 400:
        target = without_login(reply.headers.get("Location", "") or "nowhere")[:_SHOWN_CHARACTERS]
        return f"answered {reply.status}: it is moved to {redacted(target)}; redirects are not followed"
    detail = _excerpt(reply.content)
    return f"answered {reply.status} {redacted(reply.reason)[:_SHOWN_CHARACTERS]}" + (f": {detail}" if detail else "")


def _advice(status: int, option: str) -> str:
    if status in (401, 403):
        return "the key was refused: set OPENAI_API_KEY to the server's key"
    if 300 <= status < 400 or status in (404, 405):
        return f"correct {option}: most servers have their interface below /v1"
    return "look at the server's log, then run again: what is answered already is kept"


def _wished_pause_s(reply: _Reply, pause_s: float) -> float:
    try:
        wished_s = float(reply.headers.get("Retry-After", ""))
    except ValueError:
        return pause_s
    return min(max(wished_s, 0.0), LONGEST_PAUSE_S) if math.isfinite(wished_s) else pause_s


def _excerpt(content: bytes) -> str:
    text = " ".join(content.decode(errors="replace").split())[: 30 * _SHOWN_CHARACTERS]  # a cut secret is cut off again
    text = redacted(text)
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
    return ChatReply(
        text, _count(new_tokens), is_truncated, None if text else _why_empty(message, choice.get("finish_reason"))
    )


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


def _why_empty(message: Mapping[str, Any], finish_reason: object) -> str | None:
    for key, parser in (("tool_calls", "tool-call parser"), ("reasoning_content", "reasoning parser")):
        if message.get(key):
            return f"it is in {key}: start the server without a {parser}"
    if message.get("reasoning"):
        return "it is in reasoning: start the server without a reasoning parser"
    if message.get("refusal"):
        return "the server sent a refusal instead"
    return f"the server ended them with {finish_reason!r:.60}" if finish_reason not in ("stop", None) else None


def offered_models(reply: Any) -> list[str] | None:
    """Return the names that a reply of `models` lists; None if it is no such list."""
    listed = reply.get("data", reply.get("models", ())) if isinstance(reply, dict) else reply
    if listed is None:
        return []
    if not isinstance(listed, list | tuple):
        return None
    names = [item.get("id", item.get("name")) if isinstance(item, dict) else item for item in listed]
    return [name for name in names if isinstance(name, str)]
