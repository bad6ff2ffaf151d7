"""Show what the router decides in the agent, beside its evaluation, and which queries to label next.

    python -m tool_aware.routing.watch                    # the last 1,000 decisions of database.table
    python -m tool_aware.routing.watch --hours 24 --label 50
    python -m tool_aware.routing.watch --json | jq .label_next

Reads   the query log (POSTGRES_*, database in config.yaml); comparison.json and finetuned_model_metrics.json in
        evaluation.results_dir, or else train.json in dataset.dir
Writes  nothing
Exit    0 done, 2 something to fix; a drift is shown and is no error
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tool_aware.command_line import positive_float, positive_int, script_parser
from tool_aware.config.environment import read_environment
from tool_aware.config.options import ConfigOptions, add_config_arguments, parse_options
from tool_aware.config.settings import Config, load_config
from tool_aware.console import EXIT_DONE, UserError, run, say, table
from tool_aware.files import read_as
from tool_aware.keyword_rules import keyword_rules
from tool_aware.paths import COMPARISON_NAME, FINETUNED_MODEL, metrics_name, split_file
from tool_aware.routing.decision_rows import read_decisions
from tool_aware.routing.drift import Drift, Reference, Share, compare
from tool_aware.rows import load_rows
from tool_aware.text import shortened

LAST = 1000
MOST = 100_000  # rows of --hours, which are held in memory
_QUERY_CHARACTERS = 60
_FIX = "run evaluate.py again, which writes it"


@dataclass(frozen=True, kw_only=True)
class Options(ConfigOptions):
    """Options of the view on decisions."""

    last: int | None
    hours: float | None
    label: int
    json: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Read decisions and references, compare, print."""
    options = parse_arguments(argv)
    config = load_config(options.config, options.overrides)
    reference = read_reference(config)
    most = options.last or (MOST if options.hours else LAST)
    since = datetime.now(UTC) - timedelta(hours=options.hours) if options.hours else None
    read = read_decisions(config.database, read_environment(), most=most, since=since)
    name = f"{config.database.schema_name}.{config.database.table}"
    if read.unreadable:
        say(f"{read.unreadable} rows of {name} have no query, no tool, or a value that cannot be read; left out")
    if not read.found:
        when = f" of the last {options.hours:g} hours" if options.hours else ""
        raise UserError(
            f"holds no decisions{when}", where=name, fix="route with Router.load(..., log=DecisionLog(...))"
        )
    if options.hours and len(read.found) + read.unreadable == most:
        say(f"only the newest {most:,} rows of the last {options.hours:g} hours were read")
    router = config.evaluation.keyword_router
    rules = keyword_rules(router, config.toolbox.names) if router.rules else None
    drift = compare(read.found, reference, rules, label=options.label)
    if not config.database.router_columns.confidence:
        column = f"ALTER TABLE {name} ADD COLUMN confidence real"
        say(f"confidence is not logged: {column}, then database.router_columns.confidence: confidence")
    print(json.dumps(asdict(drift), ensure_ascii=False, indent=2) if options.json else "\n\n".join(sections(drift)))
    return EXIT_DONE


def parse_arguments(argv: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = script_parser(__doc__, prog="python -m tool_aware.routing.watch")
    add_config_arguments(parser)
    add = parser.add_argument
    add("--last", type=positive_int, metavar="N", help=f"the newest N decisions (default: {LAST:,})")
    add("--hours", type=positive_float, metavar="H", help="those of the last H hours")
    add("--label", type=positive_int, default=20, metavar="N", help="queries to label next (default: %(default)s)")
    add("--json", action="store_true", help="print one JSON object")
    return parse_options(Options, parser, argv)


# ---- what decisions are compared with -----------------------------------------------------------------------


@dataclass(frozen=True)
class _PerTool:
    predicted: int


@dataclass(frozen=True)
class _Metrics:
    per_tool: dict[str, _PerTool]


@dataclass(frozen=True)
class _Bin:
    low: float
    rows: int
    confidence: float


@dataclass(frozen=True)
class _Threshold:
    confidence: float | None
    test_coverage: float


@dataclass(frozen=True)
class _Trust:
    test_rows: int
    reliability: list[_Bin]
    threshold: _Threshold


@dataclass(frozen=True)
class _Comparison:
    trust: _Trust | None


def read_reference(config: Config) -> Reference:
    """Return what the evaluation found, or else the shares in train.json. Raises UserError if there is neither."""
    folder = config.evaluation.results_dir
    metrics = read_as(folder / metrics_name(FINETUNED_MODEL), _Metrics, fix=_FIX)
    if metrics is None:
        path = split_file(config.dataset.dir, "train")
        if not path.is_file():
            fix = "run evaluate.py, or name its folder: --set evaluation.results_dir=DIR"
            raise UserError(f"no evaluation, and no {path}, to compare with", where=str(folder), fix=fix)
        say(f"no evaluation in {folder}: the shares of {path} stand in for it")
        counts = Counter(row.tool for row in load_rows(path, config.toolbox).rows)
        return Reference("training", str(path), {tool: counts[tool] for tool in config.toolbox.names})
    tools = {tool: found.predicted for tool, found in metrics.per_tool.items()}
    comparison = read_as(folder / COMPARISON_NAME, _Comparison, fix=_FIX)
    trust = comparison.trust if comparison else None
    if trust is None:
        return Reference("evaluation", str(folder), tools)
    rows = sum(one.rows for one in trust.reliability)
    return Reference(
        "evaluation",
        str(folder),
        tools,
        sum(one.rows * one.confidence for one in trust.reliability) / rows if rows else None,
        {round(one.low * 10): one.rows for one in trust.reliability},
        trust.threshold.confidence,
        round(trust.threshold.test_coverage * trust.test_rows),
    )


# ---- as text ------------------------------------------------------------------------------------------------


def sections(drift: Drift) -> list[str]:
    """Return the parts of the view, each a table or a few lines."""
    when = f", {drift.first} to {drift.last} UTC" if drift.first else ""
    head = f"{drift.decisions:,} decisions{when}, beside {drift.reference}"
    tools = table(["tool", "decisions", "share", drift.reference_kind, "change"], [_cells(one) for one in drift.tools])
    parts = [head, f"{tools}\n* = more than chance, by a two-proportion z-test at 5 %"]
    if drift.mean_confidence is not None:
        parts.append(_confidence(drift, drift.mean_confidence))
    outcomes = [[name.replace("_", " "), count] for name, count in drift.outcomes.items()]
    parts.append(table(["for the next data set", "decisions"], outcomes))
    if drift.rules_disagree is not None:
        share = drift.rules_disagree / drift.decisions
        parts.append(f"the rules by words choose another tool for {drift.rules_disagree:,} ({share:.1%})")
        if drift.rules_instead:
            parts[-1] += "\n" + table(["rules", "decisions"], list(drift.rules_instead.items()))
    if drift.label_next:
        rows = [
            ["-" if one.confidence is None else f"{one.confidence:.2f}", one.tool, one.why, _shown(one.query)]
            for one in drift.label_next
        ]
        parts.append(table(["confidence", "tool", "why", "label next"], rows, ">" + "<<<"))
    return parts


def _confidence(drift: Drift, mean: float) -> str:
    rows = [_cells(one) for one in drift.confidence]
    if drift.below_threshold:
        rows.append(_cells(drift.below_threshold))
    lines = [table(["confidence", "decisions", "share", drift.reference_kind, "change"], rows)]
    before = drift.mean_confidence_before
    beside = "" if before is None else f", {before:.3f} in the evaluation ({mean - before:+.3f})"
    lines.append(f"mean {mean:.3f}{beside}: the accuracy to expect, if the router is still calibrated")
    if drift.threshold is not None:
        lines.append(f"the threshold is {drift.threshold:.3f}: below it the router abstains")
    if drift.without_confidence:
        lines.append(f"{drift.without_confidence:,} decisions without a confidence, which no model has made")
    return "\n".join(lines)


def _cells(one: Share) -> list[Any]:
    if one.before is None:
        return [one.name, f"{one.count:,}", f"{one.share:.1%}", "-", "-"]
    mark = "*" if one.is_beyond_chance else " "
    return [one.name, f"{one.count:,}", f"{one.share:.1%}", f"{one.before:.1%}", f"{one.share - one.before:+.1%}{mark}"]


def _shown(query: str) -> str:
    return shortened(query, _QUERY_CHARACTERS)


if __name__ == "__main__":
    run(main)
