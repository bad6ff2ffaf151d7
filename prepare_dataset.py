"""Stage 1: turn the agent's query log and synthesis into train, val and test data.

    python prepare_dataset.py
    python prepare_dataset.py --dry-run --set dataset.synthetic_per_tool=25 --set dataset.follow_ups=20
    python prepare_dataset.py --check data          (files of any origin; or --import calls.jsonl to convert them)

Reads   config.yaml; the query log named there (POSTGRES_* variables), or the export given with --logs FILE
Writes  data/train.json, val.json, test.json   rows to train and evaluate on
        data/sample_raw.json                   a few rows with their tokens and loss mask
        data/dataset_report.html, README.md    a page about the data, and the dataset card
        data/split_report.json                 similarity of each held-out row to the nearest training row
        data/to_label.jsonl                    logged queries that a person should label, if there are any
        data/manifest.json                     what was done, with the sha256 of every file
Exit    0 done; 2 something to fix; 3 a held-out row is too close to a training row; 129/130/143 interrupted
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tool_aware.command_line import path_argument, script_parser
from tool_aware.config.environment import Environment, read_environment
from tool_aware.config.options import ConfigOptions, add_config_arguments, next_command, parse_options
from tool_aware.config.settings import Config, load_config
from tool_aware.config.yaml_file import path_override
from tool_aware.console import Fallbacks, Progress, duration, heading, run, say, table
from tool_aware.files import unchanged
from tool_aware.library_imports import load_no_models
from tool_aware.paths import DATASET_REPORT_NAME, IMPORTED_CONFIG_NAME, PARAPHRASES_NAME
from tool_aware.rows import SPLITS
from tool_aware.stage_times import begin_run, stages_in_words
from tool_aware.text import shortlist

if TYPE_CHECKING:
    from tool_aware.dataset.assembly import Collected
    from tool_aware.dataset.outputs import Result


@dataclass(frozen=True, kw_only=True)
class Options(ConfigOptions):
    """The command line."""

    dry_run: bool
    overwrite: bool
    require_database: bool
    logs: Path | None
    encoding: str | None
    generator: str
    run_unisolated: bool
    check: Path | None
    import_path: Path | None
    answers: Path | None
    split: str | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage: plan, collect rows, split, check, write."""
    started_s = begin_run()
    options = parse_arguments(argv)
    config, environment = load_config(options.config, options.overrides), read_environment()
    if options.check:
        return check_files(options.check, config, environment, options)
    say(plan(config, environment, options))
    if options.dry_run:
        return 0

    from tool_aware.dataset.earlier_splits import read_earlier_splits
    from tool_aware.dataset.outputs import Result
    from tool_aware.dataset.split_check import split_and_check
    from tool_aware.garbage_collection import no_search_for_circles
    from tool_aware.transaction import locked

    dataset, fallbacks = config.dataset, Fallbacks()
    with locked(dataset.dir), no_search_for_circles():
        check_folder(config, options)
        earlier = read_earlier_splits(dataset.splits_from) if dataset.splits_from else None
        if options.import_path:
            collected = import_rows(options.import_path, config, environment.hf_token, options, fallbacks)
        else:
            collected = make_rows(config, environment, options, fallbacks)
        split = split_and_check(collected.rows, config, earlier, fallbacks, source=options.import_path)
        result = Result(split, dataset.seed, collected, earlier)
        finish(result, config, options, environment.hf_token, fallbacks=fallbacks, started_s=started_s)
    return 0


def check_folder(config: Config, options: Options) -> None:
    """Check that the files can be written: what is there is this stage's, and the disk has room."""
    from tool_aware.dataset.outputs import estimated_bytes, refuse_foreign_files
    from tool_aware.files import require_space

    folder, is_import = config.dataset.dir, options.import_path is not None
    refuse_foreign_files(folder, overwrite=options.overwrite, is_import=is_import)
    sources = [path for path in (options.logs, options.import_path) if path]
    require_space(folder, estimated_bytes(config, sources, is_import=is_import))


def parse_arguments(argv: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = script_parser(__doc__)
    add_config_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    foreign = "rename data files that are not this script's, or were edited"
    parser.add_argument("--overwrite", action="store_true", help=foreign)
    parser.add_argument("--require-database", action="store_true", help="fail if the query log cannot be read")
    export = "a JSONL, CSV or Parquet export instead of the database"
    parser.add_argument("--logs", type=path_argument, metavar="FILE", help=export)
    encoding = "of --logs or --import where it is not UTF-8 and has no byte order mark, such as cp1252"
    parser.add_argument("--encoding", metavar="NAME", help=encoding)
    openai = "openai: also paraphrase rows through the endpoint in OPENAI_BASE_URL, OPENAI_MODEL, OPENAI_API_KEY"
    parser.add_argument("--generator", choices=("builtin", "openai"), default="builtin", help=openai)
    unisolated = "run programs of paraphrases without a sandbox where this machine has none (docs/SECURITY.md)"
    parser.add_argument("--run-unisolated", action="store_true", help=unisolated)
    only = parser.add_mutually_exclusive_group()
    checked = "check a data file, or a folder of them, and stop"
    only.add_argument("--check", type=path_argument, metavar="PATH", help=checked)
    convert = "convert conversations with tool calls, BFCL or xLAM: JSON Lines, Parquet, CSV, or a dataset of the Hub"
    only.add_argument("--import", type=path_argument, dest="import_path", metavar="PATH", help=convert)
    bfcl = "BFCL's answers (default: possible_answer/ beside PATH)"
    parser.add_argument("--answers", type=path_argument, metavar="FILE", help=bfcl)
    parser.add_argument("--split", metavar="NAME", help="the split of a saved dataset, or of one of the Hub, to import")
    return parse_options(Options, parser, argv)


def plan(config: Config, environment: Environment, options: Options) -> str:
    """Return what the run will do, as a table."""
    dataset = config.dataset
    if options.import_path:
        rows = [("import", str(options.import_path))]
    else:
        slices = "all" if dataset.slices == "all" else ", ".join(dataset.slices)
        kinds = {kind: count for kind, count in config.synthetic_kinds.items() if count}
        of_tools = Counter(config.synthetic_by_tool.values())
        parts = [f"{tools} x {n}" for n, tools in of_tools.items()] + [f"{n} {kind}" for kind, n in kinds.items()]
        number = f"{sum([*config.synthetic_by_tool.values(), *kinds.values()])} = {' + '.join(parts)}"
        source = log_source(config, environment, options)
        rows = [("query log", source), ("synthetic rows", f"{number}; slices: {slices}")]
    if options.generator == "openai":
        from tool_aware.dataset.synthesis.programs import isolation_in_words
        from tool_aware.dataset.synthesis.remote import endpoint_of

        rows.append(("paraphrases", f"{dataset.paraphrases} through {endpoint_of(environment).server.shown}"))
        rows.append(("their programs", isolation_in_words(may_do_without=options.run_unisolated)))
    rows.append(("earlier turns", turns_in_words(config)))
    shares = " / ".join(f"{name} {part:.0%}" for name, part in zip(SPLITS, dataset.splits, strict=True))
    rows += [("tools", shortlist(config.toolbox.names)), ("splits", shares)]
    if dataset.splits_from:
        rows.append(("splits kept", f"those of {dataset.splits_from}/"))
    rows.append(("output", f"{dataset.dir}/  (seed {dataset.seed})"))
    return table(("plan", ""), rows, "<<")


def turns_in_words(config: Config) -> str:
    """Return how many earlier turns of its conversation a row may show."""
    limits = config.conversation
    if not limits.max_turns:
        return "none (conversation.max_turns: 0)"
    return f"at most {limits.max_turns} a row, {limits.max_tokens} tokens (conversation)"


def log_source(config: Config, environment: Environment, options: Options) -> str:
    """Return where logged queries come from, in words."""
    if options.logs:
        return str(options.logs)
    if not config.dataset.use_query_log:
        return "none (dataset.use_query_log: false)"
    server = f"{environment.postgres_host}:{environment.postgres_port}/{environment.postgres_db}"
    return f"{server}, table {config.database.table}"


# ---- rows -----------------------------------------------------------------------------------------------


def make_rows(config: Config, environment: Environment, options: Options, fallbacks: Fallbacks) -> Collected:
    """Read the log, synthesise, and paraphrase if asked for."""
    from tool_aware.dataset.assembly import Collected, assemble, check_tools, with_log
    from tool_aware.dataset.logged import read_log
    from tool_aware.dataset.synthesis.content import load_content

    content = load_content()
    check_tools(config, content)
    heading("Reading the query log")
    required = options.require_database
    with unchanged([options.logs]) as inputs:
        logged = read_log(config, environment, fallbacks, options.logs, options.encoding, is_required=required)

    heading("Synthesising")
    assembled = assemble(config, content, logged.rows if logged else [])
    exact, near = assembled.exact_duplicates, assembled.near_duplicates
    say(f"{len(assembled.rows)} rows; {exact} exact and {near} near-duplicates dropped")
    for kind, missing in assembled.shortfalls.items():
        fallbacks.add(f"{kind}: {missing} rows fewer than asked for; its content or examples are used up")
    collected = Collected(assembled.rows, exact, near, inputs=inputs)
    collected = with_log(collected, logged) if logged else collected
    if options.generator == "openai":
        heading("Paraphrasing")
        collected = add_paraphrases(collected, config, environment, options, fallbacks)
    return collected


def add_paraphrases(
    collected: Collected, config: Config, environment: Environment, options: Options, fallbacks: Fallbacks
) -> Collected:
    """Add paraphrases of synthetic rows by a remote model, and the number of candidates that each gate stopped."""
    from tool_aware.dataset.deduplication import deduplicate
    from tool_aware.dataset.synthesis.programs import UNISOLATED, is_isolation_possible
    from tool_aware.dataset.synthesis.remote import endpoint_of, paraphrase

    is_isolated = is_isolation_possible(may_do_without=options.run_unisolated)
    if not is_isolated:
        fallbacks.add(UNISOLATED)
    endpoint, folder, wanted = endpoint_of(environment), config.dataset.dir, config.dataset.paraphrases
    whole = (row for row in collected.rows if not row.history and "then_tool" not in row.metadata)
    sources = [row for row in whole if row.metadata["source"] == "synthetic"]
    random.Random(f"{config.dataset.seed}/paraphrases").shuffle(sources)  # all tools from the first request on
    known = [row.query for row in collected.rows]
    progress = Progress("paraphrases", wanted)
    journal, update = folder / PARAPHRASES_NAME, progress.update
    made = paraphrase(
        sources, known, config.toolbox, endpoint.chat, journal, wanted=wanted, progress=update, is_isolated=is_isolated
    )
    progress.close()
    stopped = ", ".join(f"{gate} {count}" for gate, count in made.stopped.items())
    say(f"{len(made.rows)} of {made.candidates} candidates passed; stopped: {stopped}")
    if len(made.rows) < wanted:
        fallbacks.add(f"{wanted - len(made.rows)} paraphrases fewer than asked for")
    return replace(collected, rows=deduplicate([*collected.rows, *made.rows]).rows, stopped_at_gates=made.stopped)


def import_rows(source: Path, config: Config, token: str | None, options: Options, fallbacks: Fallbacks) -> Collected:
    """Convert another project's data."""
    from tool_aware.dataset.import_report import collect_import
    from tool_aware.dataset.importing import answers_beside

    heading("Importing")
    answers, encoding, split = options.answers, options.encoding, options.split
    with unchanged([source, answers or answers_beside(source)]) as inputs:
        collected = collect_import(
            source, config, options.config, fallbacks, answers=answers, encoding=encoding, split=split, token=token
        )
    return replace(collected, inputs=inputs)


# ---- files ----------------------------------------------------------------------------------------------


def finish(
    result: Result, config: Config, options: Options, hf_token: str | None, *, fallbacks: Fallbacks, started_s: float
) -> None:
    """Write the files and the manifest, and print the rows and the next command."""
    from tool_aware.dataset.outputs import entry_of_earlier_splits, render, summary, write
    from tool_aware.dataset.previews import load_local_tokenizer

    heading("Writing")
    folder = config.dataset.dir
    contents = render(result, config.toolbox, load_local_tokenizer(config.model, hf_token, fallbacks))
    write(
        folder,
        contents,
        result.split.rows,
        fallbacks,
        config=config,
        config_path=options.config,
        overrides=options.overrides,
        seed=result.seed,
        started_s=started_s,
        inputs=result.collected.inputs,
        counts=result.counts(),
        earlier_splits=entry_of_earlier_splits(result.split, result.earlier) if result.earlier else None,
    )
    own_config = folder / IMPORTED_CONFIG_NAME if IMPORTED_CONFIG_NAME in contents else None
    print(summary(result.split.rows))
    say(f"\n{folder}/ is ready after {duration(time.monotonic() - started_s)}; look at {DATASET_REPORT_NAME} there")
    say(f"time: {stages_in_words()}")
    print(f"Next: {next_command('train_tool_aware.py', options, config=own_config)}")


# ---- checks ---------------------------------------------------------------------------------------------


def check_files(path: Path, config: Config, environment: Environment, options: Options) -> int:
    """Check data of any origin. Bad rows and missing files are errors; leaks and imbalance are warnings."""
    from tool_aware.dataset.data_check import check

    check(path, config, environment.hf_token)
    if path.is_dir():
        with_data = replace(options, overrides=[*options.overrides, path_override("dataset.dir", path)])
        print(f"Next: {next_command('monitor_gpu.py estimate', with_data)}")
    return 0


if __name__ == "__main__":
    load_no_models()
    run(main)
