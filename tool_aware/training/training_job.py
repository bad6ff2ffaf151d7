"""A training run as planned: what it trains, on what, and how it uses its GPUs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import EncodedExample, chat_format
from tool_aware.config.environment import Environment
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, table
from tool_aware.lineage import TrainingRun
from tool_aware.memory.plan import Plan
from tool_aware.memory.spec import decoder_text
from tool_aware.paths import ADAPTER_FOLDER, split_file, split_name
from tool_aware.rows import LoadedRows
from tool_aware.tool_library import library_sha256
from tool_aware.training.choice import ToolNames
from tool_aware.training.data import length_percentiles
from tool_aware.training.distributed import Processes
from tool_aware.training.run.checkpoints import run_settings
from tool_aware.training.schedule import Schedule, Scorings
from tool_aware.training.varied_lists import StepExamples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PRECISION_NOTES = {
    ("cuda", "float16"): ", gradients are scaled",
    ("cpu", "bfloat16"): " (it answers in float32)",
}


@dataclass(frozen=True)
class Job:
    """A run as planned, before anything slow begins."""

    config: Config
    environment: Environment
    tokenizer: PreTrainedTokenizerBase
    data: dict[str, LoadedRows]  # train and val, as read
    examples: dict[str, list[EncodedExample]]  # train and val, tokenised, without what is too long
    varied: StepExamples | None  # the examples of each step, if a share of the steps lists other tools
    start_from: Path | None  # an earlier adapter
    processes: Processes  # this one, unless a launcher has started several
    memory: Plan  # of the GPU's memory; all processes follow that of the first
    test: LoadedRows | None  # what the merged model is checked on: test.json, None if there is none
    lineage: list[dict[str, Any]]  # the runs that the earlier adapter comes from
    fallbacks: Fallbacks  # what is done in another way than asked for or planned, so far

    @property
    def output_dir(self) -> Path:
        """Return the folder of everything that the run writes."""
        return self.config.training.output_dir

    @property
    def own_lineage(self) -> list[dict[str, Any]]:
        """Return this run, with the data as it was read, and the runs behind it, as an adapter's record lists them."""
        run = TrainingRun(
            adapter=str(self.output_dir / ADAPTER_FOLDER),
            sha256=None,  # not yet trained
            train=str(split_file(self.config.dataset.dir, "train")),
            train_sha256=self.data["train"].sha256,
        )
        return [asdict(run), *self.lineage]

    @cached_property
    def engine_config(self) -> Config:
        """Return the settings with the plan's choices, and the precision to train in, where they say `auto`."""
        from tool_aware.model.base import in_training_precision

        return in_training_precision(self.memory.apply(self.config))

    @property
    def precision(self) -> str:
        """Return the name of the dtype to train in."""
        return self.engine_config.quantization.bnb_4bit_compute_dtype

    @cached_property
    def tool_names(self) -> ToolNames:
        """Return the token ids of the tools' names as an answer begins with them."""
        return ToolNames.of(self.tokenizer, self.config.toolbox)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Return all settings and data that decide what the run learns."""
        hashes = {split_name(split): loaded.sha256 for split, loaded in self.data.items()}
        start = str(self.start_from) if self.start_from else None
        library = {"tool_library": library_sha256()} if self.varied else {}
        run = {**run_settings(self.config), **hashes, **library}
        return {**run, "adapter": start, "processes": self.processes.count}


def plan_text(job: Job) -> str:
    """Return what the run will do, for the terminal."""
    from tool_aware.engine.supported import unsupported_gpu
    from tool_aware.model.base import compute_dtype, device

    config, training = job.config, job.engine_config.training
    processes = job.processes.count
    schedule = Schedule.of(config, len(job.examples["train"]), processes)
    form = chat_format(job.tokenizer)
    dtype, precision = compute_dtype(job.precision), job.precision
    precision += _PRECISION_NOTES.get((device().type, precision), "")
    facts = [
        (
            "base model",
            f"{config.model.name}, {config.quantization.kind}, computes in {precision}",
        ),
        (
            "prompts",
            f"wrapped by {form.name}, an answer ends with {form.end}",
        ),
        ("decoder", decoder_text(config, job.memory.spec, processes, of_device=unsupported_gpu(device(), dtype))),
        ("adapter", f"LoRA r={config.lora.r} alpha={config.lora.alpha:g} on {config.lora.target_modules}"),
        (
            "steps",
            f"{schedule.steps}, {schedule.steps / schedule.steps_per_epoch:.3g} epochs, effective batch "
            f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps}"
            f"{f' x {processes} processes' if processes > 1 else ''}, packing {training.packing}",
        ),
        (split_name("val"), Scorings.of_run(training, schedule, len(job.examples["val"])).text()),
        *([("tool lists", job.varied.text(schedule.steps))] if job.varied else []),
        ("memory", job.memory.text().replace("\n", "\n" + 12 * " ")),
        ("output", str(job.output_dir)),
    ]
    rows = [
        (split, len(examples), *length_percentiles(examples), len(job.data[split].rows) - len(examples))
        for split, examples in job.examples.items()
    ]
    headers = ("tokens per example", "rows", "p50", "p95", "max", f"dropped (> {config.model.max_seq_length})")
    lines = [f"{name:<12}{value}" for name, value in facts]
    return "\n".join([*lines, "", table(headers, rows)])
