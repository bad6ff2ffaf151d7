"""The splits of an earlier data set, which a later one can keep, so that no row trained on gets into val or test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tool_aware.console import UserError
from tool_aware.data_folder import Known, changed_splits, name_of_group, refuse_mixed
from tool_aware.manifest import one_set
from tool_aware.paths import split_file
from tool_aware.prompt import unwrap_instruction
from tool_aware.rows import SPLITS, Row, row_objects


@dataclass(frozen=True)
class EarlierSplits:
    """Conversations, as `identity_of()` spells them, and groups of the earlier rows by split."""

    folder: Path
    sha256: Mapping[str, str]  # by file name
    queries: Mapping[str, frozenset[str]]  # by split
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def split_of(self, rows: Iterable[Row]) -> str | None:
        """Return the split of rows that must stay together: test before val before train; None if none is known.

        Queries decide. A group without any known query follows its name: with another seed a template yields other
        queries.
        """
        rows = list(rows)
        queries = {row.identity for row in rows}
        names = {name for row in rows if (name := name_of_group(row.metadata))}
        for known, found in ((self.queries, queries), (self.groups, names)):
            for split in reversed(SPLITS):
                if not found.isdisjoint(known.get(split, ())):
                    return split
        return None

    def is_in_train(self, row: Row) -> bool:
        """Return whether the conversation is in the earlier train.json."""
        return row.identity in self.queries.get("train", ())


def read_earlier_splits(folder: Path) -> EarlierSplits:
    """Read the split files in `folder`; the tools of their rows may be others than today's.

    Raises UserError if there is no train.json, a file does not hold rows, or they are not of one run.
    """
    paths = {name: split_file(folder, name) for name in SPLITS if split_file(folder, name).is_file()}
    if "train" not in paths:
        raise UserError(
            f"no train.json in {folder}", where="dataset.splits_from", fix="name the folder of an earlier data set"
        )
    hashes = {name: hashlib.sha256() for name in paths}
    with one_set(folder) as manifest:
        items = {name: list(row_objects(path, hashes[name])) for name, path in paths.items()}
    sha256 = {name: digest.hexdigest() for name, digest in hashes.items()}
    rows = {name: list(map(_known, part)) for name, part in items.items()}
    refuse_mixed(folder, changed_splits(manifest, sha256), rows)
    queries = {name: frozenset(row.identity for row in part) for name, part in rows.items()}
    groups = {name: frozenset(row.group for row in part if row.group) for name, part in rows.items()}
    return EarlierSplits(folder, {path.name: sha256[name] for name, path in paths.items()}, queries, groups)


def _known(item: Mapping[str, Any]) -> Known:
    return Known.of(unwrap_instruction(item["instruction"])[0], item.get("metadata") or {})
