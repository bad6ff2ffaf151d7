"""Stage 2: fine-tune Mistral with QLoRA so that it chooses the right tool.

    python train_tool_aware.py --dry-run
    python train_tool_aware.py
    python train_tool_aware.py --output_dir ./output_stage2 --adapter ./output/lora_adapters
    torchrun --nproc-per-node 2 train_tool_aware.py        # on two GPUs; launch/ has files for accelerate

Reads   config.yaml; data/train.json, val.json and, to check the merged model, test.json (yours, or written by
        prepare_dataset.py); the base model
Writes  output/lora_adapters/   the adapter, its tokenizer and the prompt template
        output/final_model/     the base model with the adapter merged in
        output/checkpoint-*/    to go on from with --resume
        output/README.md, output/training.png   the run card and its curves
        output/metrics.jsonl, output/runs/ (TensorBoard), output/manifest.json
Exit    0 done; 2 something to fix; 3 done, but the merged model does not choose the tools that the trained one does;
        129/130/143 interrupted, checkpoint saved
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.config.environment import Environment, read_environment
from tool_aware.config.options import add_config_arguments, next_command
from tool_aware.config.settings import Config, load_config
from tool_aware.console import UserError, duration, heading, listing, run, say, table, warn
from tool_aware.manifest import read_manifest, write_manifest
from tool_aware.paths import ADAPTER_FOLDER, CARD_NAME, FINAL_MODEL_FOLDER, split_file, split_name
from tool_aware.prompt import EncodedExample, encode_example, load_tokenizer
from tool_aware.rows import LoadedRows, load_rows
from tool_aware.text import common_prefix_length
from tool_aware.training.distributed import Processes, hint_at_launcher, joined

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from tool_aware.memory.plan import Plan
    from tool_aware.training.choice import ToolNames
    from tool_aware.training.export.agreement import References
    from tool_aware.training.export.export import Merged
    from tool_aware.training.validation import Exported


@dataclass(frozen=True)
class Job:
    """What a run is made of, known before anything slow begins."""

    config: Config
    environment: Environment
    tokenizer: PreTrainedTokenizerBase
    data: dict[str, LoadedRows]  # train and val, as read
    examples: dict[str, list[EncodedExample]]  # train and val, tokenised, without what is too long
    start_from: Path | None  # an earlier adapter
    processes: Processes  # this one, unless a launcher has started several
    memory: Plan  # of the GPU's memory; all processes follow that of the first
    lineage: list[dict[str, Any]]  # the runs that the earlier adapter comes from

    @property
    def output_dir(self) -> Path:
        """Where everything goes."""
        return self.config.training.output_dir

    @cached_property
    def engine_config(self) -> Config:
        """The settings with what the plan has chosen where they say `auto`."""
        return self.memory.apply(self.config)

    @cached_property
    def tool_names(self) -> ToolNames:
        """The tools' names as an answer begins with them."""
        from tool_aware.training.choice import ToolNames

        return ToolNames.of(self.tokenizer, self.config.toolbox)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that makes this run another one than its neighbour."""
        from tool_aware.training.run.checkpoints import run_settings

        hashes = {split_name(split): loaded.sha256 for split, loaded in self.data.items()}
        start = str(self.start_from) if self.start_from else None
        return {**run_settings(self.config), **hashes, "adapter": start, "processes": self.processes.count}


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story of the stage: plan, load, train, export."""
    started_s = time.time()
    arguments = parse_arguments(argv)
    # Packs of all lengths share what is reserved.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    with joined() as processes:
        job = processes.first(lambda: prepare(arguments, processes)) or prepare(arguments, processes)
        processes.check_equal("settings or data", job.identity, fix="give all machines the same config.yaml and data/")
        job = replace(job, memory=processes.from_first(job.memory))
        if processes.is_first:
            print(plan(job))
        if arguments.dry_run:
            return 0
        resume_from, fallbacks = processes.from_first(processes.first(lambda: starting_point(job, arguments)))
        if resume_from and not resume_from.is_dir():
            raise UserError("not found on this machine", where=str(resume_from), fix="let all machines share output/")
        heading("Loading the base model")
        model = load_trainable(job)
        heading("Training")
        summary = fit(job, model, resume_from, merges=not arguments.skip_final_model)
    if processes.is_first:  # the others have done their part
        heading("Saving")
        merged = export(job, model, summary.references)
        finish(job, summary, merged, fallbacks, started_s)
        print(f"Next: {next_command('evaluate.py', arguments)}")
        if merged:
            merged.demand_agreement(job.config.toolbox.names)
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
    arguments = parser.parse_args(argv)
    if arguments.output_dir:
        arguments.overrides.append(f"training.output_dir={arguments.output_dir}")
    return arguments


# ---- before anything slow -------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace, processes: Processes) -> Job:
    """Check settings, output directory, data and model, and tokenise the rows."""
    from tool_aware.model.adapter import with_lora_of
    from tool_aware.model.base import check_model_available
    from tool_aware.training.leakage import lineage_of
    from tool_aware.training.run.output_folder import check_output_dir

    config, environment = load_config(arguments.config, arguments.overrides), read_environment()
    output_dir, resume, overwrite = config.training.output_dir, arguments.resume, arguments.overwrite
    check_output_dir(output_dir, resume=resume, overwrite=overwrite, adapter=arguments.adapter)
    data = read_data(config)
    check_model_available(config.model.name, revision=config.model.revision, hf_token=environment.hf_token)
    config = with_lora_of(arguments.adapter, config) if arguments.adapter else config
    lineage = lineage_of(arguments.adapter, data, config)
    tokenizer = load_tokenizer(config.model.name, revision=config.model.revision, token=environment.hf_token)
    examples = encode(data, tokenizer, config)
    memory = plan_memory(config, examples["train"], processes.count)
    return Job(config, environment, tokenizer, data, examples, arguments.adapter, processes, memory, lineage)


def read_data(config: Config) -> dict[str, LoadedRows]:
    """Load train and val rows, and say if they are not what prepare_dataset.py left."""
    folder = config.dataset.dir
    data = {split: load_rows(split_file(folder, split), config.toolbox) for split in ("train", "val")}
    if split_file(folder, "test").is_file():
        load_rows(split_file(folder, "test"), config.toolbox)  # the merged model is checked on it: better to know now
    manifest = read_manifest(folder)
    if manifest is None:
        say(f"{folder} has no manifest: training on these files as custom data")
    else:
        for split, rows in data.items():
            if manifest["outputs"].get(split_name(split)) != rows.sha256:
                warn(f"{split_file(folder, split)} has changed since prepare_dataset.py wrote it; it is used as it is")
        if manifest["config"].get("tools") != config.as_dict()["tools"]:
            fix = "python prepare_dataset.py"
            raise UserError("was made for other tools than config.yaml lists now", where=str(folder), fix=fix)
    unwrapped = sum(rows.unwrapped for rows in data.values())
    if unwrapped:
        say(f"{unwrapped} instructions carried <s>[INST] ... [/INST]; it was taken off, as it is added at tokenisation")
    respelled = sum(rows.respelled for rows in data.values())
    if respelled:
        say(
            f"{respelled} responses have other spacing or JSON than docs/FORMATS.md shows; they are trained on as there"
        )
    return data


def encode(
    data: dict[str, LoadedRows], tokenizer: PreTrainedTokenizerBase, config: Config
) -> dict[str, list[EncodedExample]]:
    """Tokenise all rows; those above max_seq_length are an error or dropped, as training.too_long says, never cut."""
    limit = config.model.max_seq_length
    encoded: dict[str, list[EncodedExample]] = {}
    too_long: list[tuple[int, str]] = []
    for split, loaded in data.items():
        examples = [encode_example(tokenizer, row.instruction, row.response) for row in loaded.rows]
        file = split_file(config.dataset.dir, split)
        too_long += [(len(e), f"{file}: row {n}") for n, e in enumerate(examples, start=1) if len(e) > limit]
        encoded[split] = [example for example in examples if len(example) <= limit]
    if too_long and config.training.too_long == "error":
        raise UserError(
            listing([f"{where}: {tokens} tokens" for tokens, where in too_long], f"example above {limit} tokens"),
            where="model.max_seq_length",
            fix=f"--set model.max_seq_length={max(too_long)[0]}, or --set training.too_long=drop",
        )
    if too_long:
        warn(f"{len(too_long)} examples above {limit} tokens are dropped")
    if not encoded["train"]:
        raise UserError("no training example is left", where=str(split_file(config.dataset.dir, "train")))
    return encoded


# ---- the plan -------------------------------------------------------------------------------------------


def plan(job: Job) -> str:
    """Lay out what the run will do."""
    from tool_aware.training.schedule import Schedule

    config, training = job.config, job.engine_config.training
    processes = job.processes.count
    schedule = Schedule.of(config, len(job.examples["train"]), processes)
    facts = [
        ("base model", f"{config.model.name}, {config.quantization.kind}"),
        ("adapter", f"LoRA r={config.lora.r} alpha={config.lora.alpha:g} on {config.lora.target_modules}"),
        (
            "steps",
            f"{schedule.steps}, {schedule.steps / schedule.steps_per_epoch:.3g} epochs, effective batch "
            f"{training.per_device_train_batch_size} x {training.gradient_accumulation_steps}"
            f"{f' x {processes} processes' if processes > 1 else ''}, packing {training.packing}",
        ),
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


def plan_memory(config: Config, examples: Sequence[EncodedExample], processes: int) -> Plan:
    """Plan how each process uses its GPU, from what is free and the largest micro-batches there can be."""
    from tool_aware.engine.supported import unsupported_gpu
    from tool_aware.gpu.visible import visible_gpus
    from tool_aware.memory.plan import plan_of
    from tool_aware.memory.spec import TrainingSpec
    from tool_aware.model.base import device, start_gpu

    shared = common_prefix_length([example.prompt for example in examples])
    spec = TrainingSpec.from_config(
        config,
        processes=processes,
        longest_tokens=max(map(len, examples)),
        prefix_tokens=shared if config.training.packing == "prefix" else 0,
        answer_tokens=max(len(example.completion) for example in examples),
    )
    uuids = start_gpu()
    if unsupported_gpu(device()):
        spec = replace(spec, decoder="transformers")
    return plan_of(config, spec, visible_gpus(uuids)[:processes] if uuids else [], has_context=True)


def length_percentiles(examples: Sequence[EncodedExample]) -> tuple[str, str, str]:
    """Return the median, the 95th percentile and the maximum of the examples' lengths in tokens."""
    lengths = sorted(map(len, examples))
    if not lengths:
        return ("-", "-", "-")
    return str(round(statistics.median(lengths))), str(lengths[int(0.95 * (len(lengths) - 1))]), str(lengths[-1])


# ---- the run --------------------------------------------------------------------------------------------


def starting_point(job: Job, arguments: argparse.Namespace) -> tuple[Path | None, list[str]]:
    """Make room for a new run, or choose the checkpoint to go on from; also returns the fallbacks of that choice."""
    from tool_aware.training.run.output_folder import clear, find_checkpoint

    if arguments.overwrite:
        clear(job.output_dir)
    return find_checkpoint(job.output_dir, job.identity) if arguments.resume else (None, [])


def load_trainable(job: Job) -> PeftModel:
    """Load the frozen base model and put a new or an earlier adapter on it."""
    from tool_aware.model.adapter import attach_adapter, new_adapter, prepare_for_training
    from tool_aware.model.base import load_base_model
    from tool_aware.training.sharding import load_sharded_base

    config = job.engine_config
    if config.optimization.shard_base and job.processes.count > 1:
        base = load_sharded_base(config.model, config.quantization, job.processes, hf_token=job.environment.hf_token)
    else:
        base = load_base_model(config.model, config.quantization, hf_token=job.environment.hf_token)
    if job.start_from:
        model = attach_adapter(base, job.start_from, base_name=config.model.name, is_trainable=True)
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
    peak_gib: float | None  # allocated by torch; None without a GPU
    exported: Exported
    references: References | None  # what a merged model is measured by; None if none is wanted
    fallbacks: list[str]  # what was computed in a slower way than wished or planned, and why


def fit(job: Job, model: PeftModel, resume_from: Path | None, *, merges: bool) -> Summary:
    """Train, logging as it goes; leaves in `model` the adapter to export."""
    import torch

    from tool_aware.training.export.agreement import references
    from tool_aware.training.run.checkpoints import step_of
    from tool_aware.training.run.tracking import Tracker
    from tool_aware.training.trainer import PackedTrainer, train
    from tool_aware.training.validation import choose_adapter

    if hint := hint_at_launcher(job.processes):
        say(hint)
    started_s = time.perf_counter()
    resume_step = step_of(resume_from) if resume_from else 0
    tracking = contextlib.nullcontext()
    if job.processes.is_first:
        tracking = Tracker(job.config, job.environment, job.output_dir, resume_step=resume_step)
    with tracking as tracker:
        trainer = PackedTrainer(
            model,
            job.engine_config,
            train=job.examples["train"],
            val=job.examples["val"],
            tool_names=job.tool_names,
            tracker=tracker,
            run=job.identity,
            processes=job.processes,
        )
        train(trainer, resume_from)
    seconds, steps = time.perf_counter() - started_s, trainer.state.global_step
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    model.eval()
    exported = choose_adapter(model, trainer.validations, steps, keep_best=job.config.training.keep_best)
    say(f"exporting the adapter of step {exported.step}: {exported.why}")
    states = trainer.micro_step.answer_states
    measured_by = references(states, job.config, job.tokenizer, job.tool_names) if merges else None
    fallbacks = [*([trainer.fallback] if trainer.fallback else []), *trainer.micro_step.concessions]
    return Summary(steps, seconds, peak_gib, exported, measured_by, fallbacks)


# ---- after it -------------------------------------------------------------------------------------------


def export(job: Job, model: PeftModel, references: References | None) -> Merged | None:
    """Save the adapter, then, if there is something to measure it by, the merged model."""
    from tool_aware.training.export.export import Merger, merge, save_adapter

    adapters, final = job.output_dir / ADAPTER_FOLDER, job.output_dir / FINAL_MODEL_FOLDER
    save_adapter(model, adapters, job.tokenizer, job.config.toolbox)
    say(f"{adapters}: the adapter, its tokenizer and the prompt it was trained on")
    if references is None:
        say(f"{final}: skipped, as asked")
        return None
    return merge(Merger(job.config, adapters, hf_token=job.environment.hf_token), final, job.tool_names, references)


def finish(job: Job, summary: Summary, merged: Merged | None, fallbacks: list[str], started_s: float) -> None:
    """Write the run card and last the manifest, which marks the run as finished."""
    from tool_aware.training.run.run_card import RunFacts, device_name, license_of, write_run_card

    exported, adapters = summary.exported, job.output_dir / ADAPTER_FOLDER
    facts = RunFacts(
        job.config,
        adapters,
        data={split: (len(job.examples[split]), loaded.sha256) for split, loaded in job.data.items()},
        steps=summary.steps,
        exported_step=exported.step,
        why_exported=exported.why,
        validation=exported.validation.as_dict() if exported.validation else None,
        device=device_name(),
        license=license_of(job.config.model),
        fallbacks=summary.fallbacks,
        merged=merged.as_dict() if merged else None,
    )
    write_run_card(job.output_dir, facts)
    say(f"{job.output_dir / CARD_NAME}: the run in figures and curves")
    # evaluate.py adds its results to the adapter's card, so that file is not pinned
    pinned = sorted(path for path in adapters.iterdir() if path.is_file() and path.name != CARD_NAME)
    write_manifest(
        job.output_dir,
        stage="train",
        config=job.config.as_dict(),
        seed=job.config.training.seed,
        started_s=started_s,
        inputs=[split_file(job.config.dataset.dir, split) for split in job.data],
        outputs=pinned,
        counts={split: len(examples) for split, examples in job.examples.items()},
        fallbacks=[*fallbacks, *summary.fallbacks],
        steps=summary.steps,
        training_seconds=round(summary.seconds, 1),
        peak_gib=summary.peak_gib,
        memory_plan=job.memory.as_dict(),
        lineage=job.lineage,
        exported={"step": exported.step, "why": exported.why},
        merged=facts.merged,
        validation=facts.validation,
    )
    print(f"\nTrained {summary.steps} steps in {duration(summary.seconds)}.")


if __name__ == "__main__":
    run(main)
