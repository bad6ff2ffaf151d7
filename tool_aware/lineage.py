"""Training runs that an adapter comes from: its own, and those of the adapters it was started from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tool_aware.files import checked_as, read_as, sha256_of
from tool_aware.manifest import read_manifest
from tool_aware.paths import ADAPTER_PICKLE_NAME, ADAPTER_RECORD_NAME, ADAPTER_WEIGHTS_NAME, MANIFEST_NAME, split_name
from tool_aware.prompt import unwrap_instruction
from tool_aware.rows import Row, identity_of, row_objects

_WEIGHTS = (ADAPTER_WEIGHTS_NAME, ADAPTER_PICKLE_NAME)


@dataclass(frozen=True)
class TrainingRun:
    """One training run; its fields are the keys of `lineage` in a manifest. None where there is no manifest."""

    adapter: str  # the folder it wrote
    sha256: str | None  # of the adapter's weights
    train: str | None  # path of its train.json, as the run was given it
    train_sha256: str | None

    def train_queries(self) -> frozenset[str] | None:
        """Return its train.json as `identity_of` spells its rows; None if that file is gone or has changed since."""
        path = Path(self.train or "")
        if not path.is_file() or sha256_of(path) != self.train_sha256:
            return None
        digest = hashlib.sha256()
        items = row_objects(path, digest)
        queries = frozenset(identity_of(unwrap_instruction(item["instruction"])[0]) for item in items)
        return queries if digest.hexdigest() == self.train_sha256 else None  # it may have changed in between


@dataclass(frozen=True)
class _Recorded:
    """The part of an adapter's record that is read here."""

    lineage: list[TrainingRun] = field(default_factory=list)


def runs_behind(model: Path) -> list[TrainingRun]:
    """Return the runs that made an adapter or merged model, the last one first.

    An adapter's own record tells, also where it was copied to; else the manifest beside the folder does.
    """
    record = read_as(model / ADAPTER_RECORD_NAME, _Recorded)
    if record and record.lineage:
        return [replace(record.lineage[0], adapter=str(model)), *record.lineage[1:]]
    manifest = read_manifest(model.resolve().parent) or {}
    inputs: dict[str, str] = manifest.get("inputs", {}) if manifest.get("stage") == "train" else {}
    train = next((path for path in inputs if Path(path).name == split_name("train")), None)
    weights = next((model / name for name in _WEIGHTS if (model / name).is_file()), None)
    last = TrainingRun(
        adapter=str(model),
        sha256=sha256_of(weights) if weights else None,
        train=train,
        train_sha256=inputs[train] if train else None,
    )
    earlier = checked_as(
        manifest.get("lineage", []), list[TrainingRun], where=str(model.resolve().parent / MANIFEST_NAME)
    )
    return [last, *earlier]


def rows_seen_in_training(rows: Sequence[Row], train_queries: frozenset[str]) -> list[int]:
    """Return the numbers, from 1, of the rows whose conversation is among `train_queries`."""
    return [number for number, row in enumerate(rows, start=1) if row.identity in train_queries]
