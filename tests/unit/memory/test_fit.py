"""Edits that make a configuration fit: few, in the right order, and none that is not needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from tool_aware.config.sections import LONGEST_SEQUENCE
from tool_aware.config.settings import load_config
from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.budget import MARGIN_BYTES, needed_bytes
from tool_aware.memory.fit import as_yaml, edits_that_fit, fit_card, largest_batch, longest_sequence
from tool_aware.memory.knobs import CHOICES
from tool_aware.memory.spec import TrainingSpec
from tool_aware.monitor.printout import fit_text
from tool_aware.units import GIB

PACKED = TrainingSpec(
    PRESETS["mistral-7b-v0.2"], batch_size=8, seq_length=400, packing="prefix", prefix_tokens=260, answer_tokens=80
)
HEAVY = replace(PACKED, packing="none", quantization="none", checkpointing=False, lora_r=64, batch_size=32)
PINNED: frozenset[str] = frozenset()


def test_what_fits_needs_no_edit():
    answer = fit_card(PACKED, 12 * GIB, CHOICES)
    assert answer.fits_as_it_is
    assert answer.keys == {}
    assert answer.plan == answer.final_plan


def test_what_costs_no_quality_is_changed_first():
    answer = fit_card(replace(HEAVY, quantization="4bit"), 16 * GIB, PINNED)
    assert answer.edits
    assert {key.partition(".")[0] for key in answer.keys} <= {"training", "optimization"}
    assert not {"training.too_long", "lora.r", "optimization.optim"} & answer.keys.keys()


@pytest.mark.parametrize("vram", [6, 7, 8, 10, 12, 16, 24])
def test_after_the_edits_it_fits_and_without_any_one_of_them_it_does_not(vram):
    edits = edits_that_fit(HEAVY, vram * GIB)
    assert edits
    needed = needed_bytes(edits[-1].spec)
    assert needed <= vram * GIB
    # The last edit of each kind is needed: a little less memory and the answer would be another one.
    assert edits_that_fit(HEAVY, needed - 1) != edits


def test_the_effective_batch_stays_where_the_micro_batch_shrinks():
    pinned = replace(PACKED, batch_size=32, decoder="transformers")
    final = fit_card(pinned, 6.3 * GIB, PINNED).final_plan.spec
    assert final.batch_size * final.accumulation == 32
    assert final.batch_size < 32


def test_what_the_plan_may_choose_is_no_edit():
    tight = needed_bytes(replace(PACKED, offload=True)) + MARGIN_BYTES + 2**20
    assert fit_card(PACKED, tight, CHOICES).keys == {}
    pinned = fit_card(PACKED, tight, PINNED)
    assert "optimization.offload" in pinned.keys
    assert pinned.final_plan.fits


def test_less_than_the_card_has_may_be_allowed():
    limited, free = (fit_card(PACKED, 24 * GIB, CHOICES, allowed) for allowed in (8.0, None))
    assert needed_bytes(limited.final_plan.spec) <= 8 * GIB < needed_bytes(free.final_plan.spec)
    assert (limited.is_limited, free.is_limited) == (True, False)
    assert fit_text(limited).startswith("fits the 8 GiB that training.memory_budget_gib allows of 24 GiB")


@pytest.mark.parametrize(("pinned", "value"), [("kept_layers", 30), ("cached_layers", 12)])
def test_what_is_left_to_the_plan_stays_so_and_the_plan_shown_is_the_one_after_the_edits(pinned, value):
    is_open = CHOICES - {pinned}
    answer = fit_card(replace(PACKED, **{pinned: value}), 6.6 * GIB, is_open)
    assert answer.keys == {f"optimization.{pinned}": 0}
    assert answer.final_plan == fit_card(PACKED, 6.6 * GIB, is_open).plan


def test_what_an_edit_sets_is_no_choice_of_the_plan_any_more():
    answer = fit_card(replace(PACKED, packing="none"), 6.3 * GIB, CHOICES)
    chosen = {choice.setting for choice in answer.final_plan.choices if choice.why == "as config.yaml says"}
    assert chosen == {"offload"} == {key.removeprefix("optimization.") for key in answer.keys if "optim" in key}


def test_a_card_that_cannot_hold_the_weights_has_no_answer():
    assert fit_card(PACKED, 3 * GIB, CHOICES).edits is None


def test_no_edit_drops_every_example():
    rows = replace(PACKED, batch_size=1, seq_length=1024, packing="none", decoder="transformers")
    shorter = edits_that_fit(rows, 6.1 * GIB)[-1]
    assert shorter.keys == {"model.max_seq_length": 512, "training.too_long": "drop"}
    # 256 tokens would fit less memory, but the prefix alone has 260 tokens.
    assert edits_that_fit(rows, 5.9 * GIB) is None
    assert edits_that_fit(replace(rows, prefix_tokens=0), 5.9 * GIB)[-1].keys["model.max_seq_length"] == 256


def test_other_programs_on_the_card_are_thought_of():
    least = needed_bytes(fit_card(PACKED, 12 * GIB, CHOICES).lean)
    assert fit_card(PACKED, least + MARGIN_BYTES, CHOICES).fits_as_it_is
    assert not fit_card(PACKED, least + 0.5 * MARGIN_BYTES, CHOICES).fits_as_it_is


def test_the_edits_are_lines_of_a_config_that_loads(tmp_path):
    answer = fit_card(HEAVY, 8 * GIB, PINNED)
    values = yaml.safe_load(as_yaml(answer.keys))
    assert values["training"]["packing"] == "prefix"
    overrides = [f"{key}={str(value).lower()}" for key, value in answer.keys.items()]
    assert load_config(overrides=overrides).training.packing == "prefix"


@pytest.mark.parametrize("vram", [7, 12, 24])
def test_the_longest_example_and_the_largest_batch_fit_and_one_more_does_not(vram):
    length = longest_sequence(PACKED, vram * GIB)
    alone = replace(PACKED, batch_size=1, prefix_tokens=0)
    assert needed_bytes(replace(alone, seq_length=length)) <= vram * GIB
    if length < LONGEST_SEQUENCE:
        assert needed_bytes(replace(alone, seq_length=length + 64)) > vram * GIB
    size = largest_batch(PACKED, vram * GIB)
    assert (
        needed_bytes(replace(PACKED, batch_size=size))
        <= vram * GIB
        < needed_bytes(replace(PACKED, batch_size=size + 1))
    )
