"""Stage 2: fine-tune Mistral with QLoRA so that it chooses the right tool.

    python train_tool_aware.py --dry-run
    python train_tool_aware.py
    python train_tool_aware.py --output_dir ./output_stage2 --adapter ./output/lora_adapters

Reads   config.yaml; data/train.json and data/val.json (yours, or written by prepare_dataset.py); the base model
Writes  output/lora_adapters/   the adapter, its tokenizer and the prompt template
        output/final_model/     the base model with the adapter merged in
        output/checkpoint-*/    to go on from with --resume
        output/metrics.jsonl, output/runs/ (TensorBoard), output/manifest.json
Exit    0 done; 2 something to fix; 130/143 interrupted, checkpoint saved
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.config import Config, Environment, add_config_arguments, load_config, read_environment
from tool_aware.console import UserError, duration, heading, run, say, table, warn
from tool_aware.prompt import EncodedExample, encode_example, load_tokenizer
from tool_aware.records import MANIFEST_NAME, LoadedRows, listing, load_rows, read_manifest, write_manifest

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

_RUN_SECTIONS = ("model", "quantization", "lora", "training", "optimization")  # what makes one run differ from another
_NOT_PART_OF_A_RUN = ("training.output_dir", "training.save_steps", "training.save_total_limit")


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story of the stage: plan, load, train, export."""
    started_s = time.time()
    arguments = parse_arguments(argv)
    config, environment = load_config(arguments.config, arguments.overrides), read_environment()
    if arguments.output_dir:
        config = config.model_copy(
            update={"training": config.training.model_copy(update={"output_dir": arguments.output_dir})}
        )
    output_dir = config.training.output_dir

    check_output_dir(output_dir, resume=arguments.resume, overwrite=arguments.overwrite)
    data = read_data(config)
    tokenizer = read_tokenizer(config, environment)
    examples = encode(data, tokenizer, config)
    print(plan(config, data, examples))
    if arguments.dry_run:
        return 0

    if arguments.overwrite:
        clear(output_dir)
    resume_from, fallbacks = find_checkpoint(output_dir, arguments, run_identity(config, data, arguments.adapter))
    heading("Loading the base model")
    model = load_trainable(config, environment, arguments.adapter)
    heading("Training")
    summary = fit(
        model, config, environment, tokenizer, examples, run_identity(config, data, arguments.adapter), resume_from
    )
    heading("Saving")
    export(model, config, environment, tokenizer, output_dir, skip_final_model=arguments.skip_final_model)
    finish(config, data, output_dir, started_s, summary, fallbacks)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--output_dir", "--output-dir", type=Path, metavar="DIR", help="instead of training.output_dir")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="go on from this adapter (a second training stage)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the output directory")
    parser.add_argument("--skip-final-model", action="store_true", help="save the adapter only, not the merged model")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser.parse_args(argv)


# ---- before anything slow -------------------------------------------------------------------------------


def check_output_dir(output_dir: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to mix a new run with an old one, and a finished run with more training."""
    from tool_aware.training.checkpoints import checkpoints_in

    if overwrite:
        return
    if read_manifest(output_dir):
        fix = "use another --output_dir, or --overwrite to replace it; --adapter goes on from an adapter"
        raise UserError("holds a finished run", where=str(output_dir), fix=fix)
    if checkpoints_in(output_dir) and not resume:
        raise UserError(
            "holds an unfinished run", where=str(output_dir), fix="--resume to go on, --overwrite to start anew"
        )


def read_data(config: Config) -> dict[str, LoadedRows]:
    """Load train and val rows, and say if they are not what prepare_dataset.py left."""
    folder = config.dataset.dir
    data = {split: load_rows(folder / f"{split}.json", config.toolbox) for split in ("train", "val")}
    manifest = read_manifest(folder)
    if manifest is None:
        say(f"{folder} has no manifest: training on these files as custom data")
    else:
        for split, rows in data.items():
            if manifest["outputs"].get(f"{split}.json") != rows.sha256:
                warn(
                    f"{folder / f'{split}.json'} has changed since prepare_dataset.py wrote it; training on it as it is"
                )
        if manifest["config"].get("tools") != config.as_dict()["tools"]:
            fix = "python prepare_dataset.py"
            raise UserError("was made for other tools than config.yaml lists now", where=str(folder), fix=fix)
    unwrapped = sum(rows.unwrapped for rows in data.values())
    if unwrapped:
        say(f"{unwrapped} instructions carried <s>[INST] ... [/INST]; it was taken off, as it is added at tokenisation")
    return data


def read_tokenizer(config: Config, environment: Environment) -> PreTrainedTokenizerBase:
    """Check that the base model can be had, then load its tokenizer."""
    from tool_aware.base_model import locate_model

    locate_model(config.model.name, revision=config.model.revision, hf_token=environment.hf_token)
    return load_tokenizer(config.model.name, revision=config.model.revision, token=environment.hf_token)


def encode(
    data: dict[str, LoadedRows], tokenizer: PreTrainedTokenizerBase, config: Config
) -> dict[str, list[EncodedExample]]:
    """Tokenise all rows; those above max_seq_length are an error or dropped, as training.too_long says, never cut."""
    limit, encoded, too_long = config.model.max_seq_length, {}, []
    for split, loaded in data.items():
        examples = [encode_example(tokenizer, row.instruction, row.response) for row in loaded.rows]
        file = config.dataset.dir / f"{split}.json"
        too_long += [f"{file}: row {i}: {len(e)} tokens" for i, e in enumerate(examples, start=1) if len(e) > limit]
        encoded[split] = [example for example in examples if len(example) <= limit]
    if too_long and config.training.too_long == "error":
        longest = max(int(line.rsplit(" ", 2)[1]) for line in too_long)
        raise UserError(
            listing(too_long, f"example above model.max_seq_length = {limit} tokens"),
            fix=f"--set model.max_seq_length={longest}, or --set training.too_long=drop",
        )
    if too_long:
        warn(f"{len(too_long)} examples above {limit} tokens are dropped")
    if not encoded["train"]:
        raise UserError("no training example is left", where=str(config.dataset.dir / "train.json"))
    return encoded


def plan(config: Config, data: dict[str, LoadedRows], examples: dict[str, list[EncodedExample]]) -> str:
    """Lay out what the run will do."""
    from tool_aware.training.schedule import Schedule

    schedule = Schedule.of(config, len(examples["train"]))
    lengths = {split: sorted(len(example) for example in rows) for split, rows in examples.items()}
    rows = [
        (split, len(values), *_percentiles(values), len(data[split].rows) - len(values))
        for split, values in lengths.items()
    ]
    headers = ("tokens per example", "rows", "p50", "p95", "max", f"dropped (> {config.model.max_seq_length})")
    training = config.training
    lines = [
        f"Base model      {config.model.name}, {config.quantization.kind}",
        f"Adapter         LoRA r={config.lora.r} alpha={config.lora.alpha:g} on {config.lora.target_modules}",
        f"Steps           {schedule.steps} of {schedule.effective_batch} examples "
        f"({training.per_device_train_batch_size} x {training.gradient_accumulation_steps}), "
        f"{schedule.steps / schedule.steps_per_epoch:.3g} epochs, packing {training.packing}",
        f"Output          {training.output_dir}",
        *memory_lines(config, examples["train"]),
        "",
        table(headers, rows),
    ]
    return "\n".join(lines)


def memory_lines(config: Config, examples: list[EncodedExample]) -> list[str]:
    """Estimate the GPU memory of the run."""
    return []


def _percentiles(ordered: list[int]) -> tuple[str, str, str]:
    if not ordered:
        return ("-", "-", "-")
    return str(round(statistics.median(ordered))), str(ordered[int(0.95 * (len(ordered) - 1))]), str(ordered[-1])


# ---- the run --------------------------------------------------------------------------------------------


def run_identity(config: Config, data: dict[str, LoadedRows], adapter: Path | None) -> dict[str, Any]:
    """Name everything that makes this run another one than its neighbour, as `section.key: value`."""
    settings = config.as_dict()
    flat = {f"{section}.{key}": value for section in _RUN_SECTIONS for key, value in settings[section].items()}
    data_hashes = {f"{split}.json": loaded.sha256 for split, loaded in data.items()}
    kept = {key: value for key, value in flat.items() if key not in _NOT_PART_OF_A_RUN}
    return {**kept, **data_hashes, "adapter": str(adapter) if adapter else None}


def clear(output_dir: Path) -> None:
    """Delete what an earlier run of this stage left, and nothing else that may lie there."""
    from tool_aware.training.export import ADAPTERS_FOLDER, FINAL_MODEL_FOLDER
    from tool_aware.training.tracking import METRICS_NAME, TENSORBOARD_FOLDER

    ours = [MANIFEST_NAME, METRICS_NAME, ADAPTERS_FOLDER, FINAL_MODEL_FOLDER, TENSORBOARD_FOLDER]
    for path in [*(output_dir / name for name in ours), *output_dir.glob("checkpoint-*"), *output_dir.glob(".*.part")]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def find_checkpoint(
    output_dir: Path, arguments: argparse.Namespace, identity: dict[str, Any]
) -> tuple[Path | None, list[str]]:
    """Choose the checkpoint to go on from; damaged ones are put aside and named as fallbacks."""
    from tool_aware.training.checkpoints import newest_valid, refuse_another_run

    if not arguments.resume:
        return None, []
    checkpoint, damaged = newest_valid(output_dir)
    if checkpoint is None:
        warn(f"{output_dir} has no whole checkpoint: starting from the beginning")
        return None, [*damaged, "resumed without a checkpoint"]
    refuse_another_run(checkpoint, identity)
    say(f"going on from {checkpoint}")
    return checkpoint, damaged


def load_trainable(config: Config, environment: Environment, adapter: Path | None) -> PeftModel:
    """Load the frozen base model and put a new or an earlier adapter on it."""
    from tool_aware.base_model import attach_adapter, load_base_model
    from tool_aware.training.adapter import new_adapter, prepare_for_training

    base = load_base_model(config.model, config.quantization, hf_token=environment.hf_token)
    if adapter:
        model = attach_adapter(base, adapter, base_name=config.model.name, is_trainable=True)
    else:
        model = new_adapter(base, config)
    trained, total = prepare_for_training(model, config)
    say(f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})")
    return model


@dataclass(frozen=True)
class Summary:
    """What the manifest tells of a finished training."""

    steps: int
    seconds: float
    peak_gib: float | None
    validation: dict[str, float] | None


def fit(
    model: PeftModel,
    config: Config,
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    examples: dict[str, list[EncodedExample]],
    identity: dict[str, Any],
    resume_from: Path | None,
) -> Summary:
    """Train, logging as it goes."""
    import torch

    from tool_aware.training.checkpoints import step_of
    from tool_aware.training.choice import ToolNames
    from tool_aware.training.tracking import Tracker
    from tool_aware.training.trainer import PackedTrainer, train

    started_s = time.perf_counter()
    resume_step = step_of(resume_from) if resume_from else 0
    with Tracker(config, environment, config.training.output_dir, resume_step=resume_step) as tracker:
        trainer = PackedTrainer(
            model,
            config,
            train=examples["train"],
            val=examples["val"],
            tool_names=ToolNames.of(tokenizer, config.toolbox),
            tracker=tracker,
            run=identity,
        )
        train(trainer, resume_from)
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return Summary(trainer.state.global_step, time.perf_counter() - started_s, peak_gib, trainer.last_validation)


# ---- after it -------------------------------------------------------------------------------------------


def export(
    model: PeftModel,
    config: Config,
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: Path,
    *,
    skip_final_model: bool,
) -> None:
    """Save the adapter, then the merged model."""
    from tool_aware.training.export import ADAPTERS_FOLDER, FINAL_MODEL_FOLDER, save_adapter, save_merged

    save_adapter(model, output_dir / ADAPTERS_FOLDER, tokenizer, config.toolbox)
    say(f"{output_dir / ADAPTERS_FOLDER}: the adapter and {config.model.name}'s tokenizer")
    if skip_final_model:
        say("final_model is skipped, as asked")
        return
    folder = output_dir / FINAL_MODEL_FOLDER
    save_merged(config.model, output_dir / ADAPTERS_FOLDER, folder, hf_token=environment.hf_token)
    say(f"{folder}: the merged model")


def finish(
    config: Config,
    data: dict[str, LoadedRows],
    output_dir: Path,
    started_s: float,
    summary: Summary,
    fallbacks: list[str],
) -> None:
    """Write the manifest, which marks the run as finished, and say what to do next."""
    from tool_aware.training.export import ADAPTERS_FOLDER

    write_manifest(
        output_dir,
        stage="train",
        config=config.as_dict(),
        seed=config.training.seed,
        started_s=started_s,
        inputs=[config.dataset.dir / f"{split}.json" for split in data],
        outputs=sorted(path for path in (output_dir / ADAPTERS_FOLDER).iterdir() if path.is_file()),
        counts={split: len(loaded.rows) for split, loaded in data.items()},
        fallbacks=fallbacks,
        steps=summary.steps,
        training_seconds=round(summary.seconds, 1),
        peak_gib=summary.peak_gib,
        validation=summary.validation,
    )
    print(f"\nTrained {summary.steps} steps in {duration(summary.seconds)}. Next: python evaluate.py")


if __name__ == "__main__":
    run(main)
