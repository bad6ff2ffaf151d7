"""The runs that a starting adapter comes from, and whether they were taught what this run is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tool_aware.config.settings import Config
from tool_aware.console import UserError, warn
from tool_aware.lineage import Lesson, lessons_of, taught_rows
from tool_aware.paths import split_file, split_name
from tool_aware.rows import LoadedRows, Row, load_rows


def lineage_of(adapter: Path | None, data: Mapping[str, LoadedRows], config: Config) -> list[dict[str, Any]]:
    """List the runs that made the adapter, the last one first, for the manifest; none without an adapter.

    Raises UserError if rows of val.json or test.json stand in the train.json of one of them; warns where that file
    is gone. Rows that the present train.json has as well are another matter: `prepare_dataset.py --check` tells.
    """
    if adapter is None:
        return []
    lessons = lessons_of(adapter)
    held_out = _held_out(data, config)
    for lesson in lessons:
        if lesson.train_sha256 != data["train"].sha256:
            _refuse_taught_rows(lesson, held_out)
    return [asdict(lesson) for lesson in lessons]


def _held_out(data: Mapping[str, LoadedRows], config: Config) -> dict[str, list[Row]]:
    """Rows by file that this run, or the evaluation after it, is measured on."""
    test = split_file(config.dataset.dir, "test")
    rows = {split_name("val"): data["val"].rows}
    return {**rows, test.name: load_rows(test, config.toolbox).rows} if test.is_file() else rows


def _refuse_taught_rows(lesson: Lesson, held_out: Mapping[str, list[Row]]) -> None:
    queries = lesson.queries()
    if queries is None:
        what = f"{lesson.train}, which it was trained on, is gone or has changed" if lesson.train else "has no manifest"
        advice = "data made anew with dataset.splits_from keeps them apart"
        warn(f"{lesson.adapter}: {what}: val.json and test.json may hold rows that it was taught; {advice}")
        return
    found = {name: len(taught_rows(rows, queries)) for name, rows in held_out.items()}
    if any(found.values()):
        numbers = " and ".join(f"{found[name]} of the {len(rows)} rows of {name}" for name, rows in held_out.items())
        folder = Path(lesson.train).parent
        raise UserError(
            f"it was trained on {lesson.train}, which holds {numbers}: they would measure what was taught",
            where=f"--adapter {lesson.adapter}",
            fix=f"python prepare_dataset.py --set dataset.splits_from={folder}; or take the rows out of your own data",
        )
