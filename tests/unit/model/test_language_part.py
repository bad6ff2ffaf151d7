"""The language part of a mistral3 model is trained as a model of its own, and merged back into the whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fixtures.architectures import tiny_multimodal
from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import load_config
from tool_aware.console import UserError
from tool_aware.memory.architectures import find_architecture
from tool_aware.model.adapter import check_saved_adapter, new_adapter
from tool_aware.model.base import check_model_available, load_base_model
from tool_aware.training.export.export import Merger
from tool_aware.training.export.weights import check_mergeable

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def whole(request, tmp_path_factory):
    """A folder with a model that also reads images, and the model in it."""
    folder = tmp_path_factory.mktemp("mistral3")
    model = tiny_multimodal(tie_word_embeddings=request.param, initializer_range=0.1)
    model.save_pretrained(folder)
    return SimpleNamespace(folder=folder, model=model.eval(), is_tied=request.param)


def settings_for(folder, *others):
    pairs = [f"model.name={folder}", "quantization.load_in_4bit=false", "quantization.bnb_4bit_compute_dtype=float32"]
    return load_config(REPOSITORY / "config.yaml", [*pairs, *others])


def test_it_computes_what_the_whole_model_does_of_text(whole):
    check_model_available(str(whole.folder))
    config = settings_for(whole.folder)
    part = load_base_model(config.model, config.quantization)
    assert type(part).__name__ == "Ministral3ForCausalLM"
    assert (part.lm_head.weight is part.model.embed_tokens.weight) == whole.is_tied
    with torch.no_grad():
        assert torch.equal(part(input_ids=IDS).logits, whole.model(input_ids=IDS).logits)


def test_its_shapes_are_those_of_the_language_part(whole):
    found = find_architecture(str(whole.folder))
    parameters = whole.model.model.language_model.num_parameters() + (0 if whole.is_tied else 32000 * 64)
    assert found.parameters == parameters
    assert found.ties_embeddings == whole.is_tied


def test_a_merged_model_is_the_whole_model_with_the_adapter_in_it(whole, tmp_path, tokenizer):
    from transformers import AutoModelForImageTextToText

    config = settings_for(whole.folder, "lora.r=4")
    check_mergeable(config.model)
    adapted = new_adapter(load_base_model(config.model, config.quantization), config)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    tokenizer.save_pretrained(tmp_path / "adapter")
    check_saved_adapter(tmp_path / "adapter", config.model)
    merger = Merger(config, tmp_path / "adapter")
    merger.save(merger.methods()[0], tmp_path / "merged")
    check_model_available(str(tmp_path / "merged"))
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        expected = adapted.eval()(input_ids=IDS).logits
        torch.testing.assert_close(merged(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)
    before, after = (load_file(folder / "model.safetensors") for folder in (whole.folder, tmp_path / "merged"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "language_model" in name and "_proj." in name}


@pytest.mark.parametrize("lost", ["norm.weight", "layers.1.mlp.up_proj.weight"])
def test_a_language_part_that_is_not_whole_is_refused(whole, tmp_path, lost):
    tensors = load_file(whole.folder / "model.safetensors")
    tensors.pop(f"language_model.model.{lost}")
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((whole.folder / "config.json").read_text())
    with pytest.raises(UserError, match="1 tensor of the model's weights is missing"):
        check_model_available(str(tmp_path))
