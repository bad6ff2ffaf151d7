"""Run the four stages on the embedded default: no GPU, no database, no account, a few minutes on two CPU cores.

    python -m tool_aware.demo

Reads   config.demo.yaml
Writes  .demo/data/, output/ and evaluation_results/ as the stages do, and base_model/, the tiny model; nothing else
Exit    0 done; otherwise the exit code of the stage that failed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tool_aware.command_line import positive_int, script_parser
from tool_aware.config.options import ConfigOptions, add_config_arguments, parse_options
from tool_aware.config.settings import load_config
from tool_aware.console import EXIT_DONE, EXIT_USER, run, say
from tool_aware.demo.postgres_server import embedded_postgres
from tool_aware.demo.sample_log import fill_query_log
from tool_aware.demo.stages import Stages, refuse_folders_elsewhere
from tool_aware.demo.toy_model import PRETRAINING_STEPS, build_base_model, save_tokenizer
from tool_aware.model.base import COMPUTE_DTYPE_SETTING, device
from tool_aware.paths import split_file
from tool_aware.rows import load_rows

DEMO_CONFIG = Path("config.demo.yaml")
DEMO_FOLDER = Path(".demo")
LOGGED_QUERIES = 8000  # of which a third survives: the rest are repeats, failures, or hold control characters
_NOTE = (
    "These numbers come from a toy model with less than a million parameters, built a minute ago. They show that the\n"
    "stages work and say nothing about Mistral-7B: for that, run the same four scripts with config.yaml on your GPU.\n"
    "`make demo-real` runs them on a small pretrained model, with or without a GPU."
)


@dataclass(frozen=True, kw_only=True)
class Options(ConfigOptions):
    """Options of the demo."""

    logged_queries: int
    pretraining_steps: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages one after the other and print the comparison of base and tuned model."""
    options = parse_arguments(argv)
    config = load_config(options.config, options.overrides)
    refuse_folders_elsewhere(config, DEMO_FOLDER)
    stages = Stages(options)

    base = Path(config.model.name)
    base.mkdir(parents=True, exist_ok=True)
    save_tokenizer(base)
    with embedded_postgres("cipher_analytics", "cipher") as variables:
        with stages.timed("sample query log in PostgreSQL"):
            logged = fill_query_log(variables, options.logged_queries)
            say(f"{logged} logged queries in {variables['POSTGRES_DB']}.query_logs")
        stages.script("prepare_dataset.py", "--require-database", variables=variables)
    with stages.timed("tiny base model"):
        rows = load_rows(split_file(config.dataset.dir, "train"), config.toolbox).rows
        build_base_model(base, rows, steps=options.pretraining_steps)
    stages.script("monitor_gpu.py", "check", accepted=(EXIT_DONE, EXIT_USER))
    # On a CPU, matrices so small are multiplied half as fast in bfloat16.
    in_float32 = [] if device().type == "cuda" else ["--set", f"{COMPUTE_DTYPE_SETTING}=float32"]
    stages.script("train_tool_aware.py", "--overwrite", *in_float32)
    report = stages.script("evaluate.py", "--overwrite", "--no-robustness", capture=True)

    print(stages.last_screen(report, _NOTE, config))
    return EXIT_DONE


def parse_arguments(argv: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = script_parser(__doc__, prog="python -m tool_aware.demo")
    add_config_arguments(parser)
    add = parser.add_argument
    add("--logged-queries", type=positive_int, default=LOGGED_QUERIES, metavar="N", help="rows of the sample log")
    add("--pretraining-steps", type=positive_int, default=PRETRAINING_STEPS, metavar="N", help="of the tiny model")
    parser.set_defaults(config=DEMO_CONFIG)
    return parse_options(Options, parser, argv)


if __name__ == "__main__":
    run(main)
