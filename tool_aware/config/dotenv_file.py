"""Reads `.env`: one NAME=value a line. A line that is none is an error that names it and never shows a value."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tool_aware.console import UserError, listing, say, warn
from tool_aware.secret_values import keep_environment_secrets
from tool_aware.text_files import text_format

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_LINE_START = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*[=:]")
_FIX = "write NAME=value, or NAME='value' for a value with blanks, quotes or #"


@dataclass(frozen=True)
class Variable:
    """One line of the file: its number, from 1, and the value as written. Nothing in it is replaced: `$` is a `$`."""

    line: int
    value: str


def read_dotenv(path: Path) -> Mapping[str, Variable]:
    """Return the variables that a `.env` file sets; none if there is no such file.

    Raises UserError for a file that is not text, and for all lines at once that set no variable.
    """
    if path.is_dir():
        if not (path / "pyvenv.cfg").is_file():  # a virtual environment of that name is common
            warn(f"{path} is a folder, not a file: no variables are read from it")
        return {}
    if not path.exists():
        return {}
    text = _text(path)
    problems: list[str] = []
    variables = dict(_entries(text, path, problems))
    keep_environment_secrets({name: found.value for name, found in variables.items()})
    if problems:
        raise UserError(problems[0] if len(problems) == 1 else listing(problems, "problem"), fix=_FIX)
    return variables


def _text(path: Path) -> str:
    """Return the file's text. Raises UserError without any of it, as it may hold passwords."""
    is_pipe = path.is_fifo()  # as password managers provide it: it can be read once
    storage = None if is_pipe else text_format(path)
    if storage and storage.compression:
        raise UserError(f"is compressed with {storage.compression}", where=str(path), fix="unpack it")
    content, encoding = path.read_bytes(), storage.encoding if storage else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("latin-1")
        start_of_line = before.rpartition("\n")[2]
        named = _LINE_START.match(start_of_line)
        of_variable = f", in the value of {named[1]}" if named else ""
        what = f"is not {encoding.removesuffix('-sig').upper()}: byte 0x{content[error.start]:02x}{of_variable}"
        fix = f"save it as UTF-8; if it comes from an older Windows editor: iconv -f cp1252 -t utf-8 {path} > NEW"
        raise UserError(what, where=f"{path}:{before.count(chr(10)) + 1}", fix=fix) from None
    if storage and str(storage):
        say(f"{path} is read as {storage}")
    return text


def _entries(text: str, path: Path, problems: list[str]) -> Iterator[tuple[str, Variable]]:
    """Yield name and value of each line; put what is wrong with the others into `problems`."""
    from dotenv.parser import parse_stream

    for binding in parse_stream(io.StringIO(text, newline="")):
        written = binding.original.string
        content = written.lstrip()
        line = binding.original.line + len(re.findall(r"\r\n|\n|\r", written[: len(written) - len(content)]))
        if problem := _problem(content, binding.key, binding.value, is_broken=binding.error):
            problems.append(f"{path}:{line}: {problem}")
        elif binding.key and binding.value is not None:
            if _is_cut(content, binding.value):
                warn(f"{path}:{line}: {binding.key}: what follows ' #' is a comment; put the value in '' to keep it")
            yield binding.key, Variable(line, binding.value)


def _problem(content: str, key: str | None, value: str | None, *, is_broken: bool) -> str | None:
    named = _LINE_START.match(content)
    name = f"{named[1]}: " if named else ""
    if is_broken:
        _, _, rest = content.partition("=")
        quote_mark = rest.lstrip()[:1]
        if named and quote_mark in ("'", '"'):
            return f"{name}its value begins with {quote_mark}, and no such quote ends it on a line of its own"
        return f"{name}is not NAME=value"
    if key is None:
        return None  # a comment or an empty line
    if not _NAME.fullmatch(key):
        return f"{name}is not NAME=value"
    if value is None:
        return None if content.startswith("export") else f"{name}is not NAME=value: there is no ="
    if key == "Environment" and _LINE_START.match(value):
        return "is a line of a systemd unit: write NAME=value alone, without Environment="
    return f"{key}: its value holds a NUL character" if "\0" in value else None


def _is_cut(content: str, value: str) -> bool:
    """Return whether an unquoted secret lost what stands behind a blank and `#`."""
    name, _, written = content.partition("=")
    is_secret = re.search(r"PASSWORD|TOKEN|KEY|SECRET", name) is not None
    return is_secret and bool(value) and written.strip()[:1] not in ("'", '"') and " #" in written
