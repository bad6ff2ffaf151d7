"""Builds data/README.md: the dataset card in the Hugging Face format, with the numbers of this dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tool_aware.dataset.curation import counts_in_words
from tool_aware.history import history_in_words
from tool_aware.paths import split_name
from tool_aware.rows import SPLITS, Row
from tool_aware.tools import Toolbox

# https://huggingface.co/docs/hub/datasets-cards: the buckets of size_categories
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LIMITS = """## Limits

Synthetic queries are cleaner and more even than real ones. Logged tools are an earlier router's choices that went well,
not labels by people. Languages other than English are covered thinly."""


def build_card(parts: Mapping[str, Sequence[Row]], tools: Toolbox, counts: Mapping[str, Any], seed: int) -> str:
    """Return the text of the card."""
    rows = [row for name in SPLITS for row in parts[name]]
    return f"---\n{_front_matter(rows)}---\n\n{_body(parts, rows, tools, counts, seed)}"


def _front_matter(rows: Sequence[Row]) -> str:
    languages = Counter(str(row.metadata.get("language", "")) for row in rows)
    size = next((name for limit, name in _SIZES if len(rows) < limit), "1M<n<10M")
    files = [{"split": {"val": "validation"}.get(name, name), "path": split_name(name)} for name in SPLITS]
    values = {
        "pretty_name": "Tool choice with parameters and reasons",
        "language": [code for code, _ in languages.most_common() if len(code) == 2],
        "task_categories": ["text-generation", "text-classification"],
        "tags": ["tool-use", "function-calling", "routing"],
        "size_categories": [size],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _body(
    parts: Mapping[str, Sequence[Row]], rows: Sequence[Row], tools: Toolbox, counts: Mapping[str, Any], seed: int
) -> str:
    per_split = {name: Counter(row.tool for row in parts[name]) for name in SPLITS}
    seen = [tool for tool in tools.names if any(counter[tool] for counter in per_split.values())]
    tool_lines = [[tool, *(str(per_split[name][tool]) for name in SPLITS)] for tool in seen]
    tool_lines.append(["all", *(str(len(parts[name])) for name in SPLITS)])
    ambiguous = sum(len(row.acceptable_tools) > 1 for row in rows)
    rejected, redacted = counts.get("log_rejected", {}), counts.get("redacted", {})
    return f"""# Tool choice with parameters and reasons

{len(rows)} queries, each with the one tool that should handle it, the parameters of the call, and a sentence that names
the evidence in the query. Made by `prepare_dataset.py` with seed {seed}.

## Rows

{_markdown(["tool", *SPLITS], tool_lines)}

{_markdown(["source", "rows"], _counted(rows, "source"))}

{_markdown(["slice", "rows"], _counted(rows, "slice"))}

{_markdown(["language", "rows"], _counted(rows, "language"))}

{_fields(ambiguous)}{_earlier_turns(rows)}

## How it was made

Synthetic rows are expanded from hand-written frames and fillers; programs in them are executed by the tests.
Of the agent's query log, {counts.get("log_read", 0)} were read and {sum(rejected.values())} left out\
{_reasons(rejected)}.
Personal data and secrets in logged texts were replaced by placeholders{_reasons(redacted)}.

{_splits(counts.get("highest_similarity", 0.0))}

{_LIMITS}
"""


def _fields(ambiguous: int) -> str:
    return f"""## Fields

- `instruction`: the user turn: the task, the tools with their parameters, the answer format, and the query at the end.
- `response`: three lines, `Tool:`, `Parameters:` (JSON) and `Reasoning:`.
- `metadata`: `source`, `tool`, `slice`, `language`, `template` and `group` (what splits keep together),
  `acceptable_tools` where more than one tool is right ({ambiguous} rows), `accepted_parameters` where other
  values are as good."""


def _earlier_turns(rows: Sequence[Row]) -> str:
    told = history_in_words(rows)
    return f"\n\n{told}. They stand in the instruction before the query, and in `metadata.history`." if told else ""


def _splits(highest_similarity: float) -> str:
    return f"""## Splits

Templates, contrast pairs, programs, sessions and near-duplicates never span two splits. The held-out row closest to a
training row has similarity {highest_similarity:.3f}
(cosine of character trigram sets); 0.85 or more is refused.
`split_report.json` has the number for every held-out row."""


def _counted(rows: Sequence[Row], key: str) -> list[list[str]]:
    return [
        [name, str(count)] for name, count in Counter(str(row.metadata.get(key, "none")) for row in rows).most_common()
    ]


def _markdown(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in headers[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in [headers, rule, *lines])


def _reasons(counts: Mapping[str, int]) -> str:
    return f" ({counts_in_words(counts)})" if counts else ""
