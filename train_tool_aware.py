"""Stage 2: fine-tune Mistral with QLoRA so that it chooses the right tool.

    python train_tool_aware.py --dry-run
    python train_tool_aware.py
    python train_tool_aware.py --output_dir ./output_stage2 --adapter ./output/lora_adapters
    torchrun --nproc-per-node 2 train_tool_aware.py        # on two GPUs; launch/ has files for accelerate

Reads   config.yaml; data/train.json, val.json and, to check the merged model, test.json (yours, or written by
        prepare_dataset.py); the base model
Writes  output/lora_adapters/   the adapter, its tokenizer and the prompt template
        output/final_model/     the base model with the adapter merged in
        output/checkpoint-*/    to resume from with --resume
        output/README.md, output/training.png   the run card and its curves
        output/metrics.jsonl, output/runs/ (TensorBoard), output/manifest.json
Exit    0 done; 2 something to fix; 3 done, but the merged model does not choose the tools that the trained one does;
        129/130/143 interrupted, checkpoint saved
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.command_line import script_parser
from tool_aware.config.environment import read_environment
from tool_aware.config.options import (
    ConfigOptions,
    add_config_arguments,
    add_output_dir_argument,
    next_command,
    parse_options,
)
from tool_aware.config.settings import load_config
from tool_aware.console import Fallbacks, UserError, duration, heading, run, say
from tool_aware.files import hashes_in
from tool_aware.manifest import write_manifest
from tool_aware.paths import ADAPTER_FOLDER, CARD_NAME, FINAL_MODEL_FOLDER, split_file
from tool_aware.prompt import load_tokenizer
from tool_aware.training.data import encode_data, read_data
from tool_aware.training.distributed import Processes, hint_at_launcher, joined
from tool_aware.training.training_job import Job, plan_text
from tool_aware.units import GIB

if TYPE_CHECKING:
    from peft import PeftModel

    from tool_aware.training.export.agreement import References
    from tool_aware.training.export.export import Merged
    from tool_aware.training.validation import Exported


@dataclass(frozen=True, kw_only=True)
class Options(ConfigOptions):
    """The command line."""

    adapter: Path | None
    resume: bool
    overwrite: bool
    skip_final_model: bool
    dry_run: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage: plan, load, train, export."""
    started_s = time.monotonic()
    options = parse_arguments(argv)
    # Packs of all lengths share what is reserved.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    with joined() as processes:
        job = processes.first(lambda: plan(options, processes)) or plan(options, processes)
        processes.check_equal("settings or data", job.identity, fix="give all machines the same config.yaml and data/")
        job = replace(job, memory=processes.from_first(job.memory))
        say(plan_text(job))
        if options.dry_run:
            return 0
        resume_from = processes.from_first(processes.first(lambda: starting_point(job, options)))
        if resume_from and not resume_from.is_dir():
            raise UserError("not found on this machine", where=str(resume_from), fix="let all machines share output/")
        heading("Loading the base model")
        model = load_trainable(job)
        heading("Training")
        trained = train(job, model, resume_from, measures_merge=not options.skip_final_model)
    if processes.is_first:  # the others are done
        heading("Saving")
        merged = export(job, model, trained.references)
        finish(job, trained, merged, started_s)
        print(f"Trained {trained.steps} step{'s' * (trained.steps > 1)} in {duration(trained.seconds)}.")
        print(f"Next: {next_command('evaluate.py', options)}")
        if merged:
            merged.demand_agreement(job.config.toolbox.names)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = script_parser(__doc__)
    add_config_arguments(parser)
    add_output_dir_argument(parser)
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="start from this adapter (a second training stage)")
    parser.add_argument("--resume", action="store_true", help="continue from the newest whole checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="delete an earlier run in the output directory")
    parser.add_argument("--skip-final-model", action="store_true", help="save the adapter only, not the merged model")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parse_options(Options, parser, argv)


# ---- plan -----------------------------------------------------------------------------------------------


def plan(options: Options, processes: Processes) -> Job:
    """Check settings, output directory, data and model, tokenise the rows, and plan the GPU's memory."""
    from tool_aware.model.adapter import with_lora_of
    from tool_aware.model.base import check_model_available
    from tool_aware.training.export.weights import check_mergeable
    from tool_aware.training.gpu_plan import plan_memory
    from tool_aware.training.leakage import lineage_of
    from tool_aware.training.run.output_folder import check_output_dir

    config, environment = load_config(options.config, options.overrides), read_environment()
    model, token, fallbacks = config.model, environment.hf_token, Fallbacks()
    check_output_dir(
        config.training.output_dir, resume=options.resume, overwrite=options.overwrite, adapter=options.adapter
    )
    data = read_data(config, fallbacks)
    check_model_available(model.name, revision=model.revision, hf_token=token)
    config = with_lora_of(options.adapter, config) if options.adapter else config
    if not options.skip_final_model:
        check_mergeable(config.model)
    lineage = lineage_of(options.adapter, data, config, fallbacks)
    tokenizer = load_tokenizer(model.name, revision=model.revision, token=token)
    examples = encode_data(data, tokenizer, config)
    memory = plan_memory(config, examples["train"], processes.count)
    return Job(config, environment, tokenizer, data, examples, options.adapter, processes, memory, lineage, fallbacks)


# ---- run ------------------------------------------------------------------------------------------------


def starting_point(job: Job, options: Options) -> Path | None:
    """Make room for a new run, or choose the checkpoint to resume from."""
    from tool_aware.training.run.output_folder import clear, find_checkpoint

    if options.overwrite:
        clear(job.output_dir)
    return find_checkpoint(job.output_dir, job.identity, job.fallbacks) if options.resume else None


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
class Trained:
    """A finished training; the adapter to export is in the model."""

    steps: int
    seconds: float
    peak_gib: float | None  # allocated by torch; None without a GPU
    exported: Exported
    references: References | None  # what a merged model is compared with; None if none is wanted


def train(job: Job, model: PeftModel, resume_from: Path | None, *, measures_merge: bool) -> Trained:
    """Train, and leave in `model` the adapter to export."""
    import torch

    from tool_aware.training.export.agreement import references
    from tool_aware.training.loop import TrainingLoop
    from tool_aware.training.run.checkpoints import step_of
    from tool_aware.training.run.tracking import Tracker
    from tool_aware.training.validation import choose_adapter

    if hint := hint_at_launcher(job.processes):
        say(hint)
    started_s = time.perf_counter()
    resume_step = step_of(resume_from) if resume_from else 0
    tracking: contextlib.AbstractContextManager[Tracker | None] = contextlib.nullcontext()
    if job.processes.is_first:
        sources = (job.config, job.environment, job.output_dir)
        tracking = Tracker(*sources, resume_step=resume_step, fallbacks=job.fallbacks)
    with tracking as tracker:
        loop = TrainingLoop(
            model,
            job.engine_config,
            train=job.examples["train"],
            val=job.examples["val"],
            tool_names=job.tool_names,
            tracker=tracker,
            run=job.identity,
            processes=job.processes,
            fallbacks=job.fallbacks,
        )
        loop.run(resume_from)
    seconds = time.perf_counter() - started_s
    peak_gib = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None
    model.eval()
    exported = choose_adapter(model, loop.validations, loop.step, keep_best=job.config.training.keep_best)
    say(f"exporting the adapter of step {exported.step}: {exported.why}")
    states = loop.micro_step.answer_states
    compared_with = references(states, job.config, job.tokenizer, job.tool_names) if measures_merge else None
    return Trained(loop.step, seconds, peak_gib, exported, compared_with)


# ---- finish ---------------------------------------------------------------------------------------------


def export(job: Job, model: PeftModel, references: References | None) -> Merged | None:
    """Save the adapter and, if there is something to compare it with, the merged model."""
    from tool_aware.training.export.export import Merger, merge, save_adapter

    adapters, final = job.output_dir / ADAPTER_FOLDER, job.output_dir / FINAL_MODEL_FOLDER
    save_adapter(model, adapters, job.tokenizer, job.config.toolbox)
    say(f"{adapters}: the adapter, its tokenizer and the prompt it was trained on")
    if references is None:
        say(f"{final}: skipped (--skip-final-model)")
        return None
    return merge(Merger(job.config, adapters, hf_token=job.environment.hf_token), final, job.tool_names, references)


def finish(job: Job, trained: Trained, merged: Merged | None, started_s: float) -> None:
    """Write the run card and last the manifest, which marks the run as finished."""
    from tool_aware.training.run.run_card import RunFacts, device_name, license_of, write_run_card

    exported, adapters = trained.exported, job.output_dir / ADAPTER_FOLDER
    facts = RunFacts(
        job.config,
        adapters,
        data={split: (len(job.examples[split]), loaded.sha256) for split, loaded in job.data.items()},
        steps=trained.steps,
        exported_step=exported.step,
        why_exported=exported.why,
        validation=exported.validation.as_dict() if exported.validation else None,
        device=device_name(),
        license=license_of(job.config.model),
        fallbacks=tuple(job.fallbacks),
        merged=merged.as_dict() if merged else None,
    )
    write_run_card(job.output_dir, facts)
    say(f"{job.output_dir / CARD_NAME}: the run in figures and curves")
    # evaluate.py adds its results to the adapter's card, so that file is not pinned
    pinned = sorted(path for path in adapters.iterdir() if path.is_file() and path.name != CARD_NAME)
    details: Mapping[str, Any] = {
        "steps": trained.steps,
        "training_seconds": round(trained.seconds, 1),
        "peak_gib": trained.peak_gib,
        "memory_plan": job.memory.as_dict(),
        "lineage": job.lineage,
        "exported": {"step": exported.step, "why": exported.why},
        "merged": facts.merged,
        "validation": facts.validation,
    }
    write_manifest(
        job.output_dir,
        stage="train",
        config=job.config.as_dict(),
        seed=job.config.training.seed,
        started_s=started_s,
        inputs={str(split_file(job.config.dataset.dir, split)): loaded.sha256 for split, loaded in job.data.items()},
        outputs=hashes_in(job.output_dir, pinned),
        counts={split: len(examples) for split, examples in job.examples.items()},
        fallbacks=job.fallbacks,
        **details,
    )


if __name__ == "__main__":
    run(main)
