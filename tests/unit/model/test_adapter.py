"""An earlier adapter is trained further as what it is, whatever config.yaml says of new ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import Config, load_config
from tool_aware.console import UserError
from tool_aware.engine.supported import unsupported
from tool_aware.model.adapter import (
    attach_adapter,
    base_name_of,
    check_targets,
    new_adapter,
    prepare_for_training,
    with_lora_of,
)
from tool_aware.model.base import load_base_model
from tool_aware.training.export.merge import LoraUpdates


@pytest.fixture
def make_adapter(tiny_model_dir, tmp_path):
    """Save an adapter on the tiny model; keyword arguments go into its LoraConfig."""

    def make(**settings: object) -> Path:
        wanted = {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"], **settings}
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **wanted))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = torch.randn_like(parameter) * 0.2
        model.peft_config["default"].base_model_name_or_path = str(tiny_model_dir)
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
        return tmp_path / "adapter"

    return make


@pytest.fixture
def make_config(tiny_model_dir):
    def make(**overrides: object) -> Config:
        settings = {"model.name": tiny_model_dir, **{key.replace("__", "."): value for key, value in overrides.items()}}
        return load_config(REPOSITORY / "config.yaml", [f"{key}={value}" for key, value in settings.items()])

    return make


def test_an_adapter_with_dropout_has_the_same_gradient_with_and_without_checkpointing(make_adapter, make_config):
    adapter, gradients = make_adapter(lora_dropout=0.5), []
    for checkpointing in (True, False):
        config = make_config(optimization__gradient_checkpointing=checkpointing, quantization__load_in_4bit=False)
        base = load_base_model(config.model, config.quantization)
        model = attach_adapter(base, adapter, base_name=config.model.name, is_trainable=True).train()
        prepare_for_training(model, config)
        torch.manual_seed(1)
        ids = torch.arange(5, 25)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_the_settings_of_an_earlier_adapter_are_its_own_and_a_difference_is_told(make_adapter, make_config, capsys):
    adapter = make_adapter(lora_dropout=0.1)
    capsys.readouterr()
    lora = with_lora_of(adapter, make_config()).lora
    assert lora.model_dump() == {"r": 4, "alpha": 7, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    told = capsys.readouterr().err
    assert "r=4, not 8; alpha=7.0, not 16.0; dropout=0.1, not 0.0; target_modules=" in told
    assert told.count("\n") == 1


def test_layers_that_the_model_does_not_have_are_found_before_it_is_loaded(make_config):
    check_targets(make_config())
    check_targets(make_config(lora__target_modules='["q_proj", "down_proj"]'))
    with pytest.raises(UserError, match="no such layers"):
        check_targets(make_config(lora__target_modules='["qkv_proj"]'))
    with pytest.raises(UserError, match="cannot be adapted: lm_head"):
        check_targets(make_config(lora__target_modules='["lm_head"]'))


def test_an_adapter_made_with_the_settings_of_config_yaml_changes_nothing(make_adapter, make_config, capsys):
    config = make_config(lora__r=4, lora__alpha=7)
    adapter = make_adapter(target_modules="all-linear")
    capsys.readouterr()
    assert with_lora_of(adapter, config).as_dict() == config.as_dict()
    assert capsys.readouterr().err == ""


VARIANTS = {
    "use_rslora": {"use_rslora": True},
    "use_dora": {"use_dora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 3}},
    "lora_bias": {"lora_bias": True},
    "modules_to_save": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize(("name", "settings"), VARIANTS.items(), ids=VARIANTS.keys())
def test_variants_of_lora_are_neither_gone_on_from_nor_merged_nor_run_by_the_own_decoder(
    make_adapter, make_config, tiny_model_dir, name, settings
):
    adapter = make_adapter(**settings)
    for refuse in (lambda: with_lora_of(adapter, make_config()), lambda: LoraUpdates.load(adapter)):
        with pytest.raises(UserError, match=name):
            refuse()
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), adapter)
    assert unsupported(model, 100) == "variants of LoRA"


def test_an_adapter_with_trained_biases_is_refused(make_adapter, make_config):
    with pytest.raises(UserError, match="bias all"):
        with_lora_of(make_adapter(bias="all"), make_config())


def test_the_adapter_covers_all_linear_layers_and_starts_as_a_zero_update(tiny_config):
    base = load_base_model(tiny_config.model, tiny_config.quantization)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        model = new_adapter(base, tiny_config)
        after = model(input_ids=ids).logits
    torch.testing.assert_close(after, before)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 2 * 7


def test_unknown_target_modules_are_named(tiny_config):
    lora = tiny_config.lora.model_copy(update={"target_modules": ["q_projj"]})
    base = load_base_model(tiny_config.model, tiny_config.quantization)
    with pytest.raises(UserError, match="no such layers") as caught:
        new_adapter(base, tiny_config.model_copy(update={"lora": lora}))
    assert "q_projj" in str(caught.value)


def test_an_update_of_the_output_head_is_refused(tiny_config):
    lora = tiny_config.lora.model_copy(update={"target_modules": ["q_proj", "lm_head"]})
    base = load_base_model(tiny_config.model, tiny_config.quantization)
    with pytest.raises(UserError, match="cannot be adapted: lm_head"):
        new_adapter(base, tiny_config.model_copy(update={"lora": lora}))


def test_a_folder_without_an_adapter_says_which_stage_makes_one(tmp_path):
    with pytest.raises(UserError) as caught:
        base_name_of(tmp_path)
    assert "python train_tool_aware.py" in str(caught.value)
