"""Manifests: the record of one finished stage."""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tool_aware.console import UserError
from tool_aware.files import checked_as, read_json, write_json
from tool_aware.paths import MANIFEST_NAME
from tool_aware.secret_values import redacted
from tool_aware.stage_times import stages_as_dict
from tool_aware.transaction import is_interrupted, locked
from tool_aware.versions import VERSION, git_commit, package_versions


def write_manifest(
    directory: Path,
    *,
    stage: str,
    config: Mapping[str, Any],
    seed: int,
    started_s: float,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    counts: Mapping[str, Any] | None = None,
    fallbacks: Iterable[str] = (),
    **details: Any,
) -> dict[str, Any]:
    """Write `directory/manifest.json`, the record of one finished stage, and return it.

    `started_s` is the `time.monotonic()` at which the stage began: no change of the clock makes that negative.
    `inputs` (by path) and `outputs` (by name in the folder that is read later) have the sha256 of each file: of the
    bytes that were read or written, taken at that moment, never of what the file holds now.
    In a FileSet, `directory` is its `new` folder.
    `config` holds no secrets: those are only in the environment (see tool_aware.config.environment).
    """
    manifest = {
        "stage": stage,
        "command": [Path(sys.argv[0]).name, *map(redacted, sys.argv[1:])],
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started_s, 1),
        "stages": stages_as_dict(),
        "seed": seed,
        "toolkit": VERSION,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "versions": package_versions(),
        "counts": dict(counts or {}),
        "fallbacks": list(fallbacks),
        **details,
        "inputs": dict(inputs or {}),
        "outputs": dict(outputs or {}),
        "config": dict(config),
    }
    write_json(directory / MANIFEST_NAME, manifest)
    return manifest


@contextlib.contextmanager
def one_set(folder: Path) -> Iterator[dict[str, Any] | None]:
    """Yield a folder's manifest, None without one; what is read of the folder inside is of one run.

    A set of files whose writer was killed halfway through replacing them is put in place first.
    Raises UserError if that is impossible, and afterwards if another run has replaced files meanwhile.
    """
    if is_interrupted(folder):
        try:
            with locked(folder):
                pass
        except OSError as error:
            raise UserError(
                f"its files were being replaced when a run was killed, and cannot be put in place: {error}",
                where=str(folder),
                fix="run this where the folder can be written to, or write it again",
            ) from error
    before = _bytes_of_manifest(folder)
    yield read_manifest(folder)
    if is_interrupted(folder) or _bytes_of_manifest(folder) != before:
        what = "another run replaced files there while they were read"
        raise UserError(what, where=str(folder), fix="run this again")


def _bytes_of_manifest(folder: Path) -> bytes | None:
    try:
        return (folder / MANIFEST_NAME).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


class _Tool(BaseModel):
    name: str


class _Settings(BaseModel):
    tools: list[_Tool] = []


class _Manifest(BaseModel):
    """The part of a manifest that later stages read, `lineage` apart; all else is for people."""

    stage: str
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    config: _Settings = _Settings()
    dataset_sha256: str | None = None


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """Read the manifest of the stage that wrote `directory`; None if it did not finish.

    It has `stage`, `inputs`, `outputs` and `config.tools`. Raises UserError for a file that is no manifest.
    """
    path = directory / MANIFEST_NAME
    fix = "move it away if another program wrote it; else delete it and run the stage that writes it again"
    written = read_json(path, fix=fix)
    if written is None and not path.is_file():
        return None
    known = checked_as(written, _Manifest, where=str(path), fix=fix)
    return {**known.model_dump(), **written, "config": {"tools": [], **written.get("config", {})}}
