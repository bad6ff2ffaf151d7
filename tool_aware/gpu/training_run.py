"""Find the training run that goes on beside the monitor, and read how far it is."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tool_aware.gpu.sampling import TrainingProgress

SCRIPT_NAME = "train_tool_aware.py"
METRICS_NAME = "metrics.jsonl"
TAIL_BYTES = 8192  # holds some dozens of lines of metrics.jsonl, whatever the file has grown to


def find_training(output_dir: Path, proc: Path = Path("/proc")) -> TrainingProgress | None:
    """Read the newest logged step of a running train_tool_aware.py.

    It writes below the directory its command line names, else below `output_dir`. None if nothing runs or is logged.
    """
    pid, arguments = next(training_processes(proc), (None, []))
    if pid is None:
        return None
    line = last_step((_output_dir_of(pid, arguments, proc) or output_dir) / METRICS_NAME)
    if line is None:
        return None
    return TrainingProgress(pid, line["step"], line.get("steps"), line.get("loss"), line.get("eta_s"))


def training_processes(proc: Path = Path("/proc")) -> Iterator[tuple[int, list[str]]]:
    """Yield (pid, arguments) of each train_tool_aware.py that this user can see."""
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(Path(argument).name == SCRIPT_NAME for argument in arguments[:4]):
                yield int(folder.name), arguments


def _output_dir_of(pid: int, arguments: list[str], proc: Path) -> Path | None:
    """Where a process was told to write, by --output_dir; relative to its own working directory."""
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--output_dir", "--output-dir"):
            value = value if equals else "".join(arguments[position + 1 : position + 2])
            with contextlib.suppress(OSError):
                return Path(os.readlink(proc / str(pid) / "cwd")) / value
    return None


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
            values = json.loads(line)
            if isinstance(values, dict) and "step" in values and "loss" in values:
                return values
    return None
