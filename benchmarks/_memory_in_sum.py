"""The most memory that a process and those that it has started hold at one time."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from tool_aware.units import MIB

_PAUSE_S = 0.25


class MemoryInSum:
    """Watch a process, by its number, until `stop`; a page that several of them share counts once."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most_bytes, self._is_over = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Return the most that was seen, in MiB."""
        self._is_over.set()
        self._thread.join()
        return round(self._most_bytes / MIB, 1)

    def _watch(self) -> None:
        while not self._is_over.wait(_PAUSE_S):
            self._most_bytes = max(self._most_bytes, sum(map(_held_bytes, _with_children(self._pid))))


def _with_children(pid: int) -> list[int]:
    children: list[str] = []
    with contextlib.suppress(OSError):  # ended meanwhile
        for names in Path(f"/proc/{pid}/task").glob("*/children"):
            children += names.read_text(encoding="ascii").split()
    return [pid, *(each for child in children for each in _with_children(int(child)))]


def _held_bytes(pid: int) -> int:
    """Return a process's share of its pages (PSS); 0 if it has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return 0
