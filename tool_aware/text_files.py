"""Reads text and JSON of any origin: its encoding, its compression, and the line of every mistake."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, NoReturn

from tool_aware.console import UserError

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

_LINES_AT_ONCE = 10_000

# First bytes of files, https://en.wikipedia.org/wiki/List_of_file_signatures
_COMPRESSIONS: Mapping[bytes, tuple[str, Any]] = {
    b"\x1f\x8b": ("gzip", gzip.open),
    b"BZh": ("bzip2", bz2.open),
    b"\xfd7zXZ\x00": ("xz", lzma.open),
}
_BYTE_ORDER_MARKS = {  # UTF-32 before UTF-16, whose mark its own begins with
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NOT_TEXT = {
    b"version https://git-lfs": ("is a Git LFS pointer, not the file itself", "git lfs pull"),
    b"PAR1": ("is Parquet, not text", "--import and --logs take Parquet; elsewhere write it as JSON Lines"),
    b"PK\x03\x04": ("is a zip archive", "unzip it"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "unzstd it"),
    b"<!DOCTYPE": ("is an HTML page: a download that went wrong, most likely", "download the file itself"),
    b"<html": ("is an HTML page: a download that went wrong, most likely", "download the file itself"),
}
_SIGNATURE_BYTES = 32
_BUFFER_BYTES = 1 << 20
_LIKELY_ENCODING = "cp1252"  # that of Excel and older Windows programs; a superset of Latin-1's letters
_SHOWN_CHARACTERS = 40
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class TextFormat:
    """The encoding of a text file, as Python names it, and its compression, if any."""

    encoding: str
    compression: str | None = None

    def __str__(self) -> str:
        """Return what is unusual about it, to be said to the user; empty for plain UTF-8."""
        encoding = "" if self.encoding in ("utf-8", "utf-8-sig") else self.encoding.upper()
        return ", ".join(filter(None, (encoding, self.compression)))


class JsonLine(NamedTuple):
    """A line of a JSON Lines file, from 1, with its value, or with the problem that keeps it from being read.

    `repeated` names keys that one object has twice; the value is the last one's.
    """

    number: int
    value: Any = None
    problem: str | None = None
    repeated: tuple[str, ...] = ()


def text_format(path: Path, encoding: str | None = None) -> TextFormat:
    """Return how a file is stored, from its first bytes; `encoding`, if given, is taken for granted.

    Raises UserError if there is no such file, it cannot be unpacked, or is not text: an LFS pointer, an archive.
    """
    if not path.is_file():
        raise UserError("is a folder" if path.is_dir() else "not found", where=str(path))
    with path.open("rb") as file:
        start = file.read(_SIGNATURE_BYTES)
    compression, opener = next((c for magic, c in _COMPRESSIONS.items() if start.startswith(magic)), (None, None))
    if opener:
        with _unpacking_errors(path, compression), opener(path) as file:
            start = file.read(_SIGNATURE_BYTES)
    for magic, (what, fix) in _NOT_TEXT.items():
        if start.lstrip().lower().startswith(magic.lower()):
            raise UserError(what, where=str(path), fix=fix)
    if encoding:
        return TextFormat(_codec(encoding), compression)
    marked = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    return TextFormat(marked or _unmarked(start), compression)


def _codec(name: str) -> str:
    try:
        "".encode(name)
        return codecs.lookup(name).name
    except LookupError:
        raise UserError(f"{name!r} is no known encoding", fix="for example utf-8, utf-16, cp1252, latin-1") from None


def _unmarked(start: bytes) -> str:
    """Return the encoding of a text without a byte order mark that begins with an ASCII character, as JSON does."""
    if len(start) >= 2 and start[0] and not start[1]:
        return "utf-16-le"
    return "utf-16-be" if len(start) >= 2 and not start[0] and start[1] else "utf-8"


@contextmanager
def _unpacking_errors(path: Path, compression: str | None) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"cannot be unpacked: {error}", where=str(path), fix="copy or download it again") from error
    except OSError as error:
        if compression and error.errno is None:  # bz2's own
            raise UserError(f"cannot be unpacked: {error}", where=str(path), fix="copy or download it again") from error
        raise


def lines_of(
    path: Path, encoding: str | None = None, *, option: str | None = None, digest: Digest | None = None
) -> Iterator[str]:
    r"""Yield the lines of a text file, with their line ends. Only `\n` ends a line: U+2028 or `\r` is part of it.

    UTF-8 with or without a byte order mark, UTF-16 and UTF-32 are recognised; so are gzip, bzip2 and xz.
    `digest`, of hashlib, gets the bytes as they are read: after the last line it is that of the file as it was read,
    whatever has happened to it since.
    Raises UserError with the line that is not UTF-8; `option` is the command's flag that names another encoding.
    """
    storage = text_format(path, encoding)
    with _unpacking_errors(path, storage.compression), _open_binary(path, storage, digest) as file:
        if storage.encoding.startswith(("utf-16", "utf-32")):  # a line end is not one byte there
            wrapped = io.TextIOWrapper(file, storage.encoding, newline="\n")
            lines_read = 0
            try:
                for line in wrapped:
                    lines_read += 1
                    yield line
            except UnicodeError as error:
                what = f"is not {storage.encoding.upper()}: {error}"
                raise UserError(what, where=f"{path}:{lines_read + 1}") from error
            return
        bare = _bare(storage)
        for number, raw in enumerate(file, start=1):
            try:
                yield raw.decode(storage.encoding if number == 1 else bare)  # the first may begin with a mark
            except UnicodeDecodeError as error:
                _refuse(error, raw, f"{path}:{number}", path, option)


@contextmanager
def _open_binary(path: Path, storage: TextFormat, digest: Digest | None) -> Iterator[IO[bytes]]:
    opener: Any = next((o for name, o in _COMPRESSIONS.values() if name == storage.compression), None)
    with path.open("rb", buffering=0) as bare, io.BufferedReader(_Digested(bare, digest), _BUFFER_BYTES) as raw:
        yield opener(raw) if opener else raw
        while raw.read(_BUFFER_BYTES):  # what may follow the end of the compressed data
            pass


class _Digested(io.RawIOBase):
    """A file of which every byte that is read goes into a digest, in the order of the file."""

    def __init__(self, file: io.RawIOBase | io.FileIO, digest: Digest | None) -> None:
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        """Return True: it is for reading, once, from the beginning."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer and return the number of bytes, 0 at the end."""
        count = self._file.readinto(buffer) or 0
        if self._digest:
            self._digest.update(memoryview(buffer)[:count])
        return count


def _bare(storage: TextFormat) -> str:
    return storage.encoding.removesuffix("-sig")


def _refuse(error: UnicodeDecodeError, raw: bytes, where: str, path: Path, option: str | None) -> NoReturn:
    if b"\0" in raw:
        fix = "if it is text, name its encoding; else export it as text"
        raise UserError("is not text: it has zero bytes", where=where, fix=fix) from error
    what = f"is not {error.encoding.upper()}: byte 0x{raw[error.start]:02x} at position {error.start + 1}"
    before = raw[max(0, error.start - _SHOWN_CHARACTERS // 2) : error.start + _SHOWN_CHARACTERS // 2]
    shown = before.decode(_LIKELY_ENCODING, errors="replace").strip()
    fix = f"save it as UTF-8: iconv -f {_LIKELY_ENCODING} -t utf-8 {path} > NEW"
    if option:
        fix = f"{option} {_LIKELY_ENCODING}, if that is right; or {fix}"
    raise UserError(f"{what}; read as {_LIKELY_ENCODING} it says {shown!r}", where=where, fix=fix) from error


def read_text(
    path: Path, encoding: str | None = None, *, option: str | None = None, digest: Digest | None = None
) -> str:
    """Read a whole text file; see `lines_of`. Raises UserError for what is not text."""
    storage = text_format(path, encoding)
    if storage.encoding in ("utf-8", "utf-8-sig"):
        with _unpacking_errors(path, storage.compression), _open_binary(path, storage, digest) as file:
            whole = file.read()
        with suppress(UnicodeDecodeError):  # line by line below, which finds the line
            return whole.decode(storage.encoding)
        digest = None  # it has had the bytes
    lines = lines_of(path, encoding, option=option, digest=digest)
    parts = iter(lambda: "".join(islice(lines, _LINES_AT_ONCE)), "")  # a text as millions of lines takes twice its size
    return "".join(parts)


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Raises ValueError, also for nesting that is too deep for the parser."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_unambiguous_json(text: str) -> Any:
    """Return the value of a JSON text. Raises ValueError, also for an object that has a key twice: which one counts?"""
    value, end, repeated = _JsonReader().value_at(text, _behind(text, 0))
    if _behind(text, end) < len(text):
        raise ValueError("something follows the value")
    if repeated:
        raise ValueError(f"{', '.join(map(repr, repeated))} is given twice")
    return value


def json_lines(
    path: Path, encoding: str | None = None, *, option: str | None = None, digest: Digest | None = None
) -> Iterator[JsonLine]:
    """Yield the lines of a JSON Lines file that are not empty. A line that is not JSON has its problem, not a value.

    Raises UserError for what is not text.
    """
    reader = _JsonReader()
    for number, line in enumerate(lines_of(path, encoding, option=option, digest=digest), start=1):
        line = line.removeprefix("\ufeff")  # noqa: PLW2901 - the mark of a file that was appended to another
        if not line.strip():
            continue
        try:
            value, end, repeated = reader.value_at(line, _behind(line, 0))
            if (rest := _behind(line, end)) != len(line):
                raise json.JSONDecodeError("Extra data", line, rest)
            yield JsonLine(number, value, repeated=repeated)
        except ValueError as error:
            yield JsonLine(number, problem=f"is not JSON: {_reason(error)}")


def is_json_array(path: Path, encoding: str | None = None, *, option: str | None = None) -> bool:
    """Check whether a file is one JSON array, and not JSON Lines whose first line happens to be a list."""
    filled = (line for line in lines_of(path, encoding, option=option) if line.strip())
    first, second = next(filled, ""), next(filled, None)
    if not first.lstrip().startswith("[") or second is None:
        return first.lstrip().startswith("[")
    try:
        parse_json(first)
    except ValueError:
        return True
    return False


def json_items(
    path: Path, encoding: str | None = None, *, option: str | None = None, digest: Digest | None = None
) -> Iterator[JsonLine]:
    """Yield the items of a JSON array, numbered from 1, or the lines of a JSON Lines file, whichever `path` is.

    Items are parsed one by one. Raises UserError for an array that is not JSON, with its line, and for what is not
    text.
    """
    if not is_json_array(path, encoding, option=option):
        yield from json_lines(path, encoding, option=option, digest=digest)
        return
    text = read_text(path, encoding, option=option, digest=digest)
    try:
        yield from _array_items(text)
    except json.JSONDecodeError as error:
        fix = "correct that line; if the file ends there, copy or write it again"
        raise UserError(f"is not JSON: {_reason(error)}", where=f"{path}:{error.lineno}", fix=fix) from error
    except ValueError as error:
        raise UserError(f"is not JSON: {error}", where=str(path), fix="write it again") from error


def _array_items(text: str) -> Iterator[JsonLine]:
    """Yield the items of an array, each parsed when it is asked for. Raises ValueError for what is not JSON."""
    at, number, reader = _behind(text, text.index("[") + 1), 0, _JsonReader()
    while number or not text.startswith("]", at):
        number += 1
        value, at, repeated = reader.value_at(text, at)
        yield JsonLine(number, value, repeated=repeated)
        at = _behind(text, at)
        if not text.startswith(",", at):
            break
        at = _behind(text, at + 1)
    if not text.startswith("]", at):
        raise json.JSONDecodeError("Expecting ',' or ']'" if at < len(text) else "The array has no end", text, at)
    if (end := _behind(text, at + 1)) != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _behind(text: str, at: int) -> int:
    """Return the position of the next character that is no white space of JSON's."""
    found = _JSON_SPACE.match(text, at)
    return found.end() if found else at


class _JsonReader:
    """Reads JSON values that stand in texts, one after the other."""

    def __init__(self) -> None:
        self._repeated: list[str] = []
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object_of)

    def value_at(self, text: str, at: int) -> tuple[Any, int, tuple[str, ...]]:
        """Return the value at a position, where it ends, and the keys that an object in it has twice."""
        self._repeated.clear()
        try:
            value, end = self._decoder.raw_decode(text, at)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        return value, end, tuple(self._repeated)

    def _object_of(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self._repeated += (key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return found


def read_json_text(path: Path, encoding: str | None = None, *, option: str | None = None) -> Any:
    """Return the value of a whole JSON file. Raises UserError with the line that is not JSON."""
    try:
        return parse_json(read_text(path, encoding, option=option))
    except json.JSONDecodeError as error:
        fix = "correct that line; if the file ends there, copy or write it again"
        raise UserError(f"is not JSON: {_reason(error)}", where=f"{path}:{error.lineno}", fix=fix) from error
    except ValueError as error:
        raise UserError(f"is not JSON: {error}", where=str(path), fix="write it again") from error


def _reason(error: ValueError) -> str:
    if not isinstance(error, json.JSONDecodeError):
        return str(error)
    if error.msg == "Extra data" and error.doc[error.pos :].strip() == ",":
        return f"a comma follows the value at character {error.colno}"
    return f"{error.msg} at character {error.colno}"
