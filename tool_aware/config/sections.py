"""Sections of config.yaml on the model, its training and its export.

The text under a field is the comment above its key in config.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

LARGEST_COUNT = 2**31 - 1  # what libraries and servers take as a count
PositiveInt = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
Count = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what numpy takes
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _as_written(value: object) -> object:
    """Return a name or path; raise ValueError for one in which something else was to fill in a part."""
    text = str(value) if isinstance(value, str | Path) else ""
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be empty")
    if text.startswith("~"):
        raise ValueError("~ is not expanded here; write the whole path")
    if re.search(r"\$\{?\w|\{\{|%\w+%", text):
        raise ValueError("variables are not filled in here; write the value itself")
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return value


AsWritten = BeforeValidator(_as_written)
FolderPath = Annotated[Path, Field(strict=False), AsWritten]  # strict mode would take a Path object only
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Auto = Literal["auto"]
LONGEST_SEQUENCE = 32768  # tokens


@dataclass(frozen=True)
class WithoutBudget:
    """The value that a setting of the memory plan has where it is `auto` and no memory budget is set."""

    value: bool | int | str


class Section(BaseModel):
    """A part of config.yaml: unknown keys are refused and values are not coerced across types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False)


class ModelSection(Section):
    """The base model, and the longest example that is accepted."""

    name: Annotated[str, Field(min_length=1), AsWritten]
    """A Hugging Face id, or a folder with weights and tokenizer."""
    revision: str | None = None
    """A branch, tag or commit of that id; null = its main branch."""
    max_seq_length: Annotated[int, Field(ge=64, le=LONGEST_SEQUENCE)] = 2048
    """Tokens, 64-32768: the longest example (tools + query + answer) that is accepted. Memory follows the longest
    example present, not this limit."""
    attn_implementation: Literal["auto", "sdpa", "eager"] = "auto"
    """Attention of transformers' forward pass: auto (= sdpa) | sdpa | eager."""


class QuantizationSection(Section):
    """Storage of the frozen base weights."""

    load_in_4bit: bool = True
    """QLoRA: the frozen base weights take 3.4 GiB instead of 13.5."""
    load_in_8bit: bool = False
    """6.6 GiB, for cards of 16 GB and more; not together with load_in_4bit."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """nf4 | fp4; nf4 is the better grid for normally distributed weights."""
    bnb_4bit_use_double_quant: bool = True
    """Quantise the scales too: saves 0.37 bit per weight, 0.3 GiB on a 7B."""
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """auto | bfloat16 | float16 | float32; auto = bfloat16 where the GPU has it, else float16. On a CPU auto answers in
    float32, and trains in bfloat16 if the processor multiplies it (AVX512-BF16, AMX), else in float32."""

    @model_validator(mode="after")
    def _one_width(self) -> QuantizationSection:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other; set one of them to false")
        return self

    @property
    def kind(self) -> Literal["4bit", "8bit", "none"]:
        """Return its name in `monitor_gpu.py estimate --quantization`."""
        return "4bit" if self.load_in_4bit else "8bit" if self.load_in_8bit else "none"


class LoraSection(Section):
    """The adapter that is trained."""

    r: Annotated[int, Field(ge=1, le=512)] = 8
    """Rank, 1-512: 8 is 21 million trained parameters on a 7B; 16 for larger datasets, 4 for the smallest cards."""
    alpha: Annotated[float, Field(gt=0)] = 16
    """The update is scaled by alpha / r; > 0."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """0.0-1.0 exclusive; above 0 it costs memory and speed and rarely helps at this rank."""
    target_modules: str | list[str] = "all-linear"
    """all-linear, or a list such as [q_proj, v_proj]."""


class TrainingSection(Section):
    """Length and rate of the training, when it is scored and saved, and the memory it may take."""

    output_dir: FolderPath = Path("output")
    """Adapter, merged model, checkpoints and logs are written here; --output_dir overrides it."""
    num_train_epochs: Annotated[float, Field(gt=0, le=100_000)] = 3
    """Passes over train.json, > 0; fractions are allowed."""
    max_steps: PositiveInt | None = None
    """Optimizer steps, >= 1; overrides num_train_epochs when given."""
    packing: Literal["prefix", "block", "none"] = "prefix"
    """prefix = the common beginning of a micro-batch (the tools) is computed once; block = packed without sharing; none
    = padded rows. Loss and gradients are the same in all three."""
    per_device_train_batch_size: PositiveInt = 8
    """Examples per forward pass, >= 1; an H200 takes 0.12 s for 8 and 0.34 s for 33."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-steps per optimizer step, >= 1; the effective batch is the product of the two."""
    per_device_eval_batch_size: PositiveInt = 8
    """Examples per forward pass of a validation, >= 1."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak learning rate, 0-1; about ten times that of full fine-tuning."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """linear | cosine | constant | constant_with_warmup."""
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.03
    """Fraction of all steps in which the learning rate rises from 0, 0-1 exclusive."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    """AdamW's decoupled decay, >= 0."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this L2 norm, > 0."""
    too_long: Literal["error", "drop"] = "error"
    """Examples above model.max_seq_length: error | drop. They are never cut: that would cut the answer."""
    save_steps: PositiveInt | Auto = "auto"
    """Optimizer steps between checkpoints, >= 1; auto = 100, or as many hundreds as keep the time of writing them below
    a twentieth of the time of training. The last step, and the one before a stop, always have one."""
    save_total_limit: PositiveInt = 3
    """Checkpoints kept, >= 1; the oldest are deleted first."""
    tool_variation: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share of the optimizer steps, 0-1, whose prompts list other tools: in another order, renamed, masked, reworded,
    with other defaults, one missing, some of a library of 44 more, or those alone. The model then reads what is offered
    instead of learning names; 0 = every prompt lists `tools` as they are."""
    tool_weight: Annotated[float, Field(ge=1.0, le=100.0)] = 3.0
    """How much each token of the tool's name counts in the loss, 1-100, where any other label counts 1. An answer has
    some four of these among eighty; more teaches the choice of the tool faster, and its parameters slower."""
    eval_steps: PositiveInt | Auto | None = "auto"
    """Optimizer steps between two validations on val.json, >= 1; null = after every epoch; both on all its rows. auto =
    likewise after every epoch, but seldomer, or on a fixed sample of the rows with each tool's share, where validations
    would take more than a tenth of the time of training; the plan says when and how many. The last step is always
    validated."""
    keep_best: bool = True
    """Export the adapter of the best validation, not of the last: the lowest loss of those whose tool accuracy is
    within one standard error of the highest."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after so many validations in a row (see eval_steps) without a better one, >= 1; null = never."""
    seed: Seed = 42
    """Seed of the order of examples and of the initial adapter weights."""
    memory_budget_gib: Annotated[float, Field(gt=0, le=100_000)] | Auto | None = "auto"
    """GiB of the card, > 0, that the run may fill: the memory plan chooses every `auto` under `optimization` so that a
    step is as short as the budget allows. auto = what is free on the card, less 0.3; null = no plan: what is auto gets
    the value named as without a budget. Without a GPU auto is a quarter of the free memory, and the plan decides only
    whether layers are computed or dequantised twice (gradient_checkpointing, cached_layers)."""

    @property
    def effective_batch(self) -> int:
        """Return the number of examples of one optimizer step on one GPU."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class OptimizationSection(Section):
    """Ways to compute the same result. The keys with auto decide how memory is used and not what is learnt; the plan
    that sets them (see training.memory_budget_gib) is printed with its reasons before training."""

    gradient_checkpointing: Annotated[bool | Auto, WithoutBudget(True)] = "auto"
    """Recompute activations in the backward pass: a third slower, several times less memory. auto | true | false;
    without a budget true."""
    offload: Annotated[bool | Auto, WithoutBudget(False)] = "auto"
    """Keep the inputs of checkpointed layers in host memory: 0.6 GiB less for 1,024 tokens on a 7B, a little slower;
    needs gradient_checkpointing. auto | true | false; without a budget false."""
    cached_layers: Annotated[Count | Auto, WithoutBudget(0)] = "auto"
    """Decoder layers that keep their weights dequantised as well: 0.41 GiB each on a 7B, up to 8 % faster for all of
    them. auto | a number >= 0; without a budget 0."""
    micro_batch: Annotated[Literal["auto", "fixed"], WithoutBudget("fixed")] = "auto"
    """auto = the effective batch is split into as few micro-batches as pays and fits, whatever the two factors in
    `training` are; fixed = micro-batches as written there (also without a budget)."""
    kept_layers: Annotated[Count | Auto, WithoutBudget(0)] = "auto"
    """Decoder layers that keep their activations although gradient_checkpointing is on: 0.08 MiB a token and layer on a
    7B, each 0.6 to 0.9 % faster. auto | a number >= 0; without a budget 0."""
    decoder: Literal["auto", "transformers"] = "auto"
    """auto = the toolkit's own forward and backward pass where it covers the model (Mistral, Ministral 3, Llama,
    Qwen2 and Qwen3 in 4 or 16 bit, no dropout): 1.7 to 2.9 times as fast, in less memory; transformers = always the
    library's."""
    cuda_graphs: bool | Auto = "auto"
    """Record passes of the toolkit's own decoder as CUDA graphs and replay them: up to three times as fast where the
    GPU would wait for Python (few examples a step, a small model), 0.2 to 0.4 GiB more, and up to an eighth more tokens
    of large packs. auto = once it was seen to wait; true | false. Only with adamw_torch and adamw_torch_fused."""
    optim: Literal["adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = (
        "adamw_torch_fused"
    )
    """adamw_torch_fused | adamw_torch | adamw_bnb_8bit | paged_adamw_8bit | paged_adamw_32bit. The first is the best
    choice from 6 GB up: one launch per step, 0.2 GiB of state at r=8. paged_adamw_8bit saves 0.25 GiB at r=8. The last
    three are bitsandbytes': they update the 16-bit weights themselves and lose what is below their rounding, so they do
    not suit a learning_rate under 1e-4."""
    shard_base: bool = False
    """true = the frozen weights are spread over the GPUs of a launch and fetched layer by layer (FSDP), for models that
    do not fit on one; slower. Without a launcher it changes nothing."""

    @model_validator(mode="after")
    def _offload_needs_checkpoints(self) -> OptimizationSection:
        if self.offload is True and self.gradient_checkpointing is False:
            raise ValueError("offload needs gradient_checkpointing: it moves the inputs of checkpointed layers")
        return self


# Setting of `optimization` that the memory plan may choose -> its value where no budget is set.
WITHOUT_BUDGET: Mapping[str, bool | int | str] = {
    name: entry.value
    for name, field in OptimizationSection.model_fields.items()
    for entry in field.metadata
    if isinstance(entry, WithoutBudget)
}


class ExportSection(Section):
    """The merge of the adapter into the base model, and its check."""

    merge_base: Literal["auto", "original", "dequantized"] = "auto"
    """What final_model adds the adapter to: original = the base's own weights; dequantized = their 4- or 8-bit values,
    which the adapter was trained on; auto = whichever answers val.json most like base + adapter as trained."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of final_model: auto = also measured, the base's own or float16, which is as small; bfloat16 | float16
    | float32 (twice as large). Each choice that `auto` leaves open reads the weights once, a layer at a time; the
    seconds are printed."""
    check_rows: Count = 200
    """Rows, >= 0, on which final_model is read back and must choose the same tools as base + adapter as trained
    (test.json, else val.json). Below 99 % the exit code is 3. 0 = no check, and auto takes the weights that the adapter
    was trained on and the base's own precision."""


class LoggingSection(Section):
    """Logs of a training run."""

    logging_steps: PositiveInt = 10
    """Optimizer steps between lines of output/metrics.jsonl, >= 1."""
    tensorboard: bool = True
    """Write event files below output/. Weights & Biases: set USE_WANDB=true in the environment."""
