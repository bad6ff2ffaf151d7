"""The memory that a run may take: the limit of config.yaml, free memory, and a margin for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tool_aware.config.settings import Config
from tool_aware.gpu.readings import GpuReading
from tool_aware.memory.estimate import CALIBRATION, estimate_training
from tool_aware.memory.spec import TrainingSpec
from tool_aware.units import GIB

MARGIN_BYTES = 0.3 * GIB  # left to other programs on the card: a desktop's windows come and go


@dataclass(frozen=True)
class Budget:
    """Bytes of a card that a run may take, None without a limit, and where the number comes from.

    With `has_context` the process has its CUDA context already and the limit is what is left beside it; how much that
    is differs from card to card.
    """

    limit_bytes: float | None
    source: str
    has_context: bool = False

    def needed(self, spec: TrainingSpec) -> float:
        """Return the bytes that `spec` takes of this budget, the estimate's error included."""
        estimate = estimate_training(spec)
        paid = estimate.calibration.bare_context_bytes if self.has_context else 0.0
        return (estimate.total_bytes - paid) * (1 + estimate.calibration.error_percent / 100)

    def allows(self, spec: TrainingSpec, share: float = 1.0) -> bool:
        """Return whether `spec` fits this share of the budget."""
        return self.limit_bytes is None or self.needed(spec) <= share * self.limit_bytes


@dataclass(frozen=True)
class KnownBudget(Budget):
    """A budget whose limit is known."""

    limit_bytes: float


NO_BUDGET = Budget(None, "")


def needed_bytes(spec: TrainingSpec) -> float:
    """Return what the card has to have free before a process starts: the estimate and its error."""
    return NO_BUDGET.needed(spec)


def budget_of(config: Config, gpus: Sequence[GpuReading], *, has_context: bool = False) -> Budget:
    """Return what `training.memory_budget_gib` means on these GPUs: with several, on the fullest.

    With `has_context` this process has a CUDA context on the first of them.
    """
    setting = config.training.memory_budget_gib
    if setting is None:
        return Budget(None, "training.memory_budget_gib: null")
    if setting != "auto":
        return KnownBudget(setting * GIB, f"training.memory_budget_gib: {setting:g}")
    if not gpus:
        return Budget(None, "no GPU")
    context = CALIBRATION.bare_context_bytes if has_context else 0.0
    left: list[float] = []
    for number, gpu in enumerate(gpus):
        free_bytes = _free_bytes(gpu)
        if free_bytes is None:
            return Budget(None, "the driver does not tell what is free")
        left.append(free_bytes - (context if number else 0.0))
    least = min(left)
    beside = " beside the CUDA context" if has_context else ""
    return replace(with_margin(least, f"free on {gpus[left.index(least)].name}{beside}"), has_context=has_context)


def with_margin(size_bytes: float, what: str) -> KnownBudget:
    """Return the budget that leaves a margin of `size_bytes` to other programs."""
    source = f"{size_bytes / GIB:.1f} GiB {what}, less {MARGIN_BYTES / GIB:g}"
    return KnownBudget(max(0.0, size_bytes - MARGIN_BYTES), source)


def budget_on_card(card_bytes: float, allowed_gib: float | None = None) -> KnownBudget:
    """Return the budget on a card that nothing else is on: less a margin, and no more than `allowed_gib`."""
    card = with_margin(card_bytes, "on the card")
    if allowed_gib is None or card.limit_bytes <= allowed_gib * GIB:
        return card
    return KnownBudget(allowed_gib * GIB, f"training.memory_budget_gib: {allowed_gib:g}")


def allowed_by(config: Config) -> float | None:
    """Return the GiB that config.yaml allows a run; None where the card alone limits it."""
    setting = config.training.memory_budget_gib
    return None if setting == "auto" else setting


def _free_bytes(gpu: GpuReading) -> int | None:
    return gpu.instances[0].free_bytes if gpu.is_mig and gpu.instances else gpu.free_bytes
