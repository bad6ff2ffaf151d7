"""Estimate the GPU memory of evaluation: greedy generation for a batch of prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tool_aware.config import Config
from tool_aware.gpu.estimate import BYTES_PER_WEIGHT, CALIBRATION, MemoryEstimate, context_bytes
from tool_aware.gpu.spec import BYTES_16BIT, LOGIT_BYTES, Term, TrainingSpec
from tool_aware.gpu.workload import Workload

ALLOCATOR_SLACK = 0.3  # of what comes and goes; not measured for generation
ERROR_PERCENT = 12.0  # the one measured run allocated 11 % more: benchmarks/results/evaluate_throughput_h200.json


@dataclass(frozen=True)
class GenerationSpec:
    """What decides the memory of generation. Lengths in tokens."""

    model: TrainingSpec  # architecture, quantisation and adapter; its training fields are not used
    batch_size: int = 16
    prompt_tokens: int = 400
    prefix_tokens: int = 0  # of the prompt, computed once and kept
    new_tokens: int = 256

    @classmethod
    def from_config(cls, config: Config, workload: Workload) -> GenerationSpec:
        """Read a spec out of config.yaml and the lengths of the data."""
        return cls(
            model=TrainingSpec.from_config(config),
            batch_size=config.evaluation.batch_size,
            prompt_tokens=workload.longest_tokens - workload.answer_tokens,
            prefix_tokens=workload.prefix_tokens,
            new_tokens=config.evaluation.max_new_tokens,
        )


def estimate_generation(spec: GenerationSpec) -> MemoryEstimate:
    """Estimate the peak: at the prefill (all prompts at once) or at the last new token, whichever is larger."""
    architecture, model = spec.model.architecture, spec.model
    adapter = architecture.adapter_parameters(model.lora_r, model.targets)
    cached_per_token = 2 * BYTES_16BIT * architecture.kv_width * architecture.layers
    fresh = spec.prompt_tokens - spec.prefix_tokens
    # The prefix is copied for each prompt of a batch, and kept once more for the next batch.
    kept_prefix = spec.prefix_tokens * cached_per_token
    whole = spec.batch_size * (spec.prompt_tokens + spec.new_tokens) * cached_per_token
    # Keys and values of one layer are repeated for the query heads that share them.
    repeated = whole / architecture.layers * architecture.heads / architecture.kv_heads
    prefill_tokens = spec.batch_size * max(1, fresh)
    layer = prefill_tokens * (3 * BYTES_16BIT * architecture.intermediate + 4 * BYTES_16BIT * architecture.hidden)
    largest_matrix = max(inputs * outputs for inputs, outputs in architecture.linear_shapes.values())
    dequantized = largest_matrix * BYTES_16BIT * (model.quantization != "none")
    logits = LOGIT_BYTES * architecture.vocabulary * spec.batch_size
    width = BYTES_PER_WEIGHT[model.quantization, model.double_quantization]
    working = max(layer, repeated) + dequantized
    slack = ALLOCATOR_SLACK * (whole + working + logits)
    terms = (
        Term("base weights", architecture.linear_parameters * width),
        Term("16-bit weights", architecture.other_parameters * BYTES_16BIT, "embeddings, output layer, norms"),
        Term("adapter", adapter * BYTES_16BIT),
        Term("kept prefix", kept_prefix, f"{spec.prefix_tokens} tokens, once"),
        Term("keys and values", whole, f"{spec.batch_size} x {spec.prompt_tokens + spec.new_tokens} tokens"),
        Term("one layer's working set", working),
        Term("logits", logits),
        Term("cuBLAS workspaces", CALIBRATION.workspace_bytes),
        Term("allocator slack", slack),
        Term("CUDA context", context_bytes(model), "and libraries"),
    )
    calibration = replace(
        CALIBRATION,
        source="one run on one H200, which took 11 % more than counted from shapes",
        allocated_error_percent=ERROR_PERCENT,
        error_percent=ERROR_PERCENT,
    )
    return MemoryEstimate(model, "the last new token", terms, calibration)
