"""The folder of a run: checked before it starts, cleared for a new one, searched for a checkpoint to resume from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tool_aware.console import Fallbacks, UserError, say
from tool_aware.manifest import read_manifest
from tool_aware.paths import (
    ADAPTER_FOLDER,
    CARD_NAME,
    CHECKPOINT_PREFIX,
    CURVES_NAME,
    FINAL_MODEL_FOLDER,
    MANIFEST_NAME,
    METRICS_NAME,
    TENSORBOARD_FOLDER,
)
from tool_aware.training.run.checkpoints import checkpoints_in, newest_valid, refuse_another_run


def check_output_dir(output_dir: Path, *, resume: bool, overwrite: bool, adapter: Path | None = None) -> None:
    """Refuse to mix a new run with an old one, to start where nothing can be kept, and to delete what it starts from.

    `adapter` is the earlier one to continue from. Raises UserError.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(output_dir, os.W_OK):
        raise UserError("cannot be written to", where=str(output_dir), fix="another --output_dir")
    if overwrite and resume:
        fix = "--resume to continue, --overwrite to start anew"
        raise UserError("--overwrite would delete what --resume continues from", where=str(output_dir), fix=fix)
    if overwrite:
        if adapter and any(adapter.resolve().is_relative_to(path.resolve()) for path in _left_by_a_run(output_dir)):
            what = f"--overwrite would delete the adapter to continue from, {adapter}"
            raise UserError(what, where=str(output_dir), fix="another --output_dir, which leaves that run as it is")
        return
    if read_manifest(output_dir):
        fix = "use another --output_dir, or --overwrite to replace it; --adapter continues from an adapter"
        raise UserError("holds a finished run", where=str(output_dir), fix=fix)
    if checkpoints_in(output_dir) and not resume:
        fix = "--resume to continue, --overwrite to start anew"
        raise UserError("holds an unfinished run", where=str(output_dir), fix=fix)


def clear(output_dir: Path) -> None:
    """Delete what an earlier run of this stage left, and nothing else that may lie there."""
    for path in _left_by_a_run(output_dir):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _left_by_a_run(output_dir: Path) -> list[Path]:
    files = [MANIFEST_NAME, METRICS_NAME, CURVES_NAME, CARD_NAME]
    ours = [*files, ADAPTER_FOLDER, FINAL_MODEL_FOLDER, TENSORBOARD_FOLDER]
    return [
        *(output_dir / name for name in ours),
        *output_dir.glob(f"{CHECKPOINT_PREFIX}*"),
        *output_dir.glob(".*.part"),
    ]


def find_checkpoint(output_dir: Path, run: Mapping[str, Any], fallbacks: Fallbacks) -> Path | None:
    """Return the checkpoint that `run` resumes from, None if there is none; damaged ones are put aside.

    Raises UserError if it comes from another run, or from a version that wrote other files.
    """
    checkpoint, damaged = newest_valid(output_dir)
    fallbacks.extend(damaged)
    if checkpoint is None:
        fallbacks.add(f"{output_dir} has no whole checkpoint to resume from: started from the beginning")
        return None
    refuse_another_run(checkpoint, run)
    say(f"resuming from {checkpoint}")
    return checkpoint
