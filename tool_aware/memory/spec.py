"""The inputs that decide the memory of a training step, and the terms of an estimate. No torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tool_aware.config.settings import Config
from tool_aware.engine.sizes import LENGTHS_MULTIPLE, recorded_tokens, rounded_up
from tool_aware.gpu.device_facts import DeviceFacts
from tool_aware.memory.architectures import Architecture, find_architecture

BYTES_16BIT = 2
LOGIT_BYTES = 8  # fp32 logits, and the copy that torch.logsumexp makes of them


@dataclass(frozen=True)
class OptimizerCost:
    """Bytes per trained parameter: what stays, and what an optimizer step takes on top of the bf16 gradients."""

    state: float
    step: float
    keeps_gradients: bool  # in one buffer that is cleared and never freed (tool_aware.engine.optimizer.FlatAdamW)


OPTIMIZERS = {
    "adamw_torch_fused": OptimizerCost(12, 4, True),  # fp32 master 4 and moments 4 + 4; gradients copied to fp32
    "adamw_torch": OptimizerCost(12, 8, True),  # the unfused update also makes a copy as large as a moment
    "adamw_bnb_8bit": OptimizerCost(2 + 8 / 256, 0, False),  # moments 1 + 1, two fp32 scales per 256; no master
    "paged_adamw_8bit": OptimizerCost(2 + 8 / 256, 0, False),  # pages leave the GPU only when it is full: counted
    "paged_adamw_32bit": OptimizerCost(8, 0, False),
}


@dataclass(frozen=True)
class TrainingSpec:
    """The inputs that decide the memory of a training step, as configured. Lengths in tokens.

    Not every wish has an effect: `resolved` is the step as it runs.
    """

    architecture: Architecture
    quantization: Literal["4bit", "8bit", "none"] = "4bit"
    double_quantization: bool = True
    lora_r: int = 8
    targets: str | tuple[str, ...] = "all-linear"
    batch_size: int = 1
    seq_length: int = 2048
    packing: Literal["prefix", "block", "none"] = "prefix"
    prefix_tokens: int = 0  # shared by all examples of a prefix-shared pack, which holds them once
    answer_tokens: int = 128  # label positions per example
    checkpointing: bool = True
    kept_layers: int = 0  # layers that keep their activations although the others are checkpointed
    offload: bool = False  # layer inputs, and the embedding, wait in host memory
    cached_layers: int = 0  # layers that hold their weights dequantised as well
    accumulation: int = 1  # micro-batches per optimizer step
    optimizer: str = "adamw_torch_fused"
    attention: Literal["sdpa", "eager"] = "sdpa"  # of transformers' forward pass
    decoder: Literal["own", "transformers"] = "own"
    shards: int = 1  # GPUs over which the linear layers' weights are spread
    cuda_graphs: bool | Literal["auto"] = "auto"  # True: packs are padded to the sizes of recorded passes

    @property
    def tokens(self) -> int:
        """Return the tokens in one micro-batch, padding included."""
        if self.packing == "none":
            return self.batch_size * self.row_tokens
        shared = min(self.prefix_tokens, self.seq_length) if self.packing == "prefix" else 0
        computed = shared + self.batch_size * (self.seq_length - shared)
        tokens = rounded_up(computed, LENGTHS_MULTIPLE)
        return recorded_tokens(tokens, is_full=tokens == computed) if self.cuda_graphs is True else tokens

    @property
    def row_tokens(self) -> int:
        """Return the tokens of one padded row."""
        return rounded_up(self.seq_length, LENGTHS_MULTIPLE)

    @property
    def label_tokens(self) -> int:
        """Return the positions of one micro-batch at which logits are computed."""
        return self.batch_size * min(self.answer_tokens, self.seq_length)

    @property
    def target_names(self) -> frozenset[str]:
        """Return the names of the linear layers that carry an adapter."""
        if self.targets == "all-linear":
            return frozenset(self.architecture.linear_shapes)
        return frozenset((self.targets,) if isinstance(self.targets, str) else self.targets)

    @property
    def adapter_parameters(self) -> int:
        """Return the number of trained weights."""
        return self.architecture.adapter_parameters(self.lora_r, self.targets)

    @property
    def has_own_decoder(self) -> bool:
        """Return whether the toolkit's own forward and backward pass runs (engine/decoder.py), not transformers'."""
        is_covered = self.quantization != "8bit" and self.architecture.traits.uncovered(self.seq_length) is None
        return self.decoder == "own" and self.packing != "none" and is_covered and self.shards == 1

    @functools.cached_property
    def resolved(self) -> ResolvedSpec:
        """Return the step as it runs: what has no effect is taken away."""
        if isinstance(self, ResolvedSpec):
            return self
        return ResolvedSpec(**{field.name: getattr(self, field.name) for field in dataclasses.fields(self)})

    def with_fields(self, values: Mapping[str, Any]) -> TrainingSpec:
        """Return a copy with other values of the fields that `values` names."""
        return dataclasses.replace(self, **values)

    def on(self, device: DeviceFacts) -> TrainingSpec:
        """Return the step on this device, which may not run the toolkit's own decoder."""
        return dataclasses.replace(self, decoder="transformers") if device.why_not_own_decoder else self

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        longest_tokens: int | None = None,
        prefix_tokens: int = 0,
        answer_tokens: int | None = None,
        architecture: Architecture | None = None,
        processes: int = 1,
    ) -> TrainingSpec:
        """Read a spec out of config.yaml; without `longest_tokens` every example is taken as max_seq_length long.

        What is `auto` for the memory plan has its value without a budget. Raises UserError if the model's shapes are
        not known on this machine.
        """
        from tool_aware.memory.knobs import configured  # reads specs itself

        targets, optimization = config.lora.target_modules, config.optimization
        architecture = architecture or find_architecture(config.model.name)
        gap = why_not_own(config, architecture, processes)
        return cls(
            architecture=architecture,
            quantization=config.quantization.kind,
            double_quantization=config.quantization.bnb_4bit_use_double_quant,
            lora_r=config.lora.r,
            targets=targets if isinstance(targets, str) else tuple(targets),
            seq_length=longest_tokens or config.model.max_seq_length,
            packing=config.training.packing,
            prefix_tokens=prefix_tokens,
            answer_tokens=answer_tokens or config.evaluation.max_new_tokens,
            optimizer=optimization.optim,
            attention="eager" if config.model.attn_implementation == "eager" else "sdpa",
            decoder="transformers" if gap else "own",
            shards=processes if optimization.shard_base else 1,
            cuda_graphs=optimization.cuda_graphs,
            **configured(config),
        )


def why_not_own(config: Config, architecture: Architecture, processes: int = 1) -> str | None:
    """Return why transformers' forward pass runs and not the toolkit's own, by settings alone; None if its own does."""
    if config.optimization.decoder == "transformers":
        return "optimization.decoder: transformers"
    if config.training.packing == "none":
        return "training.packing: none"
    if config.optimization.shard_base and processes > 1:
        return "optimization.shard_base"
    if config.quantization.kind == "8bit":
        return "8-bit weights"
    if config.quantization.bnb_4bit_compute_dtype == "float16":
        return "float16"  # whose adapter is in float32
    if config.lora.dropout > 0:
        return "lora.dropout"
    return architecture.traits.uncovered(config.model.max_seq_length)


def decoder_text(config: Config, spec: TrainingSpec, processes: int = 1, *, of_device: str | None = None) -> str:
    """Return which forward and backward pass runs, and why, for the plan of a run.

    `of_device` is the reason of the device, if it has one.
    """
    if spec.has_own_decoder:
        return "the toolkit's own"
    reason = why_not_own(config, spec.architecture, processes) or of_device or "this GPU, or its Triton"
    return f"transformers' pass, which takes longer; the toolkit's own does not cover {reason}"


@dataclass(frozen=True)
class ResolvedSpec(TrainingSpec):
    """A training step as it runs: `kept_layers`, `offload`, `decoder` and so on say what happens.

    With `cuda_graphs` "auto", passes that are recorded where a GPU waits, and given up where memory is short, count for
    time and not for memory.
    """

    def __post_init__(self) -> None:
        layers, is_own = self.architecture.layers, self.has_own_decoder
        kept = min(self.kept_layers, layers) if is_own else 0
        offload = self.offload and self.checkpointing and is_own
        can_record = is_own and not offload and OPTIMIZERS[self.optimizer].keeps_gradients
        effects: dict[str, object] = {
            "kept_layers": kept if self.checkpointing else layers,
            "cached_layers": min(self.cached_layers, layers) if is_own and self.quantization == "4bit" else 0,
            "offload": offload,
            "cuda_graphs": self.cuda_graphs if can_record else False,
            "decoder": "own" if is_own else "transformers",
        }
        for name, effect in effects.items():
            object.__setattr__(self, name, effect)  # the dataclass is frozen

    @property
    def passes(self) -> float:
        """Return the passes over the linear layers in a micro-step: forward, input gradients, what is computed again.

        The backward pass of frozen weights computes input gradients only. The toolkit's decoder does not compute the
        down projection again, whose output no gradient needs.
        """
        shapes = self.architecture.linear_shapes
        down = shapes["down_proj"][0] * shapes["down_proj"][1] * self.architecture.layers
        of_a_layer = 1 - down / self.architecture.linear_parameters if self.has_own_decoder else 1.0
        return 2 + of_a_layer * (1 - self.kept_layers / self.architecture.layers)

    @property
    def flops(self) -> float:
        """Return the floating-point operations of a micro-step.

        2 for each weight and token, and 4 x width for each attended pair, in each pass.
        """
        pairs = self.tokens * self.row_tokens / 2  # causal; a pack's examples see their prefix and themselves
        attention = 4 * self.architecture.query_width * self.architecture.layers * pairs
        return self.passes * (2 * self.architecture.linear_parameters * self.tokens + attention)


@dataclass(frozen=True)
class Term:
    """One contribution to the peak."""

    name: str
    used_bytes: float
    note: str = ""


@dataclass(frozen=True)
class Moment:
    """A moment of a step at which memory can peak, and what is alive then besides the model."""

    name: str
    terms: tuple[Term, ...]

    @property
    def used_bytes(self) -> float:
        """Return the bytes of all terms."""
        return sum(term.used_bytes for term in self.terms)


def optimizer_moment(spec: TrainingSpec) -> Moment:
    """Return what the update has alive: no activations, gradients in 16 bit and, for the master weights, in fp32."""
    parameters = spec.adapter_parameters
    in_fp32 = Term("gradients in fp32", parameters * OPTIMIZERS[spec.optimizer].step, "for the update")
    return Moment("the optimizer step", (Term("gradients", parameters * BYTES_16BIT), in_fp32))


def gradients_that_wait(spec: TrainingSpec) -> float:
    """Return the bytes of gradients that exist before a micro-batch begins, and of the copy to fall back to."""
    they_stay = OPTIMIZERS[spec.optimizer].keeps_gradients or spec.accumulation > 1
    return 2.0 * BYTES_16BIT * spec.adapter_parameters if they_stay else 0.0
