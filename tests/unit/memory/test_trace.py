"""The formula against this toolkit's own training step, traced on tensors without data."""

from __future__ import annotations

from dataclasses import replace

import pytest

import monitor_gpu
from tool_aware.gpu.readings import GIB
from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.estimate import estimate_training
from tool_aware.memory.spec import TrainingSpec
from tool_aware.memory.trace import _counting, _trace, dry_run
from tool_aware.memory.traced_step import DryStep

MISTRAL, TINY = PRESETS["mistral-7b-v0.2"], PRESETS["tinyllama-1.1b"]
KEPT_BYTES = 2**26
PACK = {"seq_length": 364, "batch_size": 16, "packing": "prefix", "prefix_tokens": 260, "answer_tokens": 81}
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
    "eager attention": TrainingSpec(TINY, attention="eager", **PADDED),
}


@pytest.mark.parametrize("name", GRID)
def test_formula_and_traced_step_agree(name, config):
    spec = GRID[name]
    traced = monitor_gpu.trace(spec, config)
    assert estimate_training(spec).tensor_bytes == pytest.approx(traced.peak_bytes, rel=0.01)


def test_the_extension_to_the_real_depth_equals_a_trace_of_that_depth(config):
    spec = replace(GRID["a pack that accumulates"], architecture=replace(TINY, layers=6))
    whole = _trace(spec, DryStep(config), layers=6)
    assert dry_run(spec, DryStep(config)).peak_bytes == pytest.approx(whole.peak_bytes, rel=1e-6)


def test_a_step_that_keeps_a_tensor_is_seen(config):
    class Leaking(DryStep):
        def backward(self, model, spec):
            import torch

            self.kept = torch.empty(KEPT_BYTES, dtype=torch.uint8)
            super().backward(model, spec)

    spec = replace(GRID["a pack that accumulates"], architecture=TINY)
    plain = dry_run(spec, DryStep(config)).peak_bytes
    assert dry_run(spec, Leaking(config)).peak_bytes - plain == KEPT_BYTES


def test_counting_follows_storages_and_not_tensors():
    import torch

    with _counting() as count:
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
    traced = monitor_gpu.trace(TrainingSpec(huge, seq_length=256), config)
    assert traced.rest_bytes > 2000 * GIB
