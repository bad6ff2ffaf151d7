"""Builds data/dataset_report.html: a page about the dataset, one file without scripts, fonts or network access.

Every text that comes from data is escaped: a logged query can contain markup.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from tool_aware.chat_format import IGNORE_INDEX, encode_example, encode_prompt
from tool_aware.dataset.splitting import Leak
from tool_aware.reasoning_text import boilerplate, quoted, stands_in
from tool_aware.rows import SPLITS, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_PER_TOOL = 4
PAIRS_SHOWN = 15
LENGTH_STEP = 5  # words per bar of the histogram
LENGTH_BARS = 16  # the last one is open-ended

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5d6778; --line: #dde2ea; --card: #ffffff; --page: #f5f7fa;
  --bar: #3b6fb6; --loss: #cdebd3; --noloss: transparent; --edge: #b9c2d0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ef; --soft: #9aa5b6; --line: #2f3745; --card: #1a2029;
  --page: #11151b; --bar: #6ea0e6; --loss: #1f4a2b; --noloss: transparent; --edge: #445064; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.5rem; margin: 0 0 4px; } h2 { font-size: 1.1rem; margin: 0 0 12px; }
h3 { font-size: .95rem; margin: 16px 0 6px; }
p { margin: 0 0 12px; } .soft { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px; margin-top: 16px;
  overflow-x: auto; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 16px; }
.columns { columns: 300px; column-gap: 24px; } .columns > div { break-inside: avoid; padding-bottom: 12px; }
.columns h3 { margin-top: 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; white-space: nowrap; }
.bar { display: inline-block; height: .7em; background: var(--bar); border-radius: 2px; }
td.w { width: 40%; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.55 ui-monospace, monospace; margin: 0 0 12px;
  border: 1px solid var(--line); border-radius: 6px; padding: 10px; }
.loss { background: var(--loss); border-radius: 2px; } .token { border-right: 1px solid var(--edge); }
.key { display: inline-block; padding: 0 6px; border-radius: 3px; }
#pairs td { overflow-wrap: anywhere; }
@media (max-width: 640px) { /* a telephone: the two queries of a pair one below the other */
  #pairs thead { display: none; } #pairs tr { display: block; border-bottom: 1px solid var(--line); padding: 8px 0; }
  #pairs td { display: inline; border: 0; padding: 0 8px 0 0; color: var(--soft); }
  #pairs td + td + td { display: block; padding: 4px 0 0; color: var(--ink); }
  #pairs td + td + td + td { color: var(--soft); } }
"""


@dataclass(frozen=True)
class ReportData:
    """The content of the report. `dropped`: rows left out, by reason; `redacted`: replacements, by rule."""

    parts: Mapping[str, Sequence[Row]]
    nearest: Sequence[Leak]
    dropped: Mapping[str, int]
    redacted: Mapping[str, int]
    seed: int
    is_exhaustive: bool = True


def build_report(data: ReportData, tokenizer: PreTrainedTokenizerBase | None) -> str:
    """Return the page as HTML."""
    rows = [row for name in SPLITS for row in data.parts[name]]
    counts = ", ".join(f"{len(data.parts[name])} {name}" for name in SPLITS)
    sections = (
        _section("Rows by tool and split", "counts", _split_table(data.parts)),
        _section("Composition", "composition", _compositions(rows)),
        _section("Length of queries", "lengths", _histograms(rows)),
        _section("Reasoning", "reasoning", _reasoning(rows)),
        _section("Nearest train-test pairs", "pairs", _pairs(data)),
        _section("Rows with their loss mask", "rows", _samples(rows, data.seed, tokenizer)),
        _section("What was left out", "dropped", _left_out(data)),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Dataset report</title>'
        f'<link rel="icon" href="data:,"><style>{_STYLE}</style></head><body><main>'
        f'<h1>Dataset report</h1><p class="soft">{len(rows)} rows: {counts}. Seed {data.seed}.</p>'
        f"{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, identity: str, body: str) -> str:
    return f'<section id="{identity}"><h2>{escape(title)}</h2>{body}</section>'


def _table(headers: Sequence[str], lines: Iterable[Sequence[str]], numbers: Sequence[bool]) -> str:
    """Return an HTML table of cells that are already escaped."""

    def cells(kind: str, line: Sequence[str]) -> str:
        return "".join(
            f"<{kind}{' class=n' if number else ''}>{cell}</{kind}>" for cell, number in zip(line, numbers, strict=True)
        )

    body = "".join(f"<tr>{cells('td', line)}</tr>" for line in lines)
    return f"<table><thead><tr>{cells('th', headers)}</tr></thead><tbody>{body}</tbody></table>"


def _split_table(parts: Mapping[str, Sequence[Row]]) -> str:
    counts = {name: Counter(row.tool for row in parts[name]) for name in SPLITS}
    tools = sorted({tool for counter in counts.values() for tool in counter})
    lines = [[escape(tool), *(str(counts[name][tool]) for name in SPLITS)] for tool in tools]
    lines.append(["all", *(str(len(parts[name])) for name in SPLITS)])
    return _table(["tool", *SPLITS], lines, [False, True, True, True])


def _compositions(rows: Sequence[Row]) -> str:
    keys = (("tool", "tool"), ("source", "source"), ("slice", "slice"), ("language", "language"))
    bars = [_bars(title, rows, key) for title, key in keys]
    turns = Counter(len(row.history) for row in rows)
    if max(turns, default=0):
        counts = [(str(number), count) for number, count in sorted(turns.items())]
        bars.append(f"<div><h3>By earlier turns shown</h3>{_bar_table(counts)}</div>")
    return f'<div class="columns">{"".join(bars)}</div>'


def _bars(title: str, rows: Sequence[Row], key: str) -> str:
    counts = Counter(str(row.metadata.get(key, "none")) for row in rows)
    return f"<div><h3>By {escape(title)}</h3>{_bar_table(counts.most_common())}</div>"


def _bar_table(items: Sequence[tuple[str, int]]) -> str:
    most = max((count for _, count in items), default=1) or 1
    body = "".join(
        f'<tr><td>{escape(name)}</td><td class="n">{count}</td>'
        f'<td class="w"><span class="bar" style="width:{100 * count / most:.1f}%"></span></td></tr>'
        for name, count in items
    )
    return f"<table><tbody>{body}</tbody></table>"


def _histograms(rows: Sequence[Row]) -> str:
    tools = sorted({row.tool for row in rows})
    charts = []
    for tool in tools:
        words = [len(row.query.split()) for row in rows if row.tool == tool]
        bins = Counter(min(count // LENGTH_STEP, LENGTH_BARS - 1) for count in words)
        heights = [bins[number] for number in range(LENGTH_BARS)]
        note = f"{min(words)} to {max(words)} words, mean {sum(words) / len(words):.1f}"
        charts.append(f'<div><h3>{escape(tool)}</h3>{_histogram(heights)}<p class="soft">{note}</p></div>')
    return f'<div class="grid">{"".join(charts)}</div>'


def _histogram(heights: Sequence[int]) -> str:
    """Return bars of LENGTH_STEP words as SVG; every fourth bar is labelled with the words it starts at."""
    most = max(heights) or 1
    parts = []
    for number, count in enumerate(heights):
        height = 80 * count / most
        start = number * LENGTH_STEP
        parts.append(
            f'<rect x="{number * 20 + 1}" y="{84 - height:.1f}" width="18" height="{height:.1f}" fill="var(--bar)">'
            f"<title>{start}-{start + LENGTH_STEP - 1} words: {count}</title></rect>"
        )
        if number % 4 == 0:
            parts.append(f'<text x="{number * 20 + 1}" y="98" font-size="11" fill="var(--soft)">{start}</text>')
    box = f'viewBox="0 0 {len(heights) * 20} 102" width="100%" role="img" aria-label="words per query"'
    return f"<svg {box}>{''.join(parts)}</svg>"


def _reasoning(rows: Sequence[Row]) -> str:
    """Write how often evidence stands in the query, and how many reasonings are the same sentence but for a slot."""
    taught = [(row.conversation, _reasoning_of(row)) for row in rows if not row.is_choice_only]
    found = boilerplate([reasoning for _, reasoning in taught])
    if found is None:
        return "<p>No row has one that is taught.</p>"
    quotes = [(quoted(reasoning), typed) for typed, reasoning in taught]
    standing = sum(bool(texts) and all(stands_in(text, typed) for text in texts) for texts, typed in quotes)
    how = f"counted on {found.reasonings:,}, spread over all" if found.reasonings < len(taught) else "counted on all"
    note = (
        f"{100 * standing / len(taught):.1f} % quote evidence that stands in the query or an earlier turn. "
        f"Boilerplate: {100 * found.share:.1f} % are the same sentence as another one but for evidence, names and "
        f"numbers; {found.sentences:,} different sentences ({how}). The commonest:"
    )
    return f'<p class="soft">{note}</p>{_bar_table(found.commonest)}'


def _reasoning_of(row: Row) -> str:
    """Return the last line of an answer that `render_response` wrote, as it wrote all of this stage; not parsed."""
    return row.response.rpartition("\nReasoning: ")[2]


def _pairs(data: ReportData) -> str:
    closest = sorted(data.nearest, key=lambda leak: -leak.similarity)[:PAIRS_SHOWN]
    if not closest:
        return "<p>There are no held-out rows.</p>"
    lines = [
        [f"{leak.similarity:.2f}", escape(leak.split), escape(leak.query), escape(leak.nearest_query)]
        for leak in closest
    ]
    how = "every held-out row was compared with every training row" if data.is_exhaustive else "by MinHash candidates"
    return f'<p class="soft">Cosine of character trigram sets; {how}.</p>' + _table(
        ["similarity", "split", "held-out query", "nearest training query"], lines, [True, False, False, False]
    )


def _samples(rows: Sequence[Row], seed: int, tokenizer: PreTrainedTokenizerBase | None) -> str:
    key = (
        '<p class="soft">The tools that every prompt begins with are shortened to "...". '
        '<span class="key loss">Marked text</span> carries loss'
        + (", a line ends each token.</p>" if tokenizer else "; the tokenizer is not on this machine.</p>")
    )
    blocks = []
    for tool in sorted({row.tool for row in rows}):
        of_tool = [row for row in rows if row.tool == tool]
        chosen = random.Random(f"{seed}/report/{tool}").sample(of_tool, min(ROWS_PER_TOOL, len(of_tool)))
        blocks.append(f"<h3>{escape(tool)}</h3>" + "".join(_sample(row, tokenizer) for row in chosen))
    return key + "".join(blocks)


def _sample(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> str:
    about = f"{row.metadata.get('source')}, {row.metadata.get('slice', '')}, {row.metadata.get('language', '')}"
    earlier = "".join(f"{turn.as_shown()}\n" for turn in row.history)
    prompt = f"... {earlier}{row.query}\n"
    if tokenizer:  # the template's own text behind the query
        whole = str(tokenizer.decode(encode_prompt(tokenizer, row.instruction), skip_special_tokens=False))
        prompt = f"... {earlier}{row.query}{whole.rpartition(row.query)[2]}"
    return f'<p class="soft">{escape(about)}</p><pre>{escape(prompt)}{_completion(row, tokenizer)}</pre>'


def _completion(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None:
        return f'<span class="loss">{escape(row.response)}</span>'
    example = encode_example(tokenizer, row.instruction, row.response)
    supervised = [label for label in example.labels if label != IGNORE_INDEX]
    texts: list[str] = []
    written = ""
    for end in range(1, len(supervised) + 1):  # decoding prefixes keeps spaces and many-token characters right
        decoded = str(tokenizer.decode(supervised[:end], skip_special_tokens=False))
        texts.append(decoded[len(written) :])
        written = decoded
    return "".join(f'<span class="loss token">{escape(text)}</span>' for text in texts)


def _left_out(data: ReportData) -> str:
    dropped = sorted(data.dropped.items(), key=lambda item: -item[1])
    redacted = sorted(data.redacted.items(), key=lambda item: -item[1])
    parts = [
        f"<div><h3>Rows, by reason</h3>{_bar_table([(name.replace('_', ' '), count) for name, count in dropped])}</div>"
        if any(count for _, count in dropped)
        else "<div><h3>Rows, by reason</h3><p>None.</p></div>",
        f"<div><h3>Replaced by placeholders, by rule</h3>{_bar_table(redacted)}</div>"
        if redacted
        else "<div><h3>Replaced by placeholders, by rule</h3><p>Nothing.</p></div>",
    ]
    return f'<div class="grid">{"".join(parts)}</div>'
