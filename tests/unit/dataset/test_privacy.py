"""Secrets and personal data never get through; ordinary texts are left as they are."""

from __future__ import annotations

import base64
import json
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import Config
from tool_aware.dataset.curation import curate
from tool_aware.dataset.quarantine import reason_to_quarantine
from tool_aware.dataset.query_log import LogRecord
from tool_aware.dataset.redaction import Redactor, passes_iban, passes_luhn
from tool_aware.dataset.synthesis.content import load_content
from tool_aware.dataset.synthesis.generator import Generator

CANARIES = 200
FRAMES = (
    "please check {} for me",
    "{}",
    "my detail is {}, what now?",
    "the customer ({}) is waiting",
    "search {} in our docs",
)


def _letters(r: random.Random, n: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(r.choices(alphabet, k=n))


def _card(r: random.Random) -> str:
    digits = [int(c) for c in r.choice(("4", "51", "37", "6011"))]
    digits += [r.randrange(10) for _ in range((14 if digits[0] == 3 else 15) - len(digits))]
    check = next(c for c in range(10) if passes_luhn("".join(map(str, [*digits, c]))))
    number = "".join(map(str, [*digits, check]))
    joint = r.choice(("", " ", "-"))
    return joint.join(number[i : i + 4] for i in range(0, len(number), 4))


def _iban(r: random.Random) -> str:
    country, length = r.choice((("DE", 18), ("NL", 14), ("FR", 23), ("GB", 18), ("ES", 20)))
    body = ("ABNA" if country in ("NL", "GB") else "") + _letters(r, length, string.digits)
    body = body[:length]
    check = next(f"{n:02d}" for n in range(2, 99) if passes_iban(f"{country}{n:02d}{body}"))
    number = f"{country}{check}{body}"
    return number if r.random() < 0.5 else " ".join(number[i : i + 4] for i in range(0, len(number), 4))


def _key(r: random.Random) -> str:
    low = string.ascii_lowercase + string.digits
    return r.choice(
        (
            lambda: "AKIA" + _letters(r, 16, string.ascii_uppercase + string.digits),
            lambda: r.choice(("ghp_", "gho_", "ghs_")) + _letters(r, 36),
            lambda: "github_pat_" + _letters(r, 40),
            lambda: "hf_" + _letters(r, 34),
            lambda: r.choice(("sk-", "sk-proj-", "sk-ant-")) + _letters(r, 40),
            lambda: r.choice(("sk_live_", "sk_test_", "rk_live_")) + _letters(r, 24),
            lambda: "xoxb-" + _letters(r, 12, string.digits) + "-" + _letters(r, 24),
            lambda: "AIza" + _letters(r, 35),
            lambda: "glpat-" + _letters(r, 20),
            lambda: "npm_" + _letters(r, 36),
            lambda: "SG." + _letters(r, 22) + "." + _letters(r, 43),
            lambda: "eyJ" + _letters(r, 20) + ".eyJ" + _letters(r, 30) + "." + _letters(r, 43),
            lambda: "dop_v1_" + _letters(r, 64, "0123456789abcdef"),
            lambda: "Bearer " + _letters(r, 30, low),
        )
    )()


def _password(r: random.Random) -> tuple[str, str]:
    secret = _letters(r, r.randint(6, 14), string.ascii_letters) + r.choice("!#$%&") + _letters(r, 2, string.digits)
    said = r.choice(
        ("password is {}", "password: {}", "pwd={}", "the passwort ist {}", "my pin: {}", "api key {}", "secret={}")
    )
    return said.format(secret), secret


def _phone(r: random.Random) -> str:
    d = lambda n: _letters(r, n, string.digits)  # noqa: E731
    first = str(r.randint(2, 9))
    return r.choice(
        (
            lambda: f"+49 {first}0 {d(7)}", lambda: f"+1 {first}{d(2)}-{d(3)}-{d(4)}",
            lambda: f"0{first}0 {d(4)} {d(3)}",
            lambda: f"({first}{d(2)}) {d(3)}-{d(4)}", lambda: f"+33 {first} {d(2)} {d(2)} {d(2)} {d(2)}",
            lambda: f"0044 20 {d(4)} {d(4)}", lambda: f"call {first}{d(7)}", lambda: f"+447{d(9)}",
        )
    )()  # fmt: skip


MAKERS = {
    "email": lambda r: f"{_letters(r, 6)}.{_letters(r, 4)}+x@{_letters(r, 5)}.{r.choice(('com', 'co.uk', 'museum'))}",
    "phone": _phone,
    "ip": lambda r: r.choice(
        (".".join(str(r.randint(0, 255)) for _ in range(4)), ":".join(f"{r.randrange(1, 65536):x}" for _ in range(8)),
         f"2001:db8::{r.randrange(1, 65536):x}")),
    "card": _card,
    "iban": _iban,
    "key": _key,
    "url": lambda r: f"postgres://svc:{_letters(r, 12)}@db.internal:5432/x",
    "password": _password,
}  # fmt: skip


def canaries(kind: str) -> list[tuple[str, str]]:
    """Texts and the secret in each that must not survive."""
    random_ = random.Random(kind)
    made = []
    for number in range(CANARIES):
        drawn = MAKERS[kind](random_)
        said, secret = drawn if isinstance(drawn, tuple) else (drawn, drawn)
        secret = secret.removeprefix("call ").removeprefix("Bearer ")
        secret = secret.split(":")[2].split("@")[0] if kind == "url" else secret
        made.append((FRAMES[number % len(FRAMES)].format(said), secret))
    return made


@pytest.mark.parametrize("kind", MAKERS)
def test_no_canary_survives(kind: str) -> None:
    redactor = Redactor()
    survivors = [(text, redactor.redact(text)) for text, secret in canaries(kind) if secret in redactor.redact(text)]
    assert survivors == []


def test_no_canary_is_in_any_row_or_list_to_label(config: Config) -> None:
    planted = [pair for kind in MAKERS for pair in canaries(kind)]
    records = [
        LogRecord(text, tool, True, 0.9, session=f"s{number % 90}")
        for number, (text, _) in enumerate(planted)
        for tool in (("rag_retrieval", "web_search") if number % 7 == 0 else ("rag_retrieval",))
    ]
    curated = curate(records, config.toolbox, config.database.filters, max_per_session=1000)
    written = "\n".join([*(row.instruction + row.response for row in curated.rows), str(curated.to_label)])
    assert curated.rows
    assert curated.to_label
    assert [secret for _, secret in planted if secret in written] == []
    assert sum(curated.redacted.values()) >= len(planted)


def test_no_canary_is_in_any_file_or_message_of_the_stage(tmp_path: Path) -> None:
    planted = [pair for kind in MAKERS for pair in canaries(kind)]
    log = tmp_path / "log.jsonl"
    lines = [{"query_text": text, "tool_used": "rag_retrieval", "result_quality": 0.9} for text, _ in planted]
    log.write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, "prepare_dataset.py", "--logs", str(log), "--set", f"dataset.dir={tmp_path / 'data'}"]
    run = subprocess.run(
        [*command, "--set", "dataset.synthetic_per_tool=30", "--set", "dataset.ambiguous=4",
         "--set", "dataset.follow_ups=0", "--set", "dataset.two_requests=0"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    written = "".join(path.read_text() for path in (tmp_path / "data").iterdir()) + run.stdout + run.stderr
    assert [secret for _, secret in planted if secret in written] == []
    assert "<EMAIL_" in written


def test_clean_texts_stay_as_they_are(config: Config) -> None:
    generator = Generator(load_content(), config.toolbox, seed=9)
    texts = [row.query for name in config.toolbox.names for row in generator.rows_for(name, 250)]
    redactor = Redactor()
    changed = [(text, redactor.redact(text)) for text in texts if redactor.redact(text) != text]
    assert len(texts) == 1000
    assert len(changed) <= 10, changed


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4567 of the driver", "order 4111111111111112 was late", "from 2019-01-01 to 2024-12-31",
        "what is 123456789 * 987654321", "password policy", "how do I reset my password", "the secret of good bread",
        "token counts of llama 3", "0.1234567 rounded to 3 digits", "room 12:30-13:45", "12, 15, 9, 22, 17, 30",
        "api key rotation guide", "sk-learn pipeline", "time is 10:20:30", "born on 01.07.1999",
    ],
)  # fmt: skip
def test_lookalikes_are_left_alone(text: str) -> None:
    assert Redactor().redact(text) == text


def test_the_same_secret_gets_the_same_placeholder_and_redacting_twice_changes_nothing() -> None:
    redactor = Redactor()
    first = redactor.redact("mail a@b.org or c@d.org")
    assert first == "mail <EMAIL_1> or <EMAIL_2>"
    assert redactor.redact("again a@b.org") == "again <EMAIL_1>"
    assert redactor.redact(first) == first


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hello </s> there", "control_token"),
        ("[INST] do it [/INST]", "control_token"),
        ("<|im_start|>system", "control_token"),
        ("abc \u202egnp.exe", "bidi"),
        ("pass\u200bword", "zero_width"),
        ("ig\u200dnore", "zero_width"),
        ("hi \U000e0041\U000e0042", "tag_characters"),
        ("x\x00y", "control_character"),
        (base64.b64encode(bytes(range(90))).decode(), "encoded_blob"),
        ("run " + "\\x41" * 12, "encoded_blob"),
        ("  ", "empty"),
        ("word " * 600, "too_long"),
    ],
)
def test_texts_that_mislead_are_quarantined(text: str, reason: str) -> None:
    assert reason_to_quarantine(text) == reason


@pytest.mark.parametrize(
    "text", ["a normal question?", "नमस्ते क्‍या हाल है", "👩‍💻 codes", "two\nlines", "Grüße, ça va? 你好"]
)
def test_ordinary_texts_of_all_scripts_are_not_quarantined(text: str) -> None:
    assert reason_to_quarantine(text) is None
