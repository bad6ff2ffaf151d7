"""config.yaml in the terms of transformers' Trainer."""

from __future__ import annotations

import torch
from transformers import TrainingArguments

from tool_aware.config.settings import Config


def training_arguments(config: Config, steps: int) -> TrainingArguments:
    """Translate config.yaml into transformers' terms for a run of `steps` optimizer steps.

    Reporting stays off, as it is ours, and so does mixed precision but for cards without bfloat16, whatever a launcher
    was configured to.
    """
    training = config.training
    arguments = TrainingArguments(
        output_dir=str(training.output_dir),
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=int(training.warmup_ratio * steps),  # Trainer rounds up: one step would learn nothing
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        logging_steps=config.logging.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="no",  # ours: Trainer would skip an epoch's scoring if it was killed before the end of it
        save_strategy="steps",
        save_steps=training.save_steps,
        seed=training.seed,
        use_cpu=not torch.cuda.is_available(),
        fp16=torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False),
        disable_tqdm=True,
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        label_names=["labels"],
    )
    arguments.mixed_precision = "fp16" if arguments.fp16 else "no"  # else ACCELERATE_MIXED_PRECISION
    # Without a launcher this process trains on one GPU; Trainer would copy the model to all, by DataParallel.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
