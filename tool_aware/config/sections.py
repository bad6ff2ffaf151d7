"""Sections of config.yaml on the model, its training and its export. Their keys are documented in config.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
FolderPath = Annotated[Path, Field(strict=False)]  # strict mode would take a Path object only
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Auto = Literal["auto"]


class Section(BaseModel):
    """A part of config.yaml: unknown keys are refused and values are not coerced across types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelSection(Section):
    """The base model, and the longest example that is accepted."""

    name: str = Field(min_length=1)
    revision: str | None = None
    max_seq_length: Annotated[int, Field(ge=64, le=32768)] = 2048
    attn_implementation: Literal["auto", "sdpa", "eager"] = "auto"


class QuantizationSection(Section):
    """How the frozen base weights are stored."""

    load_in_4bit: bool = True
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"

    @model_validator(mode="after")
    def _one_width(self) -> QuantizationSection:
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other; set one of them to false")
        return self

    @property
    def kind(self) -> Literal["4bit", "8bit", "none"]:
        """The name `monitor_gpu.py estimate --quantization` uses for it."""
        return "4bit" if self.load_in_4bit else "8bit" if self.load_in_8bit else "none"


class LoraSection(Section):
    """The adapter that is trained."""

    r: Annotated[int, Field(ge=1, le=512)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    target_modules: str | list[str] = "all-linear"


class TrainingSection(Section):
    """What is learnt from the data, and when it is scored and saved."""

    output_dir: FolderPath = Path("output")
    num_train_epochs: Annotated[float, Field(gt=0)] = 3
    max_steps: PositiveInt | None = None
    packing: Literal["prefix", "block", "none"] = "prefix"
    per_device_train_batch_size: PositiveInt = 8
    gradient_accumulation_steps: PositiveInt = 1
    per_device_eval_batch_size: PositiveInt = 8
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.03
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    too_long: Literal["error", "drop"] = "error"
    save_steps: PositiveInt = 100
    save_total_limit: PositiveInt = 3
    eval_steps: PositiveInt | None = None
    keep_best: bool = True
    early_stopping_patience: PositiveInt | None = None
    seed: int = 42
    memory_budget_gib: Annotated[float, Field(gt=0)] | Auto | None = "auto"

    @property
    def effective_batch(self) -> int:
        """Examples of one optimizer step on one GPU."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


class OptimizationSection(Section):
    """How the same result is computed. The memory plan replaces every `auto` before the engine sees it."""

    gradient_checkpointing: bool | Auto = "auto"
    offload: bool | Auto = "auto"
    cached_layers: Annotated[int, Field(ge=0)] | Auto = "auto"
    micro_batch: Literal["auto", "fixed"] = "auto"
    kept_layers: Annotated[int, Field(ge=0)] | Auto = "auto"
    decoder: Literal["auto", "transformers"] = "auto"
    optim: Literal["adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = (
        "adamw_torch_fused"
    )
    shard_base: bool = False

    @model_validator(mode="after")
    def _only_checkpoints_move(self) -> OptimizationSection:
        if self.offload is True and self.gradient_checkpointing is False:
            raise ValueError("offload needs gradient_checkpointing: it moves the inputs of checkpointed layers")
        return self


class ExportSection(Section):
    """How the adapter is merged into the base model, and how the result is checked."""

    merge_base: Literal["auto", "original", "dequantized"] = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    check_rows: Annotated[int, Field(ge=0)] = 200


class LoggingSection(Section):
    """What is logged during training."""

    logging_steps: PositiveInt = 10
    tensorboard: bool = True
