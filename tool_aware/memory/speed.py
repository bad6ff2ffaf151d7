"""Estimate how long a step takes from a card's published rates. A rough guess, and it says how rough.

The time of a micro-step is that of its arithmetic, at a share of the published rate, and of what goes through the
card's memory besides, at a share of the published bandwidth: weights written out from 4 bits, element-wise operations.
No layer takes less than Python needs to launch it, or a fast GPU where passes are recorded as CUDA graphs.
"""

from __future__ import annotations

from dataclasses import dataclass

from tool_aware.gpu.published_cards import published_card
from tool_aware.memory.spec import BYTES_16BIT, TrainingSpec


@dataclass(frozen=True)
class Shares:
    """Shares of the published rates that a pass reaches, and the seconds of a layer with next to nothing to compute."""

    arithmetic: float
    bandwidth: float
    layer_s: float


# A layer of SmolLM2's shape, 3,600 tokens (docs/BENCHMARKS.md), where passes are recorded: at all, and for each pass.
RECORDED_LAYER_S, RECORDED_PASS_S = 0.00047, 0.00013
# Fitted to the 81 steps of benchmarks/results/train_memory_*.json, by the mean of the relative error.
OWN = Shares(0.55, 0.77, 0.0045)
TRANSFORMERS = Shares(0.45, 0.25, 0.011)
MEASURED_CARDS = ("H100", "H200")
MEAN_ERROR_PERCENT, NINE_OF_TEN_PERCENT, WORST_ERROR_PERCENT = 17, 36, 71  # of those steps; nine of ten are within
MEASURED_ON = "81 steps on an H100 and an H200"
# Of the expected time, on cards that were not measured: from nearly the whole published rate, as on cards with power to
# spare, to a third of it, as on those held to 70 W.
FASTEST, SLOWEST = 0.65, 2.0
# Bytes of a weight that is written out for a pass and was read for it: NF4 or int8.
_WRITTEN_OUT = {"4bit": 0.516 + BYTES_16BIT, "8bit": 1 + BYTES_16BIT, "none": 0.0}


@dataclass(frozen=True)
class Speed:
    """Seconds of one micro-step: what the published rate allows, what is to be expected, and from where to where."""

    limit_s: float
    expected_s: float
    least_s: float
    most_s: float
    is_measured: bool  # whether a card of this kind was


def estimate_speed(spec: TrainingSpec, card: str) -> Speed | None:
    """Estimate the time of one micro-step on `card`; None if its rates are not in the table."""
    published = published_card(card)
    if published is None:
        return None
    shares = OWN if spec.has_own_decoder else TRANSFORMERS
    step = spec.resolved
    limit_s = step.flops / (published.tflops * 1e12)
    memory_s = moved_bytes(spec) / (published.bandwidth_gbs * 1e9)
    work_s = limit_s / shares.arithmetic + memory_s / shares.bandwidth
    layer_s = RECORDED_LAYER_S + RECORDED_PASS_S * step.passes if step.cuda_graphs else shares.layer_s
    expected_s = max(layer_s * spec.architecture.layers, work_s)
    is_measured = published.name in MEASURED_CARDS
    error = NINE_OF_TEN_PERCENT / 100
    fastest, slowest = (1 / (1 + error), 1 / (1 - error)) if is_measured else (FASTEST, SLOWEST)
    return Speed(limit_s, expected_s, max(limit_s, fastest * expected_s), slowest * expected_s, is_measured)


def moved_bytes(spec: TrainingSpec) -> float:
    """Return the bytes that a micro-step moves besides the operands of its products.

    Of each layer and token: norms, rotations and SwiGLU of the forward pass, again where it is computed again, and
    their gradients, each tensor read or written once.
    """
    shape, step = spec.architecture, spec.resolved
    heads = shape.query_width + shape.kv_width
    forward = BYTES_16BIT * (4 * shape.hidden + 2 * heads + 2 * shape.query_width + 3 * shape.intermediate)
    backward = BYTES_16BIT * (12 * shape.hidden + 8 * shape.intermediate)
    elementwise = spec.tokens * shape.layers * (forward * (step.passes - 1) + backward)
    is_written = 1 - step.cached_layers / shape.layers
    return elementwise + step.passes * shape.linear_parameters * _WRITTEN_OUT[spec.quantization] * is_written
