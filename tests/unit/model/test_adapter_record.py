"""An adapter that is not what its training wrote is never used, whichever byte has changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fixtures import chat_templates
from tests.fixtures.repository import REPOSITORY
from tool_aware.chat_format import chat_format
from tool_aware.config.sections import ModelSection
from tool_aware.config.settings import load_config
from tool_aware.console import UserError
from tool_aware.files import sha256_of
from tool_aware.model.adapter import attach_adapter, check_saved_adapter, new_adapter
from tool_aware.model.adapter_record import check_adapter_record, refuse_another_chat_format, write_adapter_record
from tool_aware.model.base import load_base_model
from tool_aware.training.export.merge import LoraUpdates

WEIGHTS, SETTINGS, RECORD = "adapter_model.safetensors", "adapter_config.json", "adapter_record.json"


@pytest.fixture(scope="module")
def settings(tiny_model_dir):
    return load_config(REPOSITORY / "config.yaml", [f"model.name={tiny_model_dir}", "lora.r=2"])


@pytest.fixture(scope="module")
def saved(settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "lora_adapters"
    model = new_adapter(load_base_model(settings.model, settings.quantization), settings)
    model.save_pretrained(folder, save_embedding_layers=False)
    write_adapter_record(folder)
    return folder


@pytest.fixture
def adapter(saved, tmp_path) -> Path:
    shutil.copytree(saved, tmp_path / "lora_adapters")
    return tmp_path / "lora_adapters"


def refusal(adapter: Path, settings) -> str:
    """Return the one message with which every way to load it refuses it."""
    messages = []
    for load in (
        lambda: check_saved_adapter(adapter, ModelSection(name=settings.model.name)),
        lambda: LoraUpdates.load(adapter),
    ):
        with pytest.raises(UserError) as caught:
            load()
        messages.append(str(caught.value))
    assert str(adapter) in messages[0]
    return messages[0]


def test_an_adapter_as_it_was_written_is_used_wherever_it_lies(adapter, settings):
    check_saved_adapter(adapter, settings.model)
    LoraUpdates.load(adapter)
    moved = json.loads((adapter / SETTINGS).read_text())
    (adapter / SETTINGS).write_text(json.dumps({**moved, "revision": "main"}, indent=4))  # another layout, same content
    check_adapter_record(adapter)


def test_a_flipped_bit_anywhere_in_the_weights_is_found(adapter, settings):
    path = adapter / WEIGHTS
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(0, 8), 8, 20, header // 2, header - 1]  # the length, the header
    places += [header, header + 1, (header + len(whole)) // 2, len(whole) - 2, len(whole) - 1]  # the numbers
    for place in places:
        for bit in (0, 6):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            refusal(adapter, settings)
    for damaged in (whole[:-1], whole + b"\0", whole[:header], b"", whole[:100]):
        path.write_bytes(damaged)
        refusal(adapter, settings)


def test_the_base_is_not_given_a_damaged_adapter(adapter, settings):
    whole = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    base = load_base_model(settings.model, settings.quantization)
    with pytest.raises(UserError, match="is damaged or of another run"):
        attach_adapter(base, adapter, base_name=settings.model.name)


@pytest.mark.parametrize(
    ("key", "value"), [("lora_alpha", 17), ("target_modules", ["q_proj"]), ("use_rslora", True), ("r", 4)]
)
def test_settings_that_change_what_it_computes_are_found(adapter, settings, key, value):
    settings = json.loads((adapter / SETTINGS).read_text())
    (adapter / SETTINGS).write_text(json.dumps({**settings, key: value}))
    with pytest.raises(UserError, match=key) as caught:
        check_adapter_record(adapter)
    assert f"delete {RECORD}" in str(caught.value)
    (adapter / RECORD).unlink()
    check_adapter_record(adapter)  # as an adapter of another program


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sha256": 3}', '{"sha256": {}}', '{"sha256": {"a": "b"}}'])
def test_a_damaged_record_is_no_proof(adapter, settings, content):
    (adapter / RECORD).write_text(content)
    assert RECORD in refusal(adapter, settings)


def test_the_manifest_beside_it_and_the_list_of_a_checkpoint_tell_too(adapter, settings):
    (adapter / RECORD).unlink()
    manifest = {"stage": "train", "outputs": {f"{adapter.name}/{WEIGHTS}": sha256_of(adapter / WEIGHTS)}}
    (adapter.parent / "manifest.json").write_text(json.dumps(manifest))
    listed = {"format": 2, "step": 1, "run": {}, "sha256": {WEIGHTS: sha256_of(adapter / WEIGHTS)}}
    check_adapter_record(adapter)
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: tensor + torch.ones(1) * 1e-3 for name, tensor in tensors.items()}, adapter / WEIGHTS)
    assert "manifest.json says" in refusal(adapter, settings)
    (adapter.parent / "manifest.json").unlink()
    (adapter / "checkpoint.json").write_text(json.dumps(listed))
    assert "checkpoint.json says" in refusal(adapter, settings)


def test_an_adapter_under_another_chat_template_is_refused(adapter):
    trained = chat_format(chat_templates.byte_level_tokenizer(chat_templates.CHATML))
    other = chat_format(chat_templates.byte_level_tokenizer(chat_templates.LLAMA_3))
    refuse_another_chat_format(adapter, other, "base")  # it has recorded none
    write_adapter_record(adapter, form=trained)
    refuse_another_chat_format(adapter, trained, "base")
    with pytest.raises(UserError, match="another chat template"):
        refuse_another_chat_format(adapter, other, "base")
