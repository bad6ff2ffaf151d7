"""The memory plan: within the budget, as fast as it allows, never another result, and every choice can be pinned."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.settings import load_config
from tool_aware.gpu.readings import GpuReading, MigInstance
from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.budget import MARGIN_BYTES, Budget, allowed_by, budget_of, budget_on_card, needed_bytes
from tool_aware.memory.estimate import CALIBRATION
from tool_aware.memory.knobs import CHOICES as ALL
from tool_aware.memory.plan import leanest, make_plan, open_choices, plan_of, step_cost
from tool_aware.memory.spec import TrainingSpec
from tool_aware.units import GIB

PACK = TrainingSpec(
    PRESETS["mistral-7b-v0.2"], batch_size=8, seq_length=400, packing="prefix", prefix_tokens=260, answer_tokens=80
)
LONG_ROWS = replace(PACK, seq_length=2048, prefix_tokens=0, packing="none")
CARD = GpuReading(0, "RTX 4070 Ti", uuid="GPU-1a2b", total_bytes=int(12 * GIB), used_bytes=int(1 * GIB))


def budget(gib: float) -> Budget:
    return Budget(gib * GIB, "a test")


def config_with(*overrides: str):
    return load_config(REPOSITORY / "config.yaml", overrides)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(
        [PACK, LONG_ROWS, replace(PACK, batch_size=1, accumulation=24), replace(PACK, quantization="8bit")]
    ),
    st.floats(3, 100),
    st.sets(st.sampled_from(sorted(ALL))).map(frozenset),
)
def test_a_plan_keeps_the_effective_batch_and_what_is_pinned_and_fits_if_anything_does(spec, gib, is_open):
    plan = make_plan(spec, budget(gib), is_open)
    assert plan.spec.batch_size * plan.spec.accumulation == spec.batch_size * spec.accumulation
    assert all(getattr(plan.spec, name) == getattr(spec, name) for name in ALL - is_open)
    assert plan.fits == (needed_bytes(leanest(spec, is_open)) <= gib * GIB)
    how = dict.fromkeys([*ALL, "accumulation"], 1)
    assert replace(plan.spec, **how) == replace(spec, **how)


@settings(deadline=None, max_examples=20)
@given(st.floats(5, 60), st.floats(0, 20))
def test_more_memory_never_makes_a_slower_plan(gib, more):
    slower, faster = (make_plan(PACK, budget(size), ALL) for size in (gib, gib + more))
    if slower.fits:
        assert step_cost(faster.spec) <= step_cost(slower.spec)


def test_memory_goes_first_to_what_saves_most():
    least, whole = (needed_bytes(spec) / GIB for spec in (leanest(PACK, ALL), replace(PACK, offload=True)))
    tight, enough, more, wide, vast = (
        make_plan(PACK, budget(gib), ALL).spec for gib in (least + 0.02, whole + 0.02, whole + 2, 16, 80)
    )
    assert tight.offload
    assert tight.batch_size < enough.batch_size == 8
    assert enough.kept_layers < more.kept_layers
    assert not wide.checkpointing
    assert wide.cached_layers < vast.cached_layers == 32


def test_long_rows_are_not_packed_where_that_would_only_make_a_dense_mask_wider():
    rows = replace(LONG_ROWS, packing="prefix", decoder="transformers")
    assert make_plan(rows, budget(40), ALL).spec.batch_size <= 2


def test_transformers_forward_pass_gets_no_settings_that_only_the_own_decoder_has():
    for gib in (6.0, 12.0, 80.0):
        spec = make_plan(LONG_ROWS, budget(gib), ALL).spec
        assert (spec.kept_layers, spec.offload, spec.cached_layers) == (0, False, 0)


def test_single_examples_are_merged_where_that_pays():
    plan = make_plan(replace(PACK, batch_size=1, accumulation=8), budget(11.5), ALL)
    assert (plan.spec.batch_size, plan.spec.accumulation) == (8, 1)


def test_what_does_not_fit_gets_the_leanest_plan_and_says_so():
    plan = make_plan(PACK, budget(4), ALL)
    assert not plan.fits
    assert plan.spec == leanest(PACK, ALL)
    assert "DOES NOT FIT" in plan.text()


def test_without_a_budget_everything_stays_as_it_is():
    spec = replace(PACK, batch_size=2, accumulation=4)
    plan = make_plan(spec, Budget(None, "no GPU"), ALL)
    assert plan.spec == spec
    assert "no GPU" in plan.text()
    assert "\n" not in plan.text()


def test_each_choice_is_told_with_its_reason():
    least = needed_bytes(leanest(PACK, ALL)) / GIB
    tight, middle, wide = (make_plan(PACK, budget(gib), ALL).text() for gib in (least + 0.02, 8, 80))
    assert "at once would need" in tight
    assert "GiB would be needed" in tight
    assert "not computed again" in middle
    assert "nothing is computed twice" in wide
    assert "as config.yaml says" in make_plan(PACK, budget(8), ALL - {"offload"}).text()


def test_the_config_leaves_all_choices_open_and_any_of_them_can_be_pinned(config):
    assert open_choices(config) == ALL
    pinned = {
        "optimization.gradient_checkpointing=false": "checkpointing",
        "optimization.kept_layers=4": "kept_layers",
        "optimization.offload=true": "offload",
        "optimization.cached_layers=3": "cached_layers",
        "optimization.micro_batch=fixed": "batch_size",
    }
    for override, name in pinned.items():
        assert open_choices(config_with(override)) == ALL - {name}


def test_where_no_plan_is_wanted_nothing_is_left_to_it():
    assert open_choices(config_with("training.memory_budget_gib=null")) == frozenset()


@pytest.mark.parametrize(("override", "gib"), [("null", 11.7), ("auto", 11.7), ("7.5", 7.5), ("20", 11.7)])
def test_on_a_card_that_is_not_there_the_config_still_limits_the_budget(override, gib):
    allowed = allowed_by(config_with(f"training.memory_budget_gib={override}"))
    found = budget_on_card(12 * GIB, allowed)
    assert found.limit_bytes == pytest.approx(gib * GIB)
    assert ("training.memory_budget_gib" in found.source) == (override == "7.5")


def test_a_plan_makes_every_setting_concrete(config):
    plan = plan_of(config, TrainingSpec.from_config(config, longest_tokens=400, prefix_tokens=260), [CARD])
    applied = plan.apply(config)
    assert "auto" not in plan.settings.values()
    assert applied == applied.settled()
    assert applied.training.effective_batch == config.training.effective_batch
    assert plan.as_dict()["settings"] == plan.settings


@pytest.mark.parametrize(
    ("override", "gib"),
    [("null", None), ("7.5", 7.5), ("auto", (11 * GIB - MARGIN_BYTES) / GIB)],
)
def test_the_budget_is_what_the_config_says_or_what_is_free(override, gib):
    found = budget_of(config_with(f"training.memory_budget_gib={override}"), [CARD]).limit_bytes
    assert found == (None if gib is None else pytest.approx(gib * GIB))


def test_of_several_cards_the_fullest_counts_and_of_a_sliced_one_the_slice(config):
    fuller = replace(CARD, index=1, used_bytes=int(5 * GIB))
    assert budget_of(config, [CARD, fuller]).limit_bytes == pytest.approx(7 * GIB - MARGIN_BYTES)
    sliced = replace(CARD, is_mig=True, instances=(MigInstance("MIG-1", 0, int(5 * GIB)),))
    assert budget_of(config, [sliced]).limit_bytes == pytest.approx(5 * GIB - MARGIN_BYTES)


@pytest.mark.parametrize("gpus", [[], [replace(CARD, used_bytes=None)]])
def test_where_free_memory_is_not_known_there_is_no_budget(config, gpus):
    assert budget_of(config, gpus).limit_bytes is None


def test_beside_its_own_context_a_process_has_as_much_as_before_it():
    """Whatever the context takes on this card: it is neither guessed nor counted twice."""
    context = CALIBRATION.bare_context_bytes
    for used_gib, own_context in ((1.0, context), (1.0, 0.3 * context)):
        before = replace(CARD, used_bytes=int(used_gib * GIB))
        after = replace(before, used_bytes=int(used_gib * GIB + own_context))
        beside = budget_of(config_with(), [after], has_context=True)
        assert beside.limit_bytes == pytest.approx(11 * GIB - own_context - MARGIN_BYTES, rel=1e-6)
        assert beside.needed(PACK) < needed_bytes(PACK) - context
    assert beside.allows(make_plan(PACK, beside, ALL).spec)


def test_other_processes_cards_still_have_their_contexts_to_come():
    free = replace(CARD, used_bytes=0)
    alone, two = (budget_of(config_with(), [free] * count, has_context=True).limit_bytes for count in (1, 2))
    assert alone - two == pytest.approx(CALIBRATION.bare_context_bytes)
