"""Estimate the GPU memory of a QLoRA training step, term by term, without torch and without a GPU.

The step that is modelled is this toolkit's own: frozen weights as loaded (nothing upcast), LoRA in bf16 with fp32
master weights, checkpointed decoder layers, logits at the label positions only. Memory peaks either in the loss (all
checkpoints and the logits are alive) or while one layer is recomputed and differentiated, whichever is larger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tool_aware.config import Config
from tool_aware.gpu.architectures import Architecture, find_architecture

GIB = 2**30

# Bytes per weight of a quantised linear layer.
BYTES_PER_WEIGHT = {
    ("4bit", True): 4.127 / 8,  # 4 bits + scales quantised to 8 bits per 64 weights (QLoRA, arXiv 2305.14314, sec. 3)
    ("4bit", False): 4.5 / 8,  # 4 bits + one fp32 scale per 64 weights
    ("8bit", True): 1.0,  # LLM.int8: one scale per row, under 0.1 % more
    ("8bit", False): 1.0,
    ("none", True): 2.0,
    ("none", False): 2.0,
}
BYTES_16BIT = 2

# Bytes of optimizer state per trained parameter, the fp32 master copy of a bf16 adapter included.
OPTIMIZER_BYTES = {
    "adamw_torch_fused": 12,  # master 4, first and second moment 4 + 4
    "adamw_torch": 12,
    "adamw_bnb_8bit": 6,  # master 4, moments 1 + 1
    "paged_adamw_8bit": 6,  # pages of states live on the GPU as long as there is room, so they are counted
    "paged_adamw_32bit": 12,
}


@dataclass(frozen=True)
class Calibration:
    """The measured constants of the formula. Coefficients are bytes per token and element of width."""

    layer_per_hidden: float = 10.5  # working set of one layer's recompute and backward pass
    layer_per_intermediate: float = 14.0
    saved_per_hidden: float = 20.3  # activations that one layer keeps without checkpointing
    saved_per_intermediate: float = 8.0
    logits_per_vocabulary: float = 12.0  # bf16 logits 2, fp32 copy 4, fp32 log-softmax gradient 4, bf16 gradient 2
    eager_scores: float = 10.0  # bytes per attention score of one layer: bf16 scores, fp32 softmax, copies, gradients
    dequantized_matrices: float = 1.0  # 16-bit copies of the largest linear layer alive at the peak
    slack: float = 0.30  # reserved but unused, as a share of what is not weights, adapters or optimizer
    context_bytes: float = 0.88 * GIB  # CUDA context and libraries: what NVML shows beyond torch's reserve
    source: str = "5 runs of one H200 (torch 2.11, transformers 5.17), Mistral-7B shapes only"
    error_percent: float = 4.0  # worst error of the allocated peak over those runs


CALIBRATION = Calibration()


@dataclass(frozen=True)
class TrainingSpec:
    """What decides the memory of a training step. Lengths in tokens."""

    architecture: Architecture
    quantization: Literal["4bit", "8bit", "none"] = "4bit"
    double_quantization: bool = True
    lora_r: int = 8
    targets: str | tuple[str, ...] = "all-linear"
    batch_size: int = 1
    seq_length: int = 2048
    prefix_tokens: int = 0  # shared by all examples of a pack and stored once; 0 = examples are padded, not packed
    answer_tokens: int = 128  # label positions per example
    checkpointing: bool = True
    offload: bool = False  # checkpoints wait in host memory
    optimizer: str = "adamw_torch_fused"
    attention: str = "sdpa"

    @property
    def tokens(self) -> int:
        """Tokens in one micro-batch, padding included."""
        return self.prefix_tokens + self.batch_size * (self.seq_length - self.prefix_tokens)

    @property
    def label_tokens(self) -> int:
        """Positions of one micro-batch at which logits are computed."""
        return self.batch_size * min(self.answer_tokens, self.seq_length)

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        longest_tokens: int | None = None,
        prefix_tokens: int = 0,
        answer_tokens: int | None = None,
    ) -> TrainingSpec:
        """Read a spec out of config.yaml; without `longest_tokens` every example is taken as max_seq_length long.

        Raises UserError if the model's shapes are not known on this machine.
        """
        targets = config.lora.target_modules
        return cls(
            architecture=find_architecture(config.model.name),
            quantization=config.quantization.kind,
            double_quantization=config.quantization.bnb_4bit_use_double_quant,
            lora_r=config.lora.r,
            targets=targets if isinstance(targets, str) else tuple(targets),
            batch_size=config.training.per_device_train_batch_size,
            seq_length=longest_tokens or config.model.max_seq_length,
            prefix_tokens=prefix_tokens,
            answer_tokens=answer_tokens or config.evaluation.max_new_tokens,
            checkpointing=config.optimization.gradient_checkpointing,
            optimizer=config.optimization.optim,
            attention=config.model.attn_implementation,
        )


@dataclass(frozen=True)
class Term:
    """One contribution to the peak."""

    name: str
    used_bytes: float
    note: str = ""


@dataclass(frozen=True)
class MemoryEstimate:
    """The terms of the peak. They add up to `total_bytes`, what nvidia-smi would show for the process."""

    spec: TrainingSpec
    terms: tuple[Term, ...]
    calibration: Calibration

    def term(self, name: str) -> float:
        """Bytes of the term called `name`."""
        return next(term.used_bytes for term in self.terms if term.name == name)

    @property
    def allocated_bytes(self) -> float:
        """What torch.cuda.max_memory_allocated() would report."""
        return self.total_bytes - self.term("allocator slack") - self.term("CUDA context")

    @property
    def reserved_bytes(self) -> float:
        """What torch.cuda.max_memory_reserved() would report."""
        return self.total_bytes - self.term("CUDA context")

    @property
    def total_bytes(self) -> float:
        """What the card has to have free."""
        return sum(term.used_bytes for term in self.terms)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for --json, sizes in GiB."""
        return {
            "spec": asdict(self.spec) | {"tokens": self.spec.tokens, "label_tokens": self.spec.label_tokens},
            "terms_gib": {term.name: round(term.used_bytes / GIB, 4) for term in self.terms},
            "allocated_gib": round(self.allocated_bytes / GIB, 3),
            "reserved_gib": round(self.reserved_bytes / GIB, 3),
            "total_gib": round(self.total_bytes / GIB, 3),
            "calibrated_on": self.calibration.source,
            "error_percent": self.calibration.error_percent,
        }


def estimate_training(spec: TrainingSpec, calibration: Calibration = CALIBRATION) -> MemoryEstimate:
    """Estimate the peak memory of a training step, by the formula of docs/BENCHMARKS.md."""
    static = _static_terms(spec)
    checkpoints, working_set, logits = _activation_bytes(spec, calibration)
    peak = Term("logits and loss", logits, "at label positions") if logits > working_set else Term(
        "one layer's working set", working_set, "recompute and backward"
    )  # fmt: skip
    activations = [
        Term(
            "checkpointed inputs" if spec.checkpointing else "saved activations",
            checkpoints,
            "in host memory" if spec.offload and spec.checkpointing else f"{spec.tokens:,} tokens",
        ),
        peak,
    ]
    gradients = static[3].used_bytes
    slack = calibration.slack * (gradients + checkpoints + peak.used_bytes)
    rest = [Term("allocator slack", slack), Term("CUDA context", calibration.context_bytes, "and libraries")]
    return MemoryEstimate(spec, (*static, *activations, *rest), calibration)


def _static_terms(spec: TrainingSpec) -> list[Term]:
    architecture, linear = spec.architecture, spec.architecture.linear_parameters
    width = BYTES_PER_WEIGHT[spec.quantization, spec.double_quantization]
    adapter = architecture.adapter_parameters(spec.lora_r, spec.targets)
    kind = {"4bit": "NF4", "8bit": "int8", "none": "16-bit"}[spec.quantization]
    return [
        Term("base weights", linear * width, f"{kind}, {_count(linear)}"),
        Term("16-bit weights", architecture.other_parameters * BYTES_16BIT, "embeddings, output layer, norms"),
        Term("adapters", adapter * BYTES_16BIT, f"LoRA r={spec.lora_r}, {_count(adapter)}"),
        Term("gradients", adapter * BYTES_16BIT),
        Term("optimizer", adapter * OPTIMIZER_BYTES[spec.optimizer], spec.optimizer),
    ]


def _activation_bytes(spec: TrainingSpec, constants: Calibration) -> tuple[float, float, float]:
    """Bytes of (saved inputs or activations, one layer's working set, logits and loss)."""
    architecture = spec.architecture
    per_token = (
        constants.layer_per_hidden * architecture.hidden + constants.layer_per_intermediate * architecture.intermediate
    )
    saved_per_token = (
        BYTES_16BIT * architecture.hidden
        if spec.checkpointing
        else constants.saved_per_hidden * architecture.hidden
        + constants.saved_per_intermediate * architecture.intermediate
    )
    saved = 0.0 if spec.checkpointing and spec.offload else saved_per_token * architecture.layers * spec.tokens
    scores = architecture.heads * _attention_pairs(spec) if spec.attention == "eager" else 0
    largest_matrix = max(inputs * outputs for inputs, outputs in architecture.linear_shapes.values())
    dequantized = constants.dequantized_matrices * largest_matrix * BYTES_16BIT * (spec.quantization != "none")
    working_set = per_token * spec.tokens + constants.eager_scores * scores + dequantized
    return saved, working_set, constants.logits_per_vocabulary * architecture.vocabulary * spec.label_tokens


def _attention_pairs(spec: TrainingSpec) -> int:
    """Query-key pairs that a dense attention looks at: per padded row, or over the whole pack."""
    return spec.tokens**2 if spec.prefix_tokens else spec.batch_size * spec.seq_length**2


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B weights" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M weights"


def with_changes(spec: TrainingSpec, changes: Mapping[str, Any]) -> TrainingSpec:
    """Copy a spec with some fields replaced."""
    return replace(spec, **changes)
