"""Between files and a GPU, through page-locked memory that is used again, in several threads.

A plain copy to or from a GPU runs through new pages of the process or of the file's cache, one after the other: on a
virtual machine with one H100 it fetched 1.5 GB/s and read 7, and so 50 and 16 (docs/BENCHMARKS.md).
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, BinaryIO, Self

from tool_aware.units import MIB

if TYPE_CHECKING:
    import torch

_PIECE_BYTES = 16 * MIB  # of page-locked memory
_READERS = 4  # each with a piece; more gain nothing: 16 GB/s of what is in the file cache
_PIECES = 8  # that a GPU's values wait in to be written
_SYNCED_BYTES = 512 * MIB  # after so many the disk is asked to take what was written


class GpuReads:
    """Parts of files, read into the memory of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pieces: SimpleQueue[torch.Tensor] = SimpleQueue()
        self._readers: ThreadPoolExecutor | None = None

    def read(self, file: Path, place: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
        """Return the bytes from `place[0]` to before `place[1]` as a tensor of one dimension on the GPU.

        Raises OSError if the file ends before.
        """
        import torch

        if self._readers is None:
            self._readers = ThreadPoolExecutor(_READERS)
            for _ in range(_READERS):
                self._pieces.put(torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=True))
        start, end = place
        target = torch.empty(end - start, dtype=torch.uint8, device=self._device)

        def read_piece(part: torch.Tensor, at: int) -> None:
            piece = self._pieces.get()
            try:
                _read_into(piece[: len(part)].numpy().data, file, at)
                part.copy_(piece[: len(part)])
            finally:
                self._pieces.put(piece)

        list(self._readers.map(read_piece, target.split(_PIECE_BYTES), range(start, end, _PIECE_BYTES)))
        return target.view(dtype)


def _read_into(space: memoryview, path: Path, at: int) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(at)
        done = 0
        while done < len(space):
            read = file.readinto(space[done:])
            if not read:
                raise OSError(f"{path} ends before its last tensor")
            done += read


class WritingBehind:
    """A file that is written in another thread, and forced to the disk, bit by bit, in a third."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writer, self._syncer = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._writes: deque[Future[None]] = deque()  # in their order, those that may not be done yet
        self._sync: Future[None] | None = None
        self._unsynced_bytes = 0
        self._pieces: list[torch.Tensor] = []  # of page-locked memory

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._wait(0)
                if self._sync:
                    self._sync.result()
        finally:
            self._writer.shutdown()
            self._syncer.shutdown()

    def write_tensor(self, tensor: torch.Tensor) -> None:
        """Write a tensor's values once the one before is written, or, from a GPU, by pieces."""
        import torch

        content = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if content.device.type == "cpu":
            self._wait(0)
            self.write(content.numpy().data)
            return
        # Memory that a GPU writes into and that is used again: new pages cost more than the copy itself.
        if not self._pieces:
            self._pieces = [torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(_PIECES)]
        for part in content.split(_PIECE_BYTES):
            self._wait(_PIECES - 1)  # the oldest piece is written
            piece = self._pieces[0][: len(part)]
            self._pieces.append(self._pieces.pop(0))
            self.write(piece.copy_(part).numpy().data)

    def write(self, content: bytes | memoryview) -> None:
        """Write behind what is already there; `content` must stay as it is until then."""
        self._writes.append(self._writer.submit(self._write, content))

    def _wait(self, most: int) -> None:
        """Wait until at most so many writes are left."""
        while len(self._writes) > most:
            self._writes.popleft().result()

    def _write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._unsynced_bytes += len(content)
        if self._unsynced_bytes >= _SYNCED_BYTES and (self._sync is None or self._sync.done()):
            if self._sync:
                self._sync.result()
            self._file.flush()
            self._sync = self._syncer.submit(os.fsync, self._file.fileno())
            self._unsynced_bytes = 0
