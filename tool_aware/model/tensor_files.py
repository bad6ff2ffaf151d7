"""Names, types and shapes of the tensors on disk, read from the headers of safetensors files alone."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tool_aware.console import UserError
from tool_aware.paths import MODEL_WEIGHTS_INDEX_NAME, MODEL_WEIGHTS_NAME
from tool_aware.text_files import parse_json, read_json_text, text_format

_LENGTH_BYTES = 8  # of the header's length, little-endian: https://huggingface.co/docs/safetensors
_LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
_METADATA = "__metadata__"
_NAMES_SHOWN = 3
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its type as safetensors names it (BF16, F32), its shape, and its bytes' place in the file."""

    kind: str
    shape: tuple[int, ...]
    place: tuple[int, int] = field(default=(0, 0), compare=False)  # first byte, and the one behind the last


def named(names: list[str]) -> str:
    """Return the first names of a list and how many more there are."""
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def tensors_in(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name, without reading them.

    Raises UserError if there is no such file, or it is something else: an LFS pointer, empty, cut off.
    """
    if not path.is_file():
        raise UserError("not found", where=str(path), fix=_AGAIN)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", (file.read(_LENGTH_BYTES) + bytes(_LENGTH_BYTES))[:_LENGTH_BYTES])[0]
        text = file.read(length) if 1 < length <= _LONGEST_HEADER else b""
    if size == 0:
        raise UserError("is empty", where=str(path), fix=_AGAIN)
    try:
        header = parse_json(text)
        data = _LENGTH_BYTES + length
        stored = {name: _stored(entry, data) for name, entry in header.items() if name != _METADATA}
        data_bytes = max((entry["data_offsets"][1] for name, entry in header.items() if name != _METADATA), default=0)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError):
        text_format(path)  # says so if it is an LFS pointer, an HTML page or an archive
        what = "is cut off: its header is not whole" if text.startswith(b"{") else "is no safetensors file"
        raise UserError(what, where=str(path), fix=_AGAIN) from None
    wanted = data + data_bytes
    if size != wanted:
        what = f"is {'cut off' if size < wanted else 'longer than its header says'}: {size:,} bytes of {wanted:,}"
        raise UserError(what, where=str(path), fix=_AGAIN)
    return stored


def _stored(entry: Mapping[str, Any], data: int) -> StoredTensor:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(isinstance(number, int) and number >= 0 for number in (start, end, *shape)):
        raise ValueError("sizes are whole numbers")
    return StoredTensor(str(entry["dtype"]), shape, (data + start, data + end))


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of a model folder, which an index names if there are several.

    Raises UserError for an index that cannot be followed, and for weights in another format.
    """
    single, index = folder / MODEL_WEIGHTS_NAME, folder / MODEL_WEIGHTS_INDEX_NAME
    names = sorted(set(_weight_map(index).values())) if index.is_file() else [MODEL_WEIGHTS_NAME]
    if single.is_file() and names != [MODEL_WEIGHTS_NAME]:
        what = f"has {MODEL_WEIGHTS_NAME} and an index of other files: which of them are the weights?"
        raise UserError(what, where=str(folder), fix=f"delete {single.name}, or {index.name}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing and index.is_file():
        what = f"lacks {named(missing)}, which {index.name} names"
        raise UserError(what, where=str(folder), fix="copy or download the rest of the weights")
    if missing:
        raise _other_format(folder)
    return [folder / name for name in names]


def _other_format(folder: Path) -> UserError:
    """Return the error for a folder without safetensors weights of Hugging Face's names."""
    if pickles := sorted(path.name for path in folder.glob("pytorch_model*.bin")):
        convert = f"AutoModelForCausalLM.from_pretrained({str(folder)!r}, dtype='auto').save_pretrained('NEW')"
        what = f"has pickled weights only ({pickles[0]}), and unpickling can run any program"
        fix = f'if you trust them, convert: python -c "from transformers import AutoModelForCausalLM; {convert}"'
        return UserError(what, where=str(folder), fix=f"{fix}; then copy the tokenizer's files to NEW")
    if gguf := sorted(path.name for path in folder.glob("*.gguf")):
        fix = "name the model that it was converted from, with *.safetensors"
        return UserError(f"holds a GGUF file ({gguf[0]}), which cannot be trained", where=str(folder), fix=fix)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        what = f"has weights in another layout ({others[0]}), not {MODEL_WEIGHTS_NAME} or {MODEL_WEIGHTS_INDEX_NAME}"
        return UserError(what, where=str(folder), fix="download the files of transformers' layout as well")
    return UserError(
        f"has no weights: lacks {MODEL_WEIGHTS_NAME}", where=str(folder), fix="copy the weights there as well"
    )


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json_text(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError("has no weight_map: it is no index of weights", where=str(index), fix=_AGAIN)
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            what = f"weight_map.{tensor}: {name!r} is not the name of a safetensors file beside it"
            raise UserError(what, where=str(index), fix=_AGAIN)
    return weight_map


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return all tensors of a model folder by name, without reading them.

    Raises UserError for files that are not whole, that the index does not fit, or that have the same tensor twice.
    """
    found: dict[str, StoredTensor] = {}
    place: dict[str, str] = {}
    for path in weight_files(folder):
        tensors = tensors_in(path)
        if twice := sorted(found.keys() & tensors.keys()):
            what = f"has tensors that {place[twice[0]]} has too: {named(twice)}"
            raise UserError(what, where=str(path), fix="keep one file of each shard; copy or download them again")
        found |= tensors
        place |= dict.fromkeys(tensors, path.name)
    index = folder / MODEL_WEIGHTS_INDEX_NAME
    lost = [name for name, file in _weight_map(index).items() if place.get(name) != file] if index.is_file() else []
    if lost:
        what = f"{len(lost)} tensors are not where it says: {named(lost)}"
        raise UserError(what, where=str(index), fix="copy or download index and weights again, from one source")
    return found
