"""Logged rows that become training rows, or are counted by reason."""

from __future__ import annotations

import json

import pytest

from tool_aware.config.settings import Config
from tool_aware.dataset.curation import code_in, curate
from tool_aware.dataset.log_records import LogRecord


def test_whatever_a_logged_row_holds_curation_counts_it(config: Config) -> None:
    texts = [
        "half \ud83d of it", "nul \x00 byte", "x" * 1_000_000,
        "\u0647\u0644 \u0644\u062f\u064a\u0646\u0627", "\u202eabc", "?!...", "\U0001f44d",
        "\n\n", "1\n" + " " * 990 + "-" + " " * 990 + "x", "(" * 1900, "9" * 1900 + " ** 2", "2 (3) + 4",
        "```python\n```",
        "1" + "+1" * 900, "{evidence} {0} %s", "e\u0301" * 500, "\ufdd0", "\U000e0041", "a\u2028b", "- " * 900,
        "1.1.1.1 " * 200, "DE" + "0 " * 900, "a@" * 900, "+" * 1999, "\\" * 1999, '"' * 1999,
    ]  # fmt: skip
    sessions = [None, "\ud83d", "s" * 100_000, "s1"]
    for tool in (*config.toolbox.names, "no such\ud83d", "", None):
        records = [LogRecord(text, tool, True, 0.9, session=sessions[number % 4]) for number, text in enumerate(texts)]
        result = curate(records, config.toolbox, config.database.filters, max_per_session=9)
        assert result.read == len(texts)
        json.dumps([row.response for row in result.rows], ensure_ascii=False).encode()
        json.dumps(result.to_label, ensure_ascii=False).encode()


def test_text_without_a_word_is_left_out(config: Config) -> None:
    records = [LogRecord(text, "web_search", True, 0.9) for text in ("???", "!", "...")]
    assert curate(records, config.toolbox, config.database.filters, max_per_session=9).rejected == {"no_words": 3}


@pytest.mark.parametrize("text", ["1(2) + 3 is", "(" * 150 + "1+1" + ")" * 150, "9" * 900 + "**" + "9" * 900])
def test_an_expression_that_python_refuses_is_no_code(text: str, recwarn: pytest.WarningsRecorder) -> None:
    code_in(text)
    assert not recwarn.list
