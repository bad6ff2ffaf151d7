"""Reads rows of delimited text so that one broken row costs that row, not those behind it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
# Escapes of the text format, https://www.postgresql.org/docs/current/sql-copy.html; MySQL's are among them.
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "0": "\0", "Z": "\x1a"}
_NULL = "\\N"
_LINES_THAT_SHOW_ESCAPES = 1000
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


def is_text_format(lines: Iterable[str]) -> bool:
    r"""Check for the text format of PostgreSQL's COPY and MySQL's INTO OUTFILE: a cell is `\N`, and none is quoted."""
    has_null = False
    for line in lines:
        cells = line.rstrip("\r\n").split("\t")
        if any(cell.startswith('"') and (cell.count('"') % 2 or '""' in cell[1:-1]) for cell in cells):
            return False
        has_null = has_null or _NULL in cells
    return has_null


def has_escapes(lines: Iterable[str]) -> bool:
    r"""Check for `\n`, `\t` or `\\` in two characters each, as `mysql --batch` writes them, among the first lines."""
    return any(re.search(r"\\[nt\\]", line) for line in islice(lines, 1, _LINES_THAT_SHOW_ESCAPES))


def text_format_rows(lines: Iterable[str]) -> Iterator[CsvRow]:
    r"""Yield the header and the rows of text in which tabs separate, and `\n`, `\t`, `\\` are escapes; `\N` stays."""
    width, row, begun = 0, "", 1
    for number, line in enumerate(lines, start=1):
        if not row:
            begun = number
        row += line
        content = row.removesuffix("\n").removesuffix("\r")
        if content != row and (len(content) - len(content.rstrip("\\"))) % 2:
            continue  # the line end is escaped: it is part of the row
        row = ""
        if content in ("", "\\."):
            continue
        cells = [cell if cell == _NULL else _unescaped(cell) for cell in _cells(content)]
        width = width or len(cells)
        problem = None if len(cells) == width else f"has {len(cells)} fields, the header {width}"
        yield CsvRow(begun, [] if problem else cells, problem)


def _cells(content: str) -> list[str]:
    """Return a row's cells; a tab behind a single backslash belongs to its cell, as MySQL writes it."""
    return re.findall(r"(?:^|\t)((?:[^\t\\]|\\.)*)", content, re.DOTALL)


def _unescaped(cell: str) -> str:
    return _ESCAPE.sub(lambda found: _ESCAPED.get(found[1], found[1]), cell) if "\\" in cell else cell
