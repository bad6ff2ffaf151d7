"""TRL's SFTTrainer on token ids and labels that are given; needs the package trl, which the toolkit does not."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import EncodedExample
from tool_aware.config.settings import Config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# One optimizer step after the other, with losses of every so many steps.
LOGGING_STEPS = 10


def missing_packages() -> list[str]:
    """Return the packages that TRL's row needs and that cannot be imported, with the reason."""
    missing = []
    for name in ("trl", "datasets"):
        try:
            importlib.import_module(name)
        except Exception as error:  # a package that breaks while it is imported is as good as missing
            missing.append(f"{name} ({type(error).__name__}: {error})")
    return missing


def trl_version() -> dict[str, str]:
    """Return TRL's version under its name; nothing if it is not installed."""
    try:
        return {"trl": metadata.version("trl")}
    except metadata.PackageNotFoundError:
        return {}


def train(
    config: Config,
    examples: Sequence[EncodedExample],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    has_checkpoints: bool,
) -> tuple[float, list[tuple[int, float]], int, Any]:
    """Train a new adapter; return the seconds from first to last step, (step, loss), steps, and the peft model.

    Ids, labels, order of rows, steps, learning rates, clipping and LoRA are those of the toolkit's run of the same
    settings. All else is TRL's default: AdamW, bf16 autocast, adapter in float32. `has_checkpoints` is
    gradient_checkpointing, on by TRL's default.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from tool_aware.training.schedule import MicroBatches, Schedule

    training, lora = config.training, config.lora
    schedule = Schedule.of(config, len(examples))
    micro_batches = MicroBatches.of(config, list(map(len, examples)))
    order = [row for step in range(schedule.steps) for rows in micro_batches.of_step(step) for row in rows]
    columns = {
        "input_ids": [examples[row].input_ids for row in order],
        "labels": [examples[row].labels for row in order],
    }
    has_gpu = torch.cuda.is_available()
    settings = SFTConfig(
        output_dir=str(folder),
        max_steps=schedule.steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=int(training.warmup_ratio * schedule.steps),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        seed=training.seed,
        train_sampling_strategy="sequential",  # the rows lie in the toolkit's order
        bf16=has_gpu,
        use_cpu=not has_gpu,
        gradient_checkpointing=has_checkpoints,
        max_length=None,
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # ids and labels as they are
        model_init_kwargs={"dtype": "bfloat16" if has_gpu else "float32"},
        save_strategy="no",
        report_to="none",
        logging_steps=LOGGING_STEPS,
        logging_first_step=True,
        disable_tqdm=True,
    )
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        bias="none",
    )
    trainer = SFTTrainer(
        model=config.model.name,
        args=settings,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    if has_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began_s = time.perf_counter()
    trainer.train()
    if has_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began_s
    losses = [(line["step"], line["loss"]) for line in trainer.state.log_history if "loss" in line]
    return seconds, losses, trainer.state.global_step, trainer.model
