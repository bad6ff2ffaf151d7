"""Planted secrets are replaced, alike in query and call; technical sentences, JSON and code stay as they are."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from tests.fixtures.planted_secrets import DEVELOPED_ON, HELD_OUT, clean_sentences, plants
from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks
from tool_aware.dataset.data_check import check
from tool_aware.dataset.import_report import collect_import
from tool_aware.dataset.redaction import Redactor, SecretInParameter
from tool_aware.dataset.synthesis.remote import paraphrase
from tool_aware.prompt import render_instruction, render_response
from tool_aware.rows import Row, write_rows
from tool_aware.tools import ToolCall

MAIL, PHONE = "jane.roe@" + "mail.example.org", "+49 151 " + "23456789"


@pytest.mark.parametrize("file", [DEVELOPED_ON, HELD_OUT], ids=lambda path: path.stem)
def test_planted_secrets_are_found_in_every_kind(file):
    found, planted, missed = defaultdict(int), Counter(), []
    for plant in plants(file):
        planted[plant.kind] += 1
        survivors = plant.survivors(Redactor().redact(plant.text))
        found[plant.kind] += not survivors
        missed += [(plant.kind, plant.text)] if survivors else []
    assert len(planted) >= 25
    assert sum(found.values()) >= 0.95 * sum(planted.values()), missed
    assert [
        kind for kind in planted if found[kind] < 0.9 * planted[kind] - 1e-9 and planted[kind] - found[kind] > 1
    ] == []


def test_at_most_one_per_cent_of_clean_sentences_is_touched():
    sentences = clean_sentences()
    touched = [text for text in sentences if Redactor().redact(text) != text]
    assert len(sentences) >= 500
    assert len(touched) <= 0.01 * len(sentences), touched


@pytest.mark.parametrize("file", [DEVELOPED_ON, HELD_OUT], ids=lambda path: path.stem)
def test_redacting_twice_changes_nothing_more(file):
    for plant in plants(file):
        once = Redactor().redact(plant.text)
        assert Redactor().redact(once) == once


@pytest.mark.parametrize("file", [DEVELOPED_ON, HELD_OUT], ids=lambda path: path.stem)
def test_json_stays_json(file):
    texts = [plant.text for plant in plants(file)]
    objects = [text for text in texts if text.startswith("{") and _is_json(text)]
    assert objects
    assert [text for text in objects if not _is_json(Redactor().redact(text))] == []


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_a_secret_has_one_placeholder_in_a_row_and_another_row_begins_anew():
    redactor = Redactor()
    first = redactor.redact(f"from {MAIL} to b.{MAIL}, answer to {MAIL}")
    assert first == "from <EMAIL_1> to <EMAIL_2>, answer to <EMAIL_1>"
    assert redactor.redact(f"mail b.{MAIL}") == "mail <EMAIL_1>"
    assert redactor.counts == {"email": 4}
    assert redactor.redact(f"<EMAIL_1> wrote to {MAIL}") == "<EMAIL_1> wrote to <EMAIL_2>"


def test_parameters_are_rewritten_like_the_query_however_a_number_is_written():
    arguments = {"to": PHONE.replace(" ", ""), "note": ["by", {"mail": MAIL.upper()}], "password": "swordfish"}
    query = f"text {PHONE}, mail {MAIL}, my password is swordfish"
    query, arguments = Redactor().redact_call(query, arguments)
    assert query == "text <PHONE_1>, mail <EMAIL_1>, my password is <PASSWORD_1>"
    assert arguments == {"to": "<PHONE_1>", "note": ["by", {"mail": "<EMAIL_1>"}], "password": "<PASSWORD_1>"}


@pytest.mark.parametrize(
    ("query", "arguments"),
    [
        ("charge my card 4111 1111 1111 1111", {"card": 4111111111111111}),
        (f"which domain has {MAIL}?", {"domain": "mail.example.org"}),
        ("set the pin", {"pin": 4821}),
    ],
)
def test_a_call_that_cannot_be_rewritten_exactly_is_refused(query, arguments):
    with pytest.raises(SecretInParameter):
        Redactor().redact_call(query, arguments)


@pytest.mark.parametrize(
    "repeated",
    ["a", "1", "1 ", "a.", "a@b.", "eyJ-", "-----BEGIN A PRIVATE KEY-----", "://a:", 'password="', "token=",
     "01 23 45 ",
     "PuTTY-User-Key-File-2", "4111 1111 ", "0612345678,", "cookie: a=b; ", "password is ", "ssn 1", "mysql -p"],
)  # fmt: skip
def test_the_time_grows_with_the_length_and_no_faster(repeated):
    def seconds(characters: int) -> float:
        text = repeated * (characters // len(repeated))
        started = time.process_time()
        Redactor().redact(text)
        return time.process_time() - started

    # A busy machine makes single runs longer, never shorter.
    least_s = max(min(seconds(10_000) for _ in range(3)), 0.01)
    assert any(seconds(40_000) <= 12 * least_s for _ in range(3))


# ---- every way in ---------------------------------------------------------------------------------------------


def test_an_import_is_redacted_in_rows_files_and_messages(tmp_path: Path, config: Config, capsys):
    tool = {"name": "send", "description": "Send a text.", "parameters": {"type": "object", "properties": {
        "to": {"type": "string"}, "text": {"type": "string"}}, "required": ["to"]}}  # fmt: skip
    secret = "hunter2" + "!xY"
    lines = [
        {"query": f"send {number} to {MAIL}: my password is {secret}", "tools": [tool],
         "answers": [{"name": "send", "arguments": {"to": MAIL, "text": f"my password is {secret}"}}]}
        for number in range(12)
    ]  # fmt: skip
    lines.append({"query": f"to {PHONE}", "tools": [tool], "answers": [{"name": f"none {MAIL}", "arguments": {}}]})
    source = tmp_path / "calls.jsonl"
    source.write_text("\n".join(map(json.dumps, lines)))
    collected = collect_import(source, config, REPOSITORY / "config.yaml", Fallbacks())
    row = collected.rows[0]
    assert row.answer.call.parameters == {"to": "<EMAIL_1>", "text": "my password is <PASSWORD_1>"}
    assert row.query.endswith("to <EMAIL_1>: my password is <PASSWORD_1>")
    assert collected.redacted.keys() == {"email", "password", "phone"}
    written = repr(collected) + "".join(capsys.readouterr())
    assert [part for part in (secret, MAIL, PHONE) if part in written] == []


def test_paraphrases_are_redacted_but_for_what_the_toolkit_made_up_itself(tmp_path: Path, config: Config):
    tools = config.toolbox
    call = ToolCall("rag_retrieval", {"query": "leave of ann@corp.example.com"}, "It is in the documents.")
    row = Row(render_instruction("leave of ann@corp.example.com", tools), render_response(call), {"tool": call.tool})
    reply = {"query": f"how much leave has ann@corp.example.com, tell {MAIL}", "tool": call.tool, "reasoning": MAIL,
             "parameters": {"query": f"leave of ann@corp.example.com, tell {MAIL}"}}  # fmt: skip
    answers = iter([json.dumps([reply]), row.response])
    made = paraphrase([row], [], tools, lambda _: next(answers), tmp_path / "journal.jsonl", wanted=1)
    assert made.rows[0].query == "how much leave has ann@corp.example.com, tell <EMAIL_1>"
    assert made.rows[0].answer.call.parameters == {"query": "leave of ann@corp.example.com, tell <EMAIL_1>"}
    assert MAIL not in (tmp_path / "journal.jsonl").read_text()


def test_check_warns_of_rows_that_hold_secrets_without_showing_them(tmp_path: Path, config: Config, capsys):
    queries = [
        f"mail {MAIL} about leave {number}" if number == 2 else f"find report {number}" for number in range(1, 5)
    ]
    rows = [
        Row(
            render_instruction(query, config.toolbox),
            render_response(ToolCall("rag_retrieval", {"query": query}, "It is.")),
            {},
        )
        for query in queries
    ]
    write_rows(tmp_path / "train.json", rows)
    check(tmp_path / "train.json", config, None)
    warned = capsys.readouterr().err
    assert "1 rows hold what looks like secrets or personal data (email 2): rows 2" in warned
    assert MAIL not in warned
