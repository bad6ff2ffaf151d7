"""The folder of a run: checked before it starts, locked, cleared for a new one, searched for a checkpoint to resume."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, UserError, listing, say
from tool_aware.manifest import read_manifest
from tool_aware.paths import MANIFEST_NAME, RUN_RECORD_NAME
from tool_aware.training.run.checkpoints import checkpoints_in, newest_valid, refuse_another_run
from tool_aware.training.run.run_record import EXPORTS, in_the_way, recorded, strangers
from tool_aware.transaction import locked, refuse_unsafe

_ANOTHER = "another --output_dir"


@dataclass(frozen=True)
class Wish:
    """Tells what is asked for: a new run, one that goes on, or a new one in place of an old one."""

    resume: bool
    overwrite: bool
    adapter: Path | None = None  # the earlier one to start from


def check_output_dir(config: Config, wish: Wish) -> None:
    """Refuse to mix a new run with an old one, to start where nothing can be kept, and to touch what is not of a run.

    Raises UserError.
    """
    output_dir = config.training.output_dir
    where = str(output_dir)
    if wish.overwrite and wish.resume:
        fix = "--resume to continue, --overwrite to start anew"
        raise UserError("--overwrite would delete what --resume continues from", where=where, fix=fix)
    _refuse_shared_folders(config)
    output_dir.mkdir(parents=True, exist_ok=True)
    if not os.access(output_dir, os.W_OK | os.X_OK):
        raise UserError("cannot be written to", where=where, fix=_ANOTHER)
    if foreign := in_the_way(output_dir):
        what = listing(foreign, "name that a run writes to is taken")
        raise UserError(what, where=where, fix=f"move it away, or name {_ANOTHER}")
    if wish.overwrite:
        _refuse_to_delete(output_dir, wish.adapter)
        return
    if read_manifest(output_dir):
        fix = "use another --output_dir, or --overwrite to replace it; --adapter continues from an adapter"
        raise UserError("holds a finished run", where=where, fix=fix)
    has_results = checkpoints_in(output_dir) or any((output_dir / name).exists() for name in EXPORTS)
    if has_results and not wish.resume:
        fix = "--resume to continue, --overwrite to start anew"
        raise UserError("holds an unfinished run", where=where, fix=fix)


def _refuse_shared_folders(config: Config) -> None:
    """Refuse a folder of which other things are part (`refuse_unsafe`), such as the data and the model.

    Links are followed.
    """
    refuse_unsafe(config.training.output_dir)
    output_dir = config.training.output_dir
    place = output_dir.resolve()
    model = Path(config.model.name)
    others = [
        (config.dataset.dir, f"the data (dataset.dir: {config.dataset.dir})"),
        *([(model, f"the base model ({model})")] if model.is_dir() else []),
    ]
    for other, name in others:
        if other.resolve().is_relative_to(place):
            what = "is" if other.resolve() == place else "contains"
            fix = f"name a folder of its own, such as {output_dir / 'output'}"
            raise UserError(f"{what} {name}, and a run writes and deletes there", where=str(output_dir), fix=fix)


def _refuse_to_delete(output_dir: Path, adapter: Path | None) -> None:
    if adapter and any(
        adapter.resolve().is_relative_to((output_dir / name).resolve()) for name in recorded(output_dir)
    ):
        what = f"--overwrite would delete the adapter to continue from, {adapter}"
        fix = "another --output_dir, which leaves that run as it is"
        raise UserError(what, where=str(output_dir), fix=fix)
    if others := strangers(output_dir):
        what = f"--overwrite would delete what no run wrote: {listing(others, 'file')}"
        raise UserError(what, where=str(output_dir), fix=f"move it away, or name {_ANOTHER}")


@contextlib.contextmanager
def held_output_dir(config: Config, wish: Wish) -> Iterator[None]:
    """Hold the folder for this run alone; delete what an earlier run left if that is asked for.

    Raises UserError if another run holds it, or has begun in it since `check_output_dir`.
    """
    with locked(config.training.output_dir):
        check_output_dir(config, wish)
        if wish.overwrite:
            clear(config.training.output_dir)
        yield


def clear(output_dir: Path) -> None:
    """Delete what earlier runs have recorded as theirs, the manifest first, and nothing else."""
    names = recorded(output_dir)
    if MANIFEST_NAME in names:
        (output_dir / MANIFEST_NAME).unlink(missing_ok=True)
    for name in names:
        path = output_dir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    _delete_parts(output_dir)
    (output_dir / RUN_RECORD_NAME).unlink(missing_ok=True)


def _delete_parts(output_dir: Path) -> None:
    """Delete what a killed run has half written under the hidden names of `atomic_path` and `atomic_folder`."""
    names = "|".join(map(re.escape, recorded(output_dir)))
    for path in output_dir.glob(".*.part"):
        if re.fullmatch(rf"\.({names})(\.\w+)?\.part", path.name) and not path.is_symlink():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def starting_point(output_dir: Path, run: Mapping[str, Any], fallbacks: Fallbacks, *, is_resumed: bool) -> Path | None:
    """Return the checkpoint that `run` goes on from; None for a run from the beginning, in a folder without another's.

    Damaged checkpoints are put aside. Raises UserError if a checkpoint comes from another run, or from a version that
    wrote other files.
    """
    _delete_parts(output_dir)
    checkpoint, damaged = newest_valid(output_dir) if is_resumed else (None, [])
    fallbacks.extend(damaged)
    if checkpoint is None:
        if is_resumed:
            if results := [name for name in EXPORTS if (output_dir / name).exists()]:
                what = f"has no whole checkpoint to resume from, and holds {results[0]}, which a new run would replace"
                raise UserError(what, where=str(output_dir), fix="--overwrite to start anew, or another --output_dir")
            fallbacks.add(f"{output_dir} has no whole checkpoint to resume from: started from the beginning")
        clear(output_dir)  # logs and results of a run that cannot go on
        return None
    refuse_another_run(checkpoint, run)
    say(f"resuming from {checkpoint}")
    return checkpoint
