"""One run at a time in a folder, and several files of it that are replaced together or not at all.

The new files are written into a hidden folder beside the old ones. Renaming that folder is the one step that decides:
before it a crash leaves the old set, after it the next start moves the rest into place. The old manifest is removed
first and the new one moved last, so that a folder with a manifest holds the files the manifest lists.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from tool_aware.console import UserError, warn
from tool_aware.files import add_filename, give_usual_mode, hashes_in
from tool_aware.paths import MANIFEST_NAME
from tool_aware.secret_values import redacted

# Hidden, and named as nobody else names files: what lies there is replaced without asking.
_LOCK_NAME = ".tool-aware.lock"
_BEING_WRITTEN = ".tool-aware.new"  # garbage if nobody holds the lock
_COMPLETE = ".tool-aware.complete"  # must be moved into place
_PLAN_NAME = ".plan.json"  # in it: old files that are deleted, and those that get another name
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_ROOM_BYTES = 64 * 1024  # written and deleted again at the start; a disk without that much is full


def refuse_unsafe(folder: Path) -> None:
    """Raise UserError for a folder in which no stage may write, since what lies there is not its own.

    It is the folder that commands run in, the home directory or the root, or above one of them, a git repository, or
    no folder. Links are followed.
    """
    place, here, home = folder.resolve(), Path.cwd().resolve(), Path(os.path.expanduser("~")).resolve()
    what = None
    if folder.exists() and not folder.is_dir():
        what = "is a file, not a folder"
    elif place == here:
        what = "is the folder that this command runs in"
    elif place == home:
        what = "is your home directory"
    elif here.is_relative_to(place) or home.is_relative_to(place):
        what = "contains the folder that this command runs in, or your home directory"
    elif (place / ".git").exists():
        what = "is a git repository"
    if what:
        raise UserError(f"{what}: a stage needs a folder of its own", where=str(folder), fix="name another folder")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process, created if it does not exist, and finish what a crashed run left undone.

    The kernel releases the lock when the process ends, however it ends. Raises UserError if another process holds it,
    with its command, number and host; if no stage may write there (`refuse_unsafe`); and if the folder cannot be
    written to or the disk is full.
    """
    refuse_unsafe(folder)
    missing = next((parent for parent in reversed([folder, *folder.parents]) if not parent.exists()), None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock_of(folder / _LOCK_NAME, str(folder), "wait for it or stop it, or name another folder")
    except OSError as error:
        _remove_empty(folder, missing)
        raise _not_writable(folder, error) from error
    with lock:
        try:
            _write_holder(folder, lock)
            finish_interrupted(folder)
            yield
        finally:
            with contextlib.suppress(OSError):
                (folder / _LOCK_NAME).unlink()  # a process that has opened it meanwhile sees that: _lock_of
            _remove_empty(folder, missing)


def _lock_of(path: Path, where: str, fix: str) -> IO[str]:
    """Return the lock file at `path`, open and locked. Raises UserError if another process holds it."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                holder = _holder_in_words(file.read())
            raise UserError(f"another run is writing here: {holder}", where=where, fix=fix) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            warn(f"{where}: this file system has no locks; do not start two runs there at once")
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.lstat()):
                return file
        file.close()  # its holder has ended and deleted it since it was opened


def _write_holder(folder: Path, lock: IO[str]) -> None:
    """Write who holds the lock, and on the way find out whether anything can be written at all."""
    handle, holder = lock.fileno(), json.dumps(_holder()).encode()
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder.ljust(_ROOM_BYTES), 0)  # JSON may end in spaces
        os.fsync(handle)
        os.ftruncate(handle, len(holder))
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot be written to: {error.strerror}", where=str(folder), fix="name another folder")


def _remove_empty(folder: Path, missing: Path | None) -> None:
    """Remove the folders that were made for nothing, from `missing`, which did not exist, down to `folder`."""
    if missing is None:
        return
    with contextlib.suppress(OSError):
        for path in [folder, *folder.parents]:
            path.rmdir()
            if path == missing:
                break


class FileLock:
    """A file that this process alone writes, from now until `release` or its end. The lock lies beside it, hidden.

    Raises UserError if another process holds it, with its command, number and host.
    """

    def __init__(self, path: Path, fix: str) -> None:
        self._lock = path.with_name(f".{path.name}{_LOCK_NAME}")
        self._file = _lock_of(self._lock, str(path), fix)
        _write_holder(path, self._file)

    def release(self) -> None:
        """Release the lock, so that others can write the file."""
        self._lock.unlink(missing_ok=True)
        self._file.close()


def _holder() -> dict[str, Any]:
    command = redacted(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]))
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": command, "process": os.getpid(), "host": socket.gethostname(), "since": since}


def _holder_in_words(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"{holder['command']} (process {holder['process']} on {holder['host']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError, RecursionError):  # it has the lock and has not yet written its name
        return "a process that has just started"


class FileSet:
    """New files of a folder, written beside the old ones until `commit` replaces those together.

    To be used inside `locked`. Names may have folders in them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.new = folder / _BEING_WRITTEN
        """Where the new files lie until then, the manifest among them."""
        shutil.rmtree(self.new, ignore_errors=True)
        self.new.mkdir(parents=True)

    def path(self, name: str) -> Path:
        """Return where to write the file that will be `folder / name`."""
        path = self.new / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def hashes(self) -> dict[str, str]:
        """Return the sha256 of every new file by name, as the manifest lists its outputs."""
        files = sorted(path for path in self.new.rglob("*") if path.is_file() and path != self.new / MANIFEST_NAME)
        return hashes_in(self.new, files)

    def commit(self, outdated: Iterable[str] = (), kept_as: Mapping[str, str] | None = None) -> None:
        """Replace the folder's files by the new ones, among them the manifest; delete the `outdated` ones.

        `kept_as` has other names for files that would be replaced and are the user's. An error or a crash leaves the
        old set or, after the decision, the new one.
        """
        assert (self.new / MANIFEST_NAME).is_file(), "a set of files ends with its manifest"
        plan = {"outdated": sorted(outdated), "kept_as": dict(kept_as or {})}
        with add_filename(self.folder):
            (self.new / _PLAN_NAME).write_text(json.dumps(plan), encoding="utf-8")
            give_usual_mode(self.new)
            for path in self.new.rglob("*"):
                _sync(path)
            _sync(self.new)
        os.rename(self.new, self.folder / _COMPLETE)  # decides
        finish_interrupted(self.folder)

    def discard(self) -> None:
        """Delete what was written so far."""
        shutil.rmtree(self.new, ignore_errors=True)


def is_interrupted(folder: Path) -> bool:
    """Return whether a set of files was decided on and not all of it is in place."""
    return (folder / _COMPLETE).is_dir()


def finish_interrupted(folder: Path) -> None:
    """Move a set that was decided on into place. It can itself be interrupted and repeated at any step."""
    complete = folder / _COMPLETE
    if not complete.is_dir():
        return
    (folder / MANIFEST_NAME).unlink(missing_ok=True) if (complete / MANIFEST_NAME).exists() else None
    if (complete / _PLAN_NAME).is_file() and (complete / MANIFEST_NAME).exists():
        outdated, kept_as = _plan_in(complete)
        for name, other in kept_as.items():
            if os.path.lexists(folder / name) and not os.path.lexists(folder / other):
                os.replace(folder / name, folder / other)
        for name in outdated:
            (folder / name).unlink(missing_ok=True)
    for path in [path for path in complete.rglob("*") if path.is_file()]:
        target = folder / path.relative_to(complete)
        if str(path.relative_to(complete)) not in (MANIFEST_NAME, _PLAN_NAME):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    _sync(folder)
    with contextlib.suppress(FileNotFoundError):
        os.replace(complete / MANIFEST_NAME, folder / MANIFEST_NAME)
    shutil.rmtree(complete)
    _sync(folder)


def _plan_in(complete: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names of old files to delete, and the other names of those to keep.

    Raises UserError for what `commit` does not write: a folder from elsewhere must not have files outside deleted.
    """
    try:
        plan = json.loads((complete / _PLAN_NAME).read_text(encoding="utf-8"))
        outdated, kept_as = list(plan["outdated"]), dict(plan["kept_as"])
        names = [Path(name) for name in (*outdated, *kept_as, *kept_as.values())]
        is_ours = not any(name.is_absolute() or ".." in name.parts for name in names)
    except (ValueError, KeyError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        fix = "delete that folder, and run the stage again if files are missing"
        raise UserError("is not what an interrupted run leaves", where=str(complete), fix=fix)
    return outdated, kept_as


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
