"""The environment and `.env` as the stages read them: addresses of services, and every secret."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tool_aware.console import UserError


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
    use_wandb: bool = False
    wandb_project: str = "mistral-tool-aware"
    openai_base_url: str | None = None
    openai_model: str | None = None


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """Read the variables from `environ`, or from `.env` and the process environment, which takes precedence."""
    if environ is None:
        from dotenv import load_dotenv

        load_dotenv(Path(".env"))
        environ = os.environ
    known = {key: environ[key.upper()] for key in Environment.__dataclass_fields__ if environ.get(key.upper())}
    port = known.get("postgres_port", "5432")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"{port!r} is not a port number", where="POSTGRES_PORT")
    use_wandb = known.get("use_wandb", "false").strip().lower()
    if use_wandb not in ("true", "false", "1", "0", "yes", "no"):
        raise UserError(f"{use_wandb!r} is neither true nor false", where="USE_WANDB")
    texts: dict[str, Any] = {**known, "postgres_port": int(port), "use_wandb": use_wandb in ("true", "1", "yes")}
    return Environment(**texts)
