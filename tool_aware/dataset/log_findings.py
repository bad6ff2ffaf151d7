"""Counts what reading a query log finds: rows that cannot be read, rows left out, and what the user should know."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from tool_aware.config.data_sections import DatabaseSection, FiltersSection
from tool_aware.console import UserError
from tool_aware.dataset.redaction import Redactor

BAD_SHARE = 0.5  # a log with more unreadable rows than this is misunderstood, not flawed
_EXAMPLES = 5
_COLUMNS_SHOWN = 30
_NAME_CHARACTERS = 60
_REDACTED_CHARACTERS = 400
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
_REQUIRED = ("query", "tool")


class LogFindings:
    """Counts of one reading of the log. Rows are named by their place: a line of a file, an id of a table."""

    def __init__(self, name: str) -> None:
        self.name, self._place = name, ""
        self.read = 0
        self.left_out: Counter[str] = Counter()
        """Rows that the filters leave out, by reason."""
        self.bad: Counter[str] = Counter()
        """Rows that cannot be read, by reason."""
        self.formats: list[str] = []
        """How the source is stored, where that was recognised: its encoding, its separator."""
        self.notes: list[str] = []
        """What is missing in the source."""
        self._examples: list[str] = []
        self._qualities = 0
        self._lowest, self._highest = float("inf"), float("-inf")

    def set_place(self, place: str) -> None:
        """Set what places are: `:` for lines, else words such as `row `."""
        self._place = place

    def add_bad_row(self, place: int | str, reason: str, what: str) -> None:
        """Count a row that cannot be read; the first few are named later."""
        self.bad[reason] += 1
        if len(self._examples) < _EXAMPLES:
            self._examples.append(f"{self._at(place)}: {what}")

    def _at(self, place: int | str) -> str:
        return f"{self.name}:{place}" if self._place == ":" else f"{self.name}: {self._place}{place}"

    def add_quality(self, quality: float) -> None:
        """Count a quality, and widen the range seen to it."""
        self._qualities += 1
        self._lowest, self._highest = min(self._lowest, quality), max(self._highest, quality)

    @property
    def rejected(self) -> Mapping[str, int]:
        """Return all rows that the reading left out, by reason."""
        return self.bad + self.left_out

    def refuse_if_mostly_bad(self) -> None:
        """Raise UserError if more than half of the rows cannot be read: then the log is not what it was taken for."""
        number = self.bad.total()
        if number > self.read * BAD_SHARE:
            raise UserError(
                "\n  ".join([f"{number} of {self.read} rows cannot be read:", *self._examples]),
                where=self.name,
                fix="name the right columns in database.columns (null for an optional one that is not needed), "
                "or export it anew; docs/FORMATS.md says what each field can be",
            )

    def messages(self, filters: FiltersSection) -> list[str]:
        """Return what was found that changes the result, each in one line or with the first few rows."""
        found = list(self.notes)
        if self.bad:
            reasons = ", ".join(f"{reason.replace('_', ' ')} {count}" for reason, count in self.bad.most_common())
            number = self.bad.total()
            first = "\n  ".join(["", *self._examples])
            found.append(f"{number} of {self.read} rows of the log cannot be read and are left out: {reasons}{first}")
        return found + self._quality_messages(filters)

    def _quality_messages(self, filters: FiltersSection) -> list[str]:
        least = filters.min_result_quality
        if least is None or not self._qualities:
            return []
        seen = f"the qualities in {self.name} go from {self._lowest:g} to {self._highest:g}"
        if self._highest > 1 >= least:
            low = min(self._lowest, 1.0)
            wanted = round(low + least * (self._highest - low), 2)
            return [
                f"{seen}, and database.filters.min_result_quality {least:g} is for 0 to 1: most rows pass it. For the "
                f"same share of that range: --set database.filters.min_result_quality={wanted:g}"
            ]
        if self._highest < least:
            return [f"{seen}: none reaches database.filters.min_result_quality {least:g}"]
        return []


def refuse_missing_columns(names: Mapping[str, str], found: Sequence[str], where: str, optional: bool) -> set[str]:
    """Return the optional fields of `names` (field to column) without a column in `found`, if `optional` allows any.

    Raises UserError for a missing column that is needed, or that is there in another spelling, with the setting.
    """
    missing = {field: column for field, column in names.items() if column not in found}
    renamed = {field: same for field, column in missing.items() if (same := _same_name(column, found))}
    needed = [field for field in missing if field in _REQUIRED or field in renamed or not optional]
    if needed:
        shown = ", ".join(map(_shown, found[:_COLUMNS_SHOWN])) + (", ..." if len(found) > _COLUMNS_SHOWN else "")
        fix = "name your columns in database.columns, null for an optional one that is missing"
        if renamed and not set(_REQUIRED) & (set(needed) - set(renamed)):
            fix = " ".join(f"--set {_setting(field, column)}" for field, column in renamed.items())
        elif any(len(name) > _NAME_CHARACTERS or _NUMBER.fullmatch(name) for name in found):
            fix = "if these are values, put a line with the columns' names above them; else name the columns"
        columns = ", ".join(missing[field] for field in needed)
        raise UserError(f"no column {columns}; it has {shown}", where=where, fix=f"{fix} (database.columns)")
    return set(missing)


def absent_fields(settings: DatabaseSection) -> set[str]:
    """Return the fields whose column is null in the config. Raises UserError for a filter that needs one of them."""
    absent = {field for field, column in settings.columns.model_dump().items() if not column}
    refuse_since_without_time(settings, absent)
    return absent


def refuse_since_without_time(settings: DatabaseSection, absent: Collection[str]) -> None:
    """Raise UserError if rows are to be chosen by a time that the log does not have."""
    if settings.filters.since is not None and "timestamp" in absent:
        raise UserError(
            "needs the time of each row, and the log has no column for it",
            where="database.filters.since",
            fix="name it in database.columns.timestamp, or set since to null",
        )


def _shown(name: str) -> str:
    """Return a column's name in quotes; where a header is missing it is a value, which may be personal."""
    text = Redactor().redact(name[:_REDACTED_CHARACTERS])
    return json.dumps(text if len(text) <= _NAME_CHARACTERS else f"{text[:_NAME_CHARACTERS]}...")


def _setting(field: str, column: str) -> str:
    value = column if re.fullmatch(r"[A-Za-z_]\w*", column) else json.dumps(column, ensure_ascii=False)
    return shlex.quote(f"database.columns.{field}={value}")


def _same_name(column: str, found: Sequence[str]) -> str | None:
    """Return the only column whose name differs in case, blanks and separators alone."""
    same = [other for other in found if _folded(other) == _folded(column)]
    return same[0] if len(same) == 1 else None


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
