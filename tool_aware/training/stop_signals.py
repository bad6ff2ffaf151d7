"""Signals that ask a training run to stop after the present step: Ctrl-C, a scheduler's, a closed terminal's."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Any

from tool_aware.console import Interrupted, process_count, say

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Remembers the first signal while active; `answer` says, for the terminal, what will be done about it.

    A second signal raises Interrupted at once, except SIGHUP, which the kernel and the shell both send when a terminal
    closes, and any under a launcher: Slurm signals torchrun and its processes alike, and torchrun passes on what it
    gets. A signal that was ignored before (nohup ignores SIGHUP) stays ignored.
    """

    def __init__(self, answer: Callable[[], str]) -> None:
        self.received: int | None = None
        self._answer = answer
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        heeded = [signum for signum in STOPPING if signal.getsignal(signum) != signal.SIG_IGN]
        self._previous = {signum: signal.signal(signum, self._remember) for signum in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _remember(self, signum: int, _frame: object) -> None:
        if self.received is not None:
            if signum == signal.SIGHUP or _is_launched():
                return
            raise Interrupted(signum)
        self.received = signum
        hint = "" if _is_launched() else " (again to stop at once)"
        message = f"{signal.Signals(signum).name}: {self._answer()}{hint}"
        with contextlib.suppress(OSError):  # the terminal may be gone
            try:
                say(message)
            except RuntimeError:  # it came while a line was being written, which must not be begun again inside
                os.write(2, f"{message}\n".encode())


def _is_launched() -> bool:
    """Return whether torchrun or another launcher has started this process, alone or with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ or process_count() > 1
