"""A data folder as one set: its split files as they were at one moment, and whether they are as they were written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tool_aware.beside import Beside, usable_cores
from tool_aware.config.settings import Config
from tool_aware.console import UserError, listing
from tool_aware.garbage_collection import no_search_for_circles
from tool_aware.manifest import one_set
from tool_aware.paths import split_file, split_name
from tool_aware.prompt import query_of
from tool_aware.rows import SPLITS, LoadedRows, Row, identity_of, load_rows
from tool_aware.text import shortened
from tool_aware.tools import Toolbox
from tool_aware.units import MIB

_LARGE_BYTES = 8 * MIB  # of all splits, some 5,000 rows: they take half a second, another process as long to begin
_TOO_LARGE_BYTES = 128 * MIB  # two processes would hold the rows for a while


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
    if data.changed:
        known = {split: [Known.of(row.instruction, row.metadata) for row in part.rows] for split, part in rows.items()}
        refuse_mixed(folder, data.changed, known)
    return data


class DataReading:
    """A data folder that is read as `read_data_folder` does it: if it is large, by another process from now on."""

    def __init__(self, folder: Path, tools: Toolbox, required: Sequence[str] = ()) -> None:
        self._arguments = (folder, tools, tuple(required))
        files = [split_file(folder, split) for split in SPLITS]
        size_bytes = sum(file.stat().st_size for file in files if file.is_file())
        is_large = _LARGE_BYTES <= size_bytes < _TOO_LARGE_BYTES
        self._process = Beside(read_data_folder, *self._arguments) if is_large and usable_cores() > 1 else None

    @property
    def is_beside(self) -> bool:
        """Return whether there is time for something else until `result` is asked for."""
        return self._process is not None

    def result(self) -> DataFolder:
        """Wait for the rows. Raises what `read_data_folder` raises."""
        return self._process.result() if self._process else read_data_folder(*self._arguments)


@no_search_for_circles()
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


class Known(NamedTuple):
    """A row by what it is known: its query, its conversation as `identity_of` spells it, and its group."""

    query: str
    identity: str
    group: str | None

    @classmethod
    def of(cls, instruction: str, metadata: Mapping[str, object]) -> Known:
        """Return these of a row."""
        return cls(query_of(instruction), identity_of(instruction), name_of_group(metadata))


def refuse_mixed(folder: Path, changed: Sequence[str], rows: Mapping[str, Sequence[Known]]) -> None:
    """Raise UserError if a file that is not the manifest's shares queries or groups between train and held-out rows.

    prepare_dataset.py writes no such set: the files are of different runs, or rows were moved by hand.
    """
    train = rows.get("train", ())
    queries = {row.identity: number for number, row in enumerate(train, start=1)}
    groups = {row.group: number for number, row in enumerate(train, start=1) if row.group}
    shared = []
    for split in rows:
        if split == "train" or not {split, "train"} & set(changed):
            continue
        for number, (query, identity, group) in enumerate(rows[split], start=1):
            same, related = queries.get(identity), groups.get(group) if group else None
            if same or related:
                what = f"is row {same}" if same else f"has the group {group}, as row {related}"
                shared.append(f"{split_name(split)}: row {number} {what} of train.json: {shortened(query)!r}")
    if shared:
        names = ", ".join(split_name(split) for split in changed)
        raise UserError(
            f"{names} changed since the manifest was written, and belongs to another data set, it seems: the rows of "
            "val.json and test.json must not have been trained on\n" + listing(shared, "row"),
            where=str(folder),
            fix="python prepare_dataset.py --overwrite; or delete manifest.json, and the files are taken for your own",
        )


def refuse_other_tools(data: DataFolder, config: Config) -> None:
    """Raise UserError if the data was made for other tools than the config lists: its prompts would offer those."""
    if data.manifest and data.manifest["config"].get("tools") != config.as_dict()["tools"]:
        fix = "python prepare_dataset.py"
        raise UserError("was made for other tools than config.yaml lists now", where=str(data.folder), fix=fix)


def refuse_test_rows_in_train(test: Sequence[Row], train: Sequence[Row], path: Path) -> None:
    """Raise UserError with the rows of the test file, `path`, whose conversation is in train as well."""
    trained_on = {row.identity: number for number, row in enumerate(train, start=1)}
    problems = [
        f"{path}: row {number} is row {trained_on[identity]} of train.json: {row.query[:60]!r}"
        for number, row in enumerate(test, start=1)
        if (identity := row.identity) in trained_on
    ]
    if problems:
        raise UserError(
            "the test rows must not have been trained on\n" + listing(problems, "row"),
            fix="python prepare_dataset.py makes splits that share no row; or take these rows out of one of the files",
        )


def name_of_group(metadata: Mapping[str, object]) -> str | None:
    """Return the name of a row's group; None for a row that stands alone."""
    name = metadata.get("group") or metadata.get("session")
    return str(name) if name else None
