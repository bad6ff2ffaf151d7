"""Estimate how long a run takes from a card's published rates. A rough guess, and it says how rough."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tool_aware.gpu.spec import TrainingSpec

# Part of the name NVML gives -> dense bf16 tensor TFLOP/s with fp32 accumulation (fp16 for T4 and V100), from NVIDIA's
# data sheets and architecture white papers (Turing, Ampere GA102, Ada, Hopper, Blackwell). Longer names go first.
BF16_TFLOPS = {
    "RTX 3060": 25.6, "RTX 3070": 40.6, "RTX 3080": 59.5, "RTX 3090": 71.0,
    "RTX 4060 Ti": 44.1, "RTX 4070": 58.3, "RTX 4070 Ti": 80.2, "RTX 4080": 97.5, "RTX 4090": 165.2, "RTX 5090": 209.5,
    "A100": 312.0, "A10": 125.0, "A6000": 154.8, "L4": 121.0, "L40S": 362.0, "T4": 65.0, "V100": 125.0,
    "H100": 989.0, "H200": 989.0,
}  # fmt: skip
REACHED_SHARE = 0.25  # of the published rate: packs of 1,924 to 6,916 tokens on one H200 (five runs, within 16 %)
LEAST_SECONDS = 0.55  # of one micro-step however small, on that machine: it launches thousands of kernels one by one


@dataclass(frozen=True)
class Speed:
    """Seconds of one micro-step: what the published rate allows, and what five runs on a far faster card reached."""

    limit_s: float
    expected_s: float


def estimate_speed(spec: TrainingSpec, card: str) -> Speed | None:
    """Estimate the time of one micro-step on `card`; None if its rates are not in the table.

    Forward, recompute and backward pass of frozen weights are 2 FLOP per weight and token each; without checkpointing
    nothing is recomputed. The backward pass of frozen weights computes input gradients only.
    """
    tflops = published_tflops(card)
    if tflops is None:
        return None
    passes = 3 - spec.layers_kept / spec.architecture.layers
    limit_s = 2 * passes * spec.architecture.linear_parameters * spec.tokens / (tflops * 1e12)
    return Speed(limit_s, max(LEAST_SECONDS, limit_s / REACHED_SHARE))


def published_tflops(card: str) -> float | None:
    """Look a card up by the name NVML gives it, or a part of it such as "4070 ti"."""
    for name in sorted(BF16_TFLOPS, key=len, reverse=True):
        if re.search(rf"(?<!\w){re.escape(name.removeprefix('RTX '))}(?!\w)", card, re.IGNORECASE):
            return BF16_TFLOPS[name]
    return None
