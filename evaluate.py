"""Stage 3: answer the test rows with the base and the fine-tuned model, and compare their answers.

    python evaluate.py                          # base against output/lora_adapters, on data/test.json
    python evaluate.py --output_dir output_2    # another training's adapter, output_2/lora_adapters
    python evaluate.py --choice-only --limit 40 # a first quick look: one forward pass per row, 40 rows of the file
    python evaluate.py --min accuracy=0.8 --max-drop direct_chat=0.02 --require-significant   # in CI

Other engines: --model DIR (a merged model), --endpoint URL --served-model NAME (vLLM, llama.cpp, Ollama),
--predictions FILE (answers made elsewhere). They are compared with the base's answers of an earlier run, if there are.

Reads   config.yaml; data/test.json; data/train.json and data/val.json (baselines, calibration); output/lora_adapters/
Writes  evaluation_results/ {base_model,finetuned_model}_{metrics,results}.json and _confusion.png, comparison.json,
        report.html, report.md, answer.gbnf, answer.regex, predictions/*.jsonl, manifest.json
        (with --model, --endpoint, --predictions in evaluation_results_NAME/, unless --set evaluation.results_dir=DIR)
        output/lora_adapters/ routing_thresholds.json, probe.json, and the results in its model card
Exit    0 done; 2 something to fix; 3 a gate failed; 129/130/143 stopped (run again to continue)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tool_aware.chat_format import chat_format
from tool_aware.command_line import positive_int, script_parser
from tool_aware.config.options import add_config_arguments, add_output_dir_argument, parse_options
from tool_aware.console import GateFailed, duration, run, say
from tool_aware.evaluation.answering.collect import Answers, collect_answers
from tool_aware.evaluation.baselines_beside import Baselines, begin_baselines
from tool_aware.evaluation.evaluation_job import Job, Options, prepare
from tool_aware.evaluation.gates import failures
from tool_aware.evaluation.report.output import print_results, update_adapter, write_results
from tool_aware.evaluation.results import Results, assemble, parameter_judge_of
from tool_aware.evaluation.scoring.baselines import note_of_sample
from tool_aware.evaluation.scoring.code_equality import same_syntax
from tool_aware.evaluation.scoring.judgement import SameCode
from tool_aware.garbage_collection import no_search_for_circles
from tool_aware.paths import REPORT_HTML_NAME
from tool_aware.secret_values import without_login
from tool_aware.stage_times import begin_run, stage, stages_in_words
from tool_aware.text import shortlist
from tool_aware.transaction import locked


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit code."""
    started_s = begin_run()
    with stage("checks and rows"), no_search_for_circles():
        job = prepare(parse_arguments(argv))
    print_plan(job)
    if job.options.dry_run:
        return 0
    with locked(job.results_dir), no_search_for_circles():
        job.check_results_folder()  # again: another run may have ended there since
        if job.options.overwrite:
            delete_earlier_answers(job)
        baselines = baselines_of(job)  # before the rows are answered
        results = assemble_results(job, collect_answers(job), baselines)
        finish(job, results, started_s)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> Options:
    """Read the command line."""
    parser = script_parser(__doc__)
    add_config_arguments(parser)
    add_output_dir_argument(parser)
    add = parser.add_argument
    add("--adapter", type=Path, metavar="DIR", help="adapter to evaluate (default: OUTPUT_DIR/lora_adapters)")
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument("--model", type=Path, metavar="DIR", help="evaluate this merged model")
    engine.add_argument("--endpoint", metavar="URL", help="evaluate an OpenAI-compatible server")
    engine.add_argument("--predictions", type=Path, metavar="FILE", help="score answers made elsewhere (JSON or JSONL)")
    add("--served-model", metavar="NAME", help="with --endpoint: the fine-tuned model's name there")
    add("--served-base", metavar="NAME", help="with --endpoint: the base model's name there, to compare with")
    at_once = "with --endpoint: requests at once (%(default)s)"
    add("--concurrency", type=positive_int, default=8, metavar="N", help=at_once)
    add("--limit", type=positive_int, metavar="N", help="evaluate N rows spread evenly over the test file")
    add("--choice-only", action="store_true", help="score the tool names in one forward pass per row; no answers")
    add("--no-constrained", action="store_true", help="skip constrained decoding")
    add("--no-robustness", action="store_true", help="skip shuffled tools, masked names and the reworded prompt")
    add("--run-code", action="store_true", help="the strict figures too take programs that print the same for right")
    add("--run-unisolated", action="store_true", help="as --run-code, and also where programs cannot be isolated")
    add("--no-run-code", action="store_true", help="run no answered program; else all run where the kernel isolates")
    add("--min", action="append", default=[], metavar="FIGURE=X", help="fail below it: accuracy=0.8, f1.web_search=0.7")
    add("--max-drop", action="append", default=[], metavar="TOOL=X", help="fail if a tool's F1 falls further")
    add("--require-significant", action="store_true", help="fail unless the fine-tuned model is significantly better")
    add("--overwrite", action="store_true", help="answer anew, and replace earlier results, whatever they are of")
    add("--dry-run", action="store_true", help="print the plan and stop")
    options = parse_options(Options, parser, argv)
    if bool(options.endpoint) != bool(options.served_model):
        parser.error("--endpoint and --served-model go together")
    if options.no_run_code and (options.run_code or options.run_unisolated):
        parser.error("--no-run-code contradicts --run-code and --run-unisolated")
    return options


def print_plan(job: Job) -> None:
    """Print what will be done, and what limits the result, before doing it."""
    test, config, options = job.test, job.config, job.options
    counts = {name: sum(row.tool == name for row in test.rows.values()) for name in config.toolbox.names}
    added = f", and {test.added} made from examples of new tools" if test.added else ""
    say(f"test rows   {len(test.rows) - test.added} of {test.total} in {test.path}{added}")
    say(f"            {shortlist([f'{name} {count}' for name, count in counts.items()])}")
    say(f"base model  {config.model.name}, {config.quantization.kind}")
    if job.tokenizer:
        say(f"prompts     wrapped by {chat_format(job.tokenizer).name}")
    endpoint = without_login(options.endpoint) if options.endpoint else None
    say(f"fine-tuned  {endpoint or options.predictions or options.model or job.adapter}")
    is_beside = job.results_dir != config.evaluation.results_dir
    say(f"results     {job.results_dir}/{', so that those of base and adapter stay' if is_beside else ''}")
    for limitation in job.limitations:
        job.fallbacks.add(limitation)
    for task in job.tasks:
        is_redone = options.overwrite and job.computes(task)
        known = 0 if is_redone else len(task.rows.keys() & job.log(task).done.keys())
        how = "known" if options.is_local or not job.computes(task) else "known if the server is still the same"
        say(f"  {task.name:<45} {len(task.rows):>6,} rows{f', {known:,} {how}' if known else ''}")


def delete_earlier_answers(job: Job) -> None:
    """Delete the answers of earlier runs to all that this run answers anew."""
    for task in filter(job.computes, job.tasks):
        job.log(task).path.unlink(missing_ok=True)


def baselines_of(job: Job) -> Baselines:
    """Begin to choose tools with the cheap baselines where a core is free for that, and return what returns them."""
    router, names = job.config.evaluation.keyword_router, job.config.toolbox.names
    return begin_baselines(job.test.train, job.test.rows, router, names, is_idle=job.is_answered_elsewhere)


def assemble_results(job: Job, answers: Answers, baselines: Baselines) -> Results:
    """Judge the answers, choose tools with the baselines too, and compute all figures."""
    test, config = job.test, job.config
    return assemble(
        config,
        test.rows,
        test.val,
        answers,
        job.tasks,
        baselines=baselines,
        train=test.train,
        same_code=same_code(job),
        parameter_judge=None if job.options.choice_only else parameter_judge_of(config, test.rows, job.programs),
        notes=[*filter(None, [job.answered_by]), *job.limitations, *note_of_sample(len(test.train), len(test.rows))],
    )


def same_code(job: Job) -> SameCode:
    """Return how the strict figures compare programs: by syntax tree, and by what they print if that is asked for."""
    programs = job.programs
    if programs is None or not (job.options.run_code or job.options.run_unisolated):
        return same_syntax
    return lambda one, other: same_syntax(one, other) or programs.print_alike(one, other)


def finish(job: Job, results: Results, started_s: float) -> None:
    """Write the results and print them. Raises GateFailed if a demand of the command line is not met."""
    folder = job.results_dir
    with stage("report and files"):
        outputs = write_results(
            folder,
            results,
            job.config,
            job.test,
            partial=job.partial,
            fallbacks=job.fallbacks,
            inputs=job.inputs,
            served=job.served,
            started_s=started_s,
        )
    if job.adapter and job.options.is_local and job.test.is_whole and job.is_as_trained:
        update_adapter(job.adapter, results, job.config, job.test, weights_sha256=job.adapter_sha256)
    print_results(results)
    say(f"\n{len(outputs)} files in {folder}/ after {duration(time.monotonic() - started_s)}")
    say(f"time: {stages_in_words()}")
    print(f"\nNext: open {folder / REPORT_HTML_NAME}")
    missed = failures(job.gates, results)
    if missed:
        raise GateFailed("\n  ".join([f"{len(missed)} of the demands are not met:", *missed]))


if __name__ == "__main__":
    run(main)
