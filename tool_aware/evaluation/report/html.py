"""The report as one HTML file: no network, light and dark, readable on a phone, every row searchable.

All text from data is escaped: by `html.escape` in the page, and in the embedded JSON by writing `<` as `\\u003c`, which
a script then shows with `textContent` only.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from tool_aware.evaluation.report.chapter_parts import Card, Section, Table
from tool_aware.evaluation.report.line_breaks import breakable
from tool_aware.evaluation.results import Results, title
from tool_aware.evaluation.scoring.judgement import INVALID, Judgement, Prediction
from tool_aware.rows import Row
from tool_aware.text import common_prefix_length, spread_evenly

MOST_ROWS_LISTED = 10_000  # some 25 MB of text; all rows are in the results as JSON
MOST_COMPARISONS = 250_000  # words of one text times words of the other
_TEMPLATE = Path(__file__).with_name("template.html")


def render_html(results: Results, sections: Sequence[Section], *, facts: Sequence[str]) -> Iterator[str]:
    """Fill the template, a piece at a time, as the rows take tens of megabytes.

    `facts` are shown below the title: dataset, models, date.
    """
    fields = {
        "FACTS": "".join(f"<li>{escape(fact)}</li>" for fact in facts),
        "NAVIGATION": "".join(f'<a href="#{_anchor(s.title)}">{escape(s.title)}</a>' for s in sections),
        "SECTIONS": "".join(map(_section, sections)),
        "SYSTEMS": escape(" / ".join(map(title, results.main))),
    }
    # Split once, so that a placeholder's name inside a query stays what it is.
    pieces = re.split(r"\{\{(\w+)\}\}", _TEMPLATE.read_text(encoding="utf-8"))
    for text, name in zip(pieces[::2], [*pieces[1::2], None], strict=True):
        yield text
        if name == "DATA":
            yield from _data(results)
        elif name:
            yield fields[name]


def _data(results: Results) -> Iterator[str]:
    """Yield the rows as a JSON array."""
    yield "["
    for place, row in enumerate(_rows(results)):
        yield (", " if place else "") + json.dumps(row, ensure_ascii=False).replace("<", "\\u003c")
    yield "]"


def _section(section: Section) -> str:
    kind = ' class="verdict"' if section.title == "Verdict" else ""
    parts = [f'<section id="{_anchor(section.title)}"{kind}><h2>{escape(section.title)}</h2>']
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.paragraphs]
    if section.items:
        parts.append(f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in section.items)}</ul>")
    if section.charts:
        figures = (f"<figure><figcaption>{escape(text)}</figcaption>{svg}</figure>" for text, svg in section.charts)
        parts.append(f'<div class="figures">{"".join(figures)}</div>')
    is_drawn = section.title == "Confusion"  # its matrices show what its tables hold
    parts += [] if is_drawn else map(_table, section.tables)
    for caption, cards in section.cards:
        parts.append(f'<h3>{escape(caption)}</h3><div class="cards">{"".join(map(_card, cards))}</div>')
    return "".join([*parts, "</section>"])


def _card(card: Card) -> str:
    """Set reference and answer side by side, with what is missing struck and what is new underlined."""
    pieces = word_diff(card.wanted, card.given)
    sides = "".join(
        f"<div><h5>{label}</h5><pre>{''.join(_marked(mark, text) for mark, text in pieces if mark in kept)}</pre></div>"
        for label, kept in (("reference", "=-"), ("answer", "=+"))
    )
    more = "".join(
        f"<h5>{escape(label)}</h5><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"
        for label, lines in card.more
    )
    head = f"<h4>{breakable(card.title)}</h4><p><strong>{escape(card.reason)}</strong></p><p>{escape(card.query)}</p>"
    return f'<article>{head}<div class="sides">{sides}</div>{more}</article>'


def _marked(mark: str, text: str) -> str:
    tag = {"-": "del", "+": "ins"}.get(mark)
    return f"<{tag}>{escape(text)}</{tag}>" if tag else escape(text)


def _table(table: Table) -> str:
    head = "".join(f"<th>{breakable(header)}</th>" for header in table.headers)
    body = "".join(f"<tr>{''.join(f'<td>{breakable(cell)}</td>' for cell in row)}</tr>" for row in table.rows)
    is_prose = any(len(cell) > 40 for row in table.rows for cell in row[1:])
    kind = ' class="prose"' if is_prose else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ---- rows -------------------------------------------------------------------------------------------------


def shown_rows(results: Results) -> list[int]:
    """Return the rows that the report lists: all, or as many as a browser still opens, spread evenly over them."""
    return spread_evenly(list(results.rows), MOST_ROWS_LISTED)


def _rows(results: Results) -> Iterator[dict[str, Any]]:
    """Yield what the table of rows shows: query, right answer, and each system's answer, judgement and diff."""
    answered = {
        name: {pair[0].row: pair for pair in zip(results.predictions[name], results.judgements[name], strict=True)}
        for name in results.main
    }
    for index in shown_rows(results):
        row = results.rows[index]
        yield {
            "row": index,
            "query": row.query,
            "tool": row.tool,
            "tags": [
                str(row.metadata[key]) for key in ("source", "slice", "follow_up", "language") if row.metadata.get(key)
            ],
            "prompt": row.instruction,
            "expected": row.response,
            "answers": [_answer(name, row, *pairs[index]) for name, pairs in answered.items()],
        }


def _answer(system: str, row: Row, prediction: Prediction, judgement: Judgement) -> dict[str, Any]:
    if prediction.text is None:
        diff = word_diff(f"Tool: {row.tool}", f"Tool: {prediction.tool}")
    else:
        diff = word_diff(row.response, prediction.text)
    return {
        "system": title(system),
        "tool": judgement.chosen or INVALID,
        "isRight": _is_right(judgement),
        "isToolRight": judgement.is_tool_right,
        "error": judgement.error or "",
        "detail": judgement.detail,
        "diff": diff,
    }


def _is_right(judgement: Judgement) -> bool:
    return judgement.is_tool_right if judgement.is_call_correct is None else judgement.is_call_correct


def _operations(one: list[str], other: list[str]) -> Sequence[tuple[str, int, int, int, int]]:
    """Return the operations that make `other` of `one`, as difflib does, whose time grows with their cube."""
    if len(one) * len(other) <= MOST_COMPARISONS:
        return difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()
    begin = common_prefix_length([one, other])
    ours, theirs = one[begin:], other[begin:]
    end = common_prefix_length([ours[::-1], theirs[::-1]])
    i, j = len(one) - end, len(other) - end
    return [
        ("equal", 0, begin, 0, begin),
        ("replace", begin, i, begin, j),
        ("equal", i, len(one), j, len(other)),
    ]


def word_diff(expected: str, answer: str) -> list[list[str]]:
    """Return the pieces of both texts in reading order: `=` in both, `-` only expected, `+` only answered.

    Of texts so long that comparing them takes long, what lies between the same beginning and the same end differs.
    """
    if expected == answer:
        return [["=", expected]] if expected else []
    one, other = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (expected, answer))
    pieces = []
    for operation, i1, i2, j1, j2 in _operations(one, other):
        if operation == "equal":
            pieces += [["=", "".join(one[i1:i2])]] if i2 > i1 else []
            continue
        pieces += [[mark, "".join(words)] for mark, words in (("-", one[i1:i2]), ("+", other[j1:j2])) if words]
    return pieces
