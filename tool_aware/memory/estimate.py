"""Estimate the GPU memory of a QLoRA training step, term by term, without torch and without a GPU.

The step that is modelled is this toolkit's own: frozen weights as loaded (nothing upcast), LoRA in bf16 with fp32
master weights, logits at the label positions only, in chunks; packs through the toolkit's decoder (decoder_step.py),
all else through transformers and autograd (autograd_step.py). Memory can peak at several moments of a step; each is
estimated and the largest one is reported:

    the loss               what all layers keep and a chunk of logits are alive
    the last layer         backward begins: all that is kept, and all that one layer's recompute and backward need
    the first layer        backward ends: one layer, and all gradients
    the optimizer          no activations, but gradients twice, as the masters want them in fp32
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tool_aware.memory import autograd_step, decoder_step
from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.spec import BYTES_16BIT, OPTIMIZERS, Moment, ResolvedSpec, Term, TrainingSpec, optimizer_moment
from tool_aware.units import GIB, MIB

# Bytes per weight of a quantised linear layer.
BYTES_PER_WEIGHT = {
    ("4bit", True): 4.127 / 8,  # 4 bits + scales quantised to 8 bits per 64 weights (QLoRA, arXiv 2305.14314, sec. 3)
    ("4bit", False): 4.5 / 8,  # 4 bits + one fp32 scale per 64 weights
    ("8bit", True): 1.0,  # LLM.int8: one scale per row, under 0.1 % more
    ("8bit", False): 1.0,
    ("none", True): 2.0,
    ("none", False): 2.0,
}
BYTES_SHARDED = {
    "4bit": 0.5,
    "8bit": 1.0,
    "none": 2.0,
}  # of them what optimization.shard_base spreads: all but the scales
GATHERED_LAYERS = 2  # whole at a time: the one that computes and the next


@dataclass(frozen=True)
class Calibration:
    """Measured constants (benchmarks/memory_calibration.py). All else is counted from shapes and dtypes."""

    workspace_bytes: float = 32.6 * MIB  # that cuBLAS keeps for each thread that multiplies matrices, on Hopper
    # Reserved by the allocator (expandable segments, as in training) and not used: shares of what `slack_parts` names.
    slack_shares: tuple[float, ...] = (0.078, 0.107, 1.6, 0.279, 0.029, 0.061)
    bare_context_bytes: float = 1.205 * GIB  # what a process takes of the card before it has computed anything
    libraries_bytes: float = 0.069 * GIB  # their kernels, for each set that `library_sets` counts
    source: str = "68 runs on an H100 and 13 on an H200 (torch 2.11, CUDA 13), benchmarks/results/train_memory_*.json"
    allocated_error_percent: float = 1.0  # above the worst error over all those runs
    error_percent: float = 4.0  # likewise, of all that is needed


CALIBRATION = Calibration()
MEASURED_PRESETS = ("mistral-7b-v0.2", "tinyllama-1.1b")


@dataclass(frozen=True)
class MemoryEstimate:
    """The terms of the peak. They add up to `total_bytes`, what nvidia-smi would show for the process."""

    spec: TrainingSpec
    peaks_in: str  # the moment of a step at which memory peaks
    terms: tuple[Term, ...]
    calibration: Calibration

    def term(self, name: str) -> float:
        """Return the bytes of the term called `name`."""
        return next(term.used_bytes for term in self.terms if term.name == name)

    @property
    def allocated_bytes(self) -> float:
        """Return what torch.cuda.max_memory_allocated() would report."""
        return self.total_bytes - self.term("allocator slack") - self.term("CUDA context")

    @property
    def tensor_bytes(self) -> float:
        """Return the allocated bytes that are not inside the libraries: what a trace sees."""
        return self.allocated_bytes - self.term("cuBLAS workspaces")

    @property
    def reserved_bytes(self) -> float:
        """Return what torch.cuda.max_memory_reserved() would report."""
        return self.total_bytes - self.term("CUDA context")

    @property
    def total_bytes(self) -> float:
        """Return what the card has to have free."""
        return sum(term.used_bytes for term in self.terms)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for --json, sizes in GiB."""
        return {
            "spec": asdict(self.spec) | {"tokens": self.spec.tokens, "label_tokens": self.spec.label_tokens},
            "peaks_in": self.peaks_in,
            "terms_gib": {term.name: round(term.used_bytes / GIB, 4) for term in self.terms},
            "allocated_gib": round(self.allocated_bytes / GIB, 3),
            "reserved_gib": round(self.reserved_bytes / GIB, 3),
            "total_gib": round(self.total_bytes / GIB, 3),
            "calibrated_on": self.calibration.source,
            "not_measured": unmeasured_features(self.spec),
            "allocated_error_percent": self.calibration.allocated_error_percent,
            "error_percent": self.calibration.error_percent,
        }


def estimate_training(spec: TrainingSpec, calibration: Calibration = CALIBRATION) -> MemoryEstimate:
    """Estimate the peak memory of a training step: the largest of the moments named above."""
    step = spec.resolved
    peak = peak_of(step)
    slack = sum(share * part for share, part in zip(calibration.slack_shares, slack_parts(step), strict=True))
    workspaces = Term("cuBLAS workspaces", workspaces_of(step) * calibration.workspace_bytes)
    context = Term("CUDA context", context_bytes(step, calibration), "and libraries")
    rest = (workspaces, Term("allocator slack", slack), context)
    return MemoryEstimate(spec, peak.name, (*_static_terms(step), *peak.terms, *rest), calibration)


def context_bytes(spec: ResolvedSpec, calibration: Calibration = CALIBRATION) -> float:
    """Return the CUDA context and the libraries' kernels: what NVML shows beyond torch's reserve."""
    return calibration.bare_context_bytes + calibration.libraries_bytes * library_sets(spec)


def workspaces_of(spec: ResolvedSpec) -> int:
    """Count the threads and streams that multiply matrices: autograd's backward pass has one, and a recorded pass."""
    return 1 + (spec.cuda_graphs is True or not spec.has_own_decoder)


def library_sets(spec: ResolvedSpec) -> int:
    """Count what brings kernels and handles of its own: any step, its second stream or thread, 8 bits."""
    return 2 + (spec.quantization == "8bit")


def moments(spec: ResolvedSpec) -> list[Moment]:
    """Return the moments of a step at which memory can peak."""
    module = decoder_step if spec.has_own_decoder else autograd_step
    return [*module.moments(spec), optimizer_moment(spec)]


def peak_of(spec: ResolvedSpec) -> Moment:
    """Return the moment that needs most."""
    return max(moments(spec), key=lambda moment: moment.used_bytes)


def slack_parts(spec: ResolvedSpec) -> tuple[float, ...]:
    """Return what the allocator's slack grows with, in the order of SLACK_PARTS; bytes."""
    widest = float(BYTES_16BIT * spec.architecture.intermediate * spec.tokens)
    own = spec.has_own_decoder
    rearranged = base_bytes(spec) if spec.quantization == "none" else 0.0
    between = decoder_step.kept_between_matrices_bytes(spec) if own else 0.0
    return GIB, widest * own, widest * (not own), optimizer_moment(spec).used_bytes, rearranged, between


SLACK_PARTS = (
    *("a GiB", "the widest activation", "it, with autograd", "the update", "16-bit weights"),
    "activations kept beside weights written ahead",
)


def unmeasured_features(spec: TrainingSpec) -> list[str]:
    """Name what a spec has that no run of the calibration had: there the formula is counted, not measured."""
    measured_shapes = [PRESETS[name].linear_shapes for name in MEASURED_PRESETS]
    features = {
        "biases": spec.architecture.has_qkv_bias,
        "tied embeddings": spec.architecture.ties_embeddings,
        "another shape": spec.architecture.linear_shapes not in measured_shapes,
    }
    return [name for name, is_there in features.items() if is_there]


def _static_terms(spec: ResolvedSpec) -> list[Term]:
    architecture, adapter = spec.architecture, spec.adapter_parameters
    others, note = architecture.other_parameters * BYTES_16BIT, "embeddings, output layer, norms"
    if spec.offload and not architecture.ties_embeddings:
        others, note = others - architecture.vocabulary * architecture.hidden * BYTES_16BIT, "output layer, norms"
    return [
        Term("base weights", base_bytes(spec), f"{_kind(spec)}, {_count(architecture.linear_parameters)}"),
        Term("cached weights", spec.cached_layers * cached_layer_bytes(spec), f"{spec.cached_layers} layers"),
        Term("16-bit weights", others, note),
        Term("adapters", adapter * BYTES_16BIT, f"LoRA r={spec.lora_r}, {_count(adapter)}"),
        Term("optimizer states", adapter * OPTIMIZERS[spec.optimizer].state, spec.optimizer),
    ]


def base_bytes(spec: TrainingSpec) -> float:
    """Return the bytes of the linear layers' weights on one GPU."""
    if spec.quantization == "none" and spec.has_own_decoder:  # with room for the updates beside them
        return spec.architecture.layers * decoder_step.layer_matrices_bytes(spec)
    parameters = spec.architecture.linear_parameters
    whole = parameters * BYTES_PER_WEIGHT[spec.quantization, spec.double_quantization]
    if spec.shards == 1:
        return whole
    scales = whole - parameters * BYTES_SHARDED[spec.quantization]  # stay with every GPU
    gathered = GATHERED_LAYERS * (whole - scales) / spec.architecture.layers
    return scales + (whole - scales) / spec.shards + gathered


def cached_layer_bytes(spec: TrainingSpec) -> float:
    """Return the bytes of one layer's weights in 16 bit, held beside the quantised ones."""
    return decoder_step.layer_matrices_bytes(spec)


def _kind(spec: TrainingSpec) -> str:
    return {"4bit": "NF4", "8bit": "int8", "none": "16-bit"}[spec.quantization]


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B weights" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M weights"
