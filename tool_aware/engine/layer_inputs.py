"""The inputs of the layers between the forward and the backward pass: kept on the GPU, or in host memory.

A checkpointed layer keeps its input only: 8 KiB a token for each layer of a 7B, 1 GiB for a pack of 4,096 tokens. The
copies to the host and back overlap with the computation, which takes several times as long.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch

_COPIES_IN_FLIGHT = 2  # inputs whose copy to the host may be unfinished while the next layers are computed
_CAPACITY_STEP = 1024  # tokens; host buffers grow by this


class LayerInputs(Protocol):
    """A stack: inputs are put in the order of the layers and popped in the reverse one."""

    def put(self, x: torch.Tensor) -> None:
        """Keep the input of the next layer, (T, H), which must not be changed any more."""

    def pop(self) -> torch.Tensor:
        """Return the last input, and keep it no longer."""

    def clear(self) -> None:
        """Drop what an interrupted step has left."""


class InputsOnDevice(list[torch.Tensor]):
    """The inputs as they are, on their device."""

    def put(self, x: torch.Tensor) -> None:
        """See LayerInputs.put."""
        self.append(x)


class InputsOnHost:
    """The inputs in pinned host memory.

    Copies run on a stream of their own; the input that is popped next is fetched ahead.
    """

    def __init__(self, layers: int, device: torch.device) -> None:
        self._layers, self._device = layers, device
        self._stream = torch.cuda.Stream(device)
        self._host: torch.Tensor | None = None  # (layers, capacity, H), pinned
        self._to_host: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        self._from_host: tuple[torch.Tensor, torch.cuda.Event] | None = None
        self._count, self._tokens = 0, 0

    def clear(self) -> None:
        """See LayerInputs.clear."""
        self._to_host.clear()
        self._from_host, self._count = None, 0

    def put(self, x: torch.Tensor) -> None:
        """Start copying `x` to the host; its memory is free a few layers later."""
        self._tokens = len(x)
        host = self._buffer_for(x)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            host[self._count, : self._tokens].copy_(x, non_blocking=True)
        self._to_host.append((x, self._stream.record_event()))
        self._count += 1
        if len(self._to_host) > _COPIES_IN_FLIGHT:
            self._release_oldest()

    def pop(self) -> torch.Tensor:
        """Wait for the last input and return it; start fetching the one before it."""
        while self._to_host:
            self._release_oldest()
        x, arrived = self._from_host or self._fetch()
        self._count -= 1
        self._from_host = self._fetch() if self._count else None
        torch.cuda.current_stream(self._device).wait_event(arrived)
        return x

    def _fetch(self) -> tuple[torch.Tensor, torch.cuda.Event]:
        assert self._host is not None, "nothing was put"
        x = torch.empty(self._tokens, self._host.shape[2], dtype=self._host.dtype, device=self._device)  # (T, H)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # what used this memory before is done then
        with torch.cuda.stream(self._stream):
            x.copy_(self._host[self._count - 1, : self._tokens], non_blocking=True)
        return x, self._stream.record_event()

    def _release_oldest(self) -> None:
        _, copied = self._to_host.popleft()
        torch.cuda.current_stream(self._device).wait_event(copied)  # before anything else is written to its memory

    def _buffer_for(self, x: torch.Tensor) -> torch.Tensor:
        """Return the host buffer, (layers, capacity, H), made anew if `x` (T, H) has more tokens than it has room."""
        tokens, hidden = x.shape
        if self._host is None or self._host.shape[1] < tokens:
            self._host = None
            capacity = -(-tokens // _CAPACITY_STEP) * _CAPACITY_STEP
            self._host = torch.empty(self._layers, capacity, hidden, dtype=x.dtype, pin_memory=True)
        return self._host
