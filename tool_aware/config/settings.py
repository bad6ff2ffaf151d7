"""Typed sections of config.yaml, `--set` overrides, and the secrets that live in the environment only.

Every mistake in a config is reported at once, each with its dotted key. Keys are documented in config.yaml itself.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tool_aware.command_line import add_version_argument
from tool_aware.config import yaml as yaml_file
from tool_aware.config.problems import explain
from tool_aware.console import UserError
from tool_aware.tools import TOOL_NAME, Tool, Toolbox

DEFAULT_CONFIG = Path("config.yaml")

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
FolderPath = Annotated[Path, Field(strict=False)]  # strict mode would take a Path object only
OpenFraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Auto = Literal["auto"]


class Section(BaseModel):
    """A part of config.yaml: unknown keys are refused and values are not coerced across types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelSection(Section):
    name: str = Field(min_length=1)
    revision: str | None = None
    max_seq_length: Annotated[int, Field(ge=64, le=32768)] = 2048
    attn_implementation: Literal["auto", "sdpa", "eager"] = "auto"


class QuantizationSection(Section):
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
    r: Annotated[int, Field(ge=1, le=512)] = 8
    alpha: Annotated[float, Field(gt=0)] = 16
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    target_modules: str | list[str] = "all-linear"


class TrainingSection(Section):
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
    merge_base: Literal["auto", "original", "dequantized"] = "auto"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    check_rows: Annotated[int, Field(ge=0)] = 200


class DatasetSection(Section):
    dir: FolderPath = Path("data")
    seed: int = 42
    use_query_log: bool = True
    max_per_session: PositiveInt = 20
    slices: Literal["all"] | list[str] = "all"
    synthetic_per_tool: Annotated[int, Field(ge=0)] = 3000
    ambiguous: Annotated[int, Field(ge=0)] = 800
    paraphrases: Annotated[int, Field(ge=0)] = 200
    splits: list[OpenFraction] = [0.8, 0.1, 0.1]
    splits_from: FolderPath | None = None

    @field_validator("splits")
    @classmethod
    def _sums_to_one(cls, value: list[float]) -> list[float]:
        if len(value) != 3 or abs(sum(value) - 1) > 1e-6:
            raise ValueError("must be three fractions (train, val, test) that sum to 1")
        return value


class ColumnsSection(Section):
    query: str = "query_text"
    tool: str = "tool_used"
    success: str | None = "success"
    quality: str | None = "result_quality"
    timestamp: str | None = "timestamp"
    id: str | None = "id"
    session: str | None = "session_id"
    error: str | None = "error_message"


class FiltersSection(Section):
    only_success: bool = True
    min_result_quality: Fraction | None = 0.7
    since: datetime | None = None
    limit: PositiveInt | None = None

    @field_validator("since", mode="before")
    @classmethod
    def _read_date(cls, value: object) -> object:
        if isinstance(value, str):
            return datetime.fromisoformat(value)
        if value is not None and not isinstance(value, datetime):  # YAML reads 2026-01-31 as a date
            return datetime.fromisoformat(str(value))
        return value


class DatabaseSection(Section):
    schema_name: str = "public"
    table: str = "query_logs"
    columns: ColumnsSection = ColumnsSection()
    filters: FiltersSection = FiltersSection()
    sslmode: Literal["auto", "disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = "auto"
    connect_timeout_s: PositiveInt = 5
    statement_timeout_s: PositiveInt = 60
    deadline_s: PositiveInt = 600
    fetch_size: PositiveInt = 10000


class ExampleQuery(Section):
    query: str = Field(min_length=1)
    parameters: dict[str, Any] | None = None
    reasoning: str | None = None


class ToolSection(Section):
    name: str
    description: str = Field(min_length=1)
    parameters: dict[str, Any] = {"type": "object", "properties": {}}
    examples: list[ExampleQuery] = []

    @field_validator("name")
    @classmethod
    def _is_a_tool_name(cls, value: str) -> str:
        if not TOOL_NAME.fullmatch(value):
            raise ValueError(f"must match {TOOL_NAME.pattern}")
        return value

    @field_validator("parameters")
    @classmethod
    def _is_a_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        from jsonschema import Draft202012Validator, SchemaError

        try:
            Draft202012Validator.check_schema(value)
        except SchemaError as error:
            raise ValueError(f"is not a JSON Schema: {error.message}") from error
        if value.get("type") != "object":
            raise ValueError('must have "type: object"')
        return value

    @model_validator(mode="after")
    def _examples_fit(self) -> ToolSection:
        tool = self.as_tool()
        problems = [
            f"examples.{index}: {problem}"
            for index, example in enumerate(self.examples)
            if example.parameters is not None
            for problem in tool.parameter_problems(example.parameters)
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def as_tool(self) -> Tool:
        """The tool without its example queries."""
        return Tool(self.name, self.description, self.parameters)


class KeywordRule(Section):
    tool: str
    words: list[str]


class KeywordRouterSection(Section):
    rules: list[KeywordRule] = []
    otherwise: str | None = None


class CostsSection(Section):
    wrong: Annotated[float, Field(gt=0)] = 1.0
    abstain: Annotated[float, Field(ge=0)] = 0.3
    pairs: dict[str, dict[str, Annotated[float, Field(ge=0)]]] = {}


class EvaluationSection(Section):
    results_dir: FolderPath = Path("evaluation_results")
    batch_size: PositiveInt = 16
    max_new_tokens: PositiveInt = 256
    seed: int = 42
    no_tool: str | None = "direct_chat"
    wanted_precision: OpenFraction = 0.9
    costs: CostsSection = CostsSection()
    keyword_router: KeywordRouterSection = KeywordRouterSection()


class LoggingSection(Section):
    logging_steps: PositiveInt = 10
    tensorboard: bool = True


class Config(Section):
    """All of config.yaml."""

    model: ModelSection
    quantization: QuantizationSection = QuantizationSection()
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
    optimization: OptimizationSection = OptimizationSection()
    export: ExportSection = ExportSection()
    dataset: DatasetSection = DatasetSection()
    database: DatabaseSection = DatabaseSection()
    tools: Annotated[list[ToolSection], Field(min_length=2)]
    evaluation: EvaluationSection = EvaluationSection()
    logging: LoggingSection = LoggingSection()

    @field_validator("tools")
    @classmethod
    def _names_differ(cls, value: list[ToolSection]) -> list[ToolSection]:
        names = [tool.name for tool in value]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"the same name twice: {', '.join(repeated)}")
        return value

    def settled(self) -> Config:
        """Return it without what is `auto` for the memory plan: as it is where no budget is looked at."""
        plain = {"gradient_checkpointing": True, "offload": False, "kept_layers": 0, "cached_layers": 0}
        plain["micro_batch"] = "fixed"
        open_ones = {key: value for key, value in plain.items() if getattr(self.optimization, key) == "auto"}
        return self.model_copy(update={"optimization": self.optimization.model_copy(update=open_ones)})

    @property
    def toolbox(self) -> Toolbox:
        """The tools on offer."""
        return Toolbox(tool.as_tool() for tool in self.tools)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for a manifest. A config cannot hold a secret: there is no key for one."""
        return self.model_dump(mode="json")


# ---- reading --------------------------------------------------------------------------------------------


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every script has: `--version`, `--config` and `--set`."""
    add_version_argument(parser)
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE", help="settings (default: %(default)s)"
    )
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=VALUE",
        help="override one setting, for example --set lora.r=16; repeatable",
    )  # fmt: skip


def next_command(script: str, arguments: argparse.Namespace, *, config: Path | None = None) -> str:
    """Write out how the next stage is run under the same settings; `config` is its file if it is another one."""
    file = config or arguments.config
    words = ["python", *script.split(), *(["--config", str(file)] if file != DEFAULT_CONFIG else [])]
    for override in arguments.overrides:
        key, _, value = override.partition("=")
        words += ["--output_dir", value] if key == "training.output_dir" else ["--set", override]
    return shlex.join(words)


def load_config(path: Path = DEFAULT_CONFIG, overrides: Sequence[str] = ()) -> Config:
    """Read a config file and apply `section.key=value` overrides.

    Raises UserError naming every unknown key, duplicate key, missing key and wrong value, each with its dotted path.
    """
    values = yaml_file.read_file(path)
    for override in overrides:
        yaml_file.apply_override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = list(explain(error, Config))
        raise UserError(
            "\n".join([f"{len(problems)} problem{'s' * (len(problems) > 1)} in {path}:", *problems])
        ) from None


# ---- environment ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """What the environment holds. Secrets are kept out of `repr`, and no other module reads os.environ for them."""

    postgres_host: str = "localhost"
    postgres_port: int = 5432
    postgres_db: str = "cipher_analytics"
    postgres_user: str = "cipher"
    postgres_password: str | None = field(default=None, repr=False)
    hf_token: str | None = field(default=None, repr=False)
    openai_api_key: str | None = field(default=None, repr=False)
    use_wandb: bool = False
    wandb_project: str = "mistral-tool-aware"
    openai_base_url: str | None = None
    openai_model: str | None = None


def read_environment(environ: Mapping[str, str] | None = None) -> Environment:
    """Read the variables the README lists, from `environ` or from `.env` and the process environment (which wins)."""
    if environ is None:
        from dotenv import load_dotenv

        load_dotenv(Path(".env"))
        environ = os.environ
    known = {key: environ[key.upper()] for key in Environment.__dataclass_fields__ if environ.get(key.upper())}
    port = known.get("postgres_port", "5432")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise UserError(f"{port!r} is not a port number", where="POSTGRES_PORT")
    use_wandb = known.get("use_wandb", "false").strip().lower()
    if use_wandb not in ("true", "false", "1", "0", "yes", "no"):
        raise UserError(f"{use_wandb!r} is neither true nor false", where="USE_WANDB")
    return Environment(**{**known, "postgres_port": int(port), "use_wandb": use_wandb in ("true", "1", "yes")})
