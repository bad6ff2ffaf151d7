"""The knobs of the memory plan, a row each: what config.yaml calls them, what they set, and why they are set so.

A knob decides how memory is used and how long a step takes, never what is learnt. To add one:

1. a field of `optimization` in config/sections.py, with `WithoutBudget(...)`, and its line in config.yaml;
2. a field of `TrainingSpec` (spec.py) and, if it may be without effect, what `ResolvedSpec` makes of it;
3. its bytes in the formula (decoder_step.py, autograd_step.py, estimate.py) and its time (`step_cost` in plan.py);
4. a row of KNOBS, with its functions beside it.

Plan, edits, printed texts, manifests and the trace take it from the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tool_aware.config.sections import WITHOUT_BUDGET
from tool_aware.config.settings import Config
from tool_aware.memory.budget import Budget
from tool_aware.memory.decoder_step import activation_bytes
from tool_aware.memory.estimate import cached_layer_bytes
from tool_aware.memory.spec import ResolvedSpec, TrainingSpec
from tool_aware.units import GIB

CACHE_SHARE = 0.9  # of the budget that cached layers may fill; they gain too little to run a card full
ONLY_OWN_DECODER = "only the toolkit's own decoder can"


class Leanest(NamedTuple):
    """The value of a knob that takes least memory, and what it costs."""

    value: bool | int
    cost: str


@dataclass(frozen=True)
class Knob:
    """One choice of the memory plan.

    `settings` are the keys of config.yaml that it sets, each with its field of TrainingSpec; the first field names the
    knob. A knob with `fill_share` counts layers: the plan begins with none, and in the end takes as many as fit that
    share of the budget.
    """

    key: str  # of `optimization` in config.yaml; `auto` there leaves the knob to the plan
    settings: Mapping[str, str]
    label: str
    shown: Callable[[TrainingSpec], str]  # its value in the plan
    phrase: Callable[[ResolvedSpec], str | None]  # its value in a few words; None where there is nothing to say
    reason: Callable[[TrainingSpec, Budget], str]
    alternatives: Callable[[TrainingSpec], Iterable[TrainingSpec]]  # what the plan tries
    fill_share: float | None = None
    leanest: Leanest | None = None  # None: fit.py has an edit of its own
    is_traced: bool = True  # whether trace.py can run a step with it

    @property
    def field(self) -> str:
        """Return the field of TrainingSpec that names the knob."""
        return next(iter(self.settings.values()))

    @property
    def without_budget(self) -> bool | int | str:
        """Return the value that `auto` stands for where there is no budget."""
        return WITHOUT_BUDGET[self.key]

    def has_effect(self, spec: TrainingSpec, value: bool | int) -> bool:
        """Return whether the step is another one with `value`."""
        return spec.with_fields({self.field: value}).resolved != spec.resolved


# ---- the micro-batch -------------------------------------------------------------------------------------


def _micro_batches(spec: TrainingSpec) -> Iterator[TrainingSpec]:
    """Yield every way to split the effective batch."""
    effective = spec.batch_size * spec.accumulation
    for size in range(1, effective + 1):
        if effective % size == 0:
            yield replace(spec, batch_size=size, accumulation=effective // size)


def _why_micro_batch(spec: TrainingSpec, budget: Budget) -> str:
    if spec.accumulation == 1:
        return "the whole effective batch at once"
    larger = next(other for other in _micro_batches(spec) if other.batch_size > spec.batch_size)
    if not budget.allows(larger):
        return f"{larger.batch_size} at once would need {in_gib(larger, budget)}"
    return f"{larger.batch_size} at once would fit and be no faster"


# ---- gradient checkpointing ------------------------------------------------------------------------------


def _why_checkpointing(spec: TrainingSpec, budget: Budget) -> str:
    if not spec.checkpointing:
        return "all activations fit: nothing is computed twice"
    without = replace(emptied(spec), checkpointing=False)
    if not budget.allows(without):
        return f"without it {in_gib(without, budget)} would be needed"
    return "without it micro-batches would have to be smaller, which is slower"


# ---- layers that keep their activations ------------------------------------------------------------------


def _kept_phrase(step: ResolvedSpec) -> str | None:
    has_some = step.checkpointing and step.kept_layers
    return f"{step.kept_layers} of {step.architecture.layers} layers kept" if has_some else None


def _why_kept(spec: TrainingSpec, budget: Budget) -> str:
    if not spec.has_own_decoder:
        return ONLY_OWN_DECODER
    if not spec.checkpointing:
        return "nothing is checkpointed"
    each = activation_bytes(spec) / GIB
    if not spec.kept_layers:
        return f"no room for {each:.2f} GiB a layer"
    return f"{each:.2f} GiB a layer, which is not computed again"


# ---- layer inputs in host memory -------------------------------------------------------------------------


def _with_and_without_offload(spec: TrainingSpec) -> Iterator[TrainingSpec]:
    yield replace(spec, offload=False)
    if spec.checkpointing and spec.has_own_decoder:
        yield replace(spec, offload=True)


def _why_offload(spec: TrainingSpec, budget: Budget) -> str:
    if not spec.has_own_decoder:
        return ONLY_OWN_DECODER
    if not spec.checkpointing:
        return "without checkpointing everything stays on the card"
    if not spec.offload:
        return "layer inputs fit on the card"
    here = replace(emptied(spec), offload=False)
    if not budget.allows(here):
        return f"without it {in_gib(here, budget)} would be needed"
    return "makes room for what saves more time"


# ---- layers that keep their weights dequantised ----------------------------------------------------------


def _why_cached(spec: TrainingSpec, budget: Budget) -> str:
    if spec.quantization != "4bit" or not spec.has_own_decoder:
        return f"{ONLY_OWN_DECODER}, with 4-bit weights"
    each = cached_layer_bytes(spec) / GIB
    if not spec.cached_layers:
        return f"no room left for {each:.2f} GiB a layer"
    return f"{each:.2f} GiB a layer, whose weights are not dequantised again and again"


# ---- the table, in the order in which choices are made and shown -----------------------------------------

KNOBS = (
    Knob(
        key="micro_batch",
        settings={
            "training.per_device_train_batch_size": "batch_size",
            "training.gradient_accumulation_steps": "accumulation",
        },
        label="micro-batch",
        shown=lambda spec: f"{spec.batch_size} x {spec.accumulation}",
        phrase=lambda step: f"{step.batch_size} x {step.accumulation}",
        reason=_why_micro_batch,
        alternatives=_micro_batches,
    ),
    Knob(
        key="gradient_checkpointing",
        settings={"optimization.gradient_checkpointing": "checkpointing"},
        label="gradient_checkpointing",
        shown=lambda spec: str(spec.checkpointing).lower(),
        phrase=lambda step: None if step.checkpointing else "no checkpointing",
        reason=_why_checkpointing,
        alternatives=lambda spec: (replace(spec, checkpointing=value) for value in (False, True)),
        leanest=Leanest(True, "same gradients, a third slower"),
    ),
    Knob(
        key="kept_layers",
        settings={"optimization.kept_layers": "kept_layers"},
        label="kept_layers",
        shown=lambda spec: str(spec.kept_layers) if spec.checkpointing else "all",
        phrase=_kept_phrase,
        reason=_why_kept,
        alternatives=lambda spec: [replace(spec, kept_layers=0)],
        fill_share=1.0,
        leanest=Leanest(0, "same gradients, slower"),
        is_traced=False,
    ),
    Knob(
        key="offload",
        settings={"optimization.offload": "offload"},
        label="offload",
        shown=lambda spec: str(spec.offload).lower(),
        phrase=lambda step: "offload" if step.offload else None,
        reason=_why_offload,
        alternatives=_with_and_without_offload,
        leanest=Leanest(True, "same gradients, a little slower"),
        is_traced=False,
    ),
    Knob(
        key="cached_layers",
        settings={"optimization.cached_layers": "cached_layers"},
        label="cached_layers",
        shown=lambda spec: str(spec.cached_layers),
        phrase=lambda step: f"{step.cached_layers} cached" if step.cached_layers else None,
        reason=_why_cached,
        alternatives=lambda spec: [replace(spec, cached_layers=0)],
        fill_share=CACHE_SHARE,
        leanest=Leanest(0, "same gradients, slower"),
        is_traced=False,
    ),
)
CHOICES = frozenset(knob.field for knob in KNOBS)


def configured(config: Config) -> dict[str, Any]:
    """Return the fields of TrainingSpec that knobs set, as config.yaml has them without a budget."""
    settled = config.settled()
    values: dict[str, Any] = {}
    for knob in KNOBS:
        for dotted, field in knob.settings.items():
            section, _, key = dotted.partition(".")
            values[field] = getattr(getattr(settled, section), key)
    return values


def settings_of(spec: TrainingSpec) -> dict[str, Any]:
    """Return what the knobs set in config.yaml: dotted key -> value."""
    return {dotted: getattr(spec, field) for knob in KNOBS for dotted, field in knob.settings.items()}


def emptied(spec: TrainingSpec) -> TrainingSpec:
    """Return the spec with 0 for every knob that counts layers."""
    return spec.with_fields({knob.field: 0 for knob in KNOBS if knob.fill_share is not None})


def in_gib(spec: TrainingSpec, budget: Budget) -> str:
    """Write out what a spec takes of a budget."""
    return f"{budget.needed(spec) / GIB:.2f} GiB"
