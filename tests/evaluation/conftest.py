"""A tiny random Mistral with the real vocabulary, quantised as the real one is, and an adapter that changes it."""

import pytest


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tokenizer):
    """A Mistral of 2 layers and hidden size 64 whose weights are large enough that its answers differ by prompt."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=32000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, sliding_window=None, initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_dir(tmp_path_factory, model_dir):
    """A LoRA adapter with both matrices away from zero, so that switching it on shows."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_dir),
        LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quantized(model_dir, adapter_dir):
    """NF4 base with the adapter attached, ready for `disable_adapter()`."""
    from tool_aware.base_model import attach_adapter, load_base_model
    from tool_aware.config import ModelSection, QuantizationSection

    base = load_base_model(ModelSection(name=str(model_dir)), QuantizationSection())
    return attach_adapter(base, adapter_dir, base_name=str(model_dir))
