"""A function worked out by another process while this one goes on."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def usable_cores() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Beside(Generic[T]):
    """The result of a module's function, which a new Python works out; function, arguments and result are pickled.

    A new one, not a copy: threads and a GPU's memory do not survive a fork. It ends with its result, or with this one.
    """

    def __init__(self, function: Callable[..., T], *arguments: Any) -> None:
        self._function, self._arguments, self._found = function, arguments, list[T]()
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()  # so that nobody holds this end once the other process is gone
        # Large arguments and results wait for the other's reading and writing, and this process need not.
        work = ForkingPickler.dumps((function, arguments))  # now, as the arguments may change
        self._exchanging = threading.Thread(target=self._exchange, args=(work,), daemon=True)
        self._exchanging.start()

    def _exchange(self, work: memoryview) -> None:
        with contextlib.suppress(EOFError, OSError):  # it was ended, before its result or amid it
            self._ours.send_bytes(work)
            self._found.append(self._ours.recv())
        self._process.join()

    def result(self) -> T:
        """Wait for the result; work it out here if the other process ended without one, killed for its memory say.

        So a function that fails there fails here, and raises what it raises.
        """
        self._exchanging.join()
        return self._found[0] if self._found else self._function(*self._arguments)


def _work(theirs: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, which ends this one
    with contextlib.suppress(Exception):  # nobody waits any more, or the function fails, there as well
        function, arguments = theirs.recv()
        theirs.send(function(*arguments))
    os._exit(0)  # at once: to take apart what it holds takes the interpreter a fifth of a second
