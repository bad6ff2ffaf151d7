"""Estimate the GPU memory of a QLoRA training step, term by term, without torch and without a GPU.

The step that is modelled is this toolkit's own: frozen weights as loaded (nothing upcast), LoRA in bf16 with fp32
master weights, checkpointed decoder layers, logits at the label positions only, in chunks. A step has four moments at
which memory can peak; each is estimated and the largest one is reported:

    the loss               every layer's saved tensors and a chunk of logits are alive
    the last layer         backward begins: all checkpoints, and all that one layer's recompute and backward need
    the first layer        backward ends: one checkpoint, one layer, and all gradients
    the optimizer          no activations, but gradients twice, as the masters want them in fp32
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tool_aware.config import Config
from tool_aware.gpu.architectures import ATTENTION_LINEARS, MLP_LINEARS, PRESETS, Architecture, find_architecture
from tool_aware.gpu.readings import GIB

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


@dataclass(frozen=True)
class OptimizerCost:
    """Bytes per trained parameter: what stays, and what an optimizer step takes on top of the bf16 gradients."""

    state: float
    step: float
    keeps_gradients: bool  # in one buffer that is cleared and never freed (tool_aware.training.optimizer.FlatAdamW)


OPTIMIZERS = {
    "adamw_torch_fused": OptimizerCost(12, 4, True),  # fp32 master 4 and moments 4 + 4; gradients copied to fp32
    "adamw_torch": OptimizerCost(12, 8, True),  # the unfused update also makes a copy as large as a moment
    "adamw_bnb_8bit": OptimizerCost(2 + 8 / 256, 0, False),  # moments 1 + 1, two fp32 scales per 256; no master
    "paged_adamw_8bit": OptimizerCost(2 + 8 / 256, 0, False),  # pages leave the GPU only when it is full: counted
    "paged_adamw_32bit": OptimizerCost(8, 0, False),
}


@dataclass(frozen=True)
class Calibration:
    """What had to be measured. Everything else in this file is counted from shapes and dtypes."""

    # Reserved by the allocator and not used, as a share of gradients and activations.
    slack: float = 0.30
    context_bytes: float = 0.88 * GIB  # CUDA context and libraries: what NVML shows beyond torch's reserve
    source: str = "5 runs of a prototype on one H200 (torch 2.11), Mistral-7B with 1,924 to 6,916 tokens"
    error_percent: float = 4.0  # above the worst error over those runs, benchmarks/results/train_memory_*.json


CALIBRATION = Calibration()
FLEX_BLOCK = 128  # packs are padded to a multiple of it for FlexAttention; tool_aware.training.attention.BLOCK
GRAPH_LABELS = 512  # labels are padded to a multiple of it in a CUDA graph; tool_aware.training.graphs.LABELS_MULTIPLE
LOSS_CHUNK = 1024  # labels whose logits exist at once; tool_aware.training.loss.CHUNK_LABELS
STATE_BYTES = 10  # per token and element of width around the loss: the final norm's fp32 copies and its output
SAVED_SCORE_BYTES = 6  # eager attention, per score: fp32 softmax 4 and its bf16 copy 2
PEAK_SCORE_BYTES = 12  # and while differentiated: gradients in bf16 2 and fp32 4
LOGIT_BYTES = 6  # bf16 logits and their fp32 copy; a chunk's fp32 logits live until the next chunk's are made


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
    packing: Literal["prefix", "block", "none"] = "none"
    prefix_tokens: int = 0  # shared by all examples of a prefix-shared pack, which holds them once
    answer_tokens: int = 128  # label positions per example
    checkpointing: bool = True
    offload: bool = False  # checkpoints wait in host memory
    accumulation: int = 1  # micro-batches per optimizer step
    optimizer: str = "adamw_torch_fused"
    attention: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    cuda_graphs: bool = False  # gradients then live in buffers of their own, and labels are padded
    compiled: bool = False  # decoder layers by torch.compile, which recomputes what is cheap instead of keeping it

    @property
    def tokens(self) -> int:
        """Tokens in one micro-batch, padding included."""
        shared = min(self.prefix_tokens, self.seq_length) if self.packing == "prefix" else 0
        tokens = shared + self.batch_size * (self.seq_length - shared)
        return -(-tokens // FLEX_BLOCK) * FLEX_BLOCK if self.attention == "flex_attention" else tokens

    @property
    def label_tokens(self) -> int:
        """Positions of one micro-batch at which logits are computed."""
        labels = self.batch_size * min(self.answer_tokens, self.seq_length)
        return -(-labels // GRAPH_LABELS) * GRAPH_LABELS if self.cuda_graphs else labels

    @property
    def target_names(self) -> frozenset[str]:
        """Names of the linear layers that carry an adapter."""
        if self.targets == "all-linear":
            return frozenset(self.architecture.linear_shapes)
        return frozenset((self.targets,) if isinstance(self.targets, str) else self.targets)

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        longest_tokens: int | None = None,
        prefix_tokens: int = 0,
        answer_tokens: int | None = None,
        architecture: Architecture | None = None,
    ) -> TrainingSpec:
        """Read a spec out of config.yaml; without `longest_tokens` every example is taken as max_seq_length long.

        Raises UserError if the model's shapes are not known on this machine.
        """
        targets = config.lora.target_modules
        return cls(
            architecture=architecture or find_architecture(config.model.name),
            quantization=config.quantization.kind,
            double_quantization=config.quantization.bnb_4bit_use_double_quant,
            lora_r=config.lora.r,
            targets=targets if isinstance(targets, str) else tuple(targets),
            batch_size=config.training.per_device_train_batch_size,
            seq_length=longest_tokens or config.model.max_seq_length,
            packing=config.training.packing,
            prefix_tokens=prefix_tokens,
            answer_tokens=answer_tokens or config.evaluation.max_new_tokens,
            accumulation=config.training.gradient_accumulation_steps,
            checkpointing=config.optimization.gradient_checkpointing,
            optimizer=config.optimization.optim,
            attention=config.training_attention(),
            cuda_graphs=uses_cuda_graphs(config),
            compiled=config.optimization.compile,
        )


def uses_cuda_graphs(config: Config) -> bool:
    """Whether training on one GPU replays its step as a graph: packs without dropout (config.yaml: cuda_graphs)."""
    return config.optimization.cuda_graphs and config.training.packing != "none" and config.lora.dropout == 0


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
    peaks_in: str  # the moment of a step at which memory peaks
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
            "peaks_in": self.peaks_in,
            "terms_gib": {term.name: round(term.used_bytes / GIB, 4) for term in self.terms},
            "allocated_gib": round(self.allocated_bytes / GIB, 3),
            "reserved_gib": round(self.reserved_bytes / GIB, 3),
            "total_gib": round(self.total_bytes / GIB, 3),
            "calibrated_on": self.calibration.source,
            "not_measured": unmeasured_features(self.spec),
            "error_percent": self.calibration.error_percent,
        }


def estimate_training(spec: TrainingSpec, calibration: Calibration = CALIBRATION) -> MemoryEstimate:
    """Estimate the peak memory of a training step: the largest of the four moments named above."""
    peak = max(_moments(spec), key=lambda moment: sum(term.used_bytes for term in moment.terms))
    slack = calibration.slack * sum(term.used_bytes for term in peak.terms)
    rest = [Term("allocator slack", slack), Term("CUDA context", calibration.context_bytes, "and libraries")]
    return MemoryEstimate(spec, peak.name, (*_static_terms(spec), *peak.terms, *rest), calibration)


def unmeasured_features(spec: TrainingSpec) -> list[str]:
    """Name what a spec has that no run of the calibration had: there the formula is counted, not measured."""
    features = {
        "FlexAttention": spec.attention == "flex_attention",
        "eager attention": spec.attention == "eager",
        "CUDA graphs": spec.cuda_graphs,
        "compiled layers": spec.compiled,
        "no checkpointing": not spec.checkpointing,
        "8-bit weights": spec.quantization == "8bit",
        "16-bit weights": spec.quantization == "none",
        "another shape": spec.architecture.linear_shapes != PRESETS["mistral-7b-v0.2"].linear_shapes,
    }
    return [name for name, is_there in features.items() if is_there]


def _static_terms(spec: TrainingSpec) -> list[Term]:
    architecture, linear = spec.architecture, spec.architecture.linear_parameters
    width = BYTES_PER_WEIGHT[spec.quantization, spec.double_quantization]
    adapter = architecture.adapter_parameters(spec.lora_r, spec.targets)
    kind = {"4bit": "NF4", "8bit": "int8", "none": "16-bit"}[spec.quantization]
    return [
        Term("base weights", linear * width, f"{kind}, {_count(linear)}"),
        Term("16-bit weights", architecture.other_parameters * BYTES_16BIT, "embeddings, output layer, norms"),
        Term("adapters", adapter * BYTES_16BIT, f"LoRA r={spec.lora_r}, {_count(adapter)}"),
        Term("optimizer states", adapter * OPTIMIZERS[spec.optimizer].state, spec.optimizer),
    ]


@dataclass(frozen=True)
class _Moment:
    name: str
    terms: tuple[Term, ...]


def _moments(spec: TrainingSpec) -> Iterator[_Moment]:
    architecture, layers = spec.architecture, spec.architecture.layers
    adapter = architecture.adapter_parameters(spec.lora_r, spec.targets)
    gradients = adapter * BYTES_16BIT
    # Gradients that have a buffer of their own are there all along, with a copy to fall back to if memory runs out.
    they_stay = OPTIMIZERS[spec.optimizer].keeps_gradients or spec.accumulation > 1 or spec.cuda_graphs
    waiting = Term("gradients", 2 * gradients if they_stay else 0.0, "and a copy to fall back to")

    checkpoint = 0.0 if spec.offload else float(BYTES_16BIT * architecture.hidden * spec.tokens)
    layer, mask = saved_bytes_per_layer(spec), Term("attention mask", mask_bytes(spec))
    if spec.checkpointing:
        saved, working = layers * (checkpoint + bytes_that_escape_checkpointing(spec)), layer + backward_bytes(spec)
        saved_name, working_name = "checkpointed inputs", "one layer's working set"
    else:
        saved, working = layers * layer, backward_bytes(spec)
        saved_name, working_name = "saved activations", "backward temporaries"
    note = "in host memory" if spec.offload and spec.checkpointing else f"{spec.tokens:,} tokens"

    every_layer, one_layer = Term(saved_name, saved, note), Term(saved_name, saved / layers, "of the first layer")
    one_backward = Term(working_name, working)
    all_gradients = Term("gradients", max(waiting.used_bytes, gradients), "of all layers")
    in_fp32 = Term("gradients in fp32", adapter * OPTIMIZERS[spec.optimizer].step, "for the update")

    yield _Moment("the loss", (waiting, mask, every_layer, Term("logits", loss_bytes(spec))))
    yield _Moment("the last layer's backward pass", (waiting, mask, every_layer, one_backward))
    yield _Moment("the first layer's backward pass", (all_gradients, mask, one_layer, one_backward))
    yield _Moment("the optimizer step", (Term("gradients", gradients), in_fp32))


def saved_bytes_per_layer(spec: TrainingSpec) -> float:
    """Bytes autograd keeps of one decoder layer: counted from transformers' Mistral and peft's LoRA layers."""
    per_token = _saved_in_attention(spec) + _saved_in_mlp(spec)
    if spec.attention == "eager":
        return per_token * spec.tokens + SAVED_SCORE_BYTES * spec.architecture.heads * attention_pairs(spec)
    return per_token * spec.tokens + (BYTES_16BIT * attention_pairs(spec) if spec.attention == "sdpa" else 0)


def _saved_in_attention(spec: TrainingSpec) -> float:
    """Bytes per token: the norm's input; q, k, v and output; log-sum-exp; LoRA's inputs."""
    architecture, kept = spec.architecture, _with_kept_input(spec, ATTENTION_LINEARS)
    # SDPA wants keys and values repeated for the query heads that share them; FlexAttention does not.
    key_width = architecture.kv_width if spec.attention == "flex_attention" else architecture.query_width
    saved = _norm_bytes(spec) + 2 * BYTES_16BIT * (architecture.query_width + key_width) + 4 * architecture.heads
    # A frozen linear layer keeps nothing; LoRA keeps its input, once for those that share it, and the r-wide product.
    if kept - {"o_proj"} and not spec.compiled:
        saved += BYTES_16BIT * architecture.hidden
    return saved + BYTES_16BIT * spec.lora_r * len(spec.target_names & set(ATTENTION_LINEARS))


def _saved_in_mlp(spec: TrainingSpec) -> float:
    """Bytes per token: the norm's input; gate, its activation and up; LoRA's inputs."""
    architecture, kept = spec.architecture, _with_kept_input(spec, MLP_LINEARS)
    saved = _norm_bytes(spec) + 3 * BYTES_16BIT * architecture.intermediate
    if kept - {"down_proj"}:
        saved += BYTES_16BIT * architecture.hidden
    if "down_proj" in kept and not spec.compiled:
        saved += BYTES_16BIT * architecture.intermediate
    return saved + BYTES_16BIT * spec.lora_r * len(spec.target_names & set(MLP_LINEARS))


def bytes_that_escape_checkpointing(spec: TrainingSpec) -> float:
    """Bytes per layer that are not freed after the forward pass although they will be recomputed.

    bitsandbytes' 8-bit layers keep their inputs on the autograd node itself and not as saved tensors
    (`MatMul8bitLt.forward`: ctx.tensors), where torch.utils.checkpoint cannot take them away.
    """
    if spec.quantization != "8bit":
        return 0.0
    architecture = spec.architecture
    width = 2 * architecture.hidden + architecture.query_width + architecture.intermediate
    return float(BYTES_16BIT * width * spec.tokens)


def _with_kept_input(spec: TrainingSpec, names: tuple[str, ...]) -> frozenset[str]:
    """Those of `names` whose input is kept for the backward pass: adapted ones, and all that are in 8 bits."""
    return frozenset(names) if spec.quantization == "8bit" else spec.target_names & frozenset(names)


def _norm_bytes(spec: TrainingSpec) -> int:
    """RMSNorm keeps an fp32 copy of its input; compiled, the input itself."""
    return (BYTES_16BIT if spec.compiled else 4) * spec.architecture.hidden


def backward_bytes(spec: TrainingSpec) -> float:
    """Bytes that live for a moment while a layer is differentiated, on top of what it saved.

    The peak is in the MLP: at a dequantised weight matrix, or, with many tokens, among its wide gradients. Eager
    attention peaks among the gradients of its scores instead, when the MLP's tensors are gone.
    """
    architecture = spec.architecture
    hidden, middle = BYTES_16BIT * architecture.hidden, BYTES_16BIT * architecture.intermediate
    largest_matrix = max(inputs * outputs for inputs, outputs in architecture.linear_shapes.values())
    dequantized = largest_matrix * BYTES_16BIT * (spec.quantization != "none")
    peaks = [(hidden + middle) * spec.tokens + dequantized, (hidden + 2 * middle) * spec.tokens]
    if spec.attention == "eager":
        scores = (PEAK_SCORE_BYTES - SAVED_SCORE_BYTES) * architecture.heads * attention_pairs(spec)
        peaks.append(scores + (hidden - _saved_in_mlp(spec)) * spec.tokens)
    return max(peaks)


def mask_bytes(spec: TrainingSpec) -> float:
    """Bytes of the mask that the model is given: bool, or 16-bit where attention adds it."""
    if spec.attention == "flex_attention":
        return 0.0  # a few bytes per block of 128 x 128 pairs
    return float((BYTES_16BIT if spec.attention == "eager" else 1) * attention_pairs(spec))


def loss_bytes(spec: TrainingSpec) -> float:
    """Bytes of logits, chunk by chunk, and of the states they are made from."""
    chunk = min(spec.label_tokens, LOSS_CHUNK)
    next_chunk = min(spec.label_tokens - chunk, LOSS_CHUNK)
    logits = LOGIT_BYTES * chunk if not next_chunk else 4 * chunk + LOGIT_BYTES * next_chunk
    states = STATE_BYTES * spec.architecture.hidden * spec.tokens
    return logits * spec.architecture.vocabulary + states


def attention_pairs(spec: TrainingSpec) -> int:
    """Query-key pairs of the dense mask: of each padded row, or of the whole pack."""
    return spec.tokens**2 if spec.packing != "none" else spec.batch_size * spec.seq_length**2


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B weights" if parameters >= 1e9 else f"{parameters / 1e6:.1f}M weights"
