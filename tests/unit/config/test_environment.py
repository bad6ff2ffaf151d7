"""Values of the environment and of .env: stripped, checked once, named and never shown."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from tests.fixtures.repository import CASES
from tool_aware.config import environment as environment_module
from tool_aware.config.dotenv_file import read_dotenv
from tool_aware.config.environment import Environment, read_environment
from tool_aware.console import UserError

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY")
VARIABLES = tuple(environment_module._CHECKS)
CORE = "s3cretVALUE0987654321"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and an environment that forgets what is set during the test."""
    kept = {name: value for name, value in os.environ.items() if name not in (*VARIABLES, "PGHOST", "DATABASE_URL")}
    kept["HF_HOME"] = str(tmp_path / "hf")
    monkeypatch.setattr(os, "environ", kept)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize(
    "form", ["{}\n", "{}\r\n", " {}\t", '"{}"', "'{}'\n", "\ufeff{}", "{}\u200b", "\n\n{}", "\xa0{}"]
)
def test_what_copying_adds_to_a_token_is_stripped_for_the_libraries_too(folder: Path, name: str, form: str) -> None:
    os.environ[name] = form.format(CORE)
    environment = read_environment()
    assert getattr(environment, name.lower(), CORE) == CORE
    assert os.environ[name] == CORE


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize(
    "form",
    ["{0}\n{0}", "{0}\r{0}", "{0}\x00{0}", "{0}\x1b[31m", "{0}\udce9", "“{0}”", "{0} {0}", "{0}é", "http://u:{0}@h:x/",
     "postgres://u:{0}@h/db", "{0}\u2028{0}", "tcp://{0}:5432", "[{0}", "{0}@{0}", "{0}" * 500],
)  # fmt: skip
def test_no_message_shows_a_value(name: str, form: str) -> None:
    said = outcome({name: form.format(CORE)})
    if isinstance(said, UserError):
        assert name in str(said)
        assert CORE not in str(said) + repr(said.__cause__) + repr(said.__context__)
    elif name in ("POSTGRES_PASSWORD", "OPENAI_BASE_URL", *TOKENS):
        assert CORE not in repr(said)


def outcome(environ: dict[str, str]) -> Environment | UserError:
    try:
        return read_environment(environ)
    except UserError as error:
        return error


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\x7f", " ", "é", "”", "\u2028", "\udcff", "键"])
def test_a_token_with_a_character_that_no_header_takes_is_refused_by_name(name: str, character: str) -> None:
    with pytest.raises(UserError, match=name) as caught:
        read_environment({name: f"{CORE}{character}{CORE}"})
    assert CORE not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["p@ss:w/rd#% '\"é$HOME${X}", " leading", "trailing ", '"quoted"', "tab\u3000", "пароль"]
)
def test_a_password_may_be_anything_that_can_be_typed(value: str) -> None:
    assert read_environment({"POSTGRES_PASSWORD": value}).postgres_password == value
    assert read_environment({"POSTGRES_PASSWORD": f"{value}\r\n"}).postgres_password == value


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError) as caught:
        read_environment({"POSTGRES_PORT": "http", "USE_WANDB": "maybe", "HF_TOKEN": "hf_é"})
    assert all(name in str(caught.value) for name in ("POSTGRES_PORT", "USE_WANDB", "HF_TOKEN", "3 problems"))


@pytest.mark.parametrize(
    ("value", "expected"), [("on", True), ("ON", True), ("y", True), ("1 ", True), ("off", False), ("", False)]
)
def test_a_switch_has_its_usual_spellings(value: str, expected: bool) -> None:
    assert read_environment({"USE_WANDB": value}).use_wandb is expected


@pytest.mark.parametrize("value", ["tcp://10.96.0.12:5432", "٥٤٣٢", "5432.0", "-1", "0", "99999999999999", "5432 5433"])
def test_a_port_is_a_number(value: str) -> None:
    with pytest.raises(UserError, match="POSTGRES_PORT"):
        read_environment({"POSTGRES_PORT": value})


@pytest.mark.parametrize("value", ["::1", "db.example.com", "/run/x", "db1,db2", "10.0.0.7", "münchen.example"])
def test_hosts_of_all_kinds_are_taken(value: str) -> None:
    assert read_environment({"POSTGRES_HOST": f" {value} "}).postgres_host == value


def test_what_the_documentation_writes_in_place_of_a_value_is_no_value() -> None:
    environment = read_environment(
        {"POSTGRES_HOST": "localhost", "POSTGRES_PORT": "5432", "POSTGRES_DB": "cipher_analytics",
         "POSTGRES_USER": "cipher", "POSTGRES_PASSWORD": "your_password", "HF_TOKEN": "your_huggingface_token_here"}
    )  # fmt: skip
    assert environment == Environment()
    assert not environment.names_a_database
    assert read_environment({"POSTGRES_PASSWORD": "x"}).names_a_database


# ---- .env -------------------------------------------------------------------------------------------------


def read_case(name: str, folder: Path) -> Environment:
    shutil.copy(CASES / f"dotenv/{name}.txt", folder / ".env")
    return read_environment()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plain", {"postgres_host": "db.example.internal", "postgres_port": 6543, "postgres_password": "secret"}),
        ("bom", {"postgres_host": "db.example.internal", "postgres_db": "logs"}),
        ("crlf", {"postgres_host": "db.example.internal", "postgres_password": "secret"}),
        ("utf16", {"postgres_host": "db.example.internal", "postgres_password": "secret"}),
        ("password", {"postgres_password": "p@ss:w/rd#% '\"\\é$HOME${X}"}),
        ("wandb", {"use_wandb": True}),
        ("wandb_empty", {"use_wandb": False}),
        ("pg", {"postgres_host": "localhost"}),
        ("url", {"postgres_host": "localhost"}),
    ],
)
def test_a_dotenv_file_is_read_as_it_is_written(name: str, expected: dict, folder: Path) -> None:
    environment = read_case(name, folder)
    assert {key: getattr(environment, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("broken", [".env:1"]),
        ("comment_port", ["POSTGRES_HOST (.env:2)"]),
        ("dollar", ["POSTGRES_HOST (.env:1)"]),
        ("export_quotes", [".env:4", "POSTGRES_USER"]),
        ("k8s", ["POSTGRES_PORT (.env:1)", "Kubernetes"]),
    ],
)
def test_a_line_that_sets_nothing_is_named(name: str, places: list[str], folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_case(name, folder)
    assert all(place in str(caught.value) for place in places)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"A=1\n\nPOSTGRES_PASSWORD=%s\xe9\n" % CORE.encode(), ".env:3"),
        (b"A=1\nPOSTGRES_PASSWORD=%s\0x\n" % CORE.encode(), ".env:2"),
        (b"A=1\n\n\nPOSTGRES_PASSWORD='%s\n" % CORE.encode(), ".env:4"),
        (b"HF_TOKEN='%s' %s\n" % (CORE.encode(), CORE.encode()), ".env:1"),
        (b"\n%s\n" % CORE.encode(), ".env:2"),
        (b"HF_TOKEN: %s\n" % CORE.encode(), ".env:1"),
        (b"POSTGRES_PASSWORD %s\n" % CORE.encode(), ".env:1"),
        (b"{\"HF_TOKEN\": \"%s\"}\n" % CORE.encode(), ".env:1"),
        (b"HF-TOKEN!=%s\n" % CORE.encode(), ".env:1"),
        (b"=%s\n" % CORE.encode(), ".env:1"),
        (b'Environment="POSTGRES_PASSWORD=%s"\n' % CORE.encode(), ".env:1"),
        (b"\xff\xfe" + f"HF_TOKEN={CORE}".encode("utf-16-le") + b"\0", ".env:"),
        (b"\x1f\x8b\x08\0" + CORE.encode(), ".env"),
        (b"<html>HF_TOKEN=%s" % CORE.encode(), ".env"),
    ],
)  # fmt: skip
def test_a_broken_dotenv_file_is_one_message_without_what_it_holds(folder: Path, content: bytes, place: str) -> None:
    (folder / ".env").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_environment()
    assert place in str(caught.value)
    assert CORE not in str(caught.value)


def test_a_variable_of_another_name_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"POSTGRES_PASS={CORE}", "postgres_host=db", "POSTGRES_DATABASE=x", "POSTGRES_DB=y", "OTHER=1"]
    (folder / ".env").write_text("\n".join(lines))
    assert read_environment().postgres_password is None
    said = capsys.readouterr().err
    assert ".env:1: POSTGRES_PASS is not read; POSTGRES_PASSWORD is" in said
    assert ".env:2: postgres_host is not read; POSTGRES_HOST is" in said
    assert ".env:3" not in said
    assert CORE not in said


def test_a_host_with_its_port_is_told_where_the_port_goes() -> None:
    with pytest.raises(UserError, match="the port in POSTGRES_PORT"):
        read_environment({"POSTGRES_HOST": "db.example.org:6543"})
    assert read_environment({"POSTGRES_HOST": "::1"}).postgres_host == "::1"


def test_a_secret_cut_at_a_comment_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".env").write_text(f"POSTGRES_PASSWORD={CORE} #1\nPOSTGRES_PORT=6543 # pooled\n")
    assert read_environment().postgres_password == CORE
    said = capsys.readouterr().err
    assert ".env:1: POSTGRES_PASSWORD" in said
    assert ".env:2" not in said
    assert CORE not in said


def test_a_folder_named_dotenv_is_told_unless_it_is_a_virtual_environment(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ".env").mkdir()
    assert read_environment() == Environment()
    assert ".env is a folder" in capsys.readouterr().err
    (folder / ".env/pyvenv.cfg").touch()
    read_environment()
    assert not capsys.readouterr().err


def test_a_pipe_that_a_password_manager_provides_is_read(folder: Path) -> None:
    os.mkfifo(folder / ".env")
    if os.fork() == 0:
        (folder / ".env").write_text(f"POSTGRES_PASSWORD='{CORE} #'\n")
        os._exit(0)
    assert read_environment().postgres_password == f"{CORE} #"
    os.wait()


def test_no_dotenv_file_is_no_variable(tmp_path: Path) -> None:
    assert read_dotenv(tmp_path / ".env") == {}
    (tmp_path / ".env").symlink_to("/nowhere")
    assert read_dotenv(tmp_path / ".env") == {}


def test_every_variable_that_is_read_is_checked() -> None:
    fields = {name.upper() for name in Environment.__dataclass_fields__}
    assert fields <= set(VARIABLES)
    assert all(re.fullmatch("[A-Z_]+", name) for name in VARIABLES)
