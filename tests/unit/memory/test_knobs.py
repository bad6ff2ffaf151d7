"""The table of knobs is complete: config, spec, plan, edits and texts follow from its rows."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from tool_aware.config.sections import WITHOUT_BUDGET, OptimizationSection
from tool_aware.memory import fit, knobs, plan
from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.budget import Budget
from tool_aware.memory.knobs import CHOICES, KNOBS, Knob, Leanest, configured, settings_of
from tool_aware.memory.spec import ResolvedSpec, TrainingSpec
from tool_aware.units import GIB

PACK = TrainingSpec(
    PRESETS["mistral-7b-v0.2"], batch_size=8, seq_length=400, packing="prefix", prefix_tokens=260, answer_tokens=80
)


def test_every_setting_that_a_plan_may_choose_is_a_knob_and_has_a_value_without_a_budget():
    assert {knob.key for knob in KNOBS} == set(WITHOUT_BUDGET)
    defaults = OptimizationSection()
    assert all(getattr(defaults, knob.key) == "auto" for knob in KNOBS)


def test_every_knob_sets_fields_of_a_spec_from_the_config(config):
    fields = {field.name for field in dataclasses.fields(TrainingSpec)}
    assert set(configured(config)) <= fields
    spec = TrainingSpec.from_config(config)
    for knob in KNOBS[1:]:
        assert getattr(spec, knob.field) == knob.without_budget
        assert settings_of(spec)[f"optimization.{knob.key}"] == knob.without_budget


@pytest.mark.parametrize("quantization", ["4bit", "8bit", "none"])
@pytest.mark.parametrize("packing", ["prefix", "none"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_resolved_spec_says_what_runs(quantization, packing, checkpointing):
    spec = replace(
        PACK, quantization=quantization, packing=packing, checkpointing=checkpointing, kept_layers=99,
        cached_layers=99, offload=True,
    )  # fmt: skip
    step = spec.resolved
    is_own = packing == "prefix" and quantization != "8bit"
    assert step.decoder == ("own" if is_own else "transformers")
    assert step.kept_layers == (32 if is_own or not checkpointing else 0)
    assert step.cached_layers == (32 if is_own and quantization == "4bit" else 0)
    assert step.offload == (is_own and checkpointing)
    assert step.resolved is step
    assert (spec.kept_layers, spec.cached_layers, spec.offload) == (99, 99, True)  # a wish stays a wish


def test_a_resolved_spec_stays_resolved_when_it_is_changed():
    step = replace(PACK, kept_layers=4).resolved
    changed = replace(step, checkpointing=False)
    assert isinstance(changed, ResolvedSpec)
    assert changed.kept_layers == 32


def test_a_row_is_all_that_plan_and_edits_need_to_know_of_a_knob(monkeypatch):
    """A made-up knob over the adapter's rank: less memory at a lower one."""
    rank = Knob(
        key="rank",
        settings={"optimization.rank": "lora_r"},
        label="rank",
        shown=lambda spec: f"r={spec.lora_r}",
        phrase=lambda step: f"rank {step.lora_r}",
        reason=lambda spec, budget: "made up",
        alternatives=lambda spec: (replace(spec, lora_r=r) for r in (64, 8)),
        leanest=Leanest(8, "made up too"),
    )
    for module in (knobs, plan, fit):
        monkeypatch.setattr(module, "KNOBS", (*KNOBS, rank))
    spec = replace(PACK, lora_r=64)
    chosen = plan.make_plan(spec, Budget(80 * GIB, "a test"), CHOICES | {"lora_r"})
    assert chosen.settings["optimization.rank"] in {8, 64}
    assert "made up" in chosen.text()
    tight = replace(spec, batch_size=1)
    answer = fit.fit_card(tight, (fit.needed_bytes(replace(tight, lora_r=8)) + 0.31 * GIB), frozenset())
    assert "optimization.rank" in answer.keys
