"""What an adapter was taught: the training rows of the run that made it, and of the runs before that one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tool_aware.files import read_json, sha256_of
from tool_aware.manifest import read_manifest
from tool_aware.paths import ADAPTER_PICKLE_NAME, ADAPTER_WEIGHTS_NAME, split_name
from tool_aware.prompt import query_of, unwrap_instruction
from tool_aware.rows import Row
from tool_aware.text import normalised

_WEIGHTS = (ADAPTER_WEIGHTS_NAME, ADAPTER_PICKLE_NAME)


@dataclass(frozen=True)
class Lesson:
    """One run in the life of an adapter, as manifests name it; None where there is no manifest."""

    adapter: str  # the folder it left
    sha256: str | None  # of its weights
    train: str | None  # its train.json, as the run was given it
    train_sha256: str | None

    def queries(self) -> frozenset[str] | None:
        """The questions of its train.json; None if that file is gone or has changed since."""
        path = Path(self.train or "")
        if not path.is_file() or sha256_of(path) != self.train_sha256:
            return None
        return frozenset(normalised(query_of(unwrap_instruction(item["instruction"])[0])) for item in read_json(path))


def lessons_of(adapter: Path) -> list[Lesson]:
    """The runs that made the adapter (or the merged model) in a folder of a run, the last one first."""
    manifest = read_manifest(adapter.resolve().parent) or {}
    inputs = manifest.get("inputs", {}) if manifest.get("stage") == "train" else {}
    train = next((path for path in inputs if Path(path).name == split_name("train")), None)
    weights = next((adapter / name for name in _WEIGHTS if (adapter / name).is_file()), None)
    last = Lesson(str(adapter), sha256_of(weights) if weights else None, train, inputs.get(train))
    return [last, *(Lesson(**lesson) for lesson in manifest.get("lineage", []))]


def taught_rows(rows: Sequence[Row], queries: frozenset[str]) -> list[int]:
    """Numbers, from 1, of the rows whose question is among `queries`."""
    return [number for number, row in enumerate(rows, start=1) if normalised(row.query) in queries]
