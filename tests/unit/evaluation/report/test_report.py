import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tool_aware.evaluation.answering.tasks import Plan, plan_tasks
from tool_aware.evaluation.report import html as html_report
from tool_aware.evaluation.report.chapters import build_report
from tool_aware.evaluation.report.html import render_html, word_diff
from tool_aware.evaluation.report.markdown import render_markdown
from tool_aware.evaluation.report.output import print_results
from tool_aware.evaluation.results import assemble, parameter_judge_of
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.evaluation.scoring.program_output import ProgramRuns
from tool_aware.evaluation.scoring.robustness import make_variants
from tool_aware.prompt import Turn, render_instruction, render_response
from tool_aware.rows import Row
from tool_aware.tools import ToolCall

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NASTY = [
    "<script>document.title = 'broken'</script>",
    "</script><img src=x onerror=\"document.title = 'broken'\">",
    "<!-- {{DATA}} {{SECTIONS}} --> & ' \" `",
    "[click](javascript:alert(1)) | a | table | # heading",
    "\u202e right to left \u2028 line separator 東京",
]
TOOL_OF = ["rag_retrieval", "web_search", "code_execution", "direct_chat"]
ARGUMENT = {"rag_retrieval": "query", "web_search": "query", "code_execution": "code", "direct_chat": "message"}


def answer(tool, text):
    return render_response(ToolCall(tool, {ARGUMENT[tool]: text}, "It says so."))


@pytest.fixture(scope="module")
def results(config):
    """40 rows, five of them nasty; base calls retrieval always, the tuned model is right but for every eighth row."""
    rows, base, tuned, choices = {}, [], [], {}
    for index in range(40):
        tool, query = TOOL_OF[index % 4], NASTY[index] if index < len(NASTY) else f"question number {index}"
        metadata = {"source": "test", "tool": tool, "slice": "nasty" if index < len(NASTY) else "plain"}
        history = [Turn("the question before", "web_search")] if index in (6, 7) else []
        metadata |= {"follow_up": "ellipsis"} if history else {}
        metadata |= {"then_tool": "direct_chat"} if index == 9 else {}
        rows[index] = Row(render_instruction(query, config.toolbox, history), answer(tool, query), metadata)
        chosen = TOOL_OF[(index + 1) % 4] if index % 8 == 0 else tool
        base.append(Prediction(index, answer("rag_retrieval", query), seconds=0.2, new_tokens=20))
        tuned.append(Prediction(index, answer(chosen, query) if index != 5 else NASTY[0], seconds=0.1, new_tokens=20))
        choices[index] = {name: 0.0 if name == chosen else -2.0 - index / 9 for name in TOOL_OF}

    def chosen(i):
        return Prediction(i, tool=max(choices[i], key=choices[i].get), scores=choices[i])

    variants = make_variants(rows, config.toolbox, seed=0)
    tasks = plan_tasks(Plan(), rows, rows, config.toolbox, variants)
    predictions = {
        task.name: [chosen(i) if i in rows else Prediction(i, tool=row.tool) for i, row in task.rows.items()]
        for task in tasks
        if task.kind == "choice"
    }
    predictions |= {"base": base, "finetuned": tuned, "base_constrained": base, "finetuned_constrained": tuned}
    baselines = {"majority": [Prediction(index, tool="web_search") for index in rows]}
    return assemble(config, rows, rows, predictions, tasks, baselines=lambda: baselines)


@pytest.fixture(scope="module")
def page(results):
    return "".join(render_html(results, build_report(results), facts=["test.json & <b>", "model x"]))


def test_the_verdict_comes_first_and_names_the_best_baseline(results):
    first = build_report(results)[0]
    assert first.title == "Verdict"
    assert first.paragraphs[0].startswith("Fine-tuned is better than base: +")
    assert "The best baseline, majority, chooses worse" in first.paragraphs[0]
    assert "Constrained decoding alone moves the base by +0.0 points" in first.paragraphs[0]


def test_a_baseline_that_wins_is_in_the_first_paragraph(config, results):
    perfect = {"TF-IDF": [Prediction(index, tool=row.tool) for index, row in results.rows.items()]}
    worse = {"base": results.predictions["base"], "finetuned": results.predictions["base"]}
    beaten = assemble(config, results.rows, {}, worse, [], baselines=lambda: perfect)
    assert "the baseline TF-IDF wins over fine-tuned" in build_report(beaten)[0].paragraphs[0]


def test_every_section_and_figure_is_there(results, page):
    sections = build_report(results)
    assert len(sections) == 14
    figures = sum(len(section.charts) for section in sections)
    assert figures == 5
    assert page.count("<svg") == page.count("</svg>") == page.count("<figure>") == figures
    assert not re.search(r"\{\{[A-Z]+\}\}", page.replace("{{DATA}} {{SECTIONS}}", ""))


def test_conversations_and_two_requests_have_chapters_where_the_data_has_such_rows(results, config, capsys):
    names = ("With the earlier turns of the conversation and without", "Two requests in one query")
    turns, requests = (next(s for s in build_report(results) if s.title == name) for name in names)
    assert [row[:2] for row in turns.tables[0].rows] == [["all", "2"], ["ellipsis", "2"]]
    assert ["fine-tuned", "1", "100.0 [21–100]", "0.0 [0–79]", "0.0 [0–79]"] in [r[:5] for r in requests.tables[0].rows]
    print_results(results)
    printed = capsys.readouterr().out
    assert "fine-tuned, choice only: with the earlier turns and without" in printed
    assert "Two requests in one query" in printed
    plain = {index: row for index, row in results.rows.items() if index not in (6, 7, 9)}
    answers = {"finetuned": [p for p in results.predictions["finetuned"] if p.row in plain]}
    without = assemble(config, plain, {}, answers, [], baselines=dict)
    assert not {section.title for section in build_report(without)} & set(names)
    print_results(without)
    assert "Two requests" not in capsys.readouterr().out


class Tags(HTMLParser):
    """Collects tags and attributes as a browser would see them."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_text_from_data_is_text_and_nothing_is_fetched(page):
    parser = Tags()
    parser.feed(page)
    assert parser.tags.count("script") == 2
    assert "img" not in parser.tags
    assert not [name for name, _ in parser.attributes if name.startswith("on")]
    links = [value for name, value in parser.attributes if name in ("src", "href")]
    assert all(link.startswith(("#", "data:,")) for link in links)
    assert not re.search(
        r"https?://", re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    )


def test_the_embedded_rows_are_the_rows(results, page):
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [row["query"].strip() for row in data[:5]] == [query.strip() for query in NASTY]
    assert data[5]["answers"][1]["error"] == "no parseable call"
    assert [answer["isRight"] for answer in data[8]["answers"]] == [True, False]


def test_a_diff_holds_both_texts():
    pieces = word_diff("Tool: web_search\nnow", "Tool: direct_chat\nnow then")
    assert "".join(text for mark, text in pieces if mark != "+") == "Tool: web_search\nnow"
    assert "".join(text for mark, text in pieces if mark != "-") == "Tool: direct_chat\nnow then"
    assert ["=", "Tool: "] in pieces


def test_a_report_lists_no_more_rows_than_a_browser_opens(results, monkeypatch):
    assert html_report.shown_rows(results) == list(results.rows)
    monkeypatch.setattr(html_report, "MOST_ROWS_LISTED", 3)
    page = "".join(render_html(results, [], facts=[]))
    assert page.count('"prompt": ') == 3


def test_markdown_shows_text_from_data_as_text(results):
    text = render_markdown(build_report(results))
    assert text.startswith("# Evaluation\n\n## Verdict\n\nFine-tuned is better than base")
    assert "<script" not in text.replace("\\<script", "")
    assert "](javascript" not in text.replace("\\](javascript", "")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


# Typed into the page by a script, because a headless browser has no hands.
ACTIONS = """<script>
{
const seen = {errors: [], total: document.querySelectorAll("#list details").length};
window.addEventListener("error", event => seen.errors.push(event.message));
const box = document.getElementById("search"), pick = document.getElementById("filter");
const shownCount = () => document.getElementById("count").textContent;
function type(text) { box.value = text; box.dispatchEvent(new Event("input")); }
function choose(name) { pick.value = name; pick.dispatchEvent(new Event("change")); }
type("NUMBER 39"); seen.found = shownCount();
type("<script>"); seen.nasty = shownCount();
type("no such words"); seen.none = shownCount();
type(""); choose("wrong now"); seen.wrong = shownCount(); choose("broken by tuning"); seen.broken = shownCount();
choose("all rows");
const first = document.querySelector("#list details");
first.open = true;
setTimeout(() => {
  seen.opened = first.querySelector(".body").innerText;
  seen.title = document.title;
  seen.figures = [...document.querySelectorAll("svg")].every(s => s.getBoundingClientRect().height > 50);
  seen.overflow = document.documentElement.scrollWidth - window.innerWidth;
  const before = getComputedStyle(document.body).backgroundColor;
  document.getElementById("theme").click();
  seen.themes = [before, getComputedStyle(document.body).backgroundColor];
  document.body.textContent = "SEEN" + JSON.stringify(seen) + "END";
}, 200);
}
</script></body>"""


def in_browser(path, width):
    """Open a page and return what Chromium writes: the page as it is after its scripts."""
    return subprocess.run(
        [
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={path.parent / 'profile'}",
            f"--window-size={width},900",
            "--virtual-time-budget=2000",
            "--enable-logging=stderr",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_the_page_works_in_a_browser(page, tmp_path, width):
    path = tmp_path / "report.html"
    path.write_text(page.replace("</body>", ACTIONS), encoding="utf-8")
    result = in_browser(path, width)
    assert "CONSOLE" not in result.stderr  # no message of any level, so no error
    shown = html.unescape(re.search(r"SEEN(\{.*\})END", result.stdout, re.DOTALL)[1])
    seen = json.loads(shown)
    assert seen["errors"] == []
    assert seen["total"] == 40
    assert seen["found"] == "1 of 40 rows"
    assert seen["nasty"] == "2 of 40 rows"  # the query and the answer that hold it
    assert seen["none"] == "0 of 40 rows"
    assert (seen["wrong"], seen["broken"]) == ("6 of 40 rows", "5 of 40 rows")
    assert "document.title = 'broken'" in seen["opened"]
    assert seen["title"] == "Evaluation: base / fine-tuned"
    assert seen["figures"]
    assert seen["overflow"] <= 0
    assert seen["themes"][0] != seen["themes"][1]


@pytest.fixture(scope="module")
def judged_page(config):
    """A page about eight calls whose parameters are wrong, nasty ones among them, beside a base that has none right."""
    wrong = {
        "rag_retrieval": ("minutes of March 2024", f"minutes of May {NASTY[1]}"),
        "web_search": ("Tesla_revenue_" * 12 + " 2024", "w" * 300),
        "code_execution": ("print('<b>', 1)", "print('<script>document.title = 1</script>' + 'x' * 200)"),
        "direct_chat": ("explain recursion", NASTY[0]),
    }
    rows, tuned = {}, []
    for index, tool in enumerate(TOOL_OF * 2):
        wanted, given = wrong[tool]
        metadata = {"source": "test", "tool": tool}
        rows[index] = Row(render_instruction(f"{index} {NASTY[2]}", config.toolbox), answer(tool, wanted), metadata)
        tuned.append(Prediction(index, answer(tool, given)))
    base = [Prediction(index, NASTY[0]) for index in rows]
    judge = parameter_judge_of(config, rows, ProgramRuns())
    answers = {"base": base, "finetuned": tuned}
    found = assemble(config, rows, rows, answers, [], baselines=dict, parameter_judge=judge)
    return "".join(render_html(found, build_report(found), facts=[])), render_markdown(build_report(found))


def test_the_worst_parameters_stand_side_by_side_with_what_they_find_and_print(judged_page):
    page, markdown = judged_page
    assert "<del>March</del>" in page
    assert "<ins>May</ins>" in page
    assert "loses march, 2024" in page
    assert "Found by the reference alone" in page
    assert "The reference prints</h5><ul><li>&lt;b&gt; 1</li></ul>" in page
    assert "<li>&lt;script&gt;document.title = 1" in page
    assert page.count("<script") == 2  # the rows and the page's own
    assert "Row 0: rag\\_retrieval.query | loses march, 2024" in markdown


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
@pytest.mark.parametrize("width", [1200, 400])
def test_parameters_side_by_side_fit_the_screen_in_both_themes(judged_page, tmp_path, width):
    path = tmp_path / "report.html"
    look = LAYOUT.replace("const problems = [];", f"{CARDS}const problems = cardProblems();")
    look = re.sub(r'All\("(\.scroll|td, th)"', r'All("#what-the-parameters-are-worth :is(\1)"', look)
    path.write_text(judged_page[0].replace("</body>", look), encoding="utf-8")
    result = in_browser(path, width)
    assert "CONSOLE" not in result.stderr
    assert json.loads(html.unescape(re.search(r"PROBLEMS(\[.*?\])END", result.stdout, re.DOTALL)[1])) == []


# What differs is struck or underlined, so colour is not all; its contrast is that of WCAG AA in both themes.
CARDS = """
const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
const light = color => {
  const [r, g, b] = color.match(/[\\d.]+/g).map(v => linear(v / 255));
  return .2126 * r + .7152 * g + .0722 * b;
};
function cardProblems() {
  const found = [], cards = [...document.querySelectorAll(".cards article")];
  if (cards.length !== 8) found.push("cards: " + cards.length);
  if (document.documentElement.scrollWidth > window.innerWidth) found.push("the page scrolls");
  for (const theme of ["light", "dark"]) {
    document.documentElement.dataset.theme = theme;
    for (const mark of document.querySelectorAll(".cards ins, .cards del")) {
      const style = getComputedStyle(mark);
      const [dark, bright] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
      if (style.textDecorationLine === "none") found.push("colour alone: " + mark.textContent);
      if ((bright + .05) / (dark + .05) < 4.5) found.push(theme + ": too little contrast");
    }
  }
  return found;
}
"""
LAYOUT = """<script>
const problems = [];
for (const box of document.querySelectorAll(".scroll"))
  if (box.scrollWidth > box.clientWidth) problems.push("scrolls: " + box.querySelector("th").textContent);
for (const cell of document.querySelectorAll("td, th")) {
  const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) for (const word of texts.currentNode.data.matchAll(/[^\\s-]+/g)) {
    const range = document.createRange();
    range.setStart(texts.currentNode, word.index);
    range.setEnd(texts.currentNode, word.index + word[0].length);
    if (range.getClientRects().length > 1) problems.push("is broken: " + word[0]);
  }
}
for (const text of document.querySelectorAll("svg text")) {
  const box = text.getBoundingClientRect(), frame = text.ownerSVGElement.getBoundingClientRect();
  if (box.left < frame.left - 1 || box.right > frame.right + 1) problems.push("is cut: " + text.textContent);
}
document.body.append("PROBLEMS" + JSON.stringify(problems) + "END");
</script></body>"""
WORDS = "of_the_european_department_for_statistics_and_more_of_its_things"
LONG_NAMES = {
    "short": {tool: tool for tool in TOOL_OF},
    "64 characters": {tool: f"{tool}_{WORDS}"[:64] for tool in TOOL_OF},
    "camel case": {tool: (tool.title() + WORDS.title()).replace("_", "")[:64] for tool in TOOL_OF},
    "no place to break": {tool: (tool.replace("_", "") * 6)[:64] for tool in TOOL_OF},
}


def with_names(results, config, names):
    """Return the page about the same answers to tools of other names."""

    def renamed(text):
        return re.sub("|".join(names), lambda found: names[found[0]], text)

    tools = [tool.model_copy(update={"name": names[tool.name]}) for tool in config.tools]
    rows = {
        index: Row(renamed(row.instruction), renamed(row.response), row.metadata | {"tool": names[row.tool]})
        for index, row in results.rows.items()
    }
    config = config.model_copy(update={"tools": tools})
    tasks = plan_tasks(Plan(), rows, rows, config.toolbox, make_variants(rows, config.toolbox, seed=0))
    answers = {
        name: [
            replace(
                p,
                text=p.text and renamed(p.text),
                tool=p.tool and names[p.tool],
                scores=p.scores and {names[tool]: score for tool, score in p.scores.items()},
            )
            for p in predictions
        ]
        for name, predictions in results.predictions.items()
    }
    given = {prediction.row: prediction for prediction in answers["finetuned_choice"]}
    answers |= {
        task.name: [given.get(index, Prediction(index, tool=row.tool)) for index, row in task.rows.items()]
        for task in tasks
        if task.kind == "choice"
    }
    baselines = {"majority": answers.pop("majority")}
    found = assemble(config, rows, rows, answers, tasks, baselines=lambda: baselines)
    return "".join(render_html(found, build_report(found), facts=[]))


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
@pytest.mark.parametrize(
    ("kind", "width"),
    [*((kind, 1200) for kind in LONG_NAMES), ("short", 800), ("64 characters", 800), ("camel case", 800)],
)
def test_names_of_any_length_stay_readable_and_no_table_scrolls(results, config, tmp_path, kind, width):
    path = tmp_path / "report.html"
    path.write_text(with_names(results, config, LONG_NAMES[kind]).replace("</body>", LAYOUT), encoding="utf-8")
    shown = in_browser(path, width).stdout
    problems = json.loads(html.unescape(re.search(r"PROBLEMS(\[.*\])END", shown, re.DOTALL)[1]))
    assert problems == []
