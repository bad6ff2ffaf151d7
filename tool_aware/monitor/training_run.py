"""Find the training run in progress beside the monitor, and read how far it is."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tool_aware.config.options import add_config_arguments
from tool_aware.config.yaml_file import apply_override, read_yaml_file
from tool_aware.console import UserError
from tool_aware.monitor.sampling import TrainingProgress
from tool_aware.paths import METRICS_NAME
from tool_aware.text_files import parse_json

SCRIPT_NAME = "train_tool_aware.py"
_LARGEST = 1e15  # of a number that is shown; NaN is not below it
TAIL_BYTES = 8192  # holds some dozens of lines of metrics.jsonl, whatever the file has grown to

_INTERPRETER = re.compile(r"(python|pypy)[\d.]*")
_OPTIONS_WITH_VALUE = ("-m", "-W", "-X")  # of the interpreter; `-m pdb` and the like run the script that follows


def find_training(output_dir: Path, proc: Path = Path("/proc")) -> TrainingProgress | None:
    """Read the newest logged step of a running train_tool_aware.py; None if nothing runs or is logged.

    A run writes where its command line or its config file says, else below `output_dir` in its own working directory;
    what was last written before it started is of an earlier run. Of several runs, the one that writes to this
    `output_dir` is meant, else the one that has logged last.
    """
    found = []
    for pid, arguments in training_processes(proc):
        with contextlib.suppress(OSError):  # the process is another user's, or has gone, or has no log yet
            folder = _output_dir_of(pid, tuple(arguments), output_dir, proc)
            written_s = (folder / METRICS_NAME).stat().st_mtime
            line = last_step(folder / METRICS_NAME)
            if line is not None and written_s >= started_at(pid, proc):
                progress = TrainingProgress(pid, line["step"], line.get("steps"), line.get("loss"), line.get("eta_s"))
                found.append((folder.resolve() == output_dir.resolve(), written_s, pid, progress))
    return max(found)[-1] if found else None


def training_processes(proc: Path = Path("/proc")) -> Iterator[tuple[int, list[str]]]:
    """Yield (pid, arguments of the script) of each train_tool_aware.py that this user can see.

    Of a run that `torchrun` or `accelerate launch` has started these are its workers.
    """
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").removesuffix("\0").split("\0")
            position = _script_position(words)
            if position is not None and Path(words[position]).name == SCRIPT_NAME:
                yield int(folder.name), words[position + 1 :]


def _script_position(words: Sequence[str]) -> int | None:
    """Return the position of the program in a command line: first, or behind an interpreter's options."""
    if not _INTERPRETER.fullmatch(Path(words[0]).name):
        return 0
    position = 1
    while position < len(words) and words[position].startswith("-"):
        if words[position] == "-c":
            return None
        position += 2 if words[position] in _OPTIONS_WITH_VALUE else 1
    return position if position < len(words) else None


def started_at(pid: int, proc: Path = Path("/proc")) -> float:
    """Return when a process started, in seconds of time.time(). Raises OSError if it has gone."""
    fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    after_boot_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5); the name's bracket ends field 2
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + after_boot_s


@functools.lru_cache(maxsize=64)  # a run reads its config once, when it starts
def _output_dir_of(pid: int, arguments: Sequence[str], default: Path, proc: Path) -> Path:
    """Return where a process writes, by the rules of train_tool_aware.py. Raises OSError if it cannot be seen."""
    folder = Path(os.readlink(proc / str(pid) / "cwd"))
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    add_config_arguments(parser)
    parser.add_argument("--output_dir", "--output-dir", type=Path)
    with contextlib.suppress(argparse.ArgumentError, SystemExit):
        told, _ = parser.parse_known_args(arguments)
        default = told.output_dir or _configured_output_dir(folder / told.config, told.overrides) or default
    return folder / default


def _configured_output_dir(config: Path, overrides: Sequence[str]) -> Path | None:
    """Return training.output_dir of a config file with its overrides; None where it is not set."""
    values: dict[str, Any] = {}
    with contextlib.suppress(UserError, OSError):
        values = read_yaml_file(config)
    for override in overrides:
        with contextlib.suppress(UserError):
            apply_override(values, override)
    training = values.get("training")
    told = training.get("output_dir") if isinstance(training, dict) else None
    return None if told is None else Path(str(told))


def _are_numbers(values: Mapping[str, Any]) -> bool:
    """Return whether what is shown of a line can be shown."""
    shown = [values["step"], *(values.get(name) for name in ("steps", "loss", "eta_s"))]
    return isinstance(values["step"], int) and all(
        value is None or (isinstance(value, int | float) and abs(value) < _LARGEST) for value in shown
    )


def last_step(path: Path) -> dict[str, Any] | None:
    """Return the last complete line that has a loss; the file is read from its end."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            tail = file.read()
    except OSError:
        return None
    for line in reversed(tail.split(b"\n")[:-1]):  # what follows the last newline is still being written
        with contextlib.suppress(ValueError):
            values = parse_json(line)
            if isinstance(values, dict) and {"step", "loss"} <= values.keys() and _are_numbers(values):
                return values
    return None
