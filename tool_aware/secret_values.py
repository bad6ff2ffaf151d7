"""The secrets of this process, and how they are kept out of what is printed: `***` in place of each spelling."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

STARS = "***"
# A value of fewer characters is replaced only where a text shows that it is one: `Bearer x`, `:x@`, `password=x`.
_SHORTEST_WORD = 4
# A value of fewer characters is replaced as a whole word only: `test` not in `latest`.
SHORTEST_ANYWHERE = 8
_SECRET_NAME = re.compile(r"(TOKEN|PASSWORD|PASSWD|PASSPHRASE|SECRET|API_?KEY|ACCESS_?KEY|SECRET_?KEY)$", re.IGNORECASE)
_NO_SECRETS = {"", "0", "1", "true", "false", "yes", "no", "on", "off", "none", "null"}
# Names that a text may well show. A password that equals one of them cannot be told from it.
_PUBLIC_NAMES = ("POSTGRES_USER", "POSTGRES_DB", "POSTGRES_HOST", "PGUSER", "PGDATABASE", "PGHOST", "USER", "HOME")
_SHORTEST_TOKEN = 16
_LOGINS = (re.compile(r"://([^\s/]*)@"), re.compile(r"://([^\s/:@]*:[^\s@]+)@"))  # the second: a / in the password

# Keys by the beginnings that their providers give them: Hugging Face, OpenAI, GitHub, GitLab, Slack, AWS, Google, npm.
_LIKE_A_KEY = re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|AKIA|AIza|npm_|wandb_v1_)[\w-]{8,}")

_spellings: set[str] = set()
_patterns: dict[int, re.Pattern[str] | None] = {}


def keep_secret(value: str | None) -> None:
    """Register a value for `redacted` to replace, also url-quoted, escaped by `repr` or JSON, and in base64."""
    if value is None or value.strip().lower() in _NO_SECRETS:
        return
    pieces = [piece for piece in value.splitlines() if len(piece.strip()) >= SHORTEST_ANYWHERE]
    for piece in (value, value.strip(), *pieces):
        _spellings.update(_spellings_of(piece))
    _patterns.clear()


def keep_environment_secrets(environ: Mapping[str, str]) -> None:
    """Register what variables with the name of a secret hold, and the login in each URL among the values."""
    public = {environ.get(name) for name in _PUBLIC_NAMES}
    for name, value in environ.items():
        if _SECRET_NAME.search(name) and value not in public:
            keep_secret(value)
        if "://" in value:
            keep_url_secrets(value)


def keep_url_secrets(url: str) -> None:
    """Register the password in a URL, or a long user name without one, which is a token then (`https://TOKEN@host`)."""
    for login in [found for pattern in _LOGINS for found in pattern.findall(url)]:
        user, _, password = login.partition(":")
        secret = password or (user if len(user) >= _SHORTEST_TOKEN else None)
        if secret:
            keep_secret(secret)
            keep_secret(unquote(secret))
            keep_secret(base64.b64encode(unquote(login).encode("utf-8", "replace")).decode())


def without_login(url: str) -> str:
    """Return a URL without user, password and query, as it may be shown and written."""
    with suppress(ValueError):
        parts = urlsplit(url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return "a URL that cannot be read"


def redacted(text: str, shortest: int = 1) -> str:
    """Return a text with `***` in place of every secret of `shortest` or more characters."""
    if shortest not in _patterns:
        _patterns[shortest] = _pattern(spelling for spelling in _spellings if len(spelling) >= shortest)
    pattern = _patterns[shortest]
    return pattern.sub(STARS, text) if pattern else text


def masked(text: str) -> str:
    """Return a text with `***` in place of what looks like a key, and of each login in a URL, whoever it belongs to."""
    for pattern in _LOGINS:
        text = pattern.sub(f"://{STARS}@", text)
    return _LIKE_A_KEY.sub(STARS, text)


def _spellings_of(value: str) -> Iterator[str]:
    octets = value.encode("utf-8", "surrogateescape")
    url = quote(octets, safe="")
    yield from (value, url, url.lower(), quote(octets), quote_plus(octets), html.escape(value))
    yield from (repr(value)[1:-1], ascii(value)[1:-1], repr(octets)[2:-1], json.dumps(value)[1:-1])
    yield repr(repr(octets)[2:-1])[1:-1]
    with suppress(UnicodeError):
        yield octets.decode("latin-1")
    if len(octets) >= SHORTEST_ANYWHERE:
        yield from _in_base64(octets)


def _in_base64(octets: bytes) -> Iterator[str]:
    """Yield what base64 makes of `octets` wherever they stand in what was encoded, as in `Basic` authentication."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + octets).decode().rstrip("=")
        # The characters at both ends also depend on the neighbours.
        inner = encoded[(before * 8 + 5) // 6 : (before + len(octets)) * 8 // 6]
        yield from (inner, inner.replace("+", "-").replace("/", "_"))


def _pattern(spellings: Iterable[str]) -> re.Pattern[str] | None:
    """Return the pattern that matches any of the spellings, the longest first."""
    forms = [_form(spelling) for spelling in sorted(spellings, key=lambda s: (-len(s), s))]
    return re.compile("|".join(forms)) if forms else None


def _form(spelling: str) -> str:
    text: Any = re.escape(spelling)
    if len(spelling) >= SHORTEST_ANYWHERE:
        return text
    starts, ends = (r"(?<![^\W_])" if spelling[0].isalnum() else ""), (r"(?![^\W_])" if spelling[-1].isalnum() else "")
    if len(spelling) >= _SHORTEST_WORD:
        return f"{starts}{text}{ends}"
    return rf"(?:(?<=Bearer )|(?<=Basic )|(?<=password=)|(?<=:)(?={text}@)){text}{ends}"
