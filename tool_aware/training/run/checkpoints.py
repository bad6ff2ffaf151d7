"""Checkpoints that are either whole or not there, and how to find the newest good one.

A checkpoint is written into a hidden folder, its manifest (sha256 of every file) last, and then renamed. Reading
starts with the manifest: a missing, truncated or altered file disqualifies the checkpoint. Nothing in it is a pickle.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, UserError, warn
from tool_aware.files import (
    bytes_in,
    full_disk_as_user_error,
    give_usual_mode,
    hashes_in,
    read_as,
    sha256_of,
    write_json,
)
from tool_aware.paths import CHECKPOINT_MANIFEST_NAME, CHECKPOINT_PREFIX
from tool_aware.training.run.run_record import claimed

CHECKPOINT_FORMAT = 2  # of what lies in the folder; 1 was written by transformers' Trainer
QUARANTINE_SUFFIX = ".damaged"
_RUN_SECTIONS = ("model", "quantization", "lora", "training")  # what makes one run differ from another
_MAY_CHANGE = {  # when a run is resumed; the two factors of the effective batch count as their product
    "output_dir", "save_steps", "save_total_limit", "keep_best", "early_stopping_patience", "memory_budget_gib",
    "per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size", "packing",
    "attn_implementation",
}  # fmt: skip
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")  # what a library might unpickle
_FULL_DISK_FIX = "free some space and continue with --resume; older checkpoints are untouched"
_NAME = re.compile(CHECKPOINT_PREFIX + r"(\d+)")


@dataclass(frozen=True)
class CheckpointManifest:
    """The content of a checkpoint: its run, and the sha256 of every file."""

    sha256: dict[str, str]
    run: dict[str, Any] = field(default_factory=dict)
    format: int = 1


def checkpoints_in(output_dir: Path) -> list[Path]:
    """List the checkpoint folders of a run, oldest first; whether they are whole is another question."""
    found = [path for path in output_dir.glob(f"{CHECKPOINT_PREFIX}*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return after how many optimizer steps a checkpoint was written."""
    return int(checkpoint.name.removeprefix(CHECKPOINT_PREFIX))


@contextlib.contextmanager
def new_checkpoint(
    output_dir: Path, step: int, run: Mapping[str, Any], fallbacks: Fallbacks | None = None
) -> Iterator[Path]:
    """Yield a folder to write a checkpoint into; it appears as `checkpoint-STEP` once it is whole and on disk.

    `run` identifies the run (see `refuse_another_run`). Raises UserError, leaving older checkpoints alone, if the disk
    is full.
    """
    final = output_dir / f"{CHECKPOINT_PREFIX}{step}"
    part = output_dir / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        with full_disk_as_user_error(
            part, lambda: max(map(bytes_in, [part, *checkpoints_in(output_dir)])), fix=_FULL_DISK_FIX
        ):
            claimed(output_dir, final.name, Fallbacks() if fallbacks is None else fallbacks)
            yield part
            give_usual_mode(part)
            files = sorted(path for path in part.rglob("*") if path.is_file())
            with ThreadPoolExecutor(1) as disk:  # which takes them while they are read once more
                on_disk = disk.submit(_sync, part)
                hashes = hashes_in(part, files)
                on_disk.result()
            described = {"format": CHECKPOINT_FORMAT, "step": step, "run": dict(run), "sha256": hashes}
            write_json(part / CHECKPOINT_MANIFEST_NAME, described)
            _sync(part)
        shutil.rmtree(final, ignore_errors=True)  # the same step again, after a resume from an older checkpoint
        os.replace(part, final)
        _sync(output_dir)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def newest_valid(output_dir: Path) -> tuple[Path | None, list[str]]:
    """Return the newest whole checkpoint, and why others were put aside as `checkpoint-N.damaged`."""
    reasons: list[str] = []
    for checkpoint in reversed(checkpoints_in(output_dir)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint, reasons
        aside = checkpoint.with_name(checkpoint.name + QUARANTINE_SUFFIX)
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        reasons.append(f"{checkpoint.name}: {problem}; moved to {aside.name}")
        warn(reasons[-1])
    return None, reasons


def damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint's files; None if they are what was written."""
    try:
        manifest = read_as(checkpoint / CHECKPOINT_MANIFEST_NAME, CheckpointManifest)
    except UserError:
        manifest = None
    if manifest is None:
        return f"no readable {CHECKPOINT_MANIFEST_NAME}, so it was never finished"
    for name, expected in manifest.sha256.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if sha256_of(checkpoint / name) != expected:
            return f"{name} has changed since it was written"
    planted = [path.name for path in checkpoint.rglob("*") if path.suffix in _PICKLES]
    strangers = sorted(set(planted) - {Path(name).name for name in manifest.sha256})
    return f"{', '.join(strangers)} was not written by this run" if strangers else None


# What runs did that were begun when these settings did not exist.
_BEFORE_THERE_WAS = {"training.tool_variation": 0.0, "training.tool_weight": 1.0}


def run_settings(config: Config) -> dict[str, Any]:
    """Return the settings that decide what a run learns, `section.key: value`, without those of how it is computed."""
    kept = {
        f"{section}.{key}": value
        for section in _RUN_SECTIONS
        for key, value in config.as_dict()[section].items()
        if key not in _MAY_CHANGE
    }
    return {
        **kept,
        "training.effective_batch": config.training.effective_batch,
        "optimization.optim": config.optimization.optim,
    }


def refuse_another_run(checkpoint: Path, run: Mapping[str, Any]) -> None:
    """Raise UserError if `checkpoint` is of another format, or of a run with other data or settings than `run`."""
    manifest = read_as(checkpoint / CHECKPOINT_MANIFEST_NAME, CheckpointManifest)
    assert manifest is not None, "`newest_valid` returns no checkpoint without one"
    if manifest.format != CHECKPOINT_FORMAT:
        raise UserError(
            f"was written by another version of this toolkit (checkpoint format {manifest.format}; this "
            f"version reads {CHECKPOINT_FORMAT})",
            where=str(checkpoint),
            fix="finish the run with that version, or start anew with --overwrite or another --output_dir; "
            f"--adapter {checkpoint} starts a new run from its adapter",
        )
    before = {**{key: value for key, value in _BEFORE_THERE_WAS.items() if key in run}, **manifest.run}
    changed = sorted(key for key in before.keys() | dict(run).keys() if before.get(key) != run.get(key))
    if changed:
        lines = [f"  {key}: {before.get(key)!r} then, {run.get(key)!r} now" for key in changed]
        raise UserError(
            "\n".join(["cannot continue with other settings than it was started with:", *lines]),
            where=str(checkpoint),
            fix="restore them, or start anew with --overwrite or another --output_dir",
        )


def remove_old(output_dir: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for checkpoint in checkpoints_in(output_dir)[:-keep]:
        shutil.rmtree(checkpoint)


def _sync(folder: Path) -> None:
    for path in [*folder.iterdir(), folder] if folder.name.endswith(".part") else [folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
