"""Turns the values of a table or a file into records of the query log, and decides which records are kept.

Database and files go through the same two functions, `record_of` and `reason_to_leave_out`, so that a table and its
export give the same records. What the database filters itself only saves transfer: it never drops what these keep.
"""

from __future__ import annotations

import contextlib
import math
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

from tool_aware.config.data_sections import DatabaseSection, FiltersSection
from tool_aware.dataset.log_findings import LogFindings
from tool_aware.dataset.redaction import Redactor
from tool_aware.dataset.session_turns import SessionTurns

# What exports write for a missing value: psql and MySQL (\N), pandas (nan, NaT, <NA>), R (NA), Python, JavaScript,
# Kibana (-).
NULL_WORDS = frozenset(
    ("", "null", "none", "nan", "nat", "na", "n/a", "<na>", "(null)", "nil", "undefined", "\\n", "-")
)
_QUERY_NULLS = frozenset(("NULL", "\\N", "<NA>", "(null)"))  # people do type "none" or "na"
_TRUE = frozenset(("true", "t", "yes", "y", "1", "1.0", "on", "ok", "success", "successful", "succeeded"))
_FALSE = frozenset(("false", "f", "no", "n", "0", "0.0", "off", "failure", "failed", "error"))
# Spreadsheets write both in their own language, MySQL's bit(1) is a byte.
_TRUE |= {"wahr", "vrai", "verdadero", "verdadeiro", "vero", "waar", "prawda", "sant", "sann", "истина", "\x01", "b'1'"}
_FALSE |= {"falsch", "faux", "falso", "onwaar", "fałsz", "falskt", "usann", "ложь", "\x00", "b'0'"}
_FLAGS: Mapping[str, bool | None] = (
    dict.fromkeys(NULL_WORDS) | dict.fromkeys(_TRUE, True) | dict.fromkeys(_FALSE, False)
)
_NO_ERROR = NULL_WORDS | {"false", "f", "no", "n", "0", "0.0", "{}", "[]"}
LONGEST_NO_ERROR = 16  # characters; the database sends no error text longer than this
BLANKS = " \t\n\r\f\v"

_BYTEA = re.compile(r"\\x(?:[0-9a-fA-F]{2})+")
_WHOLE = re.compile(r"[-+]?\d+(?:\.0+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?(?:0,\d+|\d+,\d{1,2})")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}|\d{8}")
_PLAIN_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[-+]\d\d:\d\d)?")
_ZONE_NAME = re.compile(r"\s*(?:\b(?:UTC|GMT)|Z)$", re.IGNORECASE)
_BLANK_OFFSET = re.compile(r"\s+(?=[-+]\d{2}:?\d{0,2}$)")
_CLOCK = r"(?:(?:,| @|T)? *(\d{1,2}:\d\d(?::\d\d)?)(?:[.,]\d+)?)?"
# A date with dots has the day first in every language, one with slashes does not.
_DOTTED_TIME = re.compile(rf"(?P<d>\d{{1,2}})\.(?P<m>\d{{1,2}})\.(?P<y>\d{{4}}){_CLOCK}")
_YEAR_FIRST_TIME = re.compile(rf"(?P<y>\d{{4}})/(?P<m>\d{{1,2}})/(?P<d>\d{{1,2}}){_CLOCK}")
_KIBANA_TIME = re.compile(rf"(?P<m>[A-Z][a-z]{{2}}) (?P<d>\d{{1,2}}), (?P<y>\d{{4}}){_CLOCK}")
_LIKE_A_TIME = re.compile(r"\d{1,4}([./-])\d{1,2}\1\d{1,4}(?:[ T][\d:.]{3,15})?(?: ?[AaPp]\.?[Mm]\.?)?")
_JAVASCRIPT_TIME = re.compile(r"\w{3} (\w{3}) (\d{1,2}) (\d{4}) (\d\d:\d\d:\d\d) GMT([-+]\d{4}).*")
# Epoch times by magnitude: 10^8 s is 1973, 10^11 s the year 5138. Smaller numbers are dates of other systems, or none.
_EPOCH_UNITS = ((10**8, 1), (10**11, 10**3), (10**14, 10**6), (10**17, 10**9))
_EPOCH_END = 10**20
_EPOCH = datetime(1970, 1, 1)
_SHOWN_CHARACTERS = 40
_REDACTED_CHARACTERS = 400  # in a row of shifted columns a value can be anything, secrets included
_LARGEST_ID = 10**30


@dataclass(frozen=True)
class LogRecord:
    """One row of the query log. Columns the log does not have are None; times are in UTC, without a zone."""

    query: str | None
    tool: str | None
    success: bool | None = None
    quality: float | None = None
    timestamp: datetime | None = None
    session: str | None = None
    error: str | None = None
    turn: int | None = field(default=None, compare=False)
    """Its number among the turns of sessions; None without session or time, or where no turns are kept."""


@dataclass(frozen=True, slots=True)
class LoggedRow:
    """One row of a source: raw values by field, or the problem that keeps it from being read."""

    place: int | str  # line, row or id
    values: Mapping[str, Any]
    problem: FieldProblem | None = None


class FieldProblem(ValueError):
    """A value that its field cannot have; `reason` is what it is counted under."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


# ---- which records are kept -------------------------------------------------------------------------------


def kept_records(
    rows: Iterable[LoggedRow],
    settings: DatabaseSection,
    findings: LogFindings,
    absent: Collection[str] = (),
    turns: SessionTurns | None = None,
) -> Iterator[tuple[str | None, LogRecord]]:
    """Yield (id, record) of the rows that pass the filters; the others are counted in `findings`.

    `absent` are the fields that the log has no column for: nothing is filtered by them. All rows but those from before
    `filters.since` are added to `turns`.
    """
    filters, tool_names = settings.filters, settings.tool_names
    for row in rows:
        findings.read += 1
        try:
            if row.problem:
                raise row.problem
            record = record_of(row.values, tool_names)
        except FieldProblem as problem:
            findings.add_bad_row(row.place, problem.reason, str(problem))
            continue
        except (ValueError, ArithmeticError) as error:  # a number that Python cannot convert
            findings.add_bad_row(row.place, "unreadable_row", f"cannot be read: {ascii(str(error))[:100]}")
            continue
        if record.quality is not None:
            findings.add_quality(record.quality)
        reason = reason_to_leave_out(record, filters, absent)
        identity = id_of(row.values.get("id"))
        if turns is not None and reason != "too_old":
            number = turns.add(record.session, record.timestamp, record.query, record.tool, identity)
            record = replace(record, turn=number)
        if reason:
            findings.left_out[reason] += 1
        else:
            yield identity, record


def reason_to_leave_out(record: LogRecord, filters: FiltersSection, absent: Collection[str] = ()) -> str | None:
    """Return why the filters leave a record out; None for one that is kept. A missing value passes no filter."""
    if record.query is None:
        return "no_query"
    if filters.only_success and record.success is not True and not (record.success is None and "success" in absent):
        return "success_unknown" if record.success is None else "not_successful"
    if record.error is not None:
        return "error"
    if filters.min_result_quality is not None:
        if record.quality is None:
            if "quality" not in absent:
                return "quality_unknown"
        elif record.quality < filters.min_result_quality:
            return "low_quality"
    if filters.since is not None:
        if record.timestamp is None:
            return "time_unknown" if "timestamp" not in absent else None
        if record.timestamp < in_utc(filters.since):
            return "too_old"
    return None


def in_utc(moment: datetime) -> datetime:
    """Return a time in UTC without its zone; one without a zone is taken as UTC."""
    if moment.tzinfo is None:
        return moment
    try:
        return moment.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:  # in the first or last hours that datetime can hold
        return moment.replace(tzinfo=None)


# ---- values ---------------------------------------------------------------------------------------------


def record_of(values: Mapping[str, Any], tool_names: Mapping[str, str] | None = None) -> LogRecord:
    """Return the record that raw values by field amount to. Raises FieldProblem for a value that makes no sense."""
    tool = _name(_text("tool", values.get("tool")))
    return LogRecord(
        query=_query(values.get("query")),
        tool=(tool_names or {}).get(tool, tool) if tool else None,
        success=_flag(values.get("success")),
        quality=_number(values.get("quality")),
        timestamp=_time(values.get("timestamp")),
        session=_name(_text("session", values.get("session"))),
        error=_error(values.get("error")),
    )


def id_of(value: Any) -> str | None:
    """Return an id as text, whole numbers without a fraction; None if there is none."""
    try:
        return _name(_text("id", value))
    except FieldProblem:
        return None


def _problem(field: str, value: object, wanted: str) -> FieldProblem:
    is_hidden = isinstance(value, str) and not _LIKE_A_TIME.fullmatch(value)  # the redactor takes some for telephones
    shown = ascii(Redactor().redact(str(value)[:_REDACTED_CHARACTERS]) if is_hidden else value)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = f"{shown[:_SHOWN_CHARACTERS]}..."
    return FieldProblem(f"unreadable_{field}", f"{field} {shown} {wanted}")


def _kind(field: str, value: object) -> FieldProblem:
    """Return the problem of a value of the wrong type; its content may be personal and is not shown."""
    kinds: dict[type, str] = {dict: "an object", list: "a list", tuple: "a list", bytes: "bytes that are not UTF-8"}
    what = kinds.get(type(value), type(value).__name__)
    return FieldProblem(f"unreadable_{field}", f"{field} is {what}, not text")


def _text(field: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return _decoded(field, value) if value and value.startswith("\\x") else value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, bytes | bytearray | memoryview):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise _kind(field, bytes(value)) from None
    if isinstance(value, float | Decimal):
        if not _is_finite(value):
            return None
        is_whole = -_LARGEST_ID < value < _LARGEST_ID and value == int(value)
        return str(int(value)) if is_whole else str(value)
    if isinstance(value, dict | list | tuple):
        raise _kind(field, value)
    return str(value)  # int, UUID, date


def _decoded(field: str, text: str) -> str:
    """Return the text of what PostgreSQL prints for bytea, `\\x68656c6c6f`; other text as it is."""
    if not _BYTEA.fullmatch(text):
        return text
    try:
        return bytes.fromhex(text[2:]).decode()
    except UnicodeDecodeError:
        raise _kind(field, b"") from None


def _query(value: Any) -> str | None:
    text = _text("query", value)
    return None if text is None or not text.strip() or text.strip() in _QUERY_NULLS else text


def _name(text: str | None) -> str | None:
    """Return a tool, a session or an id without blanks around it, as char(n) pads, and without JSON's quotes."""
    if text is None:
        return None
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if text.lower() in NULL_WORDS:
        return None
    return str(int(text.partition(".")[0])) if len(text) < 40 and "." in text and _WHOLE.fullmatch(text) else text


def _error(value: Any) -> str | None:
    """Return the error of a call; None for words and values that say there was none."""
    if value is None or value is False or (isinstance(value, dict | list | tuple) and not value):
        return None
    if isinstance(value, dict | list | tuple):
        return str(value)
    text = (_text("error", value) or "").strip(BLANKS)
    return None if len(text) <= LONGEST_NO_ERROR and text.strip().lower() in _NO_ERROR else text


def _flag(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    word = _word("success", value).lower()
    if word not in _FLAGS:
        raise _problem("success", value, "is neither true nor false")
    return _FLAGS[word]


def _number(value: Any) -> float | None:
    if value is None:
        return None
    number: float | None = None
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        try:
            number = math.nan if isinstance(value, Decimal) and value.is_nan() else float(value)
        except OverflowError:
            number = math.inf
    elif not isinstance(value, bool):
        number = _number_in(_word("quality", value))
    if number is None or math.isinf(number):
        raise _problem("quality", value, "is not a number")
    return None if math.isnan(number) else number


def _number_in(text: str) -> float | None:
    """Return the number that a text spells, NaN for one that says it is missing, None for other text."""
    if text.lower() in NULL_WORDS:
        return math.nan
    if unicodedata.category(text[0]) == "Sc":  # money
        text = text[1:].strip()
    scale = 1.0
    if text.endswith("%"):
        text, scale = text[:-1].strip(), 100.0
    if _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    return float(text) / scale if _NUMBER.fullmatch(text) else None


def _is_finite(number: float | Decimal) -> bool:
    return number.is_finite() if isinstance(number, Decimal) else math.isfinite(number)


def _word(field: str, value: Any) -> str:
    """Return a value as text for a field that is not text itself."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float | Decimal) and not _is_finite(value) and str(value).lower().endswith("nan"):
        return ""
    if isinstance(value, int | float | Decimal):
        return str(value)
    if isinstance(value, dict | list | tuple):
        raise _problem(field, value, "is not a single value")
    return (_text(field, value) or "").strip()


# ---- times ----------------------------------------------------------------------------------------------


def _time(value: Any) -> datetime | None:
    """Return a time in UTC: ISO 8601, PostgreSQL's, RFC 2822, JavaScript's, or seconds since 1970 and their parts."""
    if value is None:
        return None
    if isinstance(value, datetime):
        return None if str(value) == "NaT" else in_utc(value)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    word = _word("timestamp", value)
    if _PLAIN_TIME.fullmatch(word):  # most are
        with contextlib.suppress(ValueError):
            return in_utc(datetime.fromisoformat(word))
    if word.lower() in NULL_WORDS:
        return None
    moment = _moment_in(word)
    if moment is None:
        raise _problem("timestamp", value, "is no time that is understood: ISO 8601 is, 2026-03-01T09:14:00Z")
    return in_utc(moment)


def _moment_in(word: str) -> datetime | None:
    if word.lower() in ("infinity", "-infinity"):  # PostgreSQL's
        return datetime.min if word.startswith("-") else datetime.max
    for read in _TIME_READERS:
        try:
            moment = read(word)
        except (ValueError, OverflowError, TypeError, IndexError):
            continue
        if moment is not None:
            return moment
    return None


def _iso_time(word: str) -> datetime | None:
    if not word[:4].isdigit() or len(word) < 8:
        return None
    if word.isdigit() and not _ISO_DATE.fullmatch(word):
        return None  # an epoch time: fromisoformat would see a year, a week and a day in some
    is_utc = _ZONE_NAME.search(word)
    text = _BLANK_OFFSET.sub("", _ZONE_NAME.sub("", word))
    moment = datetime.fromisoformat(text)
    return moment.replace(tzinfo=UTC) if is_utc and moment.tzinfo is None else moment


def _epoch_time(word: str) -> datetime | None:
    if not _NUMBER.fullmatch(word):
        return None
    number = Decimal(word)
    for least, per_second in reversed(_EPOCH_UNITS):
        if least <= number < _EPOCH_END:
            microseconds = int(number * 1_000_000 / per_second)
            return _EPOCH + timedelta(microseconds=microseconds)
    return None


def _javascript_time(word: str) -> datetime | None:
    match = _JAVASCRIPT_TIME.fullmatch(word)
    return datetime.strptime(" ".join(match.groups()), "%b %d %Y %H:%M:%S %z") if match else None


def _written_time(word: str) -> datetime | None:
    """Read 01.03.2026 09:14, 2026/03/01 09:14:00 and Kibana's Mar 1, 2026 @ 09:14:00.000."""
    found = next(filter(None, (form.fullmatch(word) for form in (_DOTTED_TIME, _YEAR_FIRST_TIME, _KIBANA_TIME))), None)
    if found is None:
        return None
    clock = found[4] or "00:00"
    form = f"%Y-{'%m' if found['m'].isdigit() else '%b'}-%d %H:%M{':%S' if clock.count(':') > 1 else ''}"
    return datetime.strptime(f"{found['y']}-{found['m']}-{found['d']} {clock}", form)


def _mail_time(word: str) -> datetime | None:
    if not re.match(r"(?:\w{3}, )?\d{1,2} \w{3} \d{4} \d", word):
        return None
    return parsedate_to_datetime(word)


_TIME_READERS: tuple[Callable[[str], datetime | None], ...] = (
    _iso_time,
    _epoch_time,
    _javascript_time,
    _written_time,
    _mail_time,
)
