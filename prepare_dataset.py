"""Stage 1: turn the agent's query log and synthesis into train, val and test data.

    python prepare_dataset.py
    python prepare_dataset.py --dry-run --set dataset.synthetic_per_tool=25 --set dataset.ambiguous=5
    python prepare_dataset.py --check data          (files someone else wrote; or --import calls.jsonl to convert them)

Reads   config.yaml; the query log named there (POSTGRES_* variables), or the export given with --logs FILE
Writes  data/train.json, val.json, test.json   rows to train and evaluate on
        data/sample_raw.json                   a few rows with their tokens and loss mask
        data/dataset_report.html, README.md    to look at, and the dataset card
        data/split_report.json                 how near each held-out row comes to a training row
        data/to_label.jsonl                    logged queries that a person should label, if there are any
        data/manifest.json                     what was done, with the sha256 of every file
Exit    0 done; 2 something to fix; 3 a held-out row is too close to a training row; 130/143 interrupted
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.config.environment import Environment, read_environment
from tool_aware.config.options import add_config_arguments, next_command
from tool_aware.config.settings import Config, load_config
from tool_aware.console import GateFailed, Progress, UserError, duration, heading, run, say, table, warn
from tool_aware.manifest import write_manifest
from tool_aware.paths import PARAPHRASES_NAME
from tool_aware.rows import SPLITS, Row

if TYPE_CHECKING:
    from tool_aware.dataset.earlier_splits import EarlierSplits
    from tool_aware.dataset.splitting import Split

IMPORTED_CONFIG = "imported.yaml"  # extends the config by the tools that an import has brought


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story of the stage: read the log, synthesise, split, check, write."""
    started_s = time.time()
    arguments = parse_arguments(argv)
    config = load_config(arguments.config, arguments.overrides)
    environment = read_environment()
    if arguments.check:
        return check_files(config, environment, arguments)
    say(plan(config, environment, arguments))
    if arguments.dry_run:
        return 0

    from tool_aware.dataset.earlier_splits import read_earlier_splits
    from tool_aware.dataset.outputs import Result, refuse_foreign_files, render, write
    from tool_aware.dataset.splitting import split_rows

    fallbacks: list[str] = []
    refuse_foreign_files(config.dataset.dir, overwrite=arguments.overwrite)
    earlier = read_earlier_splits(config.dataset.splits_from) if config.dataset.splits_from else None
    rows, found = (import_rows if arguments.import_path else make_rows)(config, environment, arguments, fallbacks)

    heading("Splitting")
    split = split_rows(rows, config.dataset.splits, config.dataset.seed, earlier)
    if earlier:
        kept, dropped = sum(split.kept_in_place.values()), split.dropped_as_trained_on
        say(f"{kept} rows stay in their split of {earlier.folder}; {dropped} dropped that its train.json has")
    check_split(split, config, fallbacks, source=arguments.import_path)

    heading("Writing")
    result = Result(split, config.dataset.seed, **found)
    tokenizer = load_local_tokenizer(config, environment, fallbacks)
    paths = write(config.dataset.dir, render(result, config.toolbox, tokenizer))
    imported = config.dataset.dir / IMPORTED_CONFIG
    own_config = imported if imported in paths else None  # has all tools of the data, which training compares with
    made_for = load_config(own_config, arguments.overrides) if own_config else config
    write_manifest(
        config.dataset.dir, stage="prepare_dataset", config=made_for.as_dict(), seed=config.dataset.seed,
        started_s=started_s, inputs=[path for path in (arguments.logs, arguments.import_path) if path], outputs=paths,
        counts=result.counts(), fallbacks=fallbacks, earlier_splits=splits_kept(split, earlier),
    )  # fmt: skip
    print(summary(split.rows))
    say(
        f"\n{config.dataset.dir}/ is ready after {duration(time.time() - started_s)}; look at dataset_report.html there"
    )
    say(f"next: {next_command('train_tool_aware.py', arguments, config=own_config)}")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--overwrite", action="store_true", help="replace data files that this script did not write")
    parser.add_argument("--require-database", action="store_true", help="fail if the query log cannot be read")
    parser.add_argument(
        "--logs", type=Path, metavar="FILE", help="a JSONL, CSV or Parquet export instead of the database"
    )
    parser.add_argument(
        "--generator", choices=("builtin", "openai"), default="builtin",
        help="openai: also paraphrase rows through the endpoint in OPENAI_BASE_URL, OPENAI_MODEL, OPENAI_API_KEY",
    )  # fmt: skip
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--check", type=Path, metavar="PATH", help="check a data file, or a folder of them, and stop")
    only.add_argument(
        "--import", type=Path, dest="import_path", metavar="PATH",
        help="convert JSONL of chat messages with tool calls, or of BFCL questions, instead of synthesising",
    )  # fmt: skip
    parser.add_argument(
        "--answers", type=Path, metavar="FILE", help="BFCL's answers (default: possible_answer/ beside PATH)"
    )
    return parser.parse_args(argv)


def plan(config: Config, environment: Environment, arguments: argparse.Namespace) -> str:
    """Say what will be done, before it is done."""
    dataset = config.dataset
    if arguments.import_path:
        rows = [("import", str(arguments.import_path))]
    else:
        slices = "all" if dataset.slices == "all" else ", ".join(dataset.slices)
        made = dataset.synthetic_per_tool * len(config.tools) + dataset.ambiguous
        number = f"{made} = {len(config.tools)} x {dataset.synthetic_per_tool} + {dataset.ambiguous} ambiguous"
        rows = [
            ("query log", log_source(config, environment, arguments)),
            ("synthetic rows", f"{number}; slices: {slices}"),
        ]
    if arguments.generator == "openai":
        rows.append(("paraphrases", f"{dataset.paraphrases} through {environment.openai_base_url}"))
    shares = " / ".join(f"{name} {part:.0%}" for name, part in zip(SPLITS, dataset.splits, strict=True))
    rows += [
        ("tools", ", ".join(config.toolbox.names)),
        ("splits", shares),
        ("output", f"{dataset.dir}/  (seed {dataset.seed})"),
    ]
    if dataset.splits_from:
        rows.insert(-1, ("splits kept", f"those of {dataset.splits_from}/"))
    return table(("plan", ""), rows, "<<")


def log_source(config: Config, environment: Environment, arguments: argparse.Namespace) -> str:
    """Where logged queries come from, in words."""
    if arguments.logs:
        return str(arguments.logs)
    if not config.dataset.use_query_log:
        return "none (dataset.use_query_log: false)"
    server = f"{environment.postgres_host}:{environment.postgres_port}/{environment.postgres_db}"
    return f"{server}, table {config.database.table}"


# ---- rows -----------------------------------------------------------------------------------------------


def make_rows(
    config: Config, environment: Environment, arguments: argparse.Namespace, fallbacks: list[str]
) -> tuple[list[Row], dict[str, Any]]:
    """Read the log and synthesise; returns the rows and what there is to report about them."""
    from tool_aware.dataset.assembly import assemble
    from tool_aware.dataset.synthesis.content import load_content

    heading("Reading the query log")
    logged = read_log(config, environment, arguments, fallbacks)

    heading("Synthesising")
    assembled = assemble(config, load_content(), logged.rows if logged else [])
    duplicates = f"{assembled.exact_duplicates} exact and {assembled.near_duplicates} near-duplicates dropped"
    say(f"{len(assembled.rows)} rows; {duplicates}")
    for kind, missing in assembled.shortfalls.items():
        note(f"{kind}: {missing} rows fewer than asked for; its content or examples are used up", fallbacks)
    found: dict[str, Any] = {
        "exact_duplicates": assembled.exact_duplicates,
        "near_duplicates": assembled.near_duplicates,
    }
    if logged:
        found |= {
            "log_read": logged.read, "log_rejected": logged.rejected, "redacted": logged.redacted,
            "to_label": logged.to_label,
        }  # fmt: skip
    rows = assembled.rows
    if arguments.generator == "openai":
        heading("Paraphrasing")
        rows, found["stopped_at_gates"] = add_paraphrases(rows, config, environment, fallbacks)
    return rows, found


def read_log(config: Config, environment: Environment, arguments: argparse.Namespace, fallbacks: list[str]) -> Any:
    """Extract and curate logged rows; without a database say so in one line, and return None."""
    from tool_aware.dataset.curation import counts_in_words, curate
    from tool_aware.dataset.log_files import read_log_file
    from tool_aware.dataset.query_log import DatabaseUnreachable, read_query_log

    if not config.dataset.use_query_log and not arguments.logs:
        say("skipped: dataset.use_query_log is false")
        return None
    if arguments.logs:
        records = read_log_file(arguments.logs, config.database)
    else:
        records = read_query_log(config.database, environment)
    try:
        curated = curate(
            records, config.toolbox, config.database.filters, max_per_session=config.dataset.max_per_session
        )
    except DatabaseUnreachable as error:
        if arguments.require_database:
            fix = "start the database, or run without --require-database"
            raise UserError(error.what, where=error.where, fix=fix) from error
        note(f"no query log: {error.where}: {error.what}; going on with synthesis alone", fallbacks)
        return None
    say(f"{curated.read} logged queries read, {len(curated.rows)} kept")
    if curated.rejected:
        say(f"left out: {counts_in_words(curated.rejected)}")
    if curated.redacted:
        say(f"replaced by placeholders: {counts_in_words(curated.redacted)}")
    return curated


def add_paraphrases(
    rows: list[Row], config: Config, environment: Environment, fallbacks: list[str]
) -> tuple[list[Row], Mapping[str, int]]:
    """Let a remote model rewrite synthetic rows; returns all rows and how many candidates each gate stopped."""
    from tool_aware.dataset.deduplication import deduplicate
    from tool_aware.dataset.synthesis.remote import Endpoint, paraphrase

    if not environment.openai_base_url or not environment.openai_model:
        raise UserError("--generator openai needs OPENAI_BASE_URL and OPENAI_MODEL", where="environment",
                        fix="export OPENAI_BASE_URL=http://localhost:8000/v1 OPENAI_MODEL=name")  # fmt: skip
    endpoint = Endpoint(environment.openai_base_url, environment.openai_model, environment.openai_api_key)
    sources = [row for row in rows if row.metadata["source"] == "synthetic"]
    random.Random(f"{config.dataset.seed}/paraphrases").shuffle(sources)  # all tools from the first request on
    wanted = config.dataset.paraphrases
    config.dataset.dir.mkdir(parents=True, exist_ok=True)
    progress = Progress("paraphrases", wanted)
    made = paraphrase(
        sources, [row.query for row in rows], config.toolbox,
        endpoint.chat, config.dataset.dir / PARAPHRASES_NAME, wanted=wanted, progress=progress.update,
    )  # fmt: skip
    progress.close()
    say(f"{len(made.rows)} of {made.candidates} candidates passed; stopped: "
        + ", ".join(f"{gate} {count}" for gate, count in made.stopped.items()))  # fmt: skip
    if len(made.rows) < wanted:
        note(f"{wanted - len(made.rows)} paraphrases fewer than asked for", fallbacks)
    return deduplicate([*rows, *made.rows]).rows, made.stopped


def import_rows(
    config: Config, _environment: Environment, arguments: argparse.Namespace, fallbacks: list[str]
) -> tuple[list[Row], dict[str, Any]]:
    """Convert someone else's file. Tools that config.yaml lacks go into a config of their own beside the data."""
    import yaml

    from tool_aware.dataset.deduplication import deduplicate
    from tool_aware.dataset.importing import import_file

    heading("Importing")
    imported = import_file(arguments.import_path, config.toolbox, arguments.answers)
    unique = deduplicate(imported.rows)
    say(f"{len(imported.rows)} rows taken over, {sum(imported.skipped.values())} left out")
    for reason, number in imported.skipped.items():
        say(f"  {reason}: {number}")
    if not unique.rows:
        raise UserError("no row could be taken over", where=str(arguments.import_path), fix="see docs/FORMATS.md")
    more_files = {}
    if imported.foreign_tools:
        path = config.dataset.dir / IMPORTED_CONFIG
        tools = [tool.model_dump(exclude_defaults=True) for tool in config.tools] + [
            {"name": tool.name, "description": tool.description or tool.name, "parameters": dict(tool.parameters)}
            for tool in imported.foreign_tools
        ]
        base = os.path.relpath(arguments.config, path.parent)
        merged = {"extends": base, "tools": tools}
        more_files[path.name] = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)
        note(
            f"{len(imported.foreign_tools)} tools are not in {arguments.config}: "
            f"run the next stages with --config {path}",
            fallbacks,
        )
    return unique.rows, {
        "exact_duplicates": unique.exact,
        "near_duplicates": unique.near,
        "log_rejected": imported.skipped,
        "more_files": more_files,
    }


# ---- checks ---------------------------------------------------------------------------------------------


def check_split(split: Split, config: Config, fallbacks: list[str], *, source: Path | None = None) -> None:
    """Raise GateFailed if a held-out row is too close to a training row, UserError if a split is empty.

    `source` is the file that the rows were imported from, if they were.
    """
    if split.leaks:
        worst = max(split.leaks, key=lambda leak: leak.similarity)
        raise GateFailed(
            f"{len(split.leaks)} held-out rows are too close to a training row; "
            f"the closest, at {worst.similarity:.2f}: {worst.query!r} and {worst.nearest_query!r}",
            fix="another dataset.seed, or report it: this should not happen",
        )
    empty = [name for name in SPLITS if not split.rows[name]]
    if empty:
        number = sum(map(len, split.rows.values()))
        if source:
            fix = "import more rows, or write train.json, val.json and test.json by hand and --check them"
        else:
            fix = "raise dataset.synthetic_per_tool"
        raise UserError(
            f"{number} distinct rows leave none for {' and '.join(empty)} at dataset.splits {config.dataset.splits}",
            where=str(source or "dataset"), fix=fix,
        )  # fmt: skip
    highest = max((leak.similarity for leak in split.nearest), default=0.0)
    say(f"no held-out row is nearer than {highest:.3f} to a training row")
    check_tools(split, config, fallbacks)


def check_tools(split: Split, config: Config, fallbacks: list[str]) -> None:
    """Note tools without rows in a split; raise UserError for one that is made from its examples alone."""
    for tool in config.toolbox.names:
        part = {name: [row for row in split.rows[name] if row.tool == tool] for name in SPLITS}
        rows = [row for name in SPLITS for row in part[name]]
        absent = ", ".join(name for name in SPLITS if not part[name])
        if not absent or not rows:
            continue
        templates = {str(row.metadata.get("template")) for row in rows}
        from_examples = all(template.startswith(f"example-{tool}-") for template in templates)
        if from_examples and not config.dataset.splits_from:
            raise UserError(
                f"no row in {absent}: its {len(rows)} rows come from {len(templates)} of its `examples`",
                where=f"tools: {tool}",
                fix="raise dataset.synthetic_per_tool, or give it examples that differ more, better ten of them",
            )
        note(f"{tool} has no row in {absent}; more examples or rows would change that", fallbacks)


def splits_kept(split: Split, earlier: EarlierSplits | None) -> dict[str, Any] | None:
    """For the manifest: whose splits were kept, and with how many rows; None without dataset.splits_from."""
    if earlier is None:
        return None
    return {
        "folder": str(earlier.folder),
        "sha256": dict(earlier.sha256),
        "rows": dict(split.kept_in_place),
        "dropped": split.dropped_as_trained_on,
    }


def check_files(config: Config, environment: Environment, arguments: argparse.Namespace) -> int:
    """Check data that someone else wrote. Bad rows and missing files are errors; leaks and imbalance are warnings."""
    from tool_aware.dataset import data_check as validation

    files = validation.files_to_check(arguments.check)
    loaded = validation.load_all(files, config.toolbox)
    tokenizer = load_local_tokenizer(config, environment, [])
    first = next(iter(loaded.values()))
    lengths = validation.token_lengths(first, tokenizer)
    print(validation.balance(loaded, config.toolbox))
    print(validation.describe_lengths(lengths, config.model.max_seq_length, is_estimate=tokenizer is None))
    for message in validation.imbalance(loaded, config.toolbox):
        warn(message)
    for leak in validation.leakage(loaded):
        warn(
            f"{leak.held_out} shares {leak.exact} queries with train and {leak.near} nearly; for example {leak.example}"
        )
    say(f"{sum(len(part.rows) for part in loaded.values())} rows, all well-formed")
    for_training, for_evaluation = validation.missing_files(arguments.check, files)
    if for_evaluation:
        say(f"no {for_evaluation[0]}: it can be trained on, but evaluate.py needs one")
    if for_training:
        raise UserError(
            f"no {' and no '.join(for_training)}: training needs train.json and val.json", where=str(arguments.check),
            fix="write rows there that the other files do not have; a tenth of them all is usual (docs/FORMATS.md)",
        )  # fmt: skip
    if arguments.check.is_dir():
        overrides = [*arguments.overrides, f"dataset.dir={arguments.check}"]
        same = argparse.Namespace(config=arguments.config, overrides=overrides)
        say(f"memory and time of training on it: {next_command('monitor_gpu.py estimate', same)}")
    return 0


def load_local_tokenizer(config: Config, environment: Environment, fallbacks: list[str]) -> Any:
    """Load the model's tokenizer if it is on this machine; data can be prepared without."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from huggingface_hub.constants import HF_HUB_CACHE

    from tool_aware.prompt import load_tokenizer

    try:
        cached = Path(HF_HUB_CACHE, f"models--{config.model.name.replace('/', '--')}")
        if not cached.is_dir() and not Path(config.model.name).is_dir():
            raise OSError("neither downloaded nor a folder")  # before transformers takes seconds to say so
        return load_tokenizer(config.model.name, revision=config.model.revision, token=environment.hf_token)
    except (UserError, OSError, ValueError, ImportError):
        message = f"the tokenizer of {config.model.name} is not on this machine: tokens are not counted"
        say(message)
        fallbacks.append(message)
        return None


def note(message: str, fallbacks: list[str]) -> None:
    """Warn, and remember it for the manifest."""
    warn(message)
    fallbacks.append(message)


def summary(parts: Mapping[str, Sequence[Row]]) -> str:
    """Count rows by tool, source and split."""

    def line(label: str, key: str, value: str | None) -> tuple[object, ...]:
        numbers = [sum(value is None or row.metadata.get(key) == value for row in parts[name]) for name in SPLITS]
        return (label, *numbers, sum(numbers))

    rows = [row for part in parts.values() for row in part]
    by_tool = [line(tool, "tool", tool) for tool in sorted({row.tool for row in rows})]
    by_source = [
        line(f"from {source}", "source", source) for source in sorted({row.metadata["source"] for row in rows})
    ]
    return table(("rows", *SPLITS, "all"), [*by_tool, *by_source, line("all", "", None)])


if __name__ == "__main__":
    run(main)
