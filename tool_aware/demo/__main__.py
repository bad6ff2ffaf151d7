"""Run the four stages on the embedded default: no GPU, no database, no account, a few minutes on two CPU cores.

    python -m tool_aware.demo

Reads   config.demo.yaml
Writes  .demo/data/, output/ and evaluation_results/ as the stages do, and base_model/, the tiny model; nothing else
Exit    0 done; otherwise the exit code of the stage that failed
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tool_aware.command_line import positive_int, script_parser
from tool_aware.config.options import ConfigOptions, add_config_arguments, parse_options
from tool_aware.config.settings import Config, load_config
from tool_aware.console import EXIT_DONE, EXIT_USER, UserError, duration, heading, run, say, table
from tool_aware.demo.postgres_server import embedded_postgres
from tool_aware.demo.sample_log import fill_query_log
from tool_aware.demo.toy_model import PRETRAINING_STEPS, build_base_model, save_tokenizer
from tool_aware.paths import (
    ADAPTER_FOLDER,
    CARD_NAME,
    COMPARISON_NAME,
    CURVES_NAME,
    FINAL_MODEL_FOLDER,
    METRICS_NAME,
    SAMPLE_NAME,
    TENSORBOARD_FOLDER,
    split_file,
    split_name,
)
from tool_aware.rows import SPLITS, load_rows

DEMO_CONFIG = Path("config.demo.yaml")
DEMO_FOLDER = Path(".demo")
LOGGED_QUERIES = 8000  # of which a third survives: the rest are repeats, failures, or hold control characters
_REPOSITORY = Path(__file__).resolve().parent.parent.parent
_NOTE = (
    "These numbers come from a toy model with a few million parameters, built a minute ago. They show that the stages\n"
    "work and say nothing about Mistral-7B: for that, run the same four scripts with config.yaml on your GPU."
)


@dataclass(frozen=True, kw_only=True)
class Options(ConfigOptions):
    """Options of the demo."""

    logged_queries: int
    pretraining_steps: int


class StageFailed(UserError):
    """A stage that failed; the demo exits with the same code."""

    def __init__(self, script: str, exit_code: int) -> None:
        super().__init__(f"{script} exited with code {exit_code}; its message is above")
        self.exit_code = exit_code


class Stages:
    """Scripts run with the demo's config, and the seconds that each step took."""

    def __init__(self, options: Sequence[str]) -> None:
        self._options = list(options)
        self.seconds: dict[str, float] = {}  # by step

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Print the heading of a step, and time the step."""
        heading(f"== {name}")
        started_s = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started_s

    def script(
        self,
        *command: str,
        variables: Mapping[str, str] | None = None,
        accepted: Sequence[int] = (EXIT_DONE,),
        capture: bool = False,
    ) -> str:
        """Run `SCRIPT ARGUMENTS` in a process of its own, as a user would; with `capture`, also return its stdout."""
        with self.timed(" ".join(command)):
            result = subprocess.run(
                [sys.executable, str(_REPOSITORY / command[0]), *command[1:], *self._options],
                env={**os.environ, **(variables or {}), "HF_HUB_OFFLINE": "1"},
                stdout=subprocess.PIPE if capture else None,
                text=True,
                check=False,
            )
        if result.returncode not in accepted:
            raise StageFailed(command[0], result.returncode)
        if capture:
            print(result.stdout, flush=True)
        return result.stdout or ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages one after the other and print the comparison of base and tuned model."""
    options = parse_arguments(argv)
    config = load_config(options.config, options.overrides)
    refuse_folders_elsewhere(config)
    started_s = time.perf_counter()
    stages = Stages(["--config", str(options.config), *(f"--set={override}" for override in options.overrides)])

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
    stages.script("train_tool_aware.py", "--overwrite")
    report = stages.script("evaluate.py", "--overwrite", "--no-robustness", capture=True)

    times = [(name, duration(seconds)) for name, seconds in stages.seconds.items()]
    print("\n" + table(("step", "wall time"), [*times, ("all of it", duration(time.perf_counter() - started_s))]))
    print(f"\n{comparison_in(report)}\n\n{_NOTE}\n\n{where_things_are(config)}")
    return EXIT_DONE


def comparison_in(report: str) -> str:
    """Return the comparison and the verdict from what evaluate.py printed, without the tables after them."""
    return report[report.index("COMPARISON") :].partition("All systems on the same rows")[0].strip()


def parse_arguments(argv: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = script_parser(__doc__, prog="python -m tool_aware.demo")
    add_config_arguments(parser)
    add = parser.add_argument
    add("--logged-queries", type=positive_int, default=LOGGED_QUERIES, metavar="N", help="rows of the sample log")
    add("--pretraining-steps", type=positive_int, default=PRETRAINING_STEPS, metavar="N", help="of the tiny model")
    parser.set_defaults(config=DEMO_CONFIG)
    return parse_options(Options, parser, argv)


def refuse_folders_elsewhere(config: Config) -> None:
    """Raise UserError if a stage would write outside the demo's folder, where real data and runs may lie."""
    folders = {
        "model.name": Path(config.model.name),
        "dataset.dir": config.dataset.dir,
        "training.output_dir": config.training.output_dir,
        "evaluation.results_dir": config.evaluation.results_dir,
    }
    home = DEMO_FOLDER.resolve()
    elsewhere = [f"{key}={folder}" for key, folder in folders.items() if home not in folder.resolve().parents]
    if elsewhere:
        raise UserError(
            f"the demo replaces what it finds, so it writes below {DEMO_FOLDER}/ only",
            where=", ".join(elsewhere),
            fix=f"leave these as {DEMO_CONFIG} has them, or run the stages one by one",
        )


def where_things_are(config: Config) -> str:
    """Return a table of the folders that the demo wrote."""
    places = (
        (config.dataset.dir, [*map(split_name, SPLITS), SAMPLE_NAME]),
        (
            config.training.output_dir,
            [ADAPTER_FOLDER, FINAL_MODEL_FOLDER, CARD_NAME, CURVES_NAME, METRICS_NAME, TENSORBOARD_FOLDER],
        ),
        (config.evaluation.results_dir, ["metrics and per-row results of both models", COMPARISON_NAME, "figures"]),
    )
    rows = [(f"{folder}/", ", ".join(names)) for folder, names in places]
    return table(("folder", "contents"), rows, "<<")


if __name__ == "__main__":
    run(main)
