"""Stage 1: turn the agent's query log and synthesis into train, val and test data.

    python prepare_dataset.py
    python prepare_dataset.py --dry-run --set dataset.synthetic_per_tool=25 --set dataset.ambiguous=5
    python prepare_dataset.py --logs export.jsonl --set dataset.dir=/tmp/data

Reads   config.yaml; the query log named there (POSTGRES_* variables) or the file given with --logs
Writes  data/train.json, val.json, test.json   rows to train and evaluate on
        data/sample_raw.json                   a few rows with their tokens and loss mask
        data/manifest.json                     what was done, with the sha256 of every file
Exit    0 done; 2 something to fix; 3 a held-out row is too close to a training row; 130/143 interrupted
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tool_aware.config import Config, Environment, add_config_arguments, load_config, read_environment
from tool_aware.console import GateFailed, UserError, duration, heading, run, say, table, warn
from tool_aware.dataset.assembly import Assembled, assemble
from tool_aware.dataset.curation import Curated, curate, iter_counts
from tool_aware.dataset.previews import preview, preview_rows
from tool_aware.dataset.query_log import DatabaseUnreachable, read_query_log
from tool_aware.dataset.splitting import Split, split_rows
from tool_aware.dataset.synthesis.content import load_content
from tool_aware.records import SPLITS, Row, write_json, write_manifest, write_rows

NOTHING_LOGGED = Curated(rows=[], read=0, rejected={}, redacted={})


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story of the stage: read the log, synthesise, split, check, write."""
    started_s = time.time()
    arguments = parse_arguments(argv)
    config = load_config(arguments.config, arguments.overrides)
    environment = read_environment()
    say(plan(config, environment, arguments))
    if arguments.dry_run:
        return 0

    heading("Reading the query log")
    fallbacks: list[str] = []
    logged = read_log(config, environment, arguments, fallbacks)

    heading("Synthesising")
    assembled = assemble(config, load_content(), logged.rows)
    tell_about(assembled, fallbacks)

    heading("Splitting")
    split = split_rows(assembled.rows, config.dataset.splits, config.dataset.seed)
    check(split, config, fallbacks)

    heading("Writing")
    counts = count(split, logged, assembled)
    paths = write(split.rows, config, environment, fallbacks)
    write_manifest(
        config.dataset.dir, stage="prepare_dataset", config=config.as_dict(), seed=config.dataset.seed,
        started_s=started_s, inputs=[arguments.logs] if arguments.logs else [], outputs=paths, counts=counts,
        fallbacks=fallbacks,
    )  # fmt: skip
    print(summary(split.rows))
    say(f"\n{config.dataset.dir}/ is ready after {duration(time.time() - started_s)}; next: python train_tool_aware.py")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--require-database", action="store_true", help="fail if the query log cannot be read")
    parser.add_argument(
        "--logs", type=Path, metavar="FILE", help="read a JSONL, CSV or Parquet export instead of the database"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser.parse_args(argv)


def plan(config: Config, environment: Environment, arguments: argparse.Namespace) -> str:
    """Say what will be done, before it is done."""
    dataset = config.dataset
    if arguments.logs:
        source = str(arguments.logs)
    elif dataset.use_query_log:
        source = f"{environment.postgres_host}:{environment.postgres_port}/{environment.postgres_db}, table {config.database.table}"
    else:
        source = "none (dataset.use_query_log: false)"
    slices = "all" if dataset.slices == "all" else ", ".join(dataset.slices)
    made = dataset.synthetic_per_tool * len(config.tools) + dataset.ambiguous
    return table(
        ("plan", ""),
        [
            ("query log", source),
            ("tools", ", ".join(config.toolbox.names)),
            ("synthetic rows", f"{made} = {len(config.tools)} x {dataset.synthetic_per_tool} + {dataset.ambiguous} ambiguous; slices: {slices}"),
            ("splits", " / ".join(f"{name} {part:.0%}" for name, part in zip(SPLITS, dataset.splits, strict=True))),
            ("output", f"{dataset.dir}/  (seed {dataset.seed})"),
        ],
        "<<",
    )  # fmt: skip


def read_log(config: Config, environment: Environment, arguments: argparse.Namespace, fallbacks: list[str]) -> Curated:
    """Extract and curate logged rows; without a database say so in one line and go on."""
    if not config.dataset.use_query_log and not arguments.logs:
        say("skipped: dataset.use_query_log is false")
        return NOTHING_LOGGED
    try:
        records = read_query_log(config.database, environment)
        curated = curate(
            records, config.toolbox, config.database.filters, max_per_session=config.dataset.max_per_session
        )
    except DatabaseUnreachable as error:
        if arguments.require_database:
            raise UserError(
                error.what, where=error.where, fix="start the database, or run without --require-database"
            ) from error
        warn(f"no query log: {error.where}: {error.what}; going on with synthesis alone")
        fallbacks.append("database unreachable: synthesis alone")
        return NOTHING_LOGGED
    say(f"{curated.read} logged queries read, {len(curated.rows)} kept")
    if curated.rejected:
        say(f"left out: {', '.join(iter_counts(curated.rejected))}")
    if curated.redacted:
        say(f"replaced by placeholders: {', '.join(iter_counts(curated.redacted))}")
    return curated


def tell_about(assembled: Assembled, fallbacks: list[str]) -> None:
    """Report duplicates, and warn where the content could not supply what was asked for."""
    say(
        f"{len(assembled.rows)} rows; {assembled.exact_duplicates} exact and {assembled.near_duplicates} near-duplicates dropped"
    )
    for kind, missing in assembled.shortfalls.items():
        message = f"{kind}: {missing} rows fewer than asked for; its content or examples are used up"
        warn(message)
        fallbacks.append(message)


def check(split: Split, config: Config, fallbacks: list[str]) -> None:
    """Raise GateFailed if a held-out row is too close to a training row, UserError if a split is empty."""
    if split.leaks:
        worst = max(split.leaks, key=lambda leak: leak.similarity)
        raise GateFailed(
            f"{len(split.leaks)} held-out rows are too close to a training row; the closest, at {worst.similarity:.2f}: "
            f"{worst.query!r} and {worst.nearest_query!r}",
            fix="another dataset.seed, or report it: this should not happen",
        )
    empty = [name for name in SPLITS if not split.rows[name]]
    if empty:
        raise UserError(f"no rows for {', '.join(empty)}", where="dataset", fix="raise dataset.synthetic_per_tool")
    say(
        f"no held-out row is nearer than {max((leak.similarity for leak in split.nearest), default=0):.2f} to a training row"
    )
    for tool in config.toolbox.names:
        absent = [name for name in SPLITS if not any(row.tool == tool for row in split.rows[name])]
        if absent:
            message = f"{tool} has no row in {', '.join(absent)}; more examples or rows would change that"
            warn(message)
            fallbacks.append(message)


def count(split: Split, logged: Curated, assembled: Assembled) -> dict[str, Any]:
    """Numbers for the manifest."""
    rows = [row for part in split.rows.values() for row in part]
    return {
        "rows": {name: len(part) for name, part in split.rows.items()},
        **{key: dict(Counter(str(row.metadata.get(key)) for row in rows).most_common()) for key in ("tool", "source", "slice", "language")},
        "log_read": logged.read,
        "log_rejected": dict(logged.rejected),
        "redacted": dict(logged.redacted),
        "exact_duplicates": assembled.exact_duplicates,
        "near_duplicates": assembled.near_duplicates,
        "dropped_after_check": split.dropped_after_check,
    }  # fmt: skip


def write(
    parts: Mapping[str, Sequence[Row]], config: Config, environment: Environment, fallbacks: list[str]
) -> list[Path]:
    """Write the data files; returns their paths."""
    folder = config.dataset.dir
    tokenizer = load_local_tokenizer(config, environment, fallbacks)
    rows = preview_rows([row for name in SPLITS for row in parts[name]])
    write_json(folder / "sample_raw.json", [preview(row, tokenizer) for row in rows])
    for name in SPLITS:
        write_rows(folder / f"{name}.json", parts[name])
    return [*(folder / f"{name}.json" for name in SPLITS), folder / "sample_raw.json"]


def load_local_tokenizer(config: Config, environment: Environment, fallbacks: list[str]) -> Any:
    """Load the model's tokenizer if it is on this machine; data can be prepared without."""
    import os

    from tool_aware.prompt import load_tokenizer

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        return load_tokenizer(config.model.name, revision=config.model.revision, token=environment.hf_token)
    except (UserError, OSError, ValueError, ImportError):
        message = f"the tokenizer of {config.model.name} is not on this machine: sample_raw.json has no token counts"
        say(message)
        fallbacks.append(message)
        return None


def summary(parts: Mapping[str, Sequence[Row]]) -> str:
    """Count rows by tool, source and split."""

    def line(label: str, key: str, value: str | None) -> tuple[object, ...]:
        numbers = [sum(value is None or row.metadata.get(key) == value for row in parts[name]) for name in SPLITS]
        return (label, *numbers, sum(numbers))

    rows = [row for part in parts.values() for row in part]
    tools = sorted({row.tool for row in rows})
    sources = sorted({row.metadata["source"] for row in rows})
    lines = [
        *(line(tool, "tool", tool) for tool in tools),
        *(line(f"from {source}", "source", source) for source in sources),
    ]
    return table(("rows", *SPLITS, "all"), [*lines, line("all", "", None)])


if __name__ == "__main__":
    run(main)
