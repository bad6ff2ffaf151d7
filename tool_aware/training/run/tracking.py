"""The log of a run: metrics.jsonl, the terminal, TensorBoard and, if wanted, Weights & Biases."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tool_aware.config.environment import Environment
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, duration, say, warn
from tool_aware.files import add_filename, with_finite_numbers, write_text
from tool_aware.paths import METRICS_NAME, TENSORBOARD_FOLDER
from tool_aware.text_files import parse_json
from tool_aware.training.run.run_record import claimed
from tool_aware.units import GIB

_LONGEST_REASON = 300  # characters
_WANDB_SECTIONS = (
    "model",
    "quantization",
    "lora",
    "training",
    "optimization",
)  # an allowlist: no paths of the user's data


class MetricsLog:
    """Append one JSON object a line. Lines of steps that a resumed run will take again are dropped first.

    Numbers that are not finite are written as null.
    """

    def __init__(self, path: Path, *, resume_step: int = 0) -> None:
        kept = [line for line in read_lines(path) if line["step"] <= resume_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._path, self._file = path, path.open("a", encoding="utf-8")

    def write(self, values: Mapping[str, Any]) -> None:
        """Write a line and hand it to the operating system, so that a tail or a monitor sees it at once."""
        with add_filename(self._path):
            self._file.write(json.dumps(with_finite_numbers(dict(values)), allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a full disk, again
            self._file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl, none if there is no file. Damaged lines are left out, with one warning.

    What follows the last newline was cut off in the middle of a write, which needs no warning.
    """
    if not path.is_file():
        return []
    lines, damaged = [], []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1], start=1):
        try:
            line = parse_json(text)
        except ValueError:
            line = None
        if _is_metrics_line(line):
            lines.append(with_finite_numbers(line))
        else:
            damaged.append(str(number))
    if damaged:
        warn(f"{path}: left out what cannot be read: line {', '.join(damaged)}")
    return lines


_NEEDED = {  # by the field that tells the kind of line: what curves and card take from it
    "loss": ("lr", "examples", "seconds", "examples_per_s"),
    "val_loss": ("val_tool_accuracy",),
}
_LARGEST = 1e300  # of a number that can be converted, added and drawn
_LAST_STEP = 2**53


def _is_metrics_line(line: object) -> bool:
    """Return whether a line holds a step and numbers, null where one was not finite, and all its kind of line needs."""
    if not isinstance(line, dict) or not all(value is None or _is_number(value) for value in line.values()):
        return False
    needed = [name for kind, fields in _NEEDED.items() if kind in line for name in (kind, *fields)]
    step = line.get("step")
    return isinstance(step, int) and 0 <= step < _LAST_STEP and all(name in line for name in needed)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > _LARGEST  # NaN is one


class Tracker:
    """Send each logged step everywhere at once. Use as a context manager.

    No log is worth a training: one that fails is given up, which is a fallback.
    """

    def __init__(
        self,
        config: Config,
        environment: Environment,
        output_dir: Path,
        *,
        resume_step: int = 0,
        fallbacks: Fallbacks | None = None,
    ) -> None:
        self._fallbacks = Fallbacks() if fallbacks is None else fallbacks
        self._output_dir = output_dir
        self._metrics = MetricsLog(claimed(output_dir, METRICS_NAME, self._fallbacks), resume_step=resume_step)
        self._optional: dict[str, _Optional] = {}
        if config.logging.tensorboard:
            self._open("TensorBoard", lambda: _TensorBoard(self._board_folder(), resume_step))
        if environment.use_wandb:
            self._open("wandb", lambda: _WeightsAndBiases(config, environment, output_dir))

    def _board_folder(self) -> Path:
        return claimed(self._output_dir, TENSORBOARD_FOLDER, self._fallbacks)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        for name in [*self._optional]:
            self._use(name, lambda tracker: tracker.close())

    def log(self, values: Mapping[str, Any]) -> None:
        """Record one line; `values` has `step` and numbers."""
        try:
            self._metrics.write(values)
        except OSError as error:  # the next line is tried again: somebody may free space
            self._fallbacks.add(f"{error.filename}: {error.strerror}: lines are missing in it")
        step = values["step"]
        numbers = {name: value for name, value in values.items() if name != "step" and value is not None}
        for name in [*self._optional]:
            self._use(name, lambda tracker: tracker.log(numbers, step))

    def _open(self, name: str, opened: Callable[[], _Optional]) -> None:
        if name == "wandb" and importlib.util.find_spec(name) is None:
            what = "USE_WANDB is set but wandb is not installed; continuing without it (pip install wandb)"
            self._fallbacks.add(what)
            return
        with self._giving_up(name, "does not start"):
            self._optional[name] = opened()

    def _use(self, name: str, action: Callable[[_Optional], None]) -> None:
        with self._giving_up(name, "has failed"):
            action(self._optional[name])

    @contextlib.contextmanager
    def _giving_up(self, name: str, how: str) -> Iterator[None]:
        """Go on without a tracker whose library raises anything; SystemExit is how some refuse a key."""
        try:
            yield
        except (Exception, SystemExit) as error:
            self._optional.pop(name, None)
            reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
            asked = "USE_WANDB is set but wandb" if name == "wandb" else name
            self._fallbacks.add(f"{asked} {how}: {reason}; continuing without it")


class _Optional(Protocol):
    """A tracker that a run can do without."""

    def log(self, numbers: Mapping[str, Any], step: int) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    """Event files below the output folder."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=resume_step + 1 if resume_step else None)
        self._folder = folder

    def log(self, numbers: Mapping[str, Any], step: int) -> None:
        """Write each number and wait until the library's thread has them on the disk: curves are of now."""
        if not self._folder.is_dir():  # its file could still be written, and nobody would find it
            raise FileNotFoundError(f"{self._folder} is gone")
        for name, value in numbers.items():
            self._writer.add_scalar(f"train/{name}", value, step)
        self._writer.flush()  # later, in a folder that is gone, that thread would end with a traceback

    def close(self) -> None:
        """Write the rest."""
        self._writer.close()


class _WeightsAndBiases:
    """A run at Weights & Biases, or in its offline folder below the output folder."""

    def __init__(self, config: Config, environment: Environment, output_dir: Path) -> None:
        import wandb

        has_key = bool(os.environ.get("WANDB_API_KEY")) or _wandb_is_logged_in()
        mode: Any = os.environ.get("WANDB_MODE", "online" if has_key else "offline")
        if mode == "offline":
            say(f"wandb: no key found, so the run is recorded offline below {output_dir / 'wandb'} (later: wandb sync)")
        settings = config.as_dict()
        self._run = wandb.init(
            project=environment.wandb_project,
            dir=output_dir,
            mode=mode,
            config={section: settings[section] for section in _WANDB_SECTIONS},
            settings=wandb.Settings(silent=True, console="off", save_code=False, disable_git=True),
        )

    def log(self, numbers: Mapping[str, Any], step: int) -> None:
        """Send one line."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Send the rest."""
        self._run.finish()


class Throughput:
    """Examples, tokens and seconds since the last logged step; validation and saving do not count as training time."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, step: int) -> None:
        """Start counting at `step`."""
        self._examples = self._tokens = 0
        self._started_s = time.perf_counter()
        self._first_step = self._last_step = step
        self._seconds_in_all = 0.0

    def add(self, examples: int, tokens: int) -> None:
        """Count one micro-batch."""
        self._examples += examples
        self._tokens += tokens

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock while active."""
        began_s = time.perf_counter()
        yield
        self._started_s += time.perf_counter() - began_s

    def lap(self, step: int, steps: int) -> dict[str, Any]:
        """Return the figures since the last call, for a log line at `step` of `steps`, and begin anew."""
        import torch

        seconds = time.perf_counter() - self._started_s
        self._seconds_in_all += seconds
        peak_gib = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None
        figures = {
            "examples": self._examples,
            "tokens": self._tokens,
            "seconds": round(seconds, 3),
            "examples_per_s": round(self._examples / seconds, 2),
            "tokens_per_s": round(self._tokens / seconds, 1),
            "peak_gib": None if peak_gib is None else round(peak_gib, 3),
            "eta_s": round(self._seconds_in_all / (step - self._first_step) * (steps - step), 1),
        }
        self._examples = self._tokens = 0
        self._started_s = time.perf_counter()
        return figures


def together(laps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the lap of a run from those of its processes: examples and tokens of all, the highest peak."""
    examples, tokens = (sum(lap[name] for lap in laps) for name in ("examples", "tokens"))
    peaks = [lap["peak_gib"] for lap in laps if lap["peak_gib"] is not None]
    seconds = laps[0]["seconds"]
    return {
        **laps[0],
        "examples": examples,
        "tokens": tokens,
        "examples_per_s": round(examples / seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
        "peak_gib": max(peaks, default=None),
    }


def step_line(values: Mapping[str, Any]) -> str:
    """Format a logged step for the terminal, one greppable line."""
    parts = [f"step {values['step']}/{values['steps']}", f"loss {values['loss']:.4f}", f"lr {values['lr']:.2e}"]
    parts += [f"grad {values['grad_norm']:.2f}", f"{values['examples_per_s']:.1f} examples/s"]
    parts += [f"{values['tokens_per_s']:,.0f} tok/s"]
    if values["peak_gib"] is not None:
        parts.append(f"peak {values['peak_gib']:.2f} GiB")
    return "  ".join([*parts, f"{duration(values['eta_s'])} left"])


def validation_line(values: Mapping[str, Any]) -> str:
    """Format a scoring of val.json for the terminal."""
    return (
        f"step {values['step']}/{values['steps']}  val loss {values['val_loss']:.4f}  "
        f"val tool accuracy {values['val_tool_accuracy']:.1%} of {values['val_examples']} rows"
    )


def _wandb_is_logged_in() -> bool:
    import netrc

    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
