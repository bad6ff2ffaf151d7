"""Where the inputs of the layers wait between forward and backward pass: on the GPU, or in host memory.

A checkpointed layer keeps its input only: 8 KiB a token for each layer of a 7B, 1 GiB for a pack of 4,096 tokens. The
copies to the host and back run beside the computation, which takes several times as long.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import torch

_ON_ITS_WAY = 2  # inputs that may still be leaving while the next layers are computed
_CAPACITY_STEP = 1024  # tokens; host buffers grow by this


class LayerInputs(Protocol):
    """A stack: inputs are put in the order of the layers and popped in the reverse one."""

    def put(self, x: torch.Tensor) -> None:
        """Take the input of the next layer, (T, H), which nobody changes any more."""

    def pop(self) -> torch.Tensor:
        """Give the last input back."""

    def clear(self) -> None:
        """Forget what a step that was broken off has left."""


class InputsOnDevice(list):
    """Stay where they are."""

    put = list.append


class InputsOnHost:
    """Wait in pinned host memory; copies run on a stream of their own, and the next one to be popped is under way."""

    def __init__(self, layers: int, device: torch.device) -> None:
        self._layers, self._device = layers, device
        self._stream = torch.cuda.Stream(device)
        self._host: torch.Tensor | None = None  # (layers, capacity, H), pinned
        self._leaving: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        self._coming: tuple[torch.Tensor, torch.cuda.Event] | None = None
        self._count, self._tokens = 0, 0

    def clear(self) -> None:
        """Forget what is there."""
        self._leaving.clear()
        self._coming, self._count = None, 0

    def put(self, x: torch.Tensor) -> None:
        """Start copying `x` to the host; its memory is free a few layers later."""
        self._tokens = len(x)
        self._make_room(x)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._host[self._count, : self._tokens].copy_(x, non_blocking=True)
        self._leaving.append((x, self._stream.record_event()))
        self._count += 1
        if len(self._leaving) > _ON_ITS_WAY:
            self._let_go()

    def pop(self) -> torch.Tensor:
        """Wait for the last input, and start fetching the one before it."""
        while self._leaving:
            self._let_go()
        x, arrived = self._coming or self._fetch()
        self._count -= 1
        self._coming = self._fetch() if self._count else None
        torch.cuda.current_stream(self._device).wait_event(arrived)
        return x

    def _fetch(self) -> tuple[torch.Tensor, torch.cuda.Event]:
        x = torch.empty(self._tokens, self._host.shape[2], dtype=self._host.dtype, device=self._device)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # what used this memory before is done then
        with torch.cuda.stream(self._stream):
            x.copy_(self._host[self._count - 1, : self._tokens], non_blocking=True)
        return x, self._stream.record_event()

    def _let_go(self) -> None:
        _, left = self._leaving.popleft()
        torch.cuda.current_stream(self._device).wait_event(left)  # before anything else is written there

    def _make_room(self, x: torch.Tensor) -> None:
        tokens, hidden = x.shape
        if self._host is None or self._host.shape[1] < tokens:
            self._host = None
            capacity = -(-tokens // _CAPACITY_STEP) * _CAPACITY_STEP
            self._host = torch.empty(self._layers, capacity, hidden, dtype=x.dtype, pin_memory=True)
