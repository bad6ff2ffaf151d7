"""Reads rows of delimited text so that one broken row costs that row, not those behind it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_LONGEST_FIELD = 4_000_000  # characters; a quote that is never closed ends there


@dataclass(frozen=True, slots=True)
class CsvRow:
    """One row, with the line it begins on, or why it cannot be read."""

    line: int
    cells: list[str]
    problem: str | None = None


class _Lines:
    """Lines of a text that can be read again from the second line of the present row on."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._source, self._again, self._taken = iter(lines), [], []  # type: ignore[var-annotated]
        self.first = 1  # line of the present row

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line: str = self._again.pop() if self._again else next(self._source)
        self._taken.append(line)
        return line

    def begin_row(self) -> None:
        self.first += len(self._taken)
        self._taken.clear()

    @property
    def number_taken(self) -> int:
        return len(self._taken)

    def give_back_all_but_first(self) -> None:
        self._again.extend(reversed(self._taken[1:]))
        del self._taken[1:]


def csv_rows(lines: Iterable[str], delimiter: str = ",") -> Iterator[CsvRow]:
    """Yield the header and the rows of CSV text that are not empty; rows need as many fields as the header has.

    A quote that is opened and not closed would swallow the rows behind it: such a row ends with its first line, and
    reading goes on with the next.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    source, width = _Lines(lines), 0
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        source.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield CsvRow(source.first, [], f"is not CSV: {error}")
            source.give_back_all_but_first()
            reader = csv.reader(source, delimiter=delimiter, strict=True)
            continue
        if len(cells) < 2 and not "".join(cells).strip():
            continue
        width = width or len(cells)
        if len(cells) == width:
            yield CsvRow(source.first, cells)
            continue
        yield CsvRow(source.first, [], f"has {len(cells)} fields, the header {width}")
        if source.number_taken > 1:
            source.give_back_all_but_first()
