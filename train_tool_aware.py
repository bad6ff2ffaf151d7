"""Stage 2: fine-tune Mistral with QLoRA so that it chooses the right tool.

    python train_tool_aware.py --dry-run
    python train_tool_aware.py
    python train_tool_aware.py --output_dir ./output_stage2 --adapter ./output/lora_adapters
    torchrun --nproc-per-node 2 train_tool_aware.py        # on two GPUs; docs/CLUSTERS.md: on a cluster

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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.chat_format import chat_format
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
from tool_aware.data_folder import DataReading
from tool_aware.garbage_collection import no_search_for_circles
from tool_aware.library_imports import import_libraries, left_out
from tool_aware.paths import ADAPTER_FOLDER, FINAL_MODEL_FOLDER
from tool_aware.stage_times import begin_run, stage, stages_in_words
from tool_aware.tokenizer import load_tokenizer
from tool_aware.training.data import TRAINED_ON, encode_data, read_data
from tool_aware.training.distributed import Processes, hint_at_launcher, joined
from tool_aware.training.run.output_folder import Wish
from tool_aware.training.run.run_end import Trained, finish
from tool_aware.training.training_job import Job, plan_text
from tool_aware.training.varied_lists import StepExamples
from tool_aware.units import GIB

if TYPE_CHECKING:
    from peft import PeftModel

    from tool_aware.training.export.export import Merged


@dataclass(frozen=True, kw_only=True)
class Options(ConfigOptions):
    """The command line."""

    adapter: Path | None
    resume: bool
    overwrite: bool
    skip_final_model: bool
    dry_run: bool

    @property
    def wish(self) -> Wish:
        """Return what is to happen to an earlier run in the output directory."""
        return Wish(resume=self.resume, overwrite=self.overwrite, adapter=self.adapter)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stage: plan, load, train, export."""
    started_s = begin_run()
    options = parse_arguments(argv)
    # Packs of all lengths share what is reserved.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    with contextlib.ExitStack() as held:  # the output directory, to the end
        with joined() as processes:
            job = processes.first(lambda: plan(options, processes)) or plan(options, processes)
            processes.check_equal("settings or data", job.identity, fix="give all machines the same config.yaml, data/")
            job = replace(job, memory=processes.from_first(job.memory))
            say(plan_text(job))
            if options.dry_run:
                return 0
            resume_from = processes.from_first(processes.first(lambda: begin(job, options, held)))
            if resume_from and not resume_from.is_dir():
                raise UserError(
                    "not found on this machine", where=str(resume_from), fix="let all machines share output/"
                )
            heading("Loading the base model")
            model = load_trainable(job)
            heading("Training")
            trained = train(job, model, resume_from, measures_merge=not options.skip_final_model)
        if processes.is_first:  # the others are done
            merged = merge_model(job, trained)
            finish(job, trained, merged, started_s)
            say(f"time: {stages_in_words()}")
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
    """Check settings, output directory, data, model and disk, tokenise the rows, and plan the GPU's memory."""
    from tool_aware.model.adapter import check_targets, with_lora_of
    from tool_aware.model.adapter_record import refuse_another_chat_format
    from tool_aware.model.base import check_model_available, check_windows
    from tool_aware.training.export.weights import check_mergeable
    from tool_aware.training.gpu_plan import plan_memory
    from tool_aware.training.leakage import lineage_of
    from tool_aware.training.run.disk_space import check_disk_space
    from tool_aware.training.run.output_folder import check_output_dir

    config, environment = load_config(options.config, options.overrides), read_environment()
    model, token, fallbacks = config.model, environment.hf_token, Fallbacks()
    check_output_dir(config, options.wish)
    reading = DataReading(config.dataset.dir, config.toolbox, TRAINED_ON)
    if reading.is_beside:
        import_training_libraries()
    with stage("reading rows"), no_search_for_circles():
        data, test = read_data(config, fallbacks, reading)
    import_training_libraries()
    check_model_available(model.name, revision=model.revision, hf_token=token)
    check_windows(model)
    config = with_lora_of(options.adapter, config) if options.adapter else config
    check_targets(config)
    if not options.skip_final_model:
        check_mergeable(config.model)
    lineage = lineage_of(options.adapter, data, test, fallbacks)
    with stage("loading the tokenizer"):
        tokenizer = load_tokenizer(model.name, revision=model.revision, token=token)
    if options.adapter:
        refuse_another_chat_format(options.adapter, chat_format(tokenizer), model.name)
    with stage("tokenising"), no_search_for_circles():
        examples, rows = encode_data(data, tokenizer, config)
        varied = StepExamples.of(config, rows["train"], examples["train"], tokenizer)
    with stage("memory plan"):
        memory = plan_memory(config, examples["train"], processes.count, varied)
    check_disk_space(config, merges=not options.skip_final_model)
    return Job(
        *(config, environment, tokenizer, data, examples, varied, options.adapter),
        *(processes, memory, test, lineage, fallbacks),
    )


def import_training_libraries() -> None:
    """Import what training takes, without what takes a tenth of the time and only other models' losses use."""
    with left_out("scipy"):
        import_libraries("torch", "transformers", "transformers.modeling_utils")


# ---- run ------------------------------------------------------------------------------------------------


def begin(job: Job, options: Options, held: contextlib.ExitStack) -> Path | None:
    """Hold the output directory, make room for a new run, or choose the checkpoint to resume from."""
    from tool_aware.training.run.output_folder import held_output_dir, starting_point

    held.enter_context(held_output_dir(job.config, options.wish))
    return starting_point(job.output_dir, job.identity, job.fallbacks, is_resumed=options.resume)


@stage("loading the model")
def load_trainable(job: Job) -> PeftModel:
    """Load the frozen base model and put a new or an earlier adapter on it."""
    from tool_aware.model.adapter import attach_adapter, new_adapter, prepare_for_training
    from tool_aware.model.base import load_base_model
    from tool_aware.training.sharding import load_sharded_base

    config = job.engine_config
    import_libraries("peft")
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


@stage("training")
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
            varied=job.varied.of_step if job.varied else None,
            processes=job.processes,
            fallbacks=job.fallbacks,
        )
        loop.run(resume_from)
    seconds = time.perf_counter() - started_s
    peak_gib = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None
    model.eval()
    exported = choose_adapter(model, loop.validations, loop.step, keep_best=job.config.training.keep_best)
    say(f"exporting the adapter of step {exported.step}: {exported.why}")
    heading("Saving")
    written = save(job, model) if job.processes.is_first else {}  # before all that could still fail
    states, compared_with = loop.micro_step.answer_states, None
    if measures_merge:
        rows: dict[str, Any] = {"val": job.data["val"], "test": job.test}
        compared_with = references(states, job.config, job.tokenizer, job.tool_names, **rows)
    return Trained(loop.step, seconds, peak_gib, exported, written, compared_with)


# ---- finish ---------------------------------------------------------------------------------------------


@stage("saving the adapter")
def save(job: Job, model: PeftModel) -> dict[str, str]:
    """Save the adapter; return the sha256 of its files by name."""
    from tool_aware.training.export.export import save_adapter
    from tool_aware.training.run.run_record import claimed, record_files

    adapters = claimed(job.output_dir, ADAPTER_FOLDER, job.fallbacks)
    written = save_adapter(model, adapters, job.tokenizer, job.config, job.own_lineage)
    record_files(adapters)
    say(f"{adapters}: the adapter, its tokenizer and the prompt it was trained on")
    return written


def merge_model(job: Job, trained: Trained) -> Merged | None:
    """Save the merged model, if there is something to compare it with."""
    from tool_aware.training.export.export import Merger, merge
    from tool_aware.training.run.run_record import claimed, record_files

    if trained.references is None:
        say(f"{job.output_dir / FINAL_MODEL_FOLDER}: skipped (--skip-final-model)")
        return None
    merger = Merger(
        *(job.engine_config, job.output_dir / ADAPTER_FOLDER),
        tokenizer=job.tokenizer,
        hf_token=job.environment.hf_token,
    )
    final = claimed(job.output_dir, FINAL_MODEL_FOLDER, job.fallbacks)
    merged = merge(merger, final, job.tool_names, trained.references)
    record_files(final)
    return merged


if __name__ == "__main__":
    run(main)
