"""Estimate the GPU memory of evaluation: answers to a batch of prompts, and scores of the tools' names.

Keys and values of all rows are kept to the last new token, so a batch is mostly these. On top come, whichever is
largest: one layer over all tokens that the rows do not share, the keys and values of one layer spread out to all query
heads in a decoding step, or the scores over the vocabulary where tools are chosen without answering.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tool_aware.config.settings import Config
from tool_aware.engine.sizes import rounded_up
from tool_aware.inference.generation import COLUMNS_MULTIPLE
from tool_aware.memory.architectures import Architecture
from tool_aware.memory.budget import budget_on_card
from tool_aware.memory.estimate import BYTES_PER_WEIGHT, CALIBRATION, Calibration, MemoryEstimate
from tool_aware.memory.fit import LARGEST_BATCH, largest
from tool_aware.memory.spec import BYTES_16BIT, Term, TrainingSpec
from tool_aware.memory.workload import Workload
from tool_aware.units import GIB

FED_NAME_TOKENS = 3  # of a tool's name, the last token is only predicted
# 16-bit values per token in one layer with an adapter, while the update of the up projection is added: intermediates
# (the gate, the product, the update and its scaled copy) and states; and beside a dequantised matrix.
WIDE_VALUES, NARROW_VALUES = 4, 4
NARROW_VALUES_IN_PRODUCT = 6
SCORE_BYTES = BYTES_16BIT + 4 + 4  # the model's, in float32, and their logarithms
WORKSPACES = 3  # cuBLAS': of the usual stream and of those that record a CUDA graph
LIBRARY_SETS = 2

# The allocator's usual blocks: reserved and not used, in GiB, of the working set, of keys and values.
SLACK_SHARES = (0.157, 0.47, 0.055)
EVALUATION = replace(
    CALIBRATION,
    slack_shares=SLACK_SHARES,
    source="21 runs on one H200 (torch 2.11, CUDA 13), benchmarks/results/evaluate_memory_h200.json",
    allocated_error_percent=3.0,
    error_percent=9.0,
)


@dataclass(frozen=True)
class GenerationSpec:
    """The inputs that decide the memory of evaluation. Lengths in tokens."""

    model: TrainingSpec  # architecture, quantisation and adapter; its training fields are not used
    batch_size: int = 16
    prompt_tokens: int = 400
    prefix_tokens: int = 0  # with which all prompts begin
    new_tokens: int = 256
    name_tokens: int = 0  # fed to score the tools' names; 0: answers are generated

    @classmethod
    def from_config(
        cls, config: Config, workload: Workload, architecture: Architecture | None = None
    ) -> GenerationSpec:
        """Read the spec of the answers out of config.yaml and the lengths of the data; the shapes may be others."""
        return cls(
            model=TrainingSpec.from_config(config, architecture=architecture),
            batch_size=config.evaluation.batch_size,
            prompt_tokens=workload.longest_tokens - workload.answer_tokens,
            prefix_tokens=workload.prefix_tokens,
            new_tokens=config.evaluation.max_new_tokens,
        )

    def choices(self, tools: int) -> GenerationSpec:
        """Return the spec of scoring `tools` names for the same prompts."""
        return replace(self, new_tokens=0, name_tokens=FED_NAME_TOKENS * tools + 1)

    @property
    def columns(self) -> int:
        """Return the tokens that a row has room for."""
        whole = self.prompt_tokens + self.new_tokens + self.name_tokens
        return whole if self.name_tokens else rounded_up(whole, COLUMNS_MULTIPLE)

    @property
    def own_tokens(self) -> int:
        """Return the tokens of all rows that go through the model at once: those that they do not share."""
        return self.batch_size * (max(1, self.prompt_tokens - self.prefix_tokens) + self.name_tokens)


def estimate_evaluation(answers: GenerationSpec, tools: int) -> MemoryEstimate:
    """Estimate what evaluate.py needs: the larger of answering and of scoring the names of `tools` tools."""
    return max(
        estimate_generation(answers),
        estimate_generation(answers.choices(tools)),
        key=lambda estimate: estimate.total_bytes,
    )


@dataclass(frozen=True)
class EvaluationFit:
    """An evaluation compared with a card of `vram_bytes`, of which `source` says what may be used."""

    vram_bytes: float
    left_bytes: float  # less than 0: so much is missing
    largest_batch: int  # evaluation.batch_size that fits; 0 if not even 1 does
    source: str

    @property
    def fits(self) -> bool:
        """Return whether it fits with the batch size it has, the estimate's error included."""
        return self.left_bytes >= 0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for --json, sizes in GiB."""
        return {
            "vram_gib": round(self.vram_bytes / GIB, 2),
            "fits": self.fits,
            "left_gib": round(self.left_bytes / GIB, 2),
            "largest_batch_size": self.largest_batch,
        }


def fit_evaluation(answers: GenerationSpec, tools: int, vram_bytes: float) -> EvaluationFit:
    """Find out how evaluation fits a card, whose other programs need the same margin as in training."""
    budget = budget_on_card(vram_bytes)

    def left_bytes(batch_size: int) -> float:
        estimate = estimate_evaluation(replace(answers, batch_size=batch_size), tools)
        return budget.limit_bytes - estimate.total_bytes * (1 + estimate.calibration.error_percent / 100)

    most = largest(lambda size: left_bytes(size) >= 0, LARGEST_BATCH)
    return EvaluationFit(vram_bytes, left_bytes(answers.batch_size), most, budget.source)


def estimate_generation(spec: GenerationSpec, calibration: Calibration = EVALUATION) -> MemoryEstimate:
    """Estimate the peak of one kind of work."""
    architecture, model = spec.model.architecture, spec.model
    width = BYTES_PER_WEIGHT[model.quantization, model.double_quantization]
    adapter = architecture.adapter_parameters(model.lora_r, model.targets)
    kept = spec.batch_size * spec.columns * 2 * BYTES_16BIT * architecture.kv_width * architecture.layers
    peaks_in, working = max(_working_sets(spec).items(), key=lambda item: item[1])
    slack = sum(share * part for share, part in zip(calibration.slack_shares, (GIB, working, kept), strict=True))
    terms = (
        Term("base weights", architecture.linear_parameters * width),
        Term("16-bit weights", architecture.other_parameters * BYTES_16BIT, "embeddings, output layer, norms"),
        Term("adapter", adapter * BYTES_16BIT),
        Term("keys and values", kept, f"{spec.batch_size} x {spec.columns} tokens"),
        Term("working set", working),
        Term("cuBLAS workspaces", WORKSPACES * calibration.workspace_bytes),
        Term("allocator slack", slack),
        Term(
            "CUDA context",
            calibration.bare_context_bytes + LIBRARY_SETS * calibration.libraries_bytes,
            "and libraries",
        ),
    )
    return MemoryEstimate(model, peaks_in, terms, calibration)


def _working_sets(spec: GenerationSpec) -> dict[str, float]:
    """Return the bytes besides weights and kept keys and values, by the moment at which they can be the peak."""
    architecture, tokens = spec.model.architecture, spec.own_tokens
    wide, narrow = architecture.intermediate * BYTES_16BIT, architecture.hidden * BYTES_16BIT
    mask = tokens * (spec.prompt_tokens + spec.name_tokens)  # a byte for every pair
    largest_matrix = max(inputs * outputs for inputs, outputs in architecture.linear_shapes.values())
    dequantised = largest_matrix * BYTES_16BIT * (spec.model.quantization != "none")
    scored = spec.batch_size * (1 + spec.name_tokens)
    layer = tokens * (WIDE_VALUES * wide + NARROW_VALUES * narrow)
    product = tokens * NARROW_VALUES_IN_PRODUCT * narrow + dequantised
    moments: dict[str, float] = {"the prompts of a batch": max(layer, product) + mask}
    if spec.name_tokens:
        return moments | {"the scores of the tools": scored * architecture.vocabulary * SCORE_BYTES}
    spread_out = 2 * spec.batch_size * spec.columns * BYTES_16BIT * architecture.heads * architecture.head_dim
    return moments | {"a new token": spread_out}
