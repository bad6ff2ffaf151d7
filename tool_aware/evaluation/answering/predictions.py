"""Answers on disk, one JSON line each as soon as they exist, so that a killed run continues where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tool_aware.console import PROBLEMS_SHOWN, UserError, listing
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.files import write_text

Append = Callable[[list[Prediction]], None]


class PredictionLog:
    """The answers of one system, row -> Prediction, in a JSONL file whose first line names their origin.

    `origin` names everything an answer depends on (dataset, model, adapter, settings). A file of another origin is
    not continued but replaced; a last line cut short by a kill is dropped. Keys in `ignored` may differ.
    """

    def __init__(self, path: Path, origin: Mapping[str, Any], *, ignored: Collection[str] = ()) -> None:
        self.path, self.origin = path, dict(origin)
        self.done: dict[int, Prediction] = {}
        header, lines = _read_lines(path)
        if _without(header, ignored) == _without({"origin": self.origin}, ignored):
            self.done = {line["row"]: Prediction(**line) for line in lines}

    @contextmanager
    def appending(self) -> Iterator[Append]:
        """Yield a function that takes a batch of Predictions and puts them on disk before it returns."""
        lines = [{"origin": self.origin}, *map(asdict, self.done.values())]
        write_text(self.path, "".join(map(_line, lines)))  # also drops half a last line
        with self.path.open("a", encoding="utf-8") as file:

            def append(batch: list[Prediction]) -> None:
                file.writelines(_line(asdict(prediction)) for prediction in batch)
                file.flush()
                os.fsync(file.fileno())
                self.done.update((prediction.row, prediction) for prediction in batch)

            yield append


def _without(header: Any, ignored: Collection[str]) -> dict[str, Any] | None:
    origin = header.get("origin") if isinstance(header, dict) else None
    return {key: value for key, value in origin.items() if key not in ignored} if origin is not None else None


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _read_lines(path: Path) -> tuple[Any, list[dict[str, Any]]]:
    if not path.is_file():
        return None, []
    values = []
    for line in path.read_bytes().split(b"\n"):
        try:
            values.append(json.loads(line))
        except ValueError:
            break  # the last line, cut short, or the empty one behind it
    return (values[0], values[1:]) if values else (None, [])


def read_answers(path: Path, rows: int) -> list[Prediction]:
    """Read answers made elsewhere: a JSON array or JSONL of texts, or objects with `text` and perhaps `row` (from 0).

    Raises UserError with every row that has no answer, has two, or is malformed.
    """
    if not path.is_file():
        raise UserError("not found", where=str(path), fix="--predictions takes a JSON array or JSONL file of answers")
    text = path.read_text(encoding="utf-8")
    try:
        items = json.loads(text) if text.lstrip().startswith("[") else list(map(json.loads, text.splitlines()))
    except ValueError as error:
        raise UserError(f"is neither a JSON array nor JSONL: {error}", where=str(path)) from error
    items = [item for item in items if not (isinstance(item, dict) and "origin" in item)]
    answers: dict[int, Prediction] = {}
    problems = []
    for position, item in enumerate(items):
        fields = {"text": item} if isinstance(item, str) else item
        row = fields.get("row", position) if isinstance(fields, dict) else position
        if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
            problems.append(f'{path}: item {position + 1}: needs text, or an object with "text"')
        elif not isinstance(row, int) or not 0 <= row < rows:
            problems.append(f"{path}: item {position + 1}: row {row!r} is not in the test file (0 to {rows - 1})")
        elif row in answers:
            problems.append(f"{path}: item {position + 1}: row {row} is answered twice")
        else:
            answers[row] = Prediction(row, fields["text"], is_truncated=bool(fields.get("is_truncated", False)))
    missing = [row for row in range(rows) if row not in answers]
    if missing and not problems:
        shown = ", ".join(map(str, missing[:PROBLEMS_SHOWN])) + (", ..." if len(missing) > PROBLEMS_SHOWN else "")
        problems.append(f"{path}: no answer for {len(missing)} of {rows} rows: {shown}")
    if problems:
        raise UserError(listing(problems, "problem"), fix="one answer per row of the test file, in its order")
    return [answers[row] for row in range(rows)]
