"""One way to connect: verified where the server is remote, through PgBouncer, and never silently without the log."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from tests.fixtures.repository import CASES, REPOSITORY
from tool_aware.config.data_sections import DatabaseSection
from tool_aware.config.environment import Environment, read_environment
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, UserError
from tool_aware.database import DatabaseUnreachable, begin, connect_to_database, is_listening
from tool_aware.dataset.logged import read_log
from tool_aware.dataset.query_log import read_query_log
from tool_aware.demo.sample_log import fill_query_log
from tool_aware.monitor.checks import check_database

PASSWORD = "hunter2-hunter2"


def test_nothing_else_connects_to_a_database() -> None:
    modules = [*(REPOSITORY / "tool_aware").rglob("*.py"), *REPOSITORY.glob("*.py")]
    connecting = {path.name for path in modules if re.search(r"psycopg2?\.connect\(", path.read_text())}
    assert connecting - {"postgres_server.py", "sample_log.py"} == {"database.py"}  # the demo fills a log of its own


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def running(script: Path, *arguments: str) -> Iterator[tuple[int, list[str]]]:
    """Run a server of the cases; yield its port and the lines it prints."""
    port = free_port()
    command = [sys.executable, "-u", str(script), str(port), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        lines: list[str] = []
        assert server.stdout is not None
        reader = threading.Thread(target=lambda out=server.stdout: lines.extend(out))
        reader.start()
        try:
            deadline_s = time.monotonic() + 60
            while not is_listening("127.0.0.1", port, 1.0):
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
            yield port, lines
        finally:
            server.kill()
            reader.join()


def settings(config: Config, **updates: object) -> DatabaseSection:
    return config.database.model_copy(update={"connect_timeout_s": 5, **updates})


def outcomes(config: Config, environment: Environment, **updates: object) -> Iterator[str]:
    """Yield what preparing and checking say about the same database."""
    config = config.model_copy(update={"database": settings(config, **updates)})
    with pytest.raises(UserError) as caught:
        read_log(config, environment, Fallbacks())
    yield str(caught.value)
    (line,) = check_database(config, environment)
    assert line.status == "warning"
    yield f"{line.finding} {line.remedy}"


# ---- no TLS ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "sslmode"),
    [("127.1", "auto"), ("127.1", "verify-full"), ("127.0.0.1", "verify-full"), ("localhost", "require"),
     ("127.1,127.0.0.1", "auto")],
)  # fmt: skip
def test_a_password_is_not_sent_in_clear(config: Config, host: str, sslmode: str) -> None:
    with running(CASES / "check_ignores_sslmode/server.py") as (port, lines):
        environment = Environment(postgres_host=host, postgres_port=port, postgres_password=PASSWORD)
        for said in outcomes(config, environment, sslmode=sslmode):
            assert "no verified connection" in said
            assert PASSWORD not in said
    assert not [line for line in lines if "received" in line]


def test_the_address_that_is_judged_is_the_one_that_is_connected_to(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
    with running(CASES / "check_ignores_sslmode/server.py") as (port, lines):
        elsewhere = Environment(postgres_host="/nowhere", postgres_port=port, postgres_password=PASSWORD)
        with pytest.raises(DatabaseUnreachable):
            connect_to_database(config.database, elsewhere)
    assert not [line for line in lines if "received" in line]


# ---- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "cp1251"])
def test_a_refusal_in_any_language_and_encoding_is_a_refusal(config: Config, encoding: str) -> None:
    with running(CASES / "postgres_localised/server.py", encoding, "99") as (port, _):
        environment = Environment(postgres_host="127.0.0.1", postgres_port=port, postgres_password=PASSWORD)
        for said in outcomes(config, environment):
            assert f"127.0.0.1:{port}" in said
            assert "cipher" in said
            assert "dataset.use_query_log=false" in said
            assert PASSWORD not in said


@contextlib.contextmanager
def answering(*messages: bytes) -> Iterator[int]:
    """Listen on a port, send each of the messages to one client after another, and close."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                for message in (*messages, *[messages[-1]] * 99):
                    client, _ = listener.accept()
                    with client:
                        client.settimeout(5)
                        request = client.recv(8)
                        if request[4:] == b"\x04\xd2\x16/":  # SSLRequest
                            client.sendall(b"N")
                            client.recv(8)
                        client.sendall(message)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.close()


def error_message(text: bytes, state: bytes = b"28000") -> bytes:
    body = b"SFATAL\0VFATAL\0C" + state + b"\0M" + text + b"\0\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    "message",
    [
        error_message("密码认证失败".encode("gbk")),
        error_message("пароль".encode("koi8-r")),
        error_message("データベース".encode("euc-jp"), b"3D000"),
        error_message(b"\xff\xfe\x00"),
        error_message(b""),
        error_message(b"the database system is starting up", b"57P03"),
        error_message(b"sorry, too many clients already", b"53300"),
        error_message(b"first line\nsecond line"),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x00" * 40,
        b"",
    ],
)
def test_whatever_answers_is_no_reason_to_go_on_without_the_log(config: Config, message: bytes) -> None:
    with answering(message) as port:
        environment = Environment(postgres_host="127.0.0.1", postgres_port=port, postgres_password=PASSWORD)
        with pytest.raises(UserError) as caught:
            list(read_query_log(settings(config), environment))
    assert not isinstance(caught.value, DatabaseUnreachable)
    assert caught.value.what.strip()
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "/nowhere", "no-such-host.invalid", "@nobody", "a..b", "x" * 70])
def test_nobody_who_answers_is_told_apart(config: Config, host: str) -> None:
    nobody = Environment(postgres_host=host, postgres_port=1)
    with pytest.raises(DatabaseUnreachable):
        connect_to_database(settings(config, connect_timeout_s=2), nobody)


def test_only_without_any_variable_the_stage_goes_on(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(Environment, "postgres_port", port)
    untouched = Environment(postgres_port=port)
    fallbacks = Fallbacks()
    assert read_log(config, untouched, fallbacks) is None
    assert any("no query log" in message for message in fallbacks)
    with pytest.raises(DatabaseUnreachable):
        read_log(config, untouched, fallbacks, is_required=True)
    for named in ({"postgres_user": "me"}, {"postgres_password": "x"}, {"postgres_host": "127.0.0.1"}):
        with pytest.raises(DatabaseUnreachable, match="refused") as caught:
            read_log(config, Environment(**{"postgres_port": port, **named}), fallbacks)
        assert "dataset.use_query_log=false" in str(caught.value)


# ---- a real server --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(new_database) -> dict[str, str]:
    variables = new_database("cipher_analytics", "cipher")
    fill_query_log(variables, count=300, seed=3)
    return variables


@pytest.mark.parametrize(
    ("changes", "message", "variable"),
    [
        ({"POSTGRES_USER": "nobody_here"}, "nobody_here", "POSTGRES_USER"),
        ({"POSTGRES_DB": "no_such_database"}, "no_such_database", "POSTGRES_DB"),
        ({"POSTGRES_DB": "postgresql://cipher@elsewhere/db"}, "does not exist", "POSTGRES_DB"),
    ],
)
def test_a_missing_role_or_database_is_named_with_its_variable(
    config: Config, server: dict[str, str], changes: dict[str, str], message: str, variable: str
) -> None:
    for said in outcomes(config, read_environment({**server, **changes})):
        assert message in said
        assert f"check {variable}" in said


def test_a_server_that_goes_away_while_it_is_read_ends_the_stage(
    config: Config, server: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tool_aware.dataset.query_log.RECONNECT_PAUSE_S", 0.0)
    environment, limited = read_environment(server), settings(config, fetch_size=10)
    connections = [connect_to_database(limited, environment)]

    def connect() -> object:
        if connections:
            return connections.pop()
        raise DatabaseUnreachable("Connection refused")

    records = read_query_log(limited, environment, connect=connect)
    next(records)
    with contextlib.closing(connect_to_database(limited, environment)) as other, other.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND application_name LIKE 'tool-aware%'"
        )
    with pytest.raises(UserError, match="the server is gone") as caught:
        list(records)
    assert not isinstance(caught.value, DatabaseUnreachable)


# ---- PgBouncer ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def pgbouncer(server: dict[str, str], mode: str) -> Iterator[Environment]:
    """Run PgBouncer with its defaults before the server, as another user than root."""
    port, data_folder = free_port(), Path(server["POSTGRES_HOST"])
    owner = data_folder.owner() if os.getuid() == 0 else getpass.getuser()
    if owner == "root":
        owner = "nobody"
    folder = Path(tempfile.mkdtemp(prefix="tool-aware-pgbouncer-"))  # pytest's folders are closed to other users
    target = f"host={data_folder} port={server['POSTGRES_PORT']} user=cipher"
    (folder / "users.txt").write_text('"cipher" "secret-of-the-pool"\n')
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n* = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = plain\nauth_file = {folder / 'users.txt'}\npool_mode = {mode}\ndefault_pool_size = 1\n"
    )
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755)
    executable = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    command = [executable, "-q", *(["-u", owner] if os.getuid() == 0 else []), str(folder / "pgbouncer.ini")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            deadline_s = time.monotonic() + 60
            while not is_listening("127.0.0.1", port, 1.0):
                assert process.poll() is None
                assert time.monotonic() < deadline_s
                time.sleep(0.02)
            variables = {**server, "POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(port)}
            yield read_environment({**variables, "POSTGRES_PASSWORD": "secret-of-the-pool"})
        finally:
            process.kill()
            shutil.rmtree(folder)


@pytest.mark.skipif(shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="needs pgbouncer")
@pytest.mark.parametrize("mode", ["session", "transaction"])
def test_the_log_is_read_through_pgbouncer(config: Config, server: dict[str, str], mode: str) -> None:
    direct = list(read_query_log(config.database, read_environment(server)))
    with pgbouncer(server, mode) as environment:
        paged = settings(config, fetch_size=40)
        assert list(read_query_log(paged, environment)) == direct
        without_id = paged.model_copy(update={"columns": paged.columns.model_copy(update={"id": None})})
        assert list(read_query_log(without_id, environment)) == direct
        (line,) = check_database(config, environment)
        assert line.status == "ok"
        # The pool has one connection: what was set for the log is not there for the next who gets it.
        with contextlib.closing(connect_to_database(settings(config, statement_timeout_s=7), environment)) as own:
            with own.cursor() as cursor:
                cursor.execute("SHOW statement_timeout")
                assert cursor.fetchone() == ("7s",)
                with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
                    cursor.execute("DELETE FROM query_logs")
            own.rollback()
            begin(own, settings(config, statement_timeout_s=8))
            with own.cursor() as cursor:
                cursor.execute("SHOW statement_timeout")
                assert cursor.fetchone() == ("8s",)
        with contextlib.closing(_plain_connection(environment)) as other, other.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("0",)
        wrong = Environment(**{**vars(environment), "postgres_password": "wrong-wrong"})
        missing = Environment(**{**vars(environment), "postgres_db": "no_such_database"})
        for refused in (wrong, missing):
            for said in outcomes(config, refused, connect_timeout_s=2):  # asked again too soon, it waits that long
                assert "dataset.use_query_log=false" in said
                assert "wrong-wrong" not in said


def _plain_connection(environment: Environment) -> psycopg2.extensions.connection:
    return psycopg2.connect(
        host=environment.postgres_host,
        port=environment.postgres_port,
        dbname=environment.postgres_db,
        user=environment.postgres_user,
        password=environment.postgres_password,
    )
