"""The report as Markdown, for a pull request or a model card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tool_aware.evaluation.report.chapter_parts import Section, Table


def render_markdown(sections: Sequence[Section]) -> str:
    """Set the sections; charts are left to the HTML report."""
    blocks = ["# Evaluation"]
    for section in sections:
        blocks.append(f"## {section.title}")
        blocks += map(_escape, section.paragraphs)
        blocks.append("\n".join(f"- {_escape(item)}" for item in section.items))
        blocks += map(_table, section.tables)
        for caption, cards in section.cards:
            rows = [[card.title, card.reason, card.query, card.wanted, card.given] for card in cards]
            blocks.append(_table(Table([caption, "Why", "Query", "Reference", "Answer"], rows)))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _table(table: Table) -> str:
    rule = ["---", *["---:"] * (len(table.headers) - 1)]
    lines = [_line(map(_escape, table.headers)), _line(rule), *(_line(map(_escape, row)) for row in table.rows)]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Keep text from data from being read as Markdown or HTML."""
    return re.sub(r"([\\`*_|<>#]|\](?=\())", r"\\\1", " ".join(text.split()))
