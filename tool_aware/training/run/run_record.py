"""The record of what runs have written into an output folder: only that is ever replaced or deleted.

A name is recorded before its file is written. What bears one of these names and is not recorded belongs to somebody
else: it is refused before a run starts, and moved aside, never deleted, if it appears during one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tool_aware.console import Fallbacks, UserError
from tool_aware.files import read_as, write_json
from tool_aware.manifest import read_manifest
from tool_aware.paths import (
    ADAPTER_FOLDER,
    CARD_NAME,
    CHECKPOINT_MANIFEST_NAME,
    CHECKPOINT_PREFIX,
    CURVES_NAME,
    FINAL_MODEL_FOLDER,
    GRAMMAR_GBNF_NAME,
    GRAMMAR_REGEX_NAME,
    MANIFEST_NAME,
    METRICS_NAME,
    PROBE_NAME,
    RUN_RECORD_NAME,
    TENSORBOARD_FOLDER,
    THRESHOLDS_NAME,
)

FILES = (MANIFEST_NAME, METRICS_NAME, CURVES_NAME, CARD_NAME)
EXPORTS = (ADAPTER_FOLDER, FINAL_MODEL_FOLDER)
FOLDERS = (*EXPORTS, TENSORBOARD_FOLDER)
_CHECKPOINT = re.compile(re.escape(CHECKPOINT_PREFIX) + r"\d+")
# What other stages and libraries add to the folders of a run.
_ADDED = {CARD_NAME, THRESHOLDS_NAME, PROBE_NAME, GRAMMAR_GBNF_NAME, GRAMMAR_REGEX_NAME, CHECKPOINT_MANIFEST_NAME}
_EVENTS = "events.out.tfevents"


@dataclass(frozen=True)
class RunRecord:
    """The content of .run.json: what runs have written into the folder by name, of a folder with its files."""

    names: dict[str, list[str] | None] = field(default_factory=dict)


def recorded(output_dir: Path) -> dict[str, list[str] | None]:
    """Return the names that runs have written into a folder, with the files of those that are whole folders."""
    fix = "move away what lies there, or name another --output_dir"
    record = read_as(output_dir / RUN_RECORD_NAME, RunRecord, fix=fix)
    if record is not None:
        strange = sorted(name for name in record.names if not _is_ours(name))
        if strange:
            what = f"lists {strange[0]!r:.80}, which no run writes"
            raise UserError(what, where=str(output_dir / RUN_RECORD_NAME), fix=fix)
        return record.names
    return _left_by_earlier_versions(output_dir)


def _is_ours(name: str) -> bool:
    return name in FILES or name in FOLDERS or bool(_CHECKPOINT.fullmatch(name))


def _left_by_earlier_versions(output_dir: Path) -> dict[str, list[str] | None]:
    """Return what a run of a version without a record must have written, as its manifest or its checkpoints show."""
    checkpoints = [path.name for path in _checkpoint_places(output_dir) if (path / CHECKPOINT_MANIFEST_NAME).is_file()]
    names = [*checkpoints, METRICS_NAME, *FOLDERS] if checkpoints else []
    manifest = read_manifest(output_dir)
    if manifest and manifest["stage"] == "train":
        names = [*checkpoints, *FILES, *FOLDERS]
    return dict.fromkeys(name for name in names if os.path.lexists(output_dir / name))


def _checkpoint_places(output_dir: Path) -> Iterator[Path]:
    return (path for path in output_dir.glob(f"{CHECKPOINT_PREFIX}*") if _CHECKPOINT.fullmatch(path.name))


def record(output_dir: Path, name: str, files: Iterable[str] | None = None) -> None:
    """Record a name before it is written, or a folder's files once all are there. Deleted checkpoints are taken off."""
    before = recorded(output_dir)
    kept = {
        old: listed
        for old, listed in before.items()
        if not _CHECKPOINT.fullmatch(old) or os.path.lexists(output_dir / old)
    }
    now = {**kept, name: None if files is None else sorted(files)}
    if now != before:
        write_json(output_dir / RUN_RECORD_NAME, {"names": now})


def record_files(folder: Path) -> None:
    """Record which files a finished folder of the run has."""
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    record(folder.parent, folder.name, files)


def claimed(output_dir: Path, name: str, fallbacks: Fallbacks) -> Path:
    """Record a name and return the path to write to. What is there and not of a run is moved aside: a fallback."""
    path = output_dir / name
    if os.path.lexists(path) and (name not in recorded(output_dir) or _is_of_another_kind(path)):
        aside = _free_name(path)
        os.rename(path, aside)  # a link itself, not what it points to
        fallbacks.add(f"{path}: something else was put there during the run; it was moved to {aside.name}")
    record(output_dir, name)
    return path


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.aside{f'-{number}' if number else ''}") for number in range(10_000))
    return next(aside for aside in names if not os.path.lexists(aside))


def _is_of_another_kind(path: Path) -> bool:
    """Return whether a link, a file or a folder lies where a run writes something of another kind."""
    return path.is_symlink() or (path.is_file() if path.name not in FILES else not path.is_file())


def in_the_way(output_dir: Path) -> list[str]:
    """Return in words what lies where a run writes and is not of a run: its name and what it is."""
    known = recorded(output_dir)
    places = [output_dir / name for name in (*FILES, *FOLDERS)]
    found = []
    for path in [*places, *sorted(_checkpoint_places(output_dir))]:
        if not os.path.lexists(path):
            continue
        if path.is_symlink():
            found.append(f"{path.name} is a link to {os.readlink(path)}")
        elif path.name not in known:
            found.append(f"{path.name} was not written by a run of this toolkit")
        elif _is_of_another_kind(path):
            found.append(f"{path.name} is a {'folder' if path.is_dir() else 'file'}, and runs write the other")
    return found


def strangers(output_dir: Path) -> list[str]:
    """Return the files in a run's folders that no run wrote, relative to `output_dir`."""
    found = []
    for name, listed in recorded(output_dir).items():
        folder = output_dir / name
        if folder.is_symlink() or not folder.is_dir():
            continue
        files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir()]
        if name == TENSORBOARD_FOLDER:
            found += [f"{name}/{file}" for file in files if not file.name.startswith(_EVENTS)]
        elif listed is not None:
            own = {*listed, *_ADDED}
            found += [f"{name}/{file}" for file in files if str(file) not in own]
    return found
