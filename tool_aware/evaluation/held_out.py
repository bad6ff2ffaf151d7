"""The rows of the test file, the rows that baselines and calibration learn from, and a check of their overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tool_aware.console import UserError
from tool_aware.data_folder import DataReading, refuse_test_rows_in_train
from tool_aware.lineage import rows_seen_in_training, runs_behind
from tool_aware.paths import split_file, split_name
from tool_aware.rows import Row
from tool_aware.text import spread_evenly
from tool_aware.tools import Toolbox


@dataclass(frozen=True)
class TestSet:
    """Rows of the test file (and of val.json) by their index in it, from 0; `train` is empty without train.json.

    Where other tools are listed now than the rows were made for, `rendered` is the sha256 of the rows as they read with
    these; `added` of them, with indices from `total` on, are not in the file, and `left_out` rows of it are not used.
    Each sha256 is of the bytes that the rows were read from; `changed` names the files that differ from what the
    folder's manifest lists.
    """

    __test__ = False  # its name makes pytest look for tests in it

    path: Path
    sha256: str
    rows: dict[int, Row]
    total: int
    train: list[Row]
    val: dict[int, Row]
    val_sha256: str | None
    train_sha256: str | None = None
    changed: Sequence[str] = ()
    left_out: int = 0
    added: int = 0
    rendered: str = ""

    @property
    def inputs(self) -> dict[str, str]:
        """Return the sha256 of each file that was read, by its path."""
        hashes = {"test": self.sha256, "train": self.train_sha256, "val": self.val_sha256}
        return {str(split_file(self.path.parent, split)): sha256 for split, sha256 in hashes.items() if sha256}

    @property
    def is_whole(self) -> bool:
        """Return whether all rows of the test file are taken."""
        return self.taken == self.total

    @property
    def taken(self) -> int:
        """Return how many rows of the test file are taken, those that are left out for their tool included."""
        return len(self.rows) - self.added + self.left_out


def load_test_set(
    folder: Path, tools: Toolbox, *, limit: int | None = None, reading: DataReading | None = None
) -> TestSet:
    """Read `folder/test.json`; `limit` takes that many rows spread evenly over the file.

    Raises UserError if rows of the test file are also in train.json: the model would be tested on what it learned.
    """
    path = split_file(folder, "test")
    data = (reading or DataReading(folder, tools, ["test"])).result()
    loaded, train, val = data.rows["test"], data.rows.get("train"), data.rows.get("val")
    refuse_test_rows_in_train(loaded.rows, train.rows if train else [], path)
    total = len(loaded.rows)
    kept = spread_evenly(range(total), limit or total)
    return TestSet(
        path=path,
        sha256=loaded.sha256,
        rows={index: loaded.rows[index] for index in kept},
        total=total,
        train=train.rows if train else [],
        val=dict(enumerate(val.rows)) if val else {},
        val_sha256=val.sha256 if val else None,
        train_sha256=train.sha256 if train else None,
        changed=[split_name(split) for split in data.changed],
    )


def refuse_rows_trained_on(test: TestSet, model: Path) -> None:
    """Raise UserError if test rows stand in the train.json of a run that an adapter or merged model comes from.

    Files that are gone or have changed since cannot be checked. A train.json beside the test file already was.
    """
    for run in runs_behind(model):
        queries = run.train_queries() if run.train_sha256 != test.train_sha256 else None
        seen = rows_seen_in_training(list(test.rows.values()), queries) if queries else []
        if run.train and seen:
            raise UserError(
                f"{len(seen)} of {len(test.rows)} rows are in {run.train}; {run.adapter} was trained on that",
                where=str(test.path),
                fix=f"python prepare_dataset.py --set dataset.splits_from={Path(run.train).parent}, and train again; "
                "or evaluate it on the test.json of its own data: --set dataset.dir=DIR",
            )
