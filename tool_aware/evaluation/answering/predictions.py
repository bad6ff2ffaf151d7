"""Answers on disk, one JSON line each as soon as they exist, so that a killed run continues where it stopped."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.console import PROBLEMS_SHOWN, Fallbacks, UserError, listing, warn
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.files import checked_as, write_text
from tool_aware.json_values import lone_surrogate, unusable
from tool_aware.text import shortened
from tool_aware.text_files import JsonLine, json_items, parse_json

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

Append = Callable[[list[Prediction]], None]


class PredictionLog:
    """The answers of one system, row -> Prediction, in a JSONL file whose first line names their origin.

    `origin` names everything an answer depends on (dataset, model, adapter, settings). A file of another origin is
    not continued but replaced; a last line cut short by a kill is dropped. Keys in `ignored` may differ. `tools` are
    those that a choice scores.
    """

    def __init__(
        self, path: Path, origin: Mapping[str, Any], *, ignored: Collection[str] = (), tools: Collection[str] = ()
    ) -> None:
        self.path, self.origin = path, dict(origin)
        self.done: dict[int, Prediction] = {}
        before, answers = _read_log(path, tools)
        if _without(before, ignored) == _without(self.origin, ignored):
            self.done = answers

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


def _without(origin: Any, ignored: Collection[str]) -> dict[str, Any] | None:
    return {key: value for key, value in origin.items() if key not in ignored} if isinstance(origin, dict) else None


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _read_log(path: Path, tools: Collection[str]) -> tuple[Any, dict[int, Prediction]]:
    """Return the origin that a log names and its answers; warn of lines that hold none. None without a log.

    A run asks several times, as another one may have written since: what has not changed is read once.
    """
    if not path.is_file():
        return None, {}
    found = path.stat()
    origin, answers = _read_once(path, tuple(tools), (found.st_ino, found.st_size, found.st_mtime_ns))
    return origin, dict(answers)


@lru_cache(maxsize=256)  # the tasks of a run: some forty
def _read_once(path: Path, tools: Collection[str], _as_of: object) -> tuple[Any, dict[int, Prediction]]:
    first, *lines = path.read_bytes().split(b"\n")
    header = _parsed(first)
    origin = header.get("origin") if isinstance(header, dict) else None
    kind = origin.get("kind") if isinstance(origin, dict) else None
    answers, damaged = {}, []
    for number, line in enumerate(lines, start=2):
        found = _prediction(_parsed(line), kind, tools)
        if found:
            answers[found.row] = found
        elif number <= len(lines):  # the last line is empty, or cut short by a kill
            damaged.append(str(number))
    if damaged:
        warn(f"{path}: not answers, so these rows are answered again: line {', '.join(damaged)}")
    return origin, answers


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line.decode())
    except ValueError:
        return None


def _prediction(value: Any, kind: str | None, tools: Collection[str]) -> Prediction | None:
    """Return the answer that a line holds; None if it holds none, or not what this kind of task asks for."""
    if unusable(value):
        return None
    if isinstance(value, dict) and isinstance(scores := value.get("scores"), dict):
        value["scores"] = {sys.intern(name): score for name, score in scores.items()}  # one object in all answers
    try:
        found = checked_as(value, Prediction, where="")
    except UserError:
        return None
    if kind == "choice":
        return found if found.scores and (not tools or found.scores.keys() == set(tools)) else None
    return found if kind is None or found.text is not None else None


# ---- answers made elsewhere -----------------------------------------------------------------------------------

_WRAPPINGS = {
    "begin with the model's thoughts (<think>)": re.compile(r"^\s*<think(?:ing)?>", re.IGNORECASE),
    "end with a mark of the end (</s>, <|im_end|>, ...)": re.compile(
        r"(?:</s>|<\|(?:im_end|eot_id|end|endoftext|return)\|>|<end_of_turn>)\s*$"
    ),
}
_ROW_NAMES = ("index", "idx", "id", "row_index", "row_id")  # beside `row` and OpenAI's `custom_id`
_NUMBER_AT_END = r"(?:^[A-Za-z]*|[-_:./# ])([0-9]{1,9})$"  # row-7, request_7, 7; not the end of a UUID


def read_answers(path: Path, rows: int, fallbacks: Fallbacks, digest: Digest | None = None) -> list[Prediction]:
    """Read answers made elsewhere: a JSON array or JSONL of texts, or objects with `text` and perhaps `row` (from 0).

    The output of OpenAI's batches is read as well; there the row is the number at the end of `custom_id`.
    Half surrogate pairs become a question mark, which is a fallback. Raises UserError with every row that has no
    answer, has two, or is malformed. `digest`, of hashlib, gets the bytes that were read.
    """
    if not path.is_file():
        raise UserError("not found", where=str(path), fix="--predictions takes a JSON array or JSONL file of answers")
    items = [
        item for item in _answer_items(path, digest) if not (isinstance(item.value, dict) and "origin" in item.value)
    ]
    answers: dict[int, Prediction] = {}
    problems, mended = [], []
    for position, item in enumerate(items):
        try:
            answer = _answer(item, position)
        except ValueError as error:
            problems.append(f"{path}: item {item.number}: {error}")
            continue
        text = answer.text or ""
        if lone_surrogate(text):
            mended.append(str(answer.row))
            answer = replace(answer, text=text.encode(errors="replace").decode())
        if not 0 <= answer.row < rows:
            problems.append(f"{path}: item {item.number}: row {answer.row} is not in the test file (0 to {rows - 1})")
        elif answer.row in answers:
            problems.append(f"{path}: item {item.number}: row {answer.row} is answered twice")
        else:
            answers[answer.row] = answer
    missing = [row for row in range(rows) if row not in answers]
    if missing and not problems:
        problems.append(f"{path}: no answer for {len(missing)} of {rows} rows: {_shown(missing)}")
    if problems:
        raise UserError(listing(problems, "problem"), fix="one answer per row of the test file, in its order")
    if mended:
        what = "half surrogate pairs, which are no characters, were replaced in the answers to rows"
        fallbacks.add(f"{path}: {what} {_shown(mended)}")
    found = [answers[row] for row in range(rows)]
    note_wrappings(found, fallbacks)
    return found


def note_wrappings(answers: Sequence[Prediction], fallbacks: Fallbacks) -> None:
    """Count the answers with thoughts before them or a mark of the end behind, which are unreadable for that alone."""
    for words, pattern in _WRAPPINGS.items():
        count = sum(bool(pattern.search(answer.text or "")) for answer in answers)
        if count:
            fallbacks.add(f"{count} of {len(answers)} answers {words}, and are judged as they are")


def _shown(rows: Sequence[object]) -> str:
    return ", ".join(map(str, rows[:PROBLEMS_SHOWN])) + (", ..." if len(rows) > PROBLEMS_SHOWN else "")


def _answer_items(path: Path, digest: Digest | None) -> list[JsonLine]:
    """Return the items of an array or the lines of JSON Lines. Raises UserError for plain text and for one object."""
    items = list(json_items(path, digest=digest))
    fix = '[{"row": 0, "text": "Tool: ..."}, ...], or an object a line'
    if not items:
        raise UserError("holds no answers", where=str(path), fix=fix)
    if all(item.problem for item in items):
        what = "is neither a JSON array nor JSON Lines"
        raise UserError(f"{what}: line {items[0].number} {items[0].problem}", where=str(path), fix=fix)
    return items


def _answer(item: JsonLine, position: int) -> Prediction:
    """Return the answer of an item, that to the row at its position if it names none. Raises ValueError, in words."""
    if item.problem or item.repeated:
        raise ValueError(item.problem or f"{', '.join(item.repeated)}: given twice")
    fields = {"text": item.value} if isinstance(item.value, str) else item.value
    if not isinstance(fields, dict):
        raise ValueError('needs text, or an object with "text"')
    number = _row_of(fields, position)
    if "text" in fields:
        text, is_truncated = fields["text"], fields.get("is_truncated") or False
        if not isinstance(text, str):
            raise ValueError(f'"text" is {"null" if text is None else type(text).__name__}; an empty answer is ""')
        if not isinstance(is_truncated, bool):
            raise ValueError(f'"is_truncated" is {shortened(repr(is_truncated))}, neither true nor false')
        return Prediction(number, text, is_truncated=is_truncated)
    response = fields.get("response", fields)
    body = response.get("body", response) if isinstance(response, dict) else None
    if not isinstance(body, dict) or "choices" not in body:
        if failure := fields.get("error") or (isinstance(body, dict) and body.get("error")):
            raise ValueError(f"the request failed: {shortened(str(failure))}")
        raise ValueError(f'needs text, or an object with "text"; it has {", ".join(fields) or "nothing"}')
    return _completion(body["choices"], number)


def _row_of(fields: Mapping[str, Any], position: int) -> int:
    """Return the row that an item names, or its position if it names none. Raises ValueError.

    Numbers under other names count as well: items in another order must not be judged by their position.
    """
    if "row" in fields:
        return _row_number(fields["row"], is_id=False)
    if "custom_id" in fields:
        return _row_number(fields["custom_id"], is_id=True)
    for name in _ROW_NAMES:
        if isinstance(fields.get(name), int | float) or str(fields.get(name, "")).strip().isdecimal():
            return _row_number(fields[name], is_id=False)
    return position


def _row_number(row: Any, *, is_id: bool) -> int:
    """Return a row's number: given as one, as digits, or at the end of a request's id. Raises ValueError."""
    if isinstance(row, int) and not isinstance(row, bool):
        return row
    if isinstance(row, float) and row.is_integer():
        return int(row)
    digits = re.search(_NUMBER_AT_END if is_id else r"^\s*([0-9]{1,9})\s*$", row) if isinstance(row, str) else None
    if digits is None:
        place = '"custom_id" has no row number at its end' if is_id else "is not a row number"
        raise ValueError(f"{shortened(repr(row))} {'as ' if is_id else ''}{place}")
    return int(digits[1])


def _completion(choices: Any, row: int) -> Prediction:
    """Return the answer in the `choices` of a chat completion. Raises ValueError if there is none."""
    first = choices[0] if isinstance(choices, list) and choices else None
    choice = first if isinstance(first, dict) else {}
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    if not isinstance(content, str):
        raise ValueError("the response has no choices[0].message.content that is text")
    return Prediction(row, content, is_truncated=choice.get("finish_reason") == "length")
