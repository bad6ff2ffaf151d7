#!/usr/bin/env python3
"""Stage 3: answer the test rows with the base and the fine-tuned model and say whether, and at what, tuning helped.

    python evaluate.py                          # base against output/lora_adapters, on data/test.json
    python evaluate.py --output_dir output_2    # another training's adapter, output_2/lora_adapters
    python evaluate.py --choice-only --limit 40 # a first quick look: one forward pass per row, 40 rows of the file
    python evaluate.py --min accuracy=0.8 --max-drop direct_chat=0.02 --require-significant   # in CI

Other engines: --model DIR (a merged model), --endpoint URL --served-model NAME (vLLM, llama.cpp, Ollama),
--predictions FILE (answers made elsewhere). They are compared with the base's answers of an earlier run, if there are.

Reads   config.yaml; data/test.json; data/train.json and data/val.json (rivals, calibration); output/lora_adapters/
Writes  evaluation_results/ {base_model,finetuned_model}_{metrics,results}.json and _confusion.png, comparison.json,
        report.html, report.md, answer.gbnf, answer.regex, predictions/*.jsonl, manifest.json
        output/lora_adapters/ routing_thresholds.json, probe.json, and the results in its model card
Exit    0 done; 2 something to fix; 3 a gate failed; 130/143 stopped (run again to go on where it stopped)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tool_aware.config.environment import Environment, read_environment
from tool_aware.config.options import add_config_arguments
from tool_aware.config.settings import Config, load_config
from tool_aware.console import GateFailed, duration, heading, run, say, warn
from tool_aware.evaluation.answering.endpoint import Endpoint
from tool_aware.evaluation.answering.local_model import LocalModel
from tool_aware.evaluation.answering.predictions import PredictionLog, read_answers
from tool_aware.evaluation.answering.probe import run_probe
from tool_aware.evaluation.answering.tasks import Plan, Task, origin_of, plan_tasks
from tool_aware.evaluation.gates import Gates, failures, parse_gates
from tool_aware.evaluation.held_out import TestSet, load_test_set, refuse_rows_taught_before
from tool_aware.evaluation.preflight import changed_tools, check_adapter, check_merged_model, refuse_other_results
from tool_aware.evaluation.report.output import print_results, update_adapter, write_results
from tool_aware.evaluation.results import Results, assemble
from tool_aware.evaluation.scoring.baselines import baseline_predictions
from tool_aware.evaluation.scoring.code_equality import same_output, same_syntax
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.evaluation.scoring.robustness import make_variants
from tool_aware.files import read_json, sha256_of
from tool_aware.model.adapter import attach_adapter
from tool_aware.model.base import check_model_available, load_base_model
from tool_aware.paths import ADAPTER_FOLDER, ADAPTER_WEIGHTS_NAME, PREDICTIONS_FOLDER, PROBE_NAME, REPORT_HTML_NAME
from tool_aware.prompt import load_tokenizer

Answers = dict[str, list[Prediction]]


@dataclass(frozen=True)
class Job:
    """All that one run was asked to do."""

    args: argparse.Namespace
    config: Config
    environment: Environment
    test: TestSet
    adapter: Path | None
    gates: Gates
    tasks: list[Task]

    @cached_property
    def adapter_sha256(self) -> str | None:
        """Identifies the adapter's weights."""
        return sha256_of(self.adapter / ADAPTER_WEIGHTS_NAME) if self.adapter else None

    @cached_property
    def partial(self) -> list[str]:
        """The options that make this a part of an evaluation; none for a whole one."""
        limit = [f"--limit {self.args.limit}"] if len(self.test.rows) < self.test.total else []
        return [*(["--choice-only"] if self.args.choice_only else []), *limit]

    def computes(self, task: Task) -> bool:
        """Whether this run's engine does `task`; answers to the others can only come from an earlier run."""
        if self.args.predictions:
            return False
        if self.args.endpoint:
            return served_name(self.args, task) is not None
        return task.uses_adapter or not self.args.model

    def log(self, task: Task) -> PredictionLog:
        """The answers that earlier runs left for `task`, if they came from the same data, model and settings."""
        is_earlier_base = not task.uses_adapter and not self.computes(task)
        name = str(self.args.model) if self.args.model and task.uses_adapter else self.config.model.name
        engine = {}
        if self.args.endpoint and not is_earlier_base:
            engine = {"endpoint": self.args.endpoint, "served": served_name(self.args, task)}
        weights = self.adapter_sha256 if task.uses_adapter else None
        origin = origin_of(task, self.test, self.config, model=name, adapter=weights, **engine)
        path = self.config.evaluation.results_dir / PREDICTIONS_FOLDER / f"{task.name}.jsonl"
        # An earlier base may have been quantised where this engine's model is not: it is still the model to beat.
        return PredictionLog(path, origin, ignored=("quantization",) if is_earlier_base else ())


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit code."""
    started_s = time.time()
    job = prepare(parse_arguments(argv))
    print_plan(job)
    if job.args.dry_run:
        return 0
    if job.args.overwrite:
        for task in filter(job.computes, job.tasks):
            job.log(task).path.unlink(missing_ok=True)
    answers = collect_answers(job)
    results = work_out(job, answers)
    folder = job.config.evaluation.results_dir
    outputs = write_results(folder, results, job.config, job.test, partial=job.partial, started_s=started_s)
    if job.adapter and not job.args.predictions and not job.args.endpoint and len(job.test.rows) == job.test.total:
        update_adapter(job.adapter, results, job.config, job.test)
    print_results(results)
    took = duration(time.time() - started_s)
    say(f"\n{len(outputs)} files in {folder}/ after {took}; open {folder / REPORT_HTML_NAME}")
    missed = failures(job.gates, results)
    if missed:
        raise GateFailed("\n  ".join([f"{len(missed)} of the demands are not met:", *missed]))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    add = parser.add_argument
    add("--output_dir", "--output-dir", type=Path, metavar="DIR", help="instead of training.output_dir")
    add("--adapter", type=Path, metavar="DIR", help="adapter to evaluate (default: OUTPUT_DIR/lora_adapters)")
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument("--model", type=Path, metavar="DIR", help="evaluate this merged model")
    engine.add_argument("--endpoint", metavar="URL", help="evaluate an OpenAI-compatible server")
    engine.add_argument("--predictions", type=Path, metavar="FILE", help="score answers made elsewhere (JSON or JSONL)")
    add("--served-model", metavar="NAME", help="with --endpoint: the fine-tuned model's name there")
    add("--served-base", metavar="NAME", help="with --endpoint: the base model's name there, to compare with")
    add("--concurrency", type=positive, default=8, metavar="N", help="with --endpoint: requests at once (%(default)s)")
    add("--limit", type=positive, metavar="N", help="evaluate N rows spread evenly over the test file")
    add("--choice-only", action="store_true", help="score the tool names in one forward pass per row; no answers")
    add("--no-constrained", action="store_true", help="skip constrained decoding")
    add("--no-robustness", action="store_true", help="skip shuffled tools, masked names and the reworded prompt")
    add("--run-code", action="store_true", help="also compare programs by what they print (runs them, with limits)")
    add("--min", action="append", default=[], metavar="FIGURE=X", help="fail below it: accuracy=0.8, f1.web_search=0.7")
    add("--max-drop", action="append", default=[], metavar="TOOL=X", help="fail if a tool's F1 falls further")
    add("--require-significant", action="store_true", help="fail unless the fine-tuned model is significantly better")
    add("--overwrite", action="store_true", help="answer anew, and replace earlier results, whatever they are of")
    add("--dry-run", action="store_true", help="print the plan and stop")
    args = parser.parse_args(argv)
    if bool(args.endpoint) != bool(args.served_model):
        parser.error("--endpoint and --served-model go together")
    if args.output_dir:
        args.overrides.append(f"training.output_dir={args.output_dir}")
    return args


def positive(text: str) -> int:
    """Read a whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


# ---- before anything slow ---------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> Job:
    """Read and check everything that can be wrong, and list what has to be computed."""
    config, environment = load_config(args.config, args.overrides), read_environment()
    test = load_test_set(config.dataset.dir, config.toolbox, limit=args.limit)
    gates = parse_gates(args.min, args.max_drop, args.require_significant, config.toolbox.names)
    adapter = None if args.model else args.adapter or config.training.output_dir / ADAPTER_FOLDER
    if args.model:
        check_merged_model(config, args.model)
        refuse_rows_taught_before(test, args.model)
    elif args.endpoint or args.predictions:
        adapter = adapter if adapter.is_dir() else None  # only its probe is of use
    else:
        check_adapter(config, adapter)
        refuse_rows_taught_before(test, adapter)
    variants = [] if args.no_robustness else make_variants(test.rows, config.toolbox, seed=config.evaluation.seed)
    is_local = not (args.endpoint or args.predictions)
    plan = Plan(
        systems=("base", "finetuned"),
        answers=not args.choice_only,
        constrained=is_local and not args.choice_only and not args.no_constrained,
        choices=is_local,
    )
    tasks = plan_tasks(plan, test.rows, test.val if is_local else {}, config.toolbox, variants)
    job = Job(args, config, environment, test, adapter, gates, tasks)
    if not args.overwrite:
        refuse_other_results(config.evaluation.results_dir, test, job.partial)
    return job


def print_plan(job: Job) -> None:
    """Say what will be done before doing it."""
    counts = {name: sum(row.tool == name for row in job.test.rows.values()) for name in job.config.toolbox.names}
    engine = job.args.endpoint or job.args.predictions or job.args.model or job.adapter
    say(f"test rows   {len(job.test.rows)} of {job.test.total} in {job.test.path}")
    say(f"            {', '.join(f'{name} {count}' for name, count in counts.items())}")
    say(f"base model  {job.config.model.name}, {job.config.quantization.kind}")
    say(f"fine-tuned  {engine}")
    for doubt in doubts(job):
        warn(doubt)
    for task in job.tasks:
        is_redone = job.args.overwrite and job.computes(task)
        known = 0 if is_redone else len(task.rows.keys() & job.log(task).done.keys())
        say(f"  {task.name:<45} {len(task.rows):>6,} rows{f', {known:,} known' if known else ''}")


def doubts(job: Job) -> list[str]:
    """What makes this evaluation say less than it could."""
    found = []
    missing = [name for name in job.config.toolbox.names if all(row.tool != name for row in job.test.rows.values())]
    if missing:
        found.append(f"no test rows for {', '.join(missing)}: their figures are n/a")
    change = changed_tools(job.test.path.parent, job.config, stage="prepare_dataset")
    if change:
        found.append(f"{job.test.path.parent} was made with {change}: what its prompts offer may not be what is judged")
    if job.args.model and job.config.quantization.kind != "none":
        found.append(
            f"the merged model is quantised to {job.config.quantization.kind} again, which can undo what tuning did; "
            "--set quantization.load_in_4bit=false evaluates it as it was saved"
        )
    if not job.test.val:
        found.append("no val.json: probabilities stay uncalibrated and no threshold is chosen")
    if not job.test.train:
        found.append("no train.json: no rival could learn, and test rows could not be checked against it")
    return found


# ---- answers ----------------------------------------------------------------------------------------------


def collect_answers(job: Job) -> Answers:
    """Have every task done by the engine that was asked for."""
    if job.args.predictions:
        given = read_answers(job.args.predictions, job.test.total)
        answers = {"finetuned": [given[index] for index in job.test.rows]}
        return {**known_answers(job, "base"), **answers}
    return ask_server(job) if job.args.endpoint else run_models(job)


def known_answers(job: Job, system: str) -> Answers:
    """Whole answer sets of `system` that earlier runs left."""
    answers = {}
    for task in job.tasks:
        log = job.log(task)
        if task.name.split("_")[0] == system and task.rows.keys() <= log.done.keys():
            answers[task.name] = [log.done[index] for index in task.rows]
    if not answers:
        warn(f"no answers of {system} from an earlier run on these rows: no comparison")
    return answers


def run_models(job: Job) -> Answers:
    """Work off the tasks with one load of the model; nothing is loaded if all answers are known."""
    answers, local = known_answers(job, "base") if job.args.model else {}, None
    for task in filter(job.computes, job.tasks):
        log = job.log(task)
        if task.rows.keys() <= log.done.keys():
            answers[task.name] = [log.done[index] for index in task.rows]
            continue
        local = local or load(job)
        begun_s = time.time()
        answers[task.name] = local.run(task, log)
        say(f"{task.name}: {len(task.rows)} rows, {duration(time.time() - begun_s)}")
    return answers


def load(job: Job) -> LocalModel:
    """Load the base model with the adapter on it, or a merged model."""
    config, token = job.config, job.environment.hf_token
    merged = {"name": str(job.args.model), "revision": None} if job.args.model else {}
    model = config.model.model_copy(update=merged)
    heading(f"Loading {model.name}")
    check_model_available(model.name, revision=model.revision, hf_token=token)
    tokenizer = load_tokenizer(model.name, revision=model.revision, token=token)
    base = load_base_model(model, config.quantization, hf_token=token)
    if job.adapter:
        base = attach_adapter(base, job.adapter, base_name=config.model.name)
    heading("Answering")
    return LocalModel(base.eval(), tokenizer, config.evaluation.batch_size, config.evaluation.max_new_tokens)


def served_name(args: argparse.Namespace, task: Task) -> str | None:
    """What the server calls the model of a task."""
    return args.served_model if task.uses_adapter else args.served_base


def ask_server(job: Job) -> Answers:
    """Let the server answer; first make sure that it is not the base model that answers."""
    answers = {} if job.args.served_base else known_answers(job, "base")
    for task in filter(job.computes, job.tasks):
        endpoint = Endpoint(
            job.args.endpoint, served_name(job.args, task), job.config.evaluation.max_new_tokens, job.args.concurrency,
            job.environment.openai_api_key,
        )  # fmt: skip
        endpoint.check()
        probe = read_json(job.adapter / PROBE_NAME) if job.adapter and task.uses_adapter else None
        if probe:
            counts = run_probe(endpoint, probe)
            say(f"probe of {len(probe)}: {counts['tuned']} replies as fine-tuned, {counts['base']} as the base")
        elif task.uses_adapter:
            warn(
                "no probe.json beside the adapter: cannot tell whether the server applies it (run evaluate.py locally)"
            )
        answers[task.name] = endpoint.answer_rows(task.rows, job.log(task))
    return answers


# ---- figures ----------------------------------------------------------------------------------------------


def work_out(job: Job, answers: Answers) -> Results:
    """Judge the answers, let the cheap rivals choose, and work out all figures."""
    baselines = baseline_predictions(
        job.test.train, job.test.rows, job.config.evaluation.keyword_router, job.config.toolbox.names
    )
    same_code = (lambda a, b: same_syntax(a, b) or same_output(a, b)) if job.args.run_code else same_syntax
    return assemble(
        job.config,
        job.test.rows,
        job.test.val,
        answers,
        job.tasks,
        baselines=baselines,
        same_code=same_code,
        notes=doubts(job),
    )


if __name__ == "__main__":
    run(main)
