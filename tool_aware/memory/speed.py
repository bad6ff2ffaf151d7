"""Estimate how long a run takes from a card's published rates. A rough guess, and it says how rough."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tool_aware.memory.spec import TrainingSpec

# Part of the name NVML gives -> dense bf16 tensor TFLOP/s with fp32 accumulation (fp16 for T4 and V100), from NVIDIA's
# data sheets and architecture white papers (Turing, Ampere GA102, Ada, Hopper, Blackwell). Longer names go first.
BF16_TFLOPS = {
    "RTX 3060": 25.6, "RTX 3070": 40.6, "RTX 3080": 59.5, "RTX 3090": 71.0,
    "RTX 4060 Ti": 44.1, "RTX 4070": 58.3, "RTX 4070 Ti": 80.2, "RTX 4080": 97.5, "RTX 4090": 165.2, "RTX 5090": 209.5,
    "A100": 312.0, "A10": 125.0, "A6000": 154.8, "L4": 121.0, "L40S": 362.0, "T4": 65.0, "V100": 125.0,
    "H100": 989.0, "H200": 989.0,
}  # fmt: skip
# Of the published rate, and the seconds that a layer takes however little there is to compute: such steps wait for
# Python. Fitted to the 99 steps of benchmarks/results/train_memory_*.json, by the mean of the relative error.
OWN_SHARE, OWN_LAYER_S = 0.44, 0.0033
TRANSFORMERS_SHARE, TRANSFORMERS_LAYER_S = 0.34, 0.011
MEAN_ERROR_PERCENT, WORST_ERROR_PERCENT = 14, 61
MEASURED_ON = "99 steps on an H200 and an H100"


@dataclass(frozen=True)
class Speed:
    """Seconds of one micro-step: what the published rate allows, and what is to be expected."""

    limit_s: float
    expected_s: float


def estimate_speed(spec: TrainingSpec, card: str) -> Speed | None:
    """Estimate the time of one micro-step on `card`; None if its rates are not in the table."""
    tflops = published_tflops(card)
    if tflops is None:
        return None
    own = spec.has_own_decoder
    share, layer_s = (OWN_SHARE, OWN_LAYER_S) if own else (TRANSFORMERS_SHARE, TRANSFORMERS_LAYER_S)
    limit_s = spec.resolved.flops / (tflops * 1e12)
    return Speed(limit_s, max(layer_s * spec.architecture.layers, limit_s / share))


def published_tflops(card: str) -> float | None:
    """Look a card up by the name NVML gives it, or a part of it such as "4070 ti"."""
    for name in sorted(BF16_TFLOPS, key=len, reverse=True):
        if re.search(rf"(?<!\w){re.escape(name.removeprefix('RTX '))}(?!\w)", card, re.IGNORECASE):
            return BF16_TFLOPS[name]
    return None
