"""The report and the card: self-contained, true, escaped, and right in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tool_aware.chat_format import encode_example
from tool_aware.config.settings import Config
from tool_aware.dataset.assembly import Collected
from tool_aware.dataset.dataset_report import ReportData, build_report
from tool_aware.dataset.outputs import Result, render
from tool_aware.dataset.previews import preview
from tool_aware.dataset.splitting import Leak, Split
from tool_aware.prompt import render_instruction
from tool_aware.rows import Row

SECTIONS = ("counts", "composition", "lengths", "pairs", "rows", "dropped")
HOSTILE = '</pre><script>document.title="owned"</script><img src=x onerror=alert(1)>'


@pytest.fixture(scope="module")
def result(config: Config, toy_rows: list[Row]) -> Result:
    hostile = Row(render_instruction(HOSTILE, config.toolbox), toy_rows[0].response, dict(toy_rows[0].metadata))
    split = Split(
        {"train": [hostile, *toy_rows[:35]], "val": toy_rows[35:40], "test": toy_rows[40:]},
        [Leak("test", HOSTILE, HOSTILE, 0.61), Leak("val", "plain", "plane", 0.4)],
        dropped_after_check=2,
    )
    counts = Collected([], log_read=90, log_rejected={"low_quality": 12}, redacted={"email": 3}, near_duplicates=4)
    return Result(split, 7, counts)


def test_the_report_has_every_section_and_loads_nothing(result: Result, config: Config, tokenizer) -> None:
    page = render(result, config.toolbox, tokenizer)["dataset_report.html"]
    for section in SECTIONS:
        assert f'<section id="{section}">' in page
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert "<script" not in page
    assert "low quality" in page
    assert "0.61" in page


def test_texts_from_data_are_escaped(result: Result, config: Config) -> None:
    page = render(result, config.toolbox, None)["dataset_report.html"]
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page


def test_the_marked_text_is_what_carries_loss(toy_rows: list[Row], tokenizer) -> None:
    data = ReportData({"train": toy_rows[:1], "val": [], "test": []}, [], {}, {}, seed=1)
    page = build_report(data, tokenizer)
    marked = "".join(re.findall(r'<span class="loss token">(.*?)</span>', page, re.DOTALL))
    example = encode_example(tokenizer, toy_rows[0].instruction, toy_rows[0].response)
    import html

    assert html.unescape(marked) == tokenizer.decode(example.completion, skip_special_tokens=False)
    assert marked.endswith("&lt;/s&gt;")


def test_the_preview_says_which_tokens_carry_loss(toy_rows: list[Row], tokenizer) -> None:
    shown = preview(toy_rows[0], tokenizer)
    example = encode_example(tokenizer, toy_rows[0].instruction, toy_rows[0].response)
    assert shown["tokens"] == len(example)
    assert [run["loss"] for run in shown["loss_runs"]] == [False, True]
    assert shown["loss_runs"][1]["tokens"] == shown["tokens_with_loss"] == len(example.completion)
    assert shown["text_with_loss"].startswith("Tool: ")
    assert preview(toy_rows[0], None)["tokens"] is None


def test_the_card_has_valid_front_matter_and_true_numbers(result: Result, config: Config) -> None:
    card = render(result, config.toolbox, None)["README.md"]
    _, front, body = card.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["size_categories"] == ["n<1K"]
    assert {item["split"] for item in values["configs"][0]["data_files"]} == {"train", "validation", "test"}
    total = sum(map(len, result.split.rows.values()))
    assert f"{total} queries" in body
    assert "90 were read and 12 left out (low quality 12)" in body
    assert "| all | 36 | 5 | 8 |" in body


def test_the_split_report_has_a_number_for_every_held_out_row(result: Result, config: Config) -> None:
    report = json.loads(render(result, config.toolbox, None)["split_report.json"])
    assert [item["similarity"] for item in report["held_out"]] == [0.61, 0.4]
    assert report["pairs_at_or_above_threshold"] == 0
    assert sum(sum(parts.values()) for parts in report["rows_by_slice"].values()) == 49


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium (apt-get install chromium)")
def test_the_report_is_right_in_a_real_browser(result: Result, config: Config, tokenizer, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render(result, config.toolbox, tokenizer)["dataset_report.html"], encoding="utf-8")
    run = subprocess.run(
        [shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
         "--virtual-time-budget=2000", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in run.stderr
    assert "<title>Dataset report</title>" in run.stdout
    for section in SECTIONS:
        assert f'<section id="{section}">' in run.stdout
    assert "<img" not in run.stdout
