"""The disk space of a run, estimated before it starts: checkpoints, adapter, merged model."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.files import bytes_in, in_words
from tool_aware.memory.spec import TrainingSpec
from tool_aware.model.base import local_folder
from tool_aware.model.tensor_files import stored_tensors
from tool_aware.training.run.run_record import recorded

_ADAPTER_BYTES = 2  # of a trained number in the adapter's file; float32 on a CPU takes more
_MOMENT_BYTES = 8  # of a trained number in AdamW's state: two float32 numbers
_MOMENT_BYTES_8BIT = 2
_KIND_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def check_disk_space(config: Config, *, merges: bool) -> None:
    """Check that checkpoints, adapter and merged model have room. The estimate is on the low side.

    What an earlier run left counts as free, as this run replaces or deletes it. Raises UserError.
    """
    output_dir = config.training.output_dir
    parts = wanted_bytes(config, merges=merges)
    free = shutil.disk_usage(output_dir).free + sum(_size(output_dir / name) for name in recorded(output_dir))
    if sum(parts.values()) <= free:
        return
    named = ", ".join(f"{name} {in_words(size)}" for name, size in parts.items())
    smaller = ["--skip-final-model"] if merges else []
    if config.training.save_total_limit > 1:
        smaller.append("--set training.save_total_limit=1")
    raise UserError(
        f"the run needs {in_words(sum(parts.values()))} ({named}) and {in_words(free)} are free",
        where=str(output_dir),
        fix=" or ".join(["free some space", "name another --output_dir", *smaller]),
    )


def wanted_bytes(config: Config, *, merges: bool) -> dict[str, int]:
    """Return the bytes of what the run will write, by name. The merged model counts if the base is on this machine."""
    trained = TrainingSpec.from_config(config).adapter_parameters
    moments = _MOMENT_BYTES_8BIT if "8bit" in config.optimization.optim else _MOMENT_BYTES
    checkpoint = trained * (_ADAPTER_BYTES + moments)
    parts = {"a checkpoint": checkpoint, "the adapter": trained * _ADAPTER_BYTES}
    folder = local_folder(config.model.name, config.model.revision) if merges else None
    if folder:
        parts["the merged model"] = _merged_bytes(folder, config.export.dtype)
    return parts


def _merged_bytes(folder: Path, dtype: str) -> int:
    wanted = _DTYPE_BYTES.get(dtype)  # None: the base's own precision
    tensors = stored_tensors(folder).values()
    return sum(math.prod(tensor.shape) * (wanted or _KIND_BYTES.get(tensor.kind, 2)) for tensor in tensors)


def _size(path: Path) -> int:
    return bytes_in(path) if path.is_dir() else path.stat().st_size if path.is_file() else 0
