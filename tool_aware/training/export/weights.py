"""The weights of a model on disk: its files, read and written one tensor at a time."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from tool_aware.config.sections import ModelSection
from tool_aware.console import UserError
from tool_aware.model.base import local_folder
from tool_aware.model.language_part import plain_names
from tool_aware.model.libraries import library_errors
from tool_aware.model.matching import model_without_weights
from tool_aware.model.model_folder import check_model_folder
from tool_aware.model.tensor_files import named, weight_files
from tool_aware.paths import CARD_NAME
from tool_aware.training.export.layerwise import quantized_names
from tool_aware.units import MIB

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # of what safetensors calls a dtype
_KINDS = {name: kind for kind, name in _TORCH_NAMES.items()}
_PIECE_BYTES, _PIECES = 32 * MIB, 4  # in which a GPU's tensors are fetched: 128 MiB of page-locked memory
_SYNCED_BYTES = 512 * MIB  # after so many the disk is asked to take what was written


def base_folder(model: ModelSection, hf_token: str | None) -> Path:
    """Return the local folder with the base model's files, fetching what is not in the cache."""
    if Path(model.name).is_dir():
        return Path(model.name)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "model*.safetensors", "tokenizer.model", CARD_NAME]
    fix = "bring it back and run again with --resume; the adapter is saved"
    with library_errors("its files are gone or cannot be fetched", f"model.name: {model.name}", fix):
        return Path(snapshot_download(model.name, revision=model.revision, token=hf_token, allow_patterns=wanted))


def check_mergeable(model: ModelSection) -> None:
    """Check, before training, that an adapter can be merged into the base model's files, if they are on this machine.

    Raises UserError if a linear layer's weight is not in them under the layer's name, or is of a type that no merge
    reads.
    """
    folder = local_folder(model.name, model.revision)
    if folder is None:
        return
    stored = check_model_folder(folder, f"model.name: {model.name}")
    wanted = quantized_names(model_without_weights(folder, stored))
    lost = sorted(wanted - plain_names(folder, stored).keys())
    others = sorted(name for name, tensor in stored.items() if tensor.kind not in _TORCH_NAMES)
    if lost:
        what = f"{len(lost)} weights are not in its files under the names of its layers: {named(lost)}"
        fix = "go without a merged model (--skip-final-model), or load and save it once with transformers"
        raise UserError(what, where=str(folder), fix=fix)
    if others:
        what = f"{others[0]} is of type {stored[others[0]].kind}; merging reads {', '.join(_TORCH_NAMES)}"
        raise UserError(what, where=str(folder), fix="go without a merged model: --skip-final-model")


class WeightFiles:
    """The tensors of a model folder, each read from disk at every access, unless it is `kept`.

    Names are those in the files; those of a multimodal model's language part may be the plain ones as well.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.shards = weight_files(folder)
        self._shard_of: dict[str, Path] = {}
        for shard in self.shards:
            with safe_open(shard, framework="pt") as file:
                self._shard_of.update(dict.fromkeys(file.keys(), shard))
        self._stored_name = plain_names(folder, self._shard_of)
        self._plain_name = {stored: plain for plain, stored in self._stored_name.items()}
        self._kept: dict[str, torch.Tensor] | None = None
        self._kept_on: torch.device | None = None

    @contextlib.contextmanager
    def kept(self, device: torch.device) -> Iterator[None]:
        """Keep what is read while active, on `device`: for several models that are made of it."""
        self._kept, self._kept_on = {}, device
        try:
            yield
        finally:
            self._kept = None

    def plain_name(self, name: str) -> str:
        """Return the name of a tensor in the language model alone; its own if it has none there."""
        return self._plain_name.get(name, name)

    @property
    def dtype(self) -> str:
        """Return torch's name of the weights' precision: that of the first tensor, as all of a model are alike."""
        first = next(iter(shard_header(self.shards[0]).values()))
        return _TORCH_NAMES[first["dtype"]]

    def __contains__(self, name: str) -> bool:
        return name in self._stored_name or name in self._shard_of

    def __getitem__(self, name: str) -> torch.Tensor:
        name = self._stored_name.get(name, name)
        if self._kept is None:
            return self._read(name)
        if name not in self._kept:
            self._kept[name] = self._read(name).to(self._kept_on)
        return self._kept[name]

    def _read(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        # Opened anew each time: the file is mapped into memory, and its pages count until it is closed.
        with safe_open(self._shard_of[name], framework="pt") as file:
            return file.get_tensor(name)


def shard_header(shard: Path, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Lay out a file with the tensors of `shard` in `dtype` (None: as they are): name to dtype, shape and place.

    Raises UserError if a tensor is not of floats: then the weights are quantised already, and nothing can be merged.
    """
    import torch
    from safetensors import safe_open

    header: dict[str, Any] = {}
    place = 0
    with safe_open(shard, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_slice(name)
            if tensor.get_dtype() not in _TORCH_NAMES:
                raise UserError(
                    f"{name} is of type {tensor.get_dtype()}: these weights are quantised already",
                    where=str(shard),
                    fix="train on the 16-bit model, or go without a merged one: --resume --skip-final-model",
                )
            stored = dtype or getattr(torch, _TORCH_NAMES[tensor.get_dtype()])
            size = math.prod(tensor.get_shape()) * stored.itemsize
            kind = _KINDS[str(stored).removeprefix("torch.")]
            header[name] = {"dtype": kind, "shape": tensor.get_shape(), "data_offsets": [place, place + size]}
            place += size
    return header


def write_shard(target: Path, header: Mapping[str, Any], tensor_of: Callable[[str], torch.Tensor]) -> None:
    """Write a safetensors file tensor by tensor; the library's own writer wants all of them in memory at once.

    The file is the length of the header (8 bytes, little-endian), the header (JSON, padded with spaces to a multiple of
    8 bytes) and the tensors in its order: https://huggingface.co/docs/safetensors
    A tensor is written while the next one is made, and waited for on the disk while others are written.
    """
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file, _WritingBehind(file) as behind:
        behind.write(struct.pack("<Q", len(text)) + text)
        for name in header:
            behind.write_tensor(tensor_of(name))


class _WritingBehind:
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
                self._file.flush()
                os.fsync(self._file.fileno())
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
