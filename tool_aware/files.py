"""Files that are written whole or not at all, and read back."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from json.encoder import encode_basestring
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tool_aware.console import UserError
from tool_aware.text_files import read_json_text
from tool_aware.units import GIB, MIB

if TYPE_CHECKING:
    from pydantic import TypeAdapter

INDENT = "  "  # of JSON, a level
_FAULTS_SHOWN = 3  # of a damaged file
_HASHED_AT_ONCE = 4  # files; a processor hashes 1 to 2 GB/s

# Messages of errors other than OSError for a full disk: of safetensors and tokenizers, written in Rust, and of
# torch.save, which does not name the reason but hardly ever fails at writing for another one.
_FULL_DISK_TEXTS = ("os error 28", "No space left on device", "os error 122", "inline_container.cc")


@contextlib.contextmanager
def add_filename(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError that lacks it, as that of a write to a full disk does."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def full_disk_as_user_error(folder: Path, needed_bytes: Callable[[], int], *, fix: str) -> Iterator[None]:
    """Raise a UserError with the space needed and free for whatever a library raises when the disk is full.

    `folder` is being written and will be deleted after the error, so its own files count as free.
    """
    try:
        yield
    except Exception as error:
        if not _is_full_disk(error):
            raise
        needed, free = needed_bytes(), shutil.disk_usage(folder).free + bytes_in(folder)
        what = f"the disk is full: at least {in_words(needed)} are needed and {in_words(free)} are free"
        raise UserError(what, where=str(folder.parent), fix=fix) from error


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return not isinstance(error, UserError) and any(text in str(error) for text in _FULL_DISK_TEXTS)


def in_words(size_bytes: int) -> str:
    """Return a number of bytes in GiB or MiB."""
    return f"{size_bytes / GIB:.1f} GiB" if size_bytes >= GIB else f"{size_bytes / MIB:.1f} MiB"


def bytes_in(folder: Path) -> int:
    """Return the sum of the sizes of all files below `folder`; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it replaces `path` once it is whole and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with add_filename(path):
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
        part.chmod(0o666 & ~_umask())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `path` to fill; it replaces `path` and its content once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        give_usual_mode(part)
        old = path.with_name(f".{path.name}.old.part")
        shutil.rmtree(old, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, old)
        os.replace(part, path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sync_files(folder: Path) -> None:
    """Wait until the files of a folder are on disk."""
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def give_usual_mode(folder: Path) -> None:
    """Set the mode of all files below a folder to that of new files under the umask; some libraries set another."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~_umask())


def _umask() -> int:
    """Return the umask of the process, which can be asked for only by setting it; so ask the kernel first."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, all of it or nothing."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Write pieces of a text, one after the other, as `write_text` writes the whole."""
    with atomic_path(path) as part, part.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, all of it or nothing; numbers that are not finite as null, as JSON has none."""
    write_text(path, indented_json(value) + "\n")


def write_json_array(path: Path, items: Iterable[object]) -> None:
    """Write items as `write_json` writes a list of them, one after the other: they need not be held at once."""
    with atomic_path(path) as part, part.open("w", encoding="utf-8") as file:
        is_empty = True
        for item in items:
            file.write(("[\n" if is_empty else ",\n") + INDENT + indented_json(item, INDENT))
            is_empty = False
        file.write("[]\n" if is_empty else "\n]\n")


def indented_json(value: object, margin: str = "") -> str:
    """Return what `json.dumps(value, ensure_ascii=False, indent=2)` does, several times as fast, behind a margin.

    Numbers that are not finite become null, as JSON has none.
    """
    if write := _WRITERS.get(type(value)):
        return write(value)
    inner = margin + INDENT
    if isinstance(value, dict) and value:
        lines = []
        for name, item in value.items():
            write = _WRITERS.get(type(item))  # asked here as well: most values need no call of this function
            lines.append(f"{inner}{_key(name)}: {write(item) if write else indented_json(item, inner)}")
        return "{\n" + ",\n".join(lines) + f"\n{margin}}}"
    if isinstance(value, list | tuple) and value:
        lines = [inner + indented_json(item, inner) for item in value]
        return "[\n" + ",\n".join(lines) + f"\n{margin}]"
    if isinstance(value, str):
        return encode_basestring(value)
    return "null" if isinstance(value, float) and not math.isfinite(value) else json.dumps(value)


class JsonText(str):
    """A value as `indented_json` has written it for its place, in other values: what is often the same is kept so."""

    __slots__ = ()


_WRITERS: Mapping[type, Callable[[Any], str]] = {
    str: encode_basestring,
    JsonText: str,
    type(None): {None: "null"}.__getitem__,
    bool: {True: "true", False: "false"}.__getitem__,
    int: repr,
    float: lambda value: repr(value) if math.isfinite(value) else "null",
}


@lru_cache(maxsize=1024, typed=True)  # 1 and True are equal
def _key(name: object) -> str:
    return encode_basestring(name) if isinstance(name, str) else encode_basestring(json.dumps(name))


def with_finite_numbers(value: Any) -> Any:
    """Return a JSON value with None in place of NaN and infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: with_finite_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [with_finite_numbers(item) for item in value]
    return value


T = TypeVar("T")
_WRITE_AGAIN = "delete it and run the stage that writes it again"


def read_json(path: Path, *, fix: str = _WRITE_AGAIN) -> Any:
    """Read a JSON file that a stage wrote; None if there is none. Raises UserError for what is not JSON."""
    if not path.is_file():
        return None
    try:
        return read_json_text(path)
    except UserError as error:
        raise UserError(error.what, where=error.where, fix=fix) from error


def read_as(path: Path, shape: type[T], *, fix: str = _WRITE_AGAIN) -> T | None:
    """Read a JSON file that a stage wrote, as a value of `shape`; None if there is none.

    Raises UserError for what is not JSON, and with the keys whose values are missing or of another kind.
    """
    if not path.is_file():
        return None
    return checked_as(read_json(path, fix=fix), shape, where=str(path), fix=fix)


def checked_as(value: object, shape: type[T], *, where: str, fix: str = _WRITE_AGAIN) -> T:
    """Return a JSON value as one of `shape`, a type that pydantic knows.

    Raises UserError with the keys whose values are missing or of another kind.
    """
    from pydantic import ValidationError

    hashable: Any = shape  # which mypy does not believe of a type
    try:
        checked: T = _adapter_of(hashable).validate_python(value)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc'])) or 'it'}: {fault['msg']}" for fault in error.errors()]
        shown = "; ".join(faults[:_FAULTS_SHOWN]) + ("; ..." if len(faults) > _FAULTS_SHOWN else "")
        raise UserError(f"is not what a stage writes: {shown}", where=where, fix=fix) from error
    return checked


@cache
def _adapter_of(shape: Any) -> TypeAdapter[Any]:
    """Return what checks values of a shape; making one takes longer than checking a hundred values."""
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


@contextlib.contextmanager
def unchanged(paths: Iterable[Path | None]) -> Iterator[dict[str, str]]:
    """Yield the sha256, by path, of the files that are read inside; folders stand for all files below them.

    What is no file is left out. Raises UserError afterwards if one of them was changed or replaced meanwhile: then
    nobody knows what was read. For readers that open a file several times; `digest` in text_files.py is for the others.
    """
    named = [path for path in paths if path]
    files = [path for path in named if path.is_file()]
    files += [path for folder in named if folder.is_dir() for path in sorted(folder.rglob("*")) if path.is_file()]
    before = {str(path): sha256_of(path) for path in files}
    yield before
    for path in files:
        if not path.is_file() or sha256_of(path) != before[str(path)]:
            raise UserError(
                "was changed while it was read", where=str(path), fix="wait, or copy it, and run this again"
            )


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise UserError if the disk of a folder has less room than what is about to be written there."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        what = f"about {in_words(needed_bytes)} are needed and {in_words(free)} are free"
        raise UserError(what, where=str(folder), fix="free some space, or name another folder")


def hashes_in(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Return the sha256 of files below a folder by their names there, as a manifest lists its outputs."""
    files = list(paths)
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as threads:
        return {
            str(path.relative_to(folder)): sha256
            for path, sha256 in zip(files, threads.map(sha256_of, files), strict=True)
        }


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
