"""The weights of a model on disk: its files, read and written one tensor at a time."""

from __future__ import annotations

import contextlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.config.sections import ModelSection
from tool_aware.console import UserError
from tool_aware.model.base import local_folder
from tool_aware.model.language_part import plain_names
from tool_aware.model.libraries import library_errors
from tool_aware.model.matching import model_without_weights
from tool_aware.model.model_folder import check_model_folder
from tool_aware.model.tensor_files import StoredTensor, named, tensors_in, weight_files
from tool_aware.paths import CARD_NAME
from tool_aware.training.export.layerwise import quantized_names
from tool_aware.training.export.transfers import GpuReads, WritingBehind

if TYPE_CHECKING:
    import torch

_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # of what safetensors calls a dtype
_KINDS = {name: kind for kind, name in _TORCH_NAMES.items()}


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

    They are read into the memory of `device`. Names are those in the files; those of a multimodal model's language part
    may be the plain ones as well.
    """

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        self.shards = weight_files(folder)
        self._stored: dict[str, StoredTensor] = {}
        self._shard_of: dict[str, Path] = {}
        for shard in self.shards:
            tensors = tensors_in(shard)
            self._stored |= tensors
            self._shard_of |= dict.fromkeys(tensors, shard)
        self._gpu = GpuReads(device) if device and device.type == "cuda" else None
        self._stored_name = plain_names(folder, self._shard_of)
        self._plain_name = {stored: plain for plain, stored in self._stored_name.items()}
        self._kept: dict[str, torch.Tensor] | None = None

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what is read while active: for several models that are made of it."""
        self._kept = {}
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
            self._kept[name] = self._read(name)
        return self._kept[name]

    def _read(self, name: str) -> torch.Tensor:
        import torch
        from safetensors import safe_open

        shard, stored = self._shard_of[name], self._stored[name]
        if self._gpu and stored.kind in _TORCH_NAMES:
            return self._gpu.read(shard, stored.place, getattr(torch, _TORCH_NAMES[stored.kind])).view(stored.shape)
        # Opened anew each time: the file is mapped into memory, and its pages count until it is closed.
        with safe_open(shard, framework="pt") as file:
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
    A tensor is written while the next one is made. The disk is asked to take them meanwhile; that it has the last ones
    is for the caller to wait for.
    """
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as file, WritingBehind(file) as behind:
        behind.write(struct.pack("<Q", len(text)) + text)
        for name in header:
            behind.write_tensor(tensor_of(name))
