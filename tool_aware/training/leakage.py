"""Check that the adapter a run starts from was not trained on the rows that the run is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tool_aware.console import Fallbacks, UserError
from tool_aware.lineage import TrainingRun, rows_seen_in_training, runs_behind
from tool_aware.paths import split_name
from tool_aware.rows import LoadedRows, Row


def lineage_of(
    adapter: Path | None, data: Mapping[str, LoadedRows], test: LoadedRows | None, fallbacks: Fallbacks
) -> list[dict[str, Any]]:
    """Return the runs behind an adapter, the last one first, as the manifest lists them; none without an adapter.

    Raises UserError if rows of val.json or test.json are in the train.json of one of them; it is a fallback if
    that file is gone. Rows that are also in this run's train.json are found by `prepare_dataset.py --check`.
    """
    if adapter is None:
        return []
    runs = runs_behind(adapter)
    held_out = {split_name("val"): data["val"].rows, **({split_name("test"): test.rows} if test else {})}
    for run in runs:
        if run.train_sha256 != data["train"].sha256:
            _refuse_rows_of(run, held_out, fallbacks)
    return [asdict(run) for run in runs]


def _refuse_rows_of(run: TrainingRun, held_out: Mapping[str, list[Row]], fallbacks: Fallbacks) -> None:
    train_queries = run.train_queries()
    if train_queries is None or run.train is None:
        what = f"{run.train}, which it was trained on, is gone or has changed" if run.train else "has no manifest"
        advice = "data made anew with dataset.splits_from keeps them apart"
        fallbacks.add(f"{run.adapter}: {what}: it may have been trained on rows of val.json and test.json; {advice}")
        return
    found = {name: len(rows_seen_in_training(rows, train_queries)) for name, rows in held_out.items()}
    if any(found.values()):
        numbers = " and ".join(f"{found[name]} of the {len(rows)} rows of {name}" for name, rows in held_out.items())
        folder = Path(run.train).parent
        raise UserError(
            f"it was trained on {run.train}, which holds {numbers}: figures on these rows would be too good",
            where=f"--adapter {run.adapter}",
            fix=f"python prepare_dataset.py --set dataset.splits_from={folder}; or take the rows out of your own data",
        )
