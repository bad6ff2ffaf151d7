"""A data folder as one set: its split files as they were at one moment, and whether they are as they were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tool_aware.console import UserError, listing
from tool_aware.manifest import one_set
from tool_aware.paths import split_file, split_name
from tool_aware.rows import SPLITS, LoadedRows, load_rows
from tool_aware.text import normalised, shortened
from tool_aware.tools import Toolbox


@dataclass(frozen=True)
class DataFolder:
    """The rows of a data folder by split, of the files that it has, and its manifest; None for custom data."""

    folder: Path
    rows: Mapping[str, LoadedRows]
    manifest: Mapping[str, Any] | None

    @property
    def changed(self) -> list[str]:
        """Return the splits whose file is not the one that the manifest lists; none without a manifest."""
        return changed_splits(self.manifest, {split: loaded.sha256 for split, loaded in self.rows.items()})


def read_data_folder(folder: Path, tools: Toolbox, required: Sequence[str] = ()) -> DataFolder:
    """Read the splits of a folder as one set; those `required` must be there.

    Edited files are read as they are (`changed` names them). Raises UserError with the malformed rows of all files,
    if another run replaced files meanwhile, and if files are of different runs (`refuse_mixed`).
    """
    with one_set(folder) as manifest:
        present = [split for split in SPLITS if split in required or split_file(folder, split).is_file()]
        rows = load_all({split: split_file(folder, split) for split in present}, tools)
    data = DataFolder(folder, rows, manifest)
    queries = {split: [row.query for row in loaded.rows] for split, loaded in rows.items()}
    refuse_mixed(folder, data.changed, queries)
    return data


def load_all(files: Mapping[str, Path], tools: Toolbox) -> dict[str, LoadedRows]:
    """Read all files. Raises one UserError with the bad rows of every file."""
    loaded, errors = {}, []
    for name, path in files.items():
        try:
            loaded[name] = load_rows(path, tools)
        except UserError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise UserError("\n".join(map(str, errors)))
    return loaded


def changed_splits(manifest: Mapping[str, Any] | None, hashes: Mapping[str, str]) -> list[str]:
    """Return the splits whose sha256 is not the one in the manifest's outputs; none without a manifest."""
    if manifest is None:
        return []
    return [split for split, sha256 in hashes.items() if manifest["outputs"].get(split_name(split)) != sha256]


def refuse_mixed(folder: Path, changed: Sequence[str], queries: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError if a file that is not the manifest's shares queries between train and held-out rows.

    prepare_dataset.py writes no such set: the files are of different runs, or a row was copied while editing.
    """
    trained_on = {normalised(query): number for number, query in enumerate(queries.get("train", ()), start=1)}
    shared = [
        f"{split_name(split)}: row {number} is row {trained_on[normalised(query)]} of train.json: {shortened(query)!r}"
        for split in queries
        if split != "train" and {split, "train"} & set(changed)
        for number, query in enumerate(queries[split], start=1)
        if normalised(query) in trained_on
    ]
    if shared:
        names = ", ".join(split_name(split) for split in changed)
        raise UserError(
            f"{names} changed since the manifest was written, and rows to validate or test on are now in train.json: "
            "files of two data sets, it seems; the test rows must not have been trained on\n" + listing(shared, "row"),
            where=str(folder),
            fix="python prepare_dataset.py --overwrite; or take these rows out of one of the files",
        )
