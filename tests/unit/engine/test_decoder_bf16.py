"""The hand-written decoder in bfloat16 on a CPU: as close to float32 as the library's modules, on every processor."""

from __future__ import annotations

import copy
import statistics

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.fixtures.architectures import tiny_model
from tool_aware.chat_format import EncodedExample
from tool_aware.engine.attention import attention_mask
from tool_aware.engine.decoder import PackedDecoder
from tool_aware.engine.loss import label_losses, without_head
from tool_aware.engine.packing import pack

PROMPT_A, PROMPT_B = list(range(100, 260)), list(range(500, 570))  # the first is longer than a block of queries
EXAMPLES = [EncodedExample(PROMPT_A + [5, 6 + i], list(range(600, 620 + 3 * i))) for i in range(5)]
EXAMPLES += [EncodedExample(PROMPT_B + [i], list(range(700 + i, 730))) for i in range(3)]
EXAMPLES += [EncodedExample([5, 6, 7], [7, 8, 9])]
# Biases, norms of heads, and neither.
FAMILIES: dict[str, dict[str, object]] = {
    "mistral": {},
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen3": {},
}


def in_both_precisions(family, seed):
    """A model with an adapter in bfloat16, and the same weights in float32."""
    base = tiny_model(family, vocab_size=1000, hidden_size=128, **FAMILIES[family])
    base.requires_grad_(False)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules="all-linear")
    model = get_peft_model(base, adapter, autocast_adapter_dtype=False)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.05
    model.bfloat16()
    return model, copy.deepcopy(model).float()


def by_decoder(model, packed):
    """Loss and gradient, one vector, by the toolkit's decoder."""
    loss = PackedDecoder(model).add_gradient(packed, 1 / len(packed.labels))
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).double()


def by_autograd(model, packed):
    """Loss and gradient, one vector, by transformers, peft and autograd."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    base = model.get_base_model()
    with without_head(base) as head:
        mask = attention_mask(packed, base.config, base.dtype)
        inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids}
        states = model(**inputs, attention_mask=mask).logits[0, packed.label_columns]
        loss = label_losses(states, head, packed.labels).sum() / len(packed.labels)
    return loss.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_as_close_to_float32_as_the_librarys(family):
    packed, errors, usual = pack(EXAMPLES), [], []
    for seed in range(4):  # of one adapter, rounding makes either error larger than the other
        model, wide = in_both_precisions(family, seed)
        exact_loss, exact = by_autograd(wide, packed)
        _, library = by_autograd(model, packed)
        loss, found = by_decoder(model, packed)
        assert abs(loss - exact_loss) < 0.01
        errors.append(((found - exact).norm() / exact.norm()).item())
        usual.append(((library - exact).norm() / exact.norm()).item())
    print("error", *(f"{error:.4f}" for error in errors), "transformers'", *(f"{error:.4f}" for error in usual))
    assert 0 < statistics.mean(errors) < 1.1 * statistics.mean(usual)
