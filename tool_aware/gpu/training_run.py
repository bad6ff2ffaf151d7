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
    """Read the newest logged step of a running train_tool_aware.py; None if nothing runs or is logged.

    A run writes below the directory its command line names, else below `output_dir` in its own working directory. Of
    several runs, the one that writes to this `output_dir` is meant, else the one that has logged last.
    """
    found = []
    for pid, arguments in training_processes(proc):
        folder = _output_dir_of(pid, arguments, output_dir, proc)
        line = last_step(folder / METRICS_NAME)
        if line is not None:
            written_s = (folder / METRICS_NAME).stat().st_mtime
            progress = TrainingProgress(pid, line["step"], line.get("steps"), line.get("loss"), line.get("eta_s"))
            found.append((folder.resolve() == output_dir.resolve(), written_s, pid, progress))
    return max(found)[-1] if found else None


def training_processes(proc: Path = Path("/proc")) -> Iterator[tuple[int, list[str]]]:
    """Yield (pid, arguments) of each train_tool_aware.py that this user can see."""
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if any(Path(argument).name == SCRIPT_NAME for argument in arguments[:4]):
                yield int(folder.name), arguments


def _output_dir_of(pid: int, arguments: list[str], default: Path, proc: Path) -> Path:
    """Where a process writes: what it was told by --output_dir, or the default, in its own working directory."""
    told = default
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--output_dir", "--output-dir"):
            told = Path(value if equals else "".join(arguments[position + 1 : position + 2]))
    with contextlib.suppress(OSError):
        return Path(os.readlink(proc / str(pid) / "cwd")) / told
    return told


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
