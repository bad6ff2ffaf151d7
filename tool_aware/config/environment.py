"""The environment and `.env` as the stages read them: addresses of services, and every secret.

Each value is stripped and checked once, here. A message names the variable and never shows its value: that may be a
password that was pasted into the wrong variable.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tool_aware.config.dotenv_file import Variable, read_dotenv
from tool_aware.console import UserError, listing, warn
from tool_aware.secret_values import keep_environment_secrets, keep_secret

DOTENV = Path(".env")
# Values of the examples in the documentation, which people copy as they are: no values.
_PLACEHOLDERS = {"...", "your_password", "your_huggingface_token_here"}
_YES, _NO = {"true", "1", "yes", "on", "y", "t"}, {"false", "0", "no", "off", "n", "f"}
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"  # what copying from a page or a document adds
_NEAR_NAMES = {  # what people write, and other programs read, for the variables of this toolkit
    **dict.fromkeys(("POSTGRES_PASS", "POSTGRES_PWD", "POSTGRES_PASSWD"), "POSTGRES_PASSWORD"),
    **dict.fromkeys(("POSTGRES_DATABASE", "POSTGRES_DBNAME", "POSTGRES_DB_NAME", "POSTGRES_NAME"), "POSTGRES_DB"),
    **dict.fromkeys(("POSTGRES_SERVER", "POSTGRES_HOSTNAME", "POSTGRES_ADDRESS"), "POSTGRES_HOST"),
    **dict.fromkeys(("POSTGRES_USERNAME", "POSTGRES_USER_NAME"), "POSTGRES_USER"),
    **dict.fromkeys(("HUGGINGFACE_TOKEN", "HF_API_TOKEN", "HUGGINGFACEHUB_API_TOKEN"), "HF_TOKEN"),
    "OPENAI_API_BASE": "OPENAI_BASE_URL",
}
# Other programs' names for what POSTGRES_* say here.
_OTHER_DATABASE_NAMES = ("DATABASE_URL", "PGHOST", "PGDATABASE", "POSTGRES_URL")


@dataclass(frozen=True)
class Environment:
    """Values of the environment. Secrets are not in its `repr`; no other module reads them from os.environ."""

    postgres_host: str = "localhost"
    postgres_port: int = 5432
    postgres_db: str = "cipher_analytics"
    postgres_user: str = "cipher"
    postgres_password: str | None = field(default=None, repr=False)
    hf_token: str | None = field(default=None, repr=False)
    openai_api_key: str | None = field(default=None, repr=False)
    tool_aware_api_key: str | None = field(default=None, repr=False)
    use_wandb: bool = False
    wandb_project: str = "mistral-tool-aware"
    openai_base_url: str | None = field(default=None, repr=False)
    openai_model: str | None = None

    @property
    def names_a_database(self) -> bool:
        """Return whether POSTGRES_* say anything else than the defaults: then there is a query log."""
        fields = [name for name in Environment.__dataclass_fields__ if name.startswith("postgres_")]
        return any(getattr(self, name) != getattr(Environment, name) for name in fields)


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """Read the variables from `environ`, or from `.env` and the process environment, which takes precedence.

    Raises UserError with everything that is wrong, naming variables and never showing values.
    """
    places: dict[str, str] = {}
    if environ is None:
        variables = read_dotenv(DOTENV)
        _warn_of_other_names(variables)
        for name, found in variables.items():
            if name not in os.environ:
                os.environ[name] = found.value
                places[name] = f"{name} ({DOTENV}:{found.line})"
        environ = os.environ
    keep_environment_secrets(environ)
    values, problems = _checked_values(environ, places)
    if len(problems) == 1:
        ((place, problem),) = problems.items()
        raise UserError(problem, where=place)
    if problems:
        raise UserError(listing([f"{place}: {problem}" for place, problem in problems.items()], "problem"))
    if environ is os.environ:
        _give_back(values, os.environ)
    return _environment(values)


def _warn_of_other_names(variables: Mapping[str, Variable]) -> None:
    """Warn of each variable in `.env` that is not read, where the one that is meant is set nowhere."""
    for name, found in variables.items():
        meant = _NEAR_NAMES.get(name.upper()) or (name.upper() if name.upper() in _CHECKS and name.isascii() else name)
        if meant != name and meant not in variables and not os.environ.get(meant):
            warn(f"{DOTENV}:{found.line}: {name} is not read; {meant} is")


def _environment(values: Mapping[str, str]) -> Environment:
    fields = {key: values[key.upper()] for key in Environment.__dataclass_fields__ if values.get(key.upper())}
    typed: dict[str, Any] = {
        **fields,
        "postgres_port": int(fields.get("postgres_port", Environment.postgres_port)),
        "use_wandb": fields.get("use_wandb", "").lower() in _YES,
    }
    return Environment(**typed)


def other_database_names() -> list[str]:
    """Return the variables that are set and name a database to other programs; they are not read here."""
    return [name for name in _OTHER_DATABASE_NAMES if os.environ.get(name)]


def _checked_values(environ: Mapping[str, str], places: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the stripped values that are set, and by place what is wrong with the others."""
    values: dict[str, str] = {}
    problems: dict[str, str] = {}
    for name, check in _CHECKS.items():
        value = _stripped(name, environ.get(name, ""))
        if not value or value in _PLACEHOLDERS:
            continue
        if problem := _unreadable(value) or check(value):
            problems[places.get(name, name)] = problem
        values[name] = value
        if check is _problem_of_secret or check is _problem_of_password:
            keep_secret(value)
    return values, problems


def _give_back(values: Mapping[str, str], environ: MutableMapping[str, str]) -> None:
    """Put the stripped values where the libraries read them themselves: HF_TOKEN, WANDB_API_KEY, HF_ENDPOINT."""
    for name in _CHECKS:
        if name in values:
            environ[name] = values[name]
        else:
            environ.pop(name, None)  # blank, or a placeholder
    keep_secret(_stored_hub_token(environ))


def _stored_hub_token(environ: Mapping[str, str]) -> str | None:
    """Return the token that `hf auth login` has stored: huggingface_hub sends it where HF_TOKEN is not set."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    home = Path(environ.get("HF_HOME") or cache / "huggingface")
    path = Path(environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:10_000].strip()
    except OSError:
        return None


def _stripped(name: str, value: str) -> str:
    """Return a value without the line end, blanks or pair of quotes around it that no such value has.

    A password may begin or end with anything but a line end.
    """
    if name == "POSTGRES_PASSWORD":
        return value.strip("\r\n")
    value = value.strip().strip(_INVISIBLE).strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":  # docker's --env-file keeps them
        value = value[1:-1].strip()
    return value


# ---- checks: each returns what is wrong with a value, without showing it --------------------------------------


def _unreadable(value: str) -> str | None:
    for position, character in enumerate(value, start=1):
        if "\ud800" <= character <= "\udfff":
            return f"is not UTF-8 at character {position}"
        if unicodedata.category(character) == "Cc":
            return f"has a control character or line end (U+{ord(character):04X}) at character {position}"
    return None


def _anything(_value: str) -> None:
    return None


def _problem_of_password(_value: str) -> None:
    return None


def _problem_of_secret(value: str) -> str | None:
    for position, character in enumerate(value, start=1):
        if not "!" <= character <= "~":
            return f"has U+{ord(character):04X} at character {position}, which no token or key has; copy it again"
    return None


def _problem_of_host(value: str) -> str | None:
    if value.startswith(("/", "@")):  # folder of a socket; an abstract socket
        return None
    if "://" in value or "@" in value:
        return "is a URL; give the host alone, and port, name, user and password in their own variables"
    if re.fullmatch(r"[^:]*:\d+", value):
        return "has a port; give the host alone, and the port in POSTGRES_PORT"
    if any(character.isspace() or character in "#'\"`$=;/" for character in value):
        return "is not the name or address of a host"
    try:
        value.encode("idna")
    except UnicodeError:
        return "is not the name or address of a host"
    return None


def _problem_of_port(value: str) -> str | None:
    if value.startswith("tcp://"):
        what = "is not a port number but an address, as Kubernetes sets it for a service named postgres"
        return f"{what}: give the number, or set enableServiceLinks: false"
    is_port = value.isascii() and value.isdecimal() and len(value) < 6 and 0 < int(value) < 65536
    return None if is_port else "is not a port number (1 to 65535)"


def _problem_of_switch(value: str) -> str | None:
    return None if value.lower() in _YES | _NO else "is neither true nor false"


def problem_of_url(value: str) -> str | None:
    """Return why requests cannot be sent to a URL, without showing it; None if they can."""
    try:
        parts = urlsplit(value)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        _ = parts.port  # raises ValueError
    except ValueError:
        is_address = False
    if not is_address or not all("!" <= character <= "~" for character in value):
        return "is not an address that begins with http:// or https:// and has no blanks"
    return None


_CHECKS: Mapping[str, Callable[[str], str | None]] = {
    "POSTGRES_HOST": _problem_of_host,
    "POSTGRES_PORT": _problem_of_port,
    "POSTGRES_DB": _anything,
    "POSTGRES_USER": _anything,
    "POSTGRES_PASSWORD": _problem_of_password,
    "HF_TOKEN": _problem_of_secret,
    "HUGGING_FACE_HUB_TOKEN": _problem_of_secret,  # read by huggingface_hub itself, as HF_ENDPOINT is
    "HF_ENDPOINT": problem_of_url,
    "OPENAI_API_KEY": _problem_of_secret,
    "TOOL_AWARE_API_KEY": _problem_of_secret,  # that clients of our own server send
    "OPENAI_BASE_URL": problem_of_url,
    "OPENAI_MODEL": _anything,
    "USE_WANDB": _problem_of_switch,
    "WANDB_PROJECT": _anything,
    "WANDB_API_KEY": _problem_of_secret,  # read by wandb itself
    "WANDB_BASE_URL": problem_of_url,
}
