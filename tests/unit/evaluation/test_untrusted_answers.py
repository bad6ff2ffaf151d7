"""Whatever a model answers is judged, tabulated and written; nothing it says takes more than linear time."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tool_aware.console import Fallbacks
from tool_aware.evaluation.answering.predictions import PredictionLog, read_answers
from tool_aware.evaluation.answering.tasks import Plan, plan_tasks
from tool_aware.evaluation.held_out import TestSet
from tool_aware.evaluation.report.html import word_diff
from tool_aware.evaluation.report.output import print_results, write_results
from tool_aware.evaluation.results import assemble
from tool_aware.evaluation.scoring.code_equality import same_syntax
from tool_aware.evaluation.scoring.judgement import Prediction, judge, token_f1
from tool_aware.prompt import parse_response
from tool_aware.rows import Row

NUMBERS = [
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "9" * 4000,
    "9" * 5000,
    "1" + "0" * 400,
    "0.1e-999",
    "-0",
    "1.0",
    "true",
]
DEEP = ["[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 5000 + "1" + "}" * 5000, "(" * 3000, "-" * 50_000]
CODE = [
    "print(" + "+".join(["1"] * 20_000) + ")",
    "x = " + "(" * 200 + ")" * 200,
    "lambda: " * 2000 + "1",
    "f" + "(a)" * 3000,
    "if x:\n" + "".join(" " * n + "if x:\n" for n in range(1, 99)),
    "x = '" + "\\N{BULLET}" * 1000 + "'",
    "\0print(1)",
    "print('\ud83d')",
    "9" * 5000,
    "1" + "0" * 4299 + " + 1e999",
    "# coding: nonsense\nprint(1)",
]
TEXTS = [
    *("", "\0", " ", "\n" * 5000, "\ud83d", "\udc00\ud83d", "a\u2028b", "\x1b[2J\x1b]0;t\x07", "\u202egnp"),
    *("<script>alert(1)</script>", "</script><!--", "{{DATA}}", "| a | b |\n|---|", "**y** [l](javascript:alert(1))"),
    *("=cmd|' /C calc'!A0", "x" * 50_000, "Tool: " + " " * 4000 + "x", "Tool:" * 5000, "Reasoning: " * 2000),
    *("Tool: web_search", "Tool: web_search\nParameters: {}"),
]  # fmt: skip


def answer(tool: str, parameters: str, reasoning: str = "Because.") -> str:
    return f"Tool: {tool}\nParameters: {parameters}\nReasoning: {reasoning}"


def hostile_answers() -> list[str]:
    named = {
        "web_search": ("query", "num_results"),
        "code_execution": ("code", "description"),
        "rag_retrieval": ("query",),
    }
    texts = [*TEXTS, *DEEP, *(answer("web_search", deep) for deep in DEEP)]
    for tool, (first, *others) in named.items():
        for value in [*NUMBERS, *DEEP]:
            texts += [answer(tool, f'{{"{name}": {value}}}') for name in (first, *others, "unheard_of")]
        texts += [answer(tool, json.dumps({first: text})) for text in [*TEXTS, *CODE]]
        texts += [answer(tool, json.dumps({first: text}, ensure_ascii=False)) for text in TEXTS]
        texts += [answer(tool, json.dumps(dict.fromkeys(TEXTS, 1))), answer(tool, f'{{"{first}": "a", "{first}": 1}}')]
    texts += [answer("direct_chat", "{}", reasoning) for reasoning in TEXTS]
    return texts


def test_no_answer_ends_an_evaluation(tmp_path, toy_rows, config, capsys):
    """Each hostile answer is given to a row of every tool; the whole is judged, printed, drawn and written."""
    by_tool = {row.tool: row for row in toy_rows}
    pairs = [(row, text) for text in hostile_answers() for row in by_tool.values()]
    rows = {index: row for index, (row, _) in enumerate(pairs)}
    (tmp_path / "answers.json").write_text(json.dumps([text for _, text in pairs]))
    predictions = read_answers(tmp_path / "answers.json", len(pairs), Fallbacks())
    with PredictionLog(tmp_path / "answers.jsonl", {}).appending() as append:
        append(predictions)
    again = PredictionLog(tmp_path / "answers.jsonl", {}).done
    assert [again[index].text for index in rows] == [prediction.text for prediction in predictions]
    tasks = plan_tasks(Plan(constrained=False, choices=False), rows, {}, config.toolbox, [])
    results = assemble(
        config, rows, {}, {"base": predictions, "finetuned": predictions}, tasks, baselines=dict, same_code=same_syntax
    )
    print_results(results)
    test = TestSet(tmp_path / "test.json", "0" * 64, rows, len(rows), [], {}, None)
    folder = tmp_path / "results"
    write_results(folder, results, config, test, started_s=0.0)
    for path in folder.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert page.count("</script>") == page.count("<script")
    assert "javascript:" not in (folder / "report.md").read_text(encoding="utf-8").replace("\\](javascript:", "")
    assert "COMPARISON" in capsys.readouterr().out


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(st.characters(), max_size=300),
        st.builds(
            answer,
            st.sampled_from(["web_search", "code_execution", "rag_retrieval", "direct_chat", "x", "a b"]),
            st.one_of(st.text(max_size=100), st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
                lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
            ).map(json.dumps)),
            st.text(st.characters(), max_size=50),
        ),
    ),
    st.booleans(),
)  # fmt: skip
def test_any_text_has_a_verdict(config, text, is_truncated):
    for tool, parameters in (("web_search", '{"query": "x"}'), ("code_execution", '{"code": "print(1)"}')):
        row = Row("q", answer(tool, parameters), {"tool": tool})
        judgement = judge(Prediction(0, text, is_truncated=is_truncated), row, config.toolbox)
        assert judgement.credited
        assert judgement.is_parsed or judgement.error


GROWING = {
    "spaces behind Tool": lambda n: "Tool: " + " " * n + "x",
    "lines behind Tool": lambda n: "Tool: web_search" + "\n" * n + "x",
    "spaces behind Parameters": lambda n: "Tool: web_search\nParameters: " + " " * n + "x",
    "lines behind Parameters": lambda n: "Tool: web_search\nParameters: {}" + " \n" * n + "x",
    "brackets": lambda n: answer("web_search", "[" * n),
    "keys": lambda n: answer("web_search", json.dumps({f"k{i}": i for i in range(n // 8)})),
    "words": lambda n: answer("web_search", json.dumps({"query": "a " * n})),
    "punctuation": lambda n: answer("web_search", json.dumps({"query": ".!?" * n})),
    "sentences": lambda n: answer("web_search", '{"query": "x"}', "A. " * n),
    "dots": lambda n: answer("web_search", '{"query": "x"}', "." * n + "A"),
    "spaces in the reasoning": lambda n: answer("web_search", '{"query": "x"}', "A." + " " * n + "b"),
    "sums": lambda n: answer("code_execution", json.dumps({"code": "+".join(["1"] * (n // 4))})),
    "names": lambda n: answer("code_execution", json.dumps({"code": "\n".join(f"a{i} = {i}" for i in range(n // 8))})),
    "quotes": lambda n: answer("code_execution", json.dumps({"code": "'" * n})),
    "backslashes": lambda n: answer("code_execution", json.dumps({"code": "\\" * n})),
}


@pytest.mark.parametrize("name", GROWING)
def test_a_text_of_eight_times_the_length_takes_some_eight_times_as_long(name, toy_rows, config):
    """Quadratic would be 64 times. Only what is long enough to be measured counts."""
    rows = {row.tool: row for row in toy_rows}

    def seconds(length: int) -> float:
        text, best_s = GROWING[name](length), float("inf")
        for _ in range(3):
            begun_s = time.process_time()
            parse_response(text)
            for tool in ("web_search", "code_execution"):
                judge(Prediction(0, text), rows[tool], config.toolbox)
            best_s = min(best_s, time.process_time() - begun_s)
        return best_s

    short_s, long_s = seconds(4_000), seconds(32_000)
    assert long_s < 0.1 or long_s / short_s < 30


def test_differences_of_long_answers_are_bounded():
    """difflib is quadratic, and worse for texts of few distinct words."""
    begun_s = time.process_time()
    pieces = word_diff("a b " * 5_000, "b a " * 5_000)
    assert time.process_time() - begun_s < 10
    assert "".join(text for mark, text in pieces if mark in "=-") == "a b " * 5_000
    assert "".join(text for mark, text in pieces if mark in "=+") == "b a " * 5_000
    assert token_f1("a " * 10_000, "b " * 10_000) == 0
