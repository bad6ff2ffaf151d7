"""The part that both demos share: the four scripts run one after the other, timed, and the last screen."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tool_aware.config.options import ConfigOptions
from tool_aware.config.settings import Config
from tool_aware.console import EXIT_DONE, UserError, duration, heading, table
from tool_aware.paths import (
    ADAPTER_FOLDER,
    CARD_NAME,
    COMPARISON_NAME,
    CURVES_NAME,
    FINAL_MODEL_FOLDER,
    METRICS_NAME,
    SAMPLE_NAME,
    TENSORBOARD_FOLDER,
    split_name,
)
from tool_aware.rows import SPLITS

_REPOSITORY = Path(__file__).resolve().parent.parent.parent
# Threads of a product that wait for one another sleep. Where another process has one of the cores, spinning instead
# makes a step ten times as slow: 71 s instead of 6 s for 8 examples on a 135M model and two busy cores.
_WAIT = {"OMP_WAIT_POLICY": "passive"}


class StageFailed(UserError):
    """A stage that failed; the demo exits with the same code."""

    def __init__(self, script: str, exit_code: int) -> None:
        super().__init__(f"{script} exited with code {exit_code}; its message is above")
        self.exit_code = exit_code


class Stages:
    """Scripts run with the demo's config, and the seconds that each step took."""

    def __init__(self, options: ConfigOptions) -> None:
        self._options = ["--config", str(options.config), *(f"--set={override}" for override in options.overrides)]
        self._started_s = time.perf_counter()
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
                env={**_WAIT, **os.environ, **(variables or {}), "HF_HUB_OFFLINE": "1"},
                stdout=subprocess.PIPE if capture else None,
                text=True,
                check=False,
            )
        if result.returncode not in accepted:
            raise StageFailed(command[0], result.returncode)
        if capture:
            print(result.stdout, flush=True)
        return result.stdout or ""

    def last_screen(self, report: str, note: str, config: Config) -> str:
        """Return the wall times, the comparison in what evaluate.py printed, `note`, and where everything lies."""
        times = [(name, duration(seconds)) for name, seconds in self.seconds.items()]
        times.append(("all of it", duration(time.perf_counter() - self._started_s)))
        screen = (table(("step", "wall time"), times), comparison_in(report), note, where_things_are(config))
        return "\n" + "\n\n".join(screen)


def comparison_in(report: str) -> str:
    """Return the comparison and the verdict from what evaluate.py printed, without the tables after them."""
    return report[report.index("COMPARISON") :].partition("All systems on the same rows")[0].strip()


def refuse_folders_elsewhere(config: Config, demo_folder: Path) -> None:
    """Raise UserError if a stage would write outside `demo_folder`, where real data and runs may lie."""
    folders = {
        "model.name": Path(config.model.name),
        "dataset.dir": config.dataset.dir,
        "training.output_dir": config.training.output_dir,
        "evaluation.results_dir": config.evaluation.results_dir,
    }
    home = demo_folder.resolve()
    elsewhere = [f"{key}={folder}" for key, folder in folders.items() if home not in folder.resolve().parents]
    if elsewhere:
        raise UserError(
            f"the demo replaces what it finds, so it writes below {demo_folder}/ only",
            where=", ".join(elsewhere),
            fix="leave these as the demo's config has them, or run the stages one by one",
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
