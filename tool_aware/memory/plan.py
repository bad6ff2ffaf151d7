"""Choose how a run uses the memory it may have. The result does not depend on it; how fast it comes does.

Of all combinations of micro-batch (at the same effective batch), checkpointing, offload and cached layers that fit the
budget, the one whose optimizer step should be the shortest is taken. What config.yaml does not leave to `auto` is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tool_aware.config.settings import Config
from tool_aware.gpu.readings import GIB, GpuReading
from tool_aware.memory.autograd_step import attention_pairs
from tool_aware.memory.decoder_step import activation_bytes
from tool_aware.memory.estimate import CALIBRATION, cached_layer_bytes, estimate_training
from tool_aware.memory.spec import TrainingSpec

MARGIN_BYTES = 0.3 * GIB  # left to other programs on the card: a desktop's windows come and go
CACHE_SHARE = 0.9  # of the budget that cached layers may fill; they gain too little to run a card full

# The time of one pass over a model, in tokens, from steps of 1,928 to 6,920 tokens on one H200 (docs/BENCHMARKS.md):
# 74 us a token for all three passes, 16 ms for dequantising, 10 ms however little there is to do. Dequantising is bound
# by memory and the rest by arithmetic, whose ratio is much the same on other cards.
LAUNCH_TOKENS = 140.0
DEQUANTIZE_TOKENS = 220.0
OFFLOAD_SHARE = 0.01  # of a pass: copies run beside the arithmetic


@dataclass(frozen=True)
class Budget:
    """Bytes of a card that a run may take, None if no limit is looked at, and where the number comes from.

    With `has_context` the process has its CUDA context already and the limit is what is left beside it; how much that
    is differs from card to card.
    """

    limit_bytes: float | None
    source: str
    has_context: bool = False

    def needed(self, spec: TrainingSpec) -> float:
        """What `spec` takes of this budget, the estimate's error included."""
        estimate = estimate_training(spec)
        paid = estimate.calibration.bare_context_bytes if self.has_context else 0.0
        return (estimate.total_bytes - paid) * (1 + estimate.calibration.error_percent / 100)

    def allows(self, spec: TrainingSpec, share: float = 1.0) -> bool:
        """Whether `spec` fits this share of the budget."""
        return self.limit_bytes is None or self.needed(spec) <= share * self.limit_bytes


@dataclass(frozen=True)
class Choice:
    """One setting of the plan."""

    setting: str
    value: str
    why: str


@dataclass(frozen=True)
class Plan:
    """What a run will do with its memory. `settings` are dotted keys of config.yaml with concrete values."""

    spec: TrainingSpec
    budget: Budget
    choices: tuple[Choice, ...]

    @property
    def fits(self) -> bool:
        """Whether the estimate, its error included, is within the budget."""
        return self.budget.allows(self.spec)

    @property
    def settings(self) -> dict[str, Any]:
        """All that the plan decides."""
        spec = self.spec
        return {
            "training.per_device_train_batch_size": spec.batch_size,
            "training.gradient_accumulation_steps": spec.accumulation,
            "optimization.gradient_checkpointing": spec.checkpointing,
            "optimization.kept_layers": spec.kept_layers,
            "optimization.offload": spec.offload,
            "optimization.cached_layers": spec.cached_layers,
        }

    def apply(self, config: Config) -> Config:
        """Return `config` with the plan's values where it said `auto`."""
        sections: dict[str, dict[str, Any]] = {}
        for dotted, value in self.settings.items():
            section, _, key = dotted.partition(".")
            sections.setdefault(section, {})[key] = value
        updated = {name: getattr(config, name).model_copy(update=values) for name, values in sections.items()}
        return config.model_copy(update=updated).settled()

    def text(self) -> str:
        """The plan in lines: what is needed and what there is, then each choice with its reason."""
        return "\n".join(_lines(self))

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        limit = self.budget.limit_bytes
        return {
            "budget_gib": None if limit is None else round(limit / GIB, 2),
            "budget_from": self.budget.source,
            "estimated_gib": round(self.budget.needed(self.spec) / GIB, 2),
            "settings": self.settings,
        }


def needed_bytes(spec: TrainingSpec) -> float:
    """What the card has to have free before a process starts: the estimate and its error."""
    return Budget(None, "").needed(spec)


# ---- the budget ------------------------------------------------------------------------------------------


def budget_of(config: Config, gpus: Sequence[GpuReading], *, has_context: bool = False) -> Budget:
    """Work out what `training.memory_budget_gib` means on these GPUs: with several, on the fullest.

    With `has_context` this process has a CUDA context on the first of them.
    """
    setting = config.training.memory_budget_gib
    if setting is None:
        return Budget(None, "training.memory_budget_gib: null")
    if setting != "auto":
        return Budget(setting * GIB, f"training.memory_budget_gib: {setting:g}")
    if not gpus:
        return Budget(None, "no GPU")
    if any(_free_bytes(gpu) is None for gpu in gpus):
        return Budget(None, "the driver does not tell what is free")
    context = CALIBRATION.bare_context_bytes if has_context else 0.0
    left = [_free_bytes(gpu) - (context if number else 0.0) for number, gpu in enumerate(gpus)]
    least = min(left)
    beside = " beside the CUDA context" if has_context else ""
    return replace(with_margin(least, f"free on {gpus[left.index(least)].name}{beside}"), has_context=has_context)


def with_margin(size_bytes: float, what: str) -> Budget:
    """The budget that leaves a margin of `size_bytes` to other programs."""
    source = f"{size_bytes / GIB:.1f} GiB {what}, less {MARGIN_BYTES / GIB:g}"
    return Budget(max(0.0, size_bytes - MARGIN_BYTES), source)


def budget_on_card(card_bytes: float, allowed_gib: float | None = None) -> Budget:
    """The budget on a card that nothing else is on: a margin is left, `allowed_gib` (see `allowed_by`) is heeded."""
    card = with_margin(card_bytes, "on the card")
    if allowed_gib is None or card.limit_bytes <= allowed_gib * GIB:
        return card
    return Budget(allowed_gib * GIB, f"training.memory_budget_gib: {allowed_gib:g}")


def allowed_by(config: Config) -> float | None:
    """GiB that config.yaml allows a run; None where the card alone limits it."""
    setting = config.training.memory_budget_gib
    return None if setting == "auto" else setting


def _free_bytes(gpu: GpuReading) -> int | None:
    return gpu.instances[0].free_bytes if gpu.is_mig and gpu.instances else gpu.free_bytes


# ---- the plan --------------------------------------------------------------------------------------------

MICRO_BATCH, CHECKPOINTING, KEEP, OFFLOAD, CACHE = (
    "batch_size", "checkpointing", "kept_layers", "offload", "cached_layers",
)  # fmt: skip
CHOICES = frozenset({MICRO_BATCH, CHECKPOINTING, KEEP, OFFLOAD, CACHE})


def open_choices(config: Config) -> frozenset[str]:
    """Names of the fields of a spec that config.yaml leaves to the plan; none if it wants no plan."""
    if config.training.memory_budget_gib is None:
        return frozenset()
    optimization = config.optimization
    settings = {
        MICRO_BATCH: optimization.micro_batch,
        CHECKPOINTING: optimization.gradient_checkpointing,
        KEEP: optimization.kept_layers,
        OFFLOAD: optimization.offload,
        CACHE: optimization.cached_layers,
    }
    return frozenset(name for name, value in settings.items() if value == "auto")


def plan_of(config: Config, spec: TrainingSpec, gpus: Sequence[GpuReading], *, has_context: bool = False) -> Plan:
    """Plan a run of `config`, whose largest micro-batch is `spec`, on these GPUs, one for each process."""
    return make_plan(spec, budget_of(config, gpus, has_context=has_context), open_choices(config))


def make_plan(spec: TrainingSpec, budget: Budget, is_open: frozenset[str]) -> Plan:
    """Choose what `is_open` among the fields of `spec`, so that the step is as short as `budget` allows.

    Without a budget everything stays as it is. If nothing fits, what needs least is taken; `fits` is then False.
    """
    if budget.limit_bytes is None:
        return Plan(spec, budget, ())
    candidates = [
        _with_cache(_with_kept_layers(candidate, budget, is_open), budget, is_open)
        for candidate in _candidates(spec, is_open)
    ]
    fitting = [candidate for candidate in candidates if budget.allows(candidate)]
    if fitting:
        chosen = min(fitting, key=lambda candidate: (step_cost(candidate), needed_bytes(candidate)))
    else:
        chosen = leanest(spec, is_open)
    return Plan(chosen, budget, tuple(_explained(chosen, budget, is_open)))


def leanest(spec: TrainingSpec, is_open: frozenset[str]) -> TrainingSpec:
    """What a plan falls back to when memory is short."""
    return min(_candidates(spec, is_open), key=needed_bytes)


def _candidates(spec: TrainingSpec, is_open: frozenset[str]) -> Iterator[TrainingSpec]:
    """All combinations, with no layer kept or cached unless config.yaml says so."""
    effective = spec.batch_size * spec.accumulation
    divisors = [size for size in range(1, effective + 1) if effective % size == 0]
    for size, checkpointing, offload in itertools.product(
        divisors if MICRO_BATCH in is_open else [spec.batch_size],
        (False, True) if CHECKPOINTING in is_open else [spec.checkpointing],
        (False, True) if OFFLOAD in is_open else [spec.offload],
    ):
        if offload and not (checkpointing and spec.has_own_decoder) and OFFLOAD in is_open:
            continue
        yield replace(
            spec, batch_size=size, accumulation=effective // size, checkpointing=checkpointing, offload=offload,
            kept_layers=0 if KEEP in is_open else spec.kept_layers,
            cached_layers=0 if CACHE in is_open else spec.cached_layers,
        )  # fmt: skip


def _with_kept_layers(spec: TrainingSpec, budget: Budget, is_open: frozenset[str]) -> TrainingSpec:
    """Let as many layers keep their activations as there is room for; a cached layer gains less for its bytes."""
    if KEEP not in is_open or not spec.checkpointing or not spec.has_own_decoder:
        return spec
    kept = (replace(spec, kept_layers=count) for count in range(spec.architecture.layers, 0, -1))
    return next(filter(budget.allows, kept), spec)


def _with_cache(spec: TrainingSpec, budget: Budget, is_open: frozenset[str]) -> TrainingSpec:
    """Keep as many layers dequantised as there is room for."""
    if CACHE not in is_open:
        return spec
    cached = (replace(spec, cached_layers=count) for count in range(spec.architecture.layers, 0, -1))
    return next((one for one in cached if one.layers_cached and budget.allows(one, CACHE_SHARE)), spec)


def step_cost(spec: TrainingSpec) -> float:
    """How long an optimizer step takes, in tokens of one pass over the model; fit for comparing plans only."""
    architecture = spec.architecture
    flops_per_pair = 4 * architecture.query_width * architecture.layers
    attention = flops_per_pair * _computed_pairs(spec) / (2 * architecture.linear_parameters)
    quantized = 1 - spec.layers_cached / architecture.layers if spec.quantization != "none" else 0.0
    arithmetic = (spec.tokens + attention) * (1 + OFFLOAD_SHARE * spec.is_offloading)
    return spec.accumulation * spec.passes * (arithmetic + LAUNCH_TOKENS + DEQUANTIZE_TOKENS * quantized)


def _computed_pairs(spec: TrainingSpec) -> float:
    """Query-key pairs that attention computes: all of a dense mask, or those a causal FlashAttention does not skip."""
    return spec.tokens * spec.seq_length / 2 if spec.has_own_decoder else attention_pairs(spec)


# ---- why -------------------------------------------------------------------------------------------------


def _explained(chosen: TrainingSpec, budget: Budget, is_open: frozenset[str]) -> Iterator[Choice]:
    reasons = {
        MICRO_BATCH: _why_micro_batch, CHECKPOINTING: _why_checkpointing, KEEP: _why_keep, OFFLOAD: _why_offload,
        CACHE: _why_cache,
    }  # fmt: skip
    for name, value in _values(chosen).items():
        yield Choice(SETTINGS[name], value, reasons[name](chosen, budget) if name in is_open else _PINNED)


_PINNED = "as config.yaml says"
SETTINGS = {
    MICRO_BATCH: "micro-batch",
    CHECKPOINTING: "gradient_checkpointing",
    KEEP: "kept_layers",
    OFFLOAD: "offload",
    CACHE: "cached_layers",
}


def _values(spec: TrainingSpec) -> dict[str, str]:
    return {
        MICRO_BATCH: f"{spec.batch_size} x {spec.accumulation}",
        CHECKPOINTING: str(spec.checkpointing).lower(),
        KEEP: str(spec.kept_layers) if spec.checkpointing else "all",
        OFFLOAD: str(spec.offload).lower(),
        CACHE: str(spec.cached_layers),
    }


def _why_micro_batch(spec: TrainingSpec, budget: Budget) -> str:
    if spec.accumulation == 1:
        return "the whole effective batch at once"
    larger = _next_larger(spec)
    if not budget.allows(larger):
        return f"{larger.batch_size} at once would need {_gib(larger, budget)}"
    return f"{larger.batch_size} at once would fit and be no faster"


def _next_larger(spec: TrainingSpec) -> TrainingSpec:
    effective = spec.batch_size * spec.accumulation
    size = next(size for size in range(spec.batch_size + 1, effective + 1) if effective % size == 0)
    return replace(spec, batch_size=size, accumulation=effective // size)


def _why_checkpointing(spec: TrainingSpec, budget: Budget) -> str:
    if not spec.checkpointing:
        return "all activations fit: nothing is computed twice"
    without = replace(spec, checkpointing=False, cached_layers=0)
    if not budget.allows(without):
        return f"without it {_gib(without, budget)} would be needed"
    return "without it micro-batches would have to be smaller, which is slower"


def _why_keep(spec: TrainingSpec, budget: Budget) -> str:
    if not spec.has_own_decoder:
        return "only the toolkit's own decoder can"
    if not spec.checkpointing:
        return "nothing is checkpointed"
    each = activation_bytes(spec) / GIB
    if not spec.kept_layers:
        return f"no room for {each:.2f} GiB a layer"
    return f"{each:.2f} GiB a layer, which is not computed again"


def _why_offload(spec: TrainingSpec, budget: Budget) -> str:
    if not spec.has_own_decoder:
        return "only the toolkit's own decoder can"
    if not spec.checkpointing:
        return "without checkpointing everything stays on the card"
    if not spec.offload:
        return "layer inputs fit on the card"
    here = replace(spec, offload=False, kept_layers=0, cached_layers=0)
    if not budget.allows(here):
        return f"without it {_gib(here, budget)} would be needed"
    return "makes room for what saves more time"


def _why_cache(spec: TrainingSpec, budget: Budget) -> str:
    if spec.quantization != "4bit" or not spec.has_own_decoder:
        return "only the toolkit's own decoder can, with 4-bit weights"
    each = cached_layer_bytes(spec) / GIB
    if not spec.cached_layers:
        return f"no room left for {each:.2f} GiB a layer"
    return f"{each:.2f} GiB a layer, whose weights are not dequantised again and again"


def _gib(spec: TrainingSpec, budget: Budget) -> str:
    return f"{budget.needed(spec) / GIB:.2f} GiB"


def _lines(plan: Plan) -> Iterator[str]:
    spec, limit = plan.spec, plan.budget.limit_bytes
    examples = "1 example" if spec.batch_size == 1 else f"{spec.batch_size} examples"
    needed = f"{_gib(spec, plan.budget)} for {examples} of the longest at once, the estimate's error included"
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
