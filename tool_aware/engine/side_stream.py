"""Work of a GPU beside its current stream: 4-bit weights are written out while the products before them run.

A product rarely fills the last wave of its blocks, and attention over a short pack never fills a GPU; writing weights
is bound by memory and fits in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch


class Beside(Protocol):
    """Runs work beside what is launched next; memory that it uses is allocated by the caller, on the current stream."""

    def run(self, work: Callable[[], None]) -> Callable[[], None]:
        """Start `work`, which sees all that was launched so far; return what makes later launches wait for its end."""


class SideStream:
    """A second stream of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def run(self, work: Callable[[], None]) -> Callable[[], None]:
        """See Beside.run."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            work()
            done = self._stream.record_event()
        return lambda: torch.cuda.current_stream(self._device).wait_event(done)


class AtOnce:
    """Runs work when it is given: where there are no streams, memory and results are those of a side stream."""

    @staticmethod
    def run(work: Callable[[], None]) -> Callable[[], None]:
        """See Beside.run."""
        work()
        return lambda: None
