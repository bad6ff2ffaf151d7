"""Secrets in whatever spelling are replaced by stars; words that are like them are not."""

from __future__ import annotations

import base64
import html
import json
import subprocess
import sys
import urllib.parse
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.repository import REPOSITORY
from tool_aware import secret_values
from tool_aware.secret_values import keep_environment_secrets, keep_secret, keep_url_secrets, redacted, without_login


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()


def forget() -> None:
    secret_values._spellings.clear()
    secret_values._patterns.clear()


WRITTEN: dict[str, Callable[[str], str]] = {
    "plain": str,
    "header": lambda secret: f"b'Bearer {secret}'",
    "repr": repr,
    "repr_of_bytes": lambda secret: repr(secret.encode()),
    "ascii": ascii,
    "json": json.dumps,
    "quoted": lambda secret: urllib.parse.quote(secret, safe=""),
    "quoted_plus": urllib.parse.quote_plus,
    "html": html.escape,
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "basic": lambda secret: base64.b64encode(f"user:{secret}".encode()).decode(),
    "basic_api": lambda secret: base64.b64encode(f"api:{secret}".encode()).decode(),
    "mojibake": lambda secret: secret.encode().decode("latin-1"),
}


@pytest.mark.parametrize("written", WRITTEN)
@given(secret=st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=12, max_size=60))
def test_a_secret_is_replaced_in_every_spelling(written: str, secret: str) -> None:
    forget()
    keep_secret(secret)
    text = WRITTEN[written](secret)
    shown = redacted(f"failed: {text}, try again")
    assert "***" in shown
    assert secret not in shown
    if not secret.isdigit():
        assert text not in shown


@pytest.mark.parametrize("secret", ["hunter2!", "hf_abc", "pass", "a-b_c.d~e"])
def test_a_short_secret_is_replaced_as_a_word(secret: str) -> None:
    keep_secret(secret)
    assert redacted(f'FATAL: "{secret}" http://u:{secret}@host Bearer {secret}\n') == (
        'FATAL: "***" http://u:***@host Bearer ***\n'
    )


@pytest.mark.parametrize("secret", ["x", "42", "a"])
def test_a_secret_of_one_to_three_characters_turns_no_message_into_stars(secret: str) -> None:
    keep_secret(secret)
    text = "step 42: a box of 42 x 42 is 'a' table"
    assert redacted(text) == text
    assert redacted(f"http://u:{secret}@h, Bearer {secret}, password={secret}") == (
        "http://u:***@h, Bearer ***, password=***"
    )


def test_words_that_hold_a_short_secret_stay() -> None:
    keep_secret("test")
    assert redacted("the latest tests are in test.json") == "the latest tests are in ***.json"


@pytest.mark.parametrize("value", ["true", "0", "False", "", " ", "none"])
def test_a_switch_whose_name_ends_like_that_of_a_secret_is_none(value: str) -> None:
    keep_environment_secrets({"HF_HUB_DISABLE_IMPLICIT_TOKEN": value, "TOKENIZERS_PARALLELISM": "false"})
    assert redacted("true 0 False none false") == "true 0 False none false"


def test_variables_that_libraries_read_are_known_by_their_names() -> None:
    environ = {
        "HUGGING_FACE_HUB_TOKEN": "hf_0123456789",
        "PGPASSWORD": "pg-0123456789",
        "AWS_SECRET_ACCESS_KEY": "aws-0123456789",
        "HTTPS_PROXY": "http://me:proxy-0123456789@proxy:3128",
        "DATABASE_URL": "postgresql://reader:p%40ss-0123456789@db/logs",
    }
    keep_environment_secrets(environ)
    shown = redacted(" ".join([*environ.values(), "p@ss-0123456789"]))
    assert "0123456789" not in shown
    assert "proxy:3128" in shown
    assert "reader" in shown


def test_a_password_that_equals_the_user_name_is_not_replaced() -> None:
    keep_environment_secrets({"POSTGRES_USER": "postgres", "POSTGRES_PASSWORD": "postgres"})
    assert redacted("postgres@localhost:5432/postgres") == "postgres@localhost:5432/postgres"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://u:p@h:8/v1?key=abc#x", "http://h:8/v1"),
        ("https://0123456789abcdef0@h/v1", "https://h/v1"),
        ("http://h/v1", "http://h/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("http://[broken", "a URL that cannot be read"),
    ],
)
def test_an_address_is_shown_without_its_login(url: str, shown: str) -> None:
    assert without_login(url) == shown


def test_the_login_of_an_address_is_a_secret_in_each_form() -> None:
    keep_url_secrets("http://me:pa/ss-0123456789@host/v1")
    shown = redacted("pa/ss-0123456789 pa%2Fss-0123456789 " + base64.b64encode(b"me:pa/ss-0123456789").decode())
    assert "0123456789" not in shown
    assert shown.count("***") >= 3


PROGRAM = """
import logging, os, sys, threading, warnings
from tool_aware.command_line import script_parser
from tool_aware.console import Fallbacks, UserError, run, say, warn
from tool_aware.secret_values import keep_secret
SECRET = os.environ.get("MY_TOKEN", "given-later-0123")
def main():
    keep_secret(SECRET)
    thread = threading.Thread(target=lambda: 1 / len(SECRET[:0]) if not SECRET else int(SECRET))
    thread.start(); thread.join()
    say(SECRET); warn(SECRET); print("result", SECRET); warnings.warn(SECRET); logging.warning(SECRET)
    sys.stderr.writelines([SECRET, "\\n"])
    notes = Fallbacks(); notes.add(SECRET); assert SECRET not in str(list(notes))
    END
run(main)
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("raise UserError(SECRET, where=SECRET, fix=SECRET)", 2),
        ("raise RuntimeError(f'Illegal header value {SECRET.encode()!r}')", 1),
        ("raise FileNotFoundError(2, 'not found', f'/home/{SECRET}')", 2),
        ("script_parser('x').parse_args(['--bogus', SECRET])", 2),
        ("try:\n        int(SECRET)\n    except ValueError as error:\n        raise KeyError(SECRET) from error", 1),
        ("return 0", 0),
    ],
)
@pytest.mark.parametrize("secret", ["hf_0123456789abcdef", "x'y\"z\\0123456789"])
def test_whoever_prints_no_secret_is_shown(end: str, code: int, secret: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("END", end)],
        cwd=REPOSITORY, env={"MY_TOKEN": secret, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == code, result.stderr
    assert "0123456789" not in result.stdout + result.stderr
    assert result.stdout == "result ***\n"
