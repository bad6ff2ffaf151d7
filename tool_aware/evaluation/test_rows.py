"""The rows to be judged on, and the doubts that make judging on them pointless."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tool_aware.console import UserError
from tool_aware.records import Row, listing, load_rows
from tool_aware.tools import Toolbox


@dataclass(frozen=True)
class TestSet:
    """Rows of the test file by their index in it (from 0), and the file's sha256."""

    __test__ = False  # its name makes pytest look for tests in it

    path: Path
    sha256: str
    rows: dict[int, Row]
    total: int


def load_test_set(folder: Path, tools: Toolbox, *, limit: int | None = None) -> TestSet:
    """Read `folder/test.json`; `limit` takes that many rows spread evenly over the file.

    Raises UserError if rows of the test file are also in train.json: a model would be marked on what it was taught.
    """
    path = folder / "test.json"
    loaded = load_rows(path, tools)
    _refuse_rows_seen_in_training(loaded.rows, folder / "train.json", path, tools)
    total = len(loaded.rows)
    kept = range(total) if limit is None or limit >= total else [index * total // limit for index in range(limit)]
    return TestSet(path, loaded.sha256, {index: loaded.rows[index] for index in kept}, total)


def _refuse_rows_seen_in_training(rows: Sequence[Row], train_path: Path, test_path: Path, tools: Toolbox) -> None:
    if not train_path.is_file():
        return
    trained_on = {_key(row): number for number, row in enumerate(load_rows(train_path, tools).rows, start=1)}
    problems = [
        f"{test_path}: row {number} is row {trained_on[_key(row)]} of {train_path.name}: {row.query[:60]!r}"
        for number, row in enumerate(rows, start=1)
        if _key(row) in trained_on
    ]
    if problems:
        raise UserError(
            "the test rows must not have been trained on\n" + listing(problems, "row"),
            fix="python prepare_dataset.py makes splits that share no row; take these rows out of one of the files",
        )


def _key(row: Row) -> str:
    """A query without case and spacing: what a person would call the same question."""
    return " ".join(row.query.casefold().split())
