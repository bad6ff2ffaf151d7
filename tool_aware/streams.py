"""Standard output and error of every script: no secrets, no foreign control characters, and never the end of the work.

A reader that goes away (`| head`), a closed terminal or a full disk loses what is printed and nothing else.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

from tool_aware.secret_values import SHORTEST_ANYWHERE, keep_environment_secrets, keep_url_secrets, redacted

# Control characters and escape sequences of texts that others wrote (names of processes, replies of servers) could move
# the cursor, hide lines or set the title. Ours are colours, and a line that is drawn again in place.
_OURS = r"\x1b\[[0-9;]*m|\r\x1b\[2K"
_CONTROL = re.compile(rf"({_OURS})|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def without_controls(text: str) -> str:
    r"""Return a text with control characters, and characters that change the direction of others, spelled out.

    Line ends and tabs stay, and so do colours.
    """
    return _CONTROL.sub(lambda found: found[1] or ascii(found[0])[1:-1], text)


class GuardedStream:
    """A text stream that leaves out secrets of `shortest` or more characters and spells control characters out.

    What cannot be written is dropped; `error` then holds the first reason.
    """

    def __init__(self, stream: TextIO, shortest: int = 1) -> None:
        self._stream, self._shortest = stream, shortest
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text; return its length, as it was given."""
        if self.error is None:
            try:
                self._stream.write(without_controls(redacted(text, self._shortest)))
            except OSError as error:
                self._lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write what is buffered."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._lose(error)

    @property
    def unguarded(self) -> TextIO:
        """Return the stream itself, for a view that moves the cursor and is drawn from clean texts."""
        return self._stream

    def _lose(self, error: OSError) -> None:
        """Keep the first error, and send what is still buffered, and what others write there, to the null device."""
        self.error = error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._stream.fileno())
        os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard_streams() -> None:
    """Put guards around both streams, whoever writes: the toolkit, argparse, logging, warnings, a traceback.

    Results go to stdout: a short secret is left there, as it could be a word of them.
    """
    _open_closed_streams()
    keep_environment_secrets(os.environ)
    for argument in sys.argv:
        keep_url_secrets(argument)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a locale without the character must not end the work
            stream.reconfigure(errors="backslashreplace")
    sys.stdout = cast(TextIO, GuardedStream(sys.stdout, SHORTEST_ANYWHERE))
    sys.stderr = cast(TextIO, GuardedStream(sys.stderr))


def _open_closed_streams() -> None:
    """Open the null device in place of each standard stream that the caller has closed (`>&-`).

    Otherwise the next file to be opened would get its number, and children would write into that file.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w"))


def lost_output(stream: TextIO) -> OSError | None:
    """Flush a stream and return why something printed to it could not be written; None if all was."""
    stream.flush()
    return stream.error if isinstance(stream, GuardedStream) else None


def unguarded(stream: TextIO) -> TextIO:
    """Return the stream below the guard, if there is one."""
    return stream.unguarded if isinstance(stream, GuardedStream) else stream
