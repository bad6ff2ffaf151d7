"""The formula against this toolkit's own training step, traced on tensors without data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.estimate import estimate_training
from tool_aware.memory.knobs import settings_of
from tool_aware.memory.spec import TrainingSpec
from tool_aware.memory.trace import config_of, counting, trace_layers, trace_step, traceable
from tool_aware.units import GIB

MISTRAL, TINY = PRESETS["mistral-7b-v0.2"], PRESETS["tinyllama-1.1b"]
KEPT_BYTES = 2**26
PACK = {"seq_length": 364, "batch_size": 16, "packing": "prefix", "prefix_tokens": 260, "answer_tokens": 81}
PACKED = TrainingSpec(TINY, **PACK)
PADDED = {"decoder": "transformers", "packing": "none"}
GRID = {
    "one long row": TrainingSpec(MISTRAL),
    "a pack that accumulates": TrainingSpec(MISTRAL, **PACK, accumulation=2),
    "a wide pack of short examples": TrainingSpec(TINY, **{**PACK, "batch_size": 64}),
    "layers that keep activations": TrainingSpec(MISTRAL, **PACK, kept_layers=1),
    "cached weights": TrainingSpec(TINY, **PACK, cached_layers=TINY.layers),
    "attention only, without checkpointing": TrainingSpec(
        TINY, seq_length=512, checkpointing=False, targets=("q_proj", "v_proj")
    ),
    "a large rank": TrainingSpec(MISTRAL, lora_r=64, seq_length=512),
    "an unfused update": TrainingSpec(MISTRAL, optimizer="adamw_torch", lora_r=64, seq_length=128),
    "16-bit weights": TrainingSpec(MISTRAL, quantization="none"),
    "many labels": TrainingSpec(PRESETS["llama-3-8b"], answer_tokens=2000),
    "padded rows": TrainingSpec(MISTRAL, batch_size=4, seq_length=4096, **PADDED),
    "8-bit weights": TrainingSpec(MISTRAL, quantization="8bit", seq_length=1024),
    "biases": TrainingSpec(PRESETS["qwen-2.5-7b"], **PACK),
    "normed heads, kept": TrainingSpec(PRESETS["qwen-3-8b"], **PACK, kept_layers=1),
    "normed heads, transformers' pass, no checkpoints": TrainingSpec(
        PRESETS["qwen-3-8b"], **PADDED, batch_size=2, seq_length=1024, checkpointing=False
    ),
    "eager attention": TrainingSpec(TINY, attention="eager", **PADDED),
}


def test_the_traced_config_has_the_value_of_each_knob_but_offload(config):
    spec = TrainingSpec(TINY, batch_size=3, accumulation=5, kept_layers=2, cached_layers=1, offload=True)
    traced = config_of(spec, config)
    wanted = {**settings_of(spec), "optimization.offload": False}
    assert traced == config.with_settings({**wanted, "lora.r": 8, "training.packing": "prefix"})
    for dotted, value in wanted.items():
        section, _, key = dotted.partition(".")
        assert getattr(getattr(traced, section), key) == value


@pytest.mark.parametrize("name", GRID)
def test_formula_and_traced_step_agree(name, config):
    spec = GRID[name]
    traced = trace_step(spec, config)
    assert estimate_training(spec).tensor_bytes == pytest.approx(traced.peak_bytes, rel=0.01)


def test_the_extension_to_the_real_depth_equals_a_trace_of_that_depth(config):
    spec = replace(GRID["a pack that accumulates"], architecture=replace(TINY, layers=6))
    whole = trace_layers(spec, config, layers=6)
    assert trace_step(spec, config).peak_bytes == pytest.approx(whole.peak_bytes, rel=1e-6)


def test_a_step_that_keeps_a_tensor_is_seen(config, monkeypatch):
    import torch

    from tool_aware.engine.micro_step import MicroStep

    spec = replace(GRID["a pack that accumulates"], architecture=TINY)
    plain = trace_step(spec, config).peak_bytes
    add_gradient = MicroStep.add_gradient

    def leaking(self, *arguments):
        self.kept = None
        self.kept = torch.empty(KEPT_BYTES, dtype=torch.uint8)
        return add_gradient(self, *arguments)

    monkeypatch.setattr(MicroStep, "add_gradient", leaking)
    assert trace_step(spec, config).peak_bytes - plain == KEPT_BYTES


def test_what_cannot_be_traced_is_left_out_and_nothing_else():
    spec = replace(PACKED, kept_layers=3, offload=True, cached_layers=2, optimizer="paged_adamw_8bit")
    assert traceable(spec) == PACKED
    assert traceable(replace(PACKED, checkpointing=False)) == replace(PACKED, checkpointing=False)


def test_counting_follows_storages_and_not_tensors():
    import torch

    with counting() as count:
        whole = torch.zeros(1024)
        part = whole[:10].view(2, 5)
        assert count.alive_bytes == 4096
        del whole
        assert count.alive_bytes == 4096
        del part
        assert count.alive_bytes == 0
        torch.zeros(1)
        assert count.peak_bytes == 4096


def test_no_data_is_allocated_for_a_model_far_larger_than_this_machine(config):
    huge = replace(MISTRAL, layers=2000, hidden=16384, heads=128, kv_heads=32, intermediate=65536)
    traced = trace_step(TrainingSpec(huge, seq_length=256), config)
    assert traced.rest_bytes > 2000 * GIB
