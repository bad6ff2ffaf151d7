"""Edits that make a configuration fit: few, in the right order, and none that is not needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from tool_aware.config import load_config
from tool_aware.gpu.architectures import PRESETS
from tool_aware.gpu.fit import as_yaml, fit, largest_batch, longest_sequence, needed_bytes
from tool_aware.gpu.readings import GIB
from tool_aware.gpu.spec import TrainingSpec

PACKED = TrainingSpec(
    PRESETS["mistral-7b-v0.2"], batch_size=8, seq_length=400, packing="prefix", prefix_tokens=260, answer_tokens=80
)
HEAVY = replace(PACKED, packing="none", quantization="none", checkpointing=False, lora_r=64, batch_size=32)


def test_what_fits_needs_no_edit():
    answer = fit(PACKED, 12 * GIB)
    assert answer.fits_as_it_is
    assert answer.keys == {}


def test_what_costs_no_quality_is_changed_first():
    answer = fit(replace(HEAVY, quantization="4bit"), 16 * GIB)
    assert set(answer.keys) <= {
        "training.packing", "optimization.gradient_checkpointing", "training.per_device_train_batch_size",
        "training.gradient_accumulation_steps",
    }  # fmt: skip


@pytest.mark.parametrize("vram", [6, 7, 8, 10, 12, 16, 24])
def test_after_the_edits_it_fits_and_without_any_one_of_them_it_does_not(vram):
    answer = fit(HEAVY, vram * GIB)
    assert answer.edits
    assert needed_bytes(answer.final_spec) <= vram * GIB
    # The last edit of each kind is needed: a little less memory and the answer would be another one.
    tighter = fit(HEAVY, needed_bytes(answer.final_spec) - 1)
    assert tighter.edits is None or tighter.keys != answer.keys


def test_the_effective_batch_stays_where_the_micro_batch_shrinks():
    answer = fit(PACKED, 6 * GIB)
    spec = answer.final_spec
    assert spec.batch_size * spec.accumulation == PACKED.batch_size * PACKED.accumulation
    assert spec.batch_size < PACKED.batch_size


def test_a_card_that_cannot_hold_the_weights_has_no_answer():
    assert fit(PACKED, 3 * GIB).edits is None


def test_the_edits_are_lines_of_a_config_that_loads(tmp_path):
    answer = fit(HEAVY, 8 * GIB)
    values = yaml.safe_load(as_yaml(answer.keys))
    assert values["training"]["packing"] == "prefix"
    overrides = [f"{key}={str(value).lower()}" for key, value in answer.keys.items()]
    assert load_config(overrides=overrides).training.packing == "prefix"


@pytest.mark.parametrize("vram", [6, 12, 24])
def test_the_longest_example_and_the_largest_batch_fit_and_one_more_does_not(vram):
    length = longest_sequence(PACKED, vram * GIB)
    alone = replace(PACKED, batch_size=1, prefix_tokens=0)
    assert needed_bytes(replace(alone, seq_length=length)) <= vram * GIB
    if length < 32768:
        assert needed_bytes(replace(alone, seq_length=length + 64)) > vram * GIB
    size = largest_batch(PACKED, vram * GIB)
    assert (
        needed_bytes(replace(PACKED, batch_size=size))
        <= vram * GIB
        < needed_bytes(replace(PACKED, batch_size=size + 1))
    )
