"""Choose how a run uses the memory it may have. The result does not depend on it; how fast it comes does.

Of all combinations of the knobs (knobs.py) that fit the budget, at the same effective batch, the one whose optimizer
step should be the shortest is taken. What config.yaml does not leave to `auto` is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tool_aware.config.settings import Config
from tool_aware.gpu.readings import GpuReading
from tool_aware.memory.autograd_step import attention_pairs
from tool_aware.memory.budget import Budget, budget_of, needed_bytes
from tool_aware.memory.knobs import KNOBS, Knob, in_gib, settings_of
from tool_aware.memory.spec import TrainingSpec
from tool_aware.units import GIB

# The time of one pass over a model, in tokens, from steps of 1,928 to 6,920 tokens on one H200 (docs/BENCHMARKS.md):
# 74 us a token for all three passes, 16 ms for dequantising, 10 ms however little there is to do. Dequantising is bound
# by memory and the rest by arithmetic, whose ratio is much the same on other cards. Written beside the products before,
# weights take less of it: three passes over 1,120 tokens on an H100 are 6 ms shorter.
LAUNCH_TOKENS = 140.0
DEQUANTIZE_TOKENS = 220.0
DEQUANTIZE_AHEAD_TOKENS = 125.0
OFFLOAD_SHARE = 0.01  # of a pass: copies run beside the arithmetic

PINNED = "as config.yaml says"


@dataclass(frozen=True)
class Choice:
    """One setting of the plan."""

    setting: str
    value: str
    why: str


@dataclass(frozen=True)
class Plan:
    """The choices of a run about its memory. `settings` are dotted keys of config.yaml with concrete values."""

    spec: TrainingSpec
    budget: Budget
    choices: tuple[Choice, ...]

    @property
    def fits(self) -> bool:
        """Return whether the estimate, its error included, is within the budget."""
        return self.budget.allows(self.spec)

    @property
    def settings(self) -> dict[str, Any]:
        """Return all that the plan decides."""
        return settings_of(self.spec)

    def apply(self, config: Config) -> Config:
        """Return `config` with the plan's values where it said `auto`."""
        return config.with_settings(self.settings).settled()

    def text(self) -> str:
        """Return the plan in lines: what is needed and what there is, then each choice with its reason."""
        return "\n".join(_lines(self))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a manifest."""
        limit = self.budget.limit_bytes
        return {
            "budget_gib": None if limit is None else round(limit / GIB, 2),
            "budget_from": self.budget.source,
            "estimated_gib": round(self.budget.needed(self.spec) / GIB, 2),
            "settings": self.settings,
        }


def open_choices(config: Config) -> frozenset[str]:
    """Return the names of the knobs (their fields of a spec) that config.yaml leaves to the plan."""
    if config.training.memory_budget_gib is None:
        return frozenset()
    return frozenset(knob.field for knob in KNOBS if getattr(config.optimization, knob.key) == "auto")


def plan_of(config: Config, spec: TrainingSpec, gpus: Sequence[GpuReading], *, has_context: bool = False) -> Plan:
    """Plan a run of `config`, whose largest micro-batch is `spec`, on these GPUs, one for each process."""
    return make_plan(spec, budget_of(config, gpus, has_context=has_context), open_choices(config))


def make_plan(spec: TrainingSpec, budget: Budget, is_open: frozenset[str]) -> Plan:
    """Choose the fields of `spec` that are named in `is_open`, so that the step is as short as `budget` allows.

    Without a budget everything stays as it is. If nothing fits, what needs least is taken; `fits` is then False.
    """
    if budget.limit_bytes is None:
        return Plan(spec, budget, ())
    filling = [knob for knob in KNOBS if knob.field in is_open and knob.fill_share is not None]
    candidates = list(_candidates(spec, is_open))
    for knob in filling:
        candidates = [_filled(candidate, knob, budget) for candidate in candidates]
    fitting = [candidate for candidate in candidates if budget.allows(candidate)]
    if fitting:
        chosen = min(fitting, key=lambda candidate: (step_cost(candidate), needed_bytes(candidate)))
    else:
        chosen = leanest(spec, is_open)
    choices = (
        Choice(knob.label, knob.shown(chosen), knob.reason(chosen, budget) if knob.field in is_open else PINNED)
        for knob in KNOBS
    )
    return Plan(chosen, budget, tuple(choices))


def leanest(spec: TrainingSpec, is_open: frozenset[str]) -> TrainingSpec:
    """Return what a plan falls back to when memory is short."""
    return min(_candidates(spec, is_open), key=needed_bytes)


def _candidates(spec: TrainingSpec, is_open: frozenset[str]) -> list[TrainingSpec]:
    """Return all combinations, with no layer kept or cached unless config.yaml says so."""
    found = [spec]
    for knob in KNOBS:
        if knob.field in is_open:
            found = [other for candidate in found for other in knob.alternatives(candidate)]
    return found


def _filled(spec: TrainingSpec, knob: Knob, budget: Budget) -> TrainingSpec:
    """Return the spec with as many layers for `knob` as its share of the budget has room for."""
    if knob.fill_share is None or not knob.has_effect(spec, spec.architecture.layers):
        return spec
    counts = (spec.with_fields({knob.field: count}) for count in range(spec.architecture.layers, 0, -1))
    return next((one for one in counts if budget.allows(one, knob.fill_share)), spec)


def step_cost(spec: TrainingSpec) -> float:
    """Return how long an optimizer step takes, in tokens of one pass over the model; fit for comparing plans only."""
    architecture, step = spec.architecture, spec.resolved
    flops_per_pair = 4 * architecture.query_width * architecture.layers
    attention = flops_per_pair * _computed_pairs(spec) / (2 * architecture.linear_parameters)
    quantized = 1 - step.cached_layers / architecture.layers if spec.quantization != "none" else 0.0
    arithmetic = (spec.tokens + attention) * (1 + OFFLOAD_SHARE * step.offload)
    of_weights = DEQUANTIZE_AHEAD_TOKENS if step.has_own_decoder and not step.offload else DEQUANTIZE_TOKENS
    return spec.accumulation * step.passes * (arithmetic + LAUNCH_TOKENS + of_weights * quantized)


def _computed_pairs(spec: TrainingSpec) -> float:
    """Count the query-key pairs that attention computes: all of a dense mask, or those FlashAttention does not skip."""
    return spec.tokens * spec.seq_length / 2 if spec.has_own_decoder else attention_pairs(spec)


# ---- the plan in lines -----------------------------------------------------------------------------------


def _lines(plan: Plan) -> Iterator[str]:
    spec, limit = plan.spec, plan.budget.limit_bytes
    examples = "1 example" if spec.batch_size == 1 else f"{spec.batch_size} examples"
    needed = f"{in_gib(spec, plan.budget)} for {examples} of the longest at once, the estimate's error included"
    if limit is None:
        yield f"nothing to plan ({plan.budget.source}); on a GPU about {needed}"
        return
    yield f"{needed}, of {limit / GIB:.2f} GiB to use: {plan.budget.source}"
    yield from _aligned(plan.choices)
    if not plan.fits:
        yield f"THIS DOES NOT FIT: python monitor_gpu.py estimate --vram {limit / GIB:.1f} says what to change"


def _aligned(choices: Sequence[Choice]) -> Iterator[str]:
    width = max(len(choice.setting) for choice in choices)
    value_width = max(len(choice.value) for choice in choices)
    for choice in choices:
        yield f"  {choice.setting:<{width}}  {choice.value:<{value_width}}  {choice.why}"
