"""Connects to the PostgreSQL server that holds the query log."""

from __future__ import annotations

import ipaddress
from typing import Any

from tool_aware.config.data_sections import DatabaseSection
from tool_aware.config.environment import Environment
from tool_aware.console import UserError

APPLICATION_NAME = "tool-aware prepare_dataset"


class DatabaseUnreachable(UserError):
    """No server answers at the configured address; the stage may continue without a query log."""


def connect_to_database(settings: DatabaseSection, environment: Environment) -> Any:
    """Return a read-only psycopg2 connection with a time limit for each statement.

    Raises DatabaseUnreachable if no server answers, and UserError if it refuses. Neither message holds the password.
    """
    import psycopg2

    host = environment.postgres_host
    try:
        connection = psycopg2.connect(
            host=host,
            port=environment.postgres_port,
            dbname=environment.postgres_db,
            user=environment.postgres_user,
            password=environment.postgres_password,
            connect_timeout=settings.connect_timeout_s,
            application_name=APPLICATION_NAME,
            sslmode=ssl_mode(settings.sslmode, host),
            options=f"-c statement_timeout={settings.statement_timeout_s * 1000}",
        )
    except psycopg2.OperationalError as error:
        raise _refused(error, environment) from None
    connection.set_session(readonly=True)
    return connection


def ssl_mode(configured: str, host: str) -> str:
    """Return the SSL mode; `auto` means an encrypted and verified connection unless the server runs on this machine."""
    if configured != "auto":
        return configured
    return "prefer" if is_this_machine(host) else "verify-full"


def is_this_machine(host: str) -> bool:
    """Return whether a host is a socket directory, localhost, or a loopback address."""
    if host.startswith("/") or host.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refused(error: Exception, environment: Environment) -> UserError:
    where = (
        f"{environment.postgres_user}@{environment.postgres_host}:{environment.postgres_port}/{environment.postgres_db}"
    )
    # 'connection to server at "db" (10.0.0.7), port 5432 failed: FATAL:  password authentication failed for ...'
    first_line = (str(error).strip() or "no answer").splitlines()[0]
    reason = first_line.rpartition("failed: ")[2].removeprefix("FATAL:").strip()
    if environment.postgres_password:
        reason = reason.replace(environment.postgres_password, "***")
    lowered = str(error).lower()
    if "password" in lowered or "authentication" in lowered or "no pg_hba.conf entry" in lowered:
        return UserError(
            f"the database refused the login: {reason}",
            where=where,
            fix="check POSTGRES_USER and POSTGRES_PASSWORD in the environment or .env",
        )
    if "does not exist" in lowered and "database" in lowered:
        return UserError(reason, where=where, fix="check POSTGRES_DB")
    if "certificate" in lowered or "ssl" in lowered:
        return UserError(
            f"no verified connection: {reason}",
            where=where,
            fix="put its root certificate in ~/.postgresql/root.crt, or set database.sslmode",
        )
    return DatabaseUnreachable(
        reason, where=where, fix="start it, correct the POSTGRES_* variables, or continue without"
    )
