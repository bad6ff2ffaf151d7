"""The merged model is bit-equal to peft's merge, loads by itself, and is never half there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tool_aware.config import Config
from tool_aware.console import UserError
from tool_aware.training import export
from tool_aware.training.export import save_adapter, save_merged


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def base_dir(request, tmp_path_factory, tiny_model_dir) -> Path:
    """The tiny model in several shards, as large models come."""
    folder = tmp_path_factory.mktemp("base")
    shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True)
    (folder / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=getattr(torch, request.param))
    model.save_pretrained(folder, max_shard_size="200KB")
    return folder


@pytest.fixture(scope="module")
def adapter_dir(base_dir, tmp_path_factory, tokenizer) -> Path:
    """A float32 adapter whose update is not zero."""
    base = AutoModelForCausalLM.from_pretrained(base_dir)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=7, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.1
    folder = tmp_path_factory.mktemp("adapter") / "lora_adapters"
    model.peft_config["default"].base_model_name_or_path = str(base_dir)
    model.save_pretrained(folder, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)
    return folder


def model_section(config: Config, base: Path):
    return config.model.model_copy(update={"name": str(base)})


def test_the_shard_wise_merge_is_bit_equal_to_pefts(config, base_dir, adapter_dir, tmp_path):
    save_merged(model_section(config, base_dir), adapter_dir, tmp_path / "final_model")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "final_model")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_dir), adapter_dir).merge_and_unload()
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert ours.dtype == theirs.dtype


def test_the_merged_model_differs_from_the_base_and_needs_nothing_else(config, base_dir, adapter_dir, tmp_path):
    save_merged(model_section(config, base_dir), adapter_dir, tmp_path / "final_model")
    merged, base = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tmp_path / "final_model", base_dir))
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        assert not torch.allclose(merged(input_ids=ids).logits, base(input_ids=ids).logits, atol=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "final_model")
    assert tokenizer.chat_template
    generated = merged.generate(ids, max_new_tokens=3, do_sample=False)
    assert generated.shape[1] <= 18
    files = {path.name for path in (tmp_path / "final_model").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model"} <= files


def test_the_adapter_folder_holds_the_prompt_it_was_trained_on(config, base_dir, adapter_dir, tmp_path, tokenizer):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_dir), adapter_dir)
    save_adapter(model, tmp_path / "lora_adapters", tokenizer, config.toolbox)
    text = (tmp_path / "lora_adapters" / "prompt_template.txt").read_text()
    assert text.endswith("Query: {query}")
    assert (tmp_path / "lora_adapters" / "adapter_model.safetensors").is_file()


def test_an_adapter_of_another_architecture_is_refused_and_leaves_nothing(config, base_dir, adapter_dir, tmp_path):
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(adapter_dir, other)
    tensors = load_file(other / "adapter_model.safetensors")
    save_file(
        {key.replace("layers.1.", "layers.7."): value for key, value in tensors.items()},
        other / "adapter_model.safetensors",
    )
    with pytest.raises(UserError, match=r"fit no weight of the base model, for example model\.layers\.7"):
        save_merged(model_section(config, base_dir), other, tmp_path / "final_model")
    assert not (tmp_path / "final_model").exists()


def test_a_base_without_safetensors_is_refused(config, adapter_dir, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"lacks model\.safetensors"):
        save_merged(model_section(config, tmp_path), adapter_dir, tmp_path / "final_model")


def test_a_disk_without_room_is_told_before_anything_is_written(config, base_dir, adapter_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_SPARE", 1e12)  # asks for more than any disk has
    with pytest.raises(UserError, match="GiB are free"):
        save_merged(model_section(config, base_dir), adapter_dir, tmp_path / "final_model")
