"""Connects to the PostgreSQL server that holds the query log. Nothing else connects to one."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from tool_aware.config.data_sections import DatabaseSection
from tool_aware.config.environment import Environment
from tool_aware.console import UserError
from tool_aware.secret_values import STARS

APPLICATION_NAME = "tool-aware prepare_dataset"
ROUTER_APPLICATION_NAME = "tool-aware router"
WITHOUT_LOG = "leave the query log out: --set dataset.use_query_log=false"
WITHOUT_ROUTER_LOG = "route without a log"
_LONGEST_PROBE_S = 3.0
# A network that swallows packets ends a statement after 15 s; https://www.postgresql.org/docs/current/libpq-connect.html
_GIVE_UP: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 15_000,
}


class DatabaseUnreachable(UserError):
    """No server answers at the configured address: no such host, nothing that listens, no reply in time."""


def connect_to_database(settings: DatabaseSection, environment: Environment, *, writes: bool = False) -> Any:
    """Return a psycopg2 connection, in a transaction with a time limit for each statement (`begin`).

    It is read-only unless it `writes`, which the router's log does. Raises DatabaseUnreachable if no server answers,
    and UserError if it refuses. Neither message holds the password.
    """
    import psycopg2

    host = environment.postgres_host
    give_up = _GIVE_UP if writes else {}
    connection = None
    try:
        connection = psycopg2.connect(
            host=host,
            hostaddr="",  # PGHOSTADDR would connect to another machine than the one that `ssl_mode` judges
            port=environment.postgres_port,
            dbname=environment.postgres_db,
            user=environment.postgres_user,
            password=environment.postgres_password,
            connect_timeout=settings.connect_timeout_s,
            application_name=ROUTER_APPLICATION_NAME if writes else APPLICATION_NAME,
            sslmode=ssl_mode(settings.sslmode, host),
            **give_up,
        )
        connection.set_session(readonly=not writes)
        begin(connection, settings)  # behind a pooler, only this reaches the server itself
    except (psycopg2.Error, UnicodeError) as error:
        if connection is not None:
            connection.close()
        instead = WITHOUT_ROUTER_LOG if writes else WITHOUT_LOG
        raise _refused(error, settings, environment, instead) from None
    return connection


def begin(connection: Any, settings: DatabaseSection) -> None:
    """Set the time limit of each statement of the present transaction, which is begun if there is none.

    Not for the session: PgBouncer refuses `options` at connection, and in its transaction mode what is set for a
    session stays on a connection that others use next. psycopg2 begins each transaction as READ ONLY.
    """
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = %s", [settings.statement_timeout_s * 1000])


def identifier(name: str) -> Any:
    """Quote a name for a query that also has values, where psycopg2 reads a percent sign as one of theirs."""
    from psycopg2 import sql

    return sql.Identifier(name.replace("%", "%%"))


def ssl_mode(configured: str, host: str) -> str:
    """Return the SSL mode; `auto` means an encrypted and verified connection unless the server runs on this machine."""
    if configured != "auto":
        return configured
    return "prefer" if is_this_machine(host) else "verify-full"


def is_this_machine(host: str) -> bool:
    """Return whether a host is a socket directory, localhost, or a loopback address in its usual spelling.

    Other spellings (`127.1`) count as remote: the connection is then verified, which is the safe mistake.
    """
    if host.startswith("/") or host.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# ---- errors ---------------------------------------------------------------------------------------------


def _refused(error: Exception, settings: DatabaseSection, environment: Environment, instead: str) -> UserError:
    """Return why there is no connection; `instead` is what can be done without one.

    psycopg2 gives neither an SQLSTATE nor, with servers in another language, words that could be compared. Whether a
    server answers is therefore found out by connecting to its port; the words only choose the advice.
    """
    host, port = environment.postgres_host, environment.postgres_port
    where = f"{environment.postgres_user}@{host}:{port}/{environment.postgres_db}"
    reason = _reason(error)
    if environment.postgres_password:
        reason = reason.replace(environment.postgres_password, STARS)
    if not is_listening(host, port, min(settings.connect_timeout_s, _LONGEST_PROBE_S)):
        fix = f"start it, correct the POSTGRES_* variables, or {instead}"
        return DatabaseUnreachable(reason, where=where, fix=fix)
    lowered = reason.lower()
    if "certificate" in lowered or "ssl" in lowered:
        fix = "put its root certificate in ~/.postgresql/root.crt, or set database.sslmode"
        return UserError(f"no verified connection: {reason}", where=where, fix=fix)
    if "database" in lowered and ("does not exist" in lowered or "no such" in lowered):
        return UserError(reason, where=where, fix=f"check POSTGRES_DB, or {instead}")
    if any(word in lowered for word in ("password", "authentication", "no pg_hba.conf entry", "role", "user")):
        blanks = _odd_ends(environment.postgres_password)
        fix = f"check POSTGRES_USER and POSTGRES_PASSWORD in the environment or .env{blanks}, or {instead}"
        return UserError(f"the database refused the login: {reason}", where=where, fix=fix)
    fix = f"check POSTGRES_USER, POSTGRES_PASSWORD and POSTGRES_DB, look at the server's log, or {instead}"
    return UserError(f"the database refused the connection: {reason}", where=where, fix=fix)


def _odd_ends(password: str | None) -> str:
    if password and (password != password.strip() or (password[0] == password[-1] and password[0] in "'\"")):
        return " (the password begins or ends with a blank or a quote)"
    return ""


def _reason(error: Exception) -> str:
    """Return the server's words, in one line. Those in another encoding than UTF-8 are shown as far as they can be.

    For each address that was tried there is a line
    'connection to server at "db" (10.0.0.7), port 5432 failed: FATAL:  password authentication failed for ...'
    """
    text = error.object.decode(errors="replace") if isinstance(error, UnicodeDecodeError) else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no answer"]
    tried = [line for line in lines if "failed: " in line] or lines[:1]
    return tried[-1].rpartition("failed: ")[2].removeprefix("FATAL:").strip()


def is_listening(host: str, port: int, timeout_s: float) -> bool:
    """Return whether anything accepts a connection at one of the hosts, which are divided by commas."""
    return any(_is_one_listening(one.strip(), port, timeout_s) for one in host.split(","))


def _is_one_listening(host: str, port: int, timeout_s: float) -> bool:
    try:
        if host.startswith(("/", "@")):
            path = f"{host}/.s.PGSQL.{port}"
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout_s)
                connection.connect(path.replace("@", "\0", 1) if host.startswith("@") else path)
        else:
            socket.create_connection((host, port), timeout_s).close()
    except PermissionError:  # of a socket's folder: there is a server, which others may use
        return True
    except (OSError, UnicodeError):
        return False
    return True


def close_quietly(connection: Any) -> None:
    """Close a connection, if there is one; it is no fault if the server has closed it already."""
    import psycopg2

    try:
        if connection is not None:
            connection.close()
    except psycopg2.Error:
        pass
