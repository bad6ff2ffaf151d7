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
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tool_aware.console import UserError, warn
from tool_aware.files import add_filename, hashes_in
from tool_aware.paths import MANIFEST_NAME

_LOCK_NAME = ".lock"
_BEING_WRITTEN = ".new"  # garbage if nobody holds the lock
_COMPLETE = ".complete"  # must be moved into place
_OUTDATED_NAME = ".outdated.json"  # in it: names of files of the old set that the new one lacks
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process, created if it does not exist, and finish what a crashed run left undone.

    The kernel releases the lock when the process ends, however it ends. Raises UserError if another process holds it,
    with its command, number and host.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK_NAME
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"another run is writing here: {_holder_in_words(file.read())}",
                where=str(folder),
                fix="wait for it or stop it, or name another folder",
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warn(f"{folder}: this file system has no locks; do not start two runs in it at once")
        file.truncate(0)
        json.dump(_holder(), file)
        file.flush()
        finish_interrupted(folder)
        yield


def _holder() -> dict[str, Any]:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": command, "process": os.getpid(), "host": socket.gethostname(), "since": since}


def _holder_in_words(text: str) -> str:
    try:
        holder = json.loads(text)
        return f"{holder['command']} (process {holder['process']} on {holder['host']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not yet written its name
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

    def commit(self, outdated: Iterable[str] = ()) -> None:
        """Replace the folder's files by the new ones, among them the manifest; delete the `outdated` ones.

        An error or a crash leaves the old set or, after the decision, the new one.
        """
        assert (self.new / MANIFEST_NAME).is_file(), "a set of files ends with its manifest"
        (self.new / _OUTDATED_NAME).write_text(json.dumps(sorted(outdated)), encoding="utf-8")
        with add_filename(self.folder):
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
    if (complete / _OUTDATED_NAME).is_file():
        for name in json.loads((complete / _OUTDATED_NAME).read_text(encoding="utf-8")):
            (folder / name).unlink(missing_ok=True)
    names = [path.relative_to(complete) for path in complete.rglob("*") if path.is_file()]
    for name in names:
        if str(name) not in (MANIFEST_NAME, _OUTDATED_NAME):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(complete / name, folder / name)
    _sync(folder)
    with contextlib.suppress(FileNotFoundError):
        os.replace(complete / MANIFEST_NAME, folder / MANIFEST_NAME)
    shutil.rmtree(complete)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
