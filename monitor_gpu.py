"""Any time: look at the GPUs, watch a run, or estimate what a training run will need.

    python monitor_gpu.py check
    python monitor_gpu.py monitor --interval 5 --output gpu_logs.json
    python monitor_gpu.py estimate --model-size 7.0 --quantization 4bit --lora-r 8 --batch-size 1 --seq-length 2048

Reads   config.yaml (or --config), the NVIDIA driver through NVML, output/metrics.jsonl of a run in progress
Writes  the file given to --output or --write, nothing else
Exit    0 done; 2 something to fix (no driver, no GPU, not ready to train); 3 an alert fired, or the estimate does not
        fit the card; 129/130/143 the monitor was stopped (its log is complete); of a wrapped command its own
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace

from tool_aware.config.environment import read_environment
from tool_aware.config.options import ConfigOptions, next_command
from tool_aware.config.settings import DEFAULT_CONFIG, Config, load_config
from tool_aware.console import EXIT_DONE, EXIT_GATE, EXIT_USER, Interrupted, UserError, run, say, style
from tool_aware.gpu.nvml import open_driver
from tool_aware.gpu.readings import GpuReading
from tool_aware.memory.architectures import Architecture, find_architecture, scaled_mistral
from tool_aware.memory.budget import allowed_by, budget_on_card
from tool_aware.memory.estimate import estimate_training
from tool_aware.memory.evaluation_estimate import GenerationSpec, estimate_evaluation, fit_evaluation
from tool_aware.memory.fit import fit_card, write_fitting_config
from tool_aware.memory.plan import make_plan, open_choices
from tool_aware.memory.spec import TrainingSpec
from tool_aware.memory.trace import trace_step, traceable
from tool_aware.memory.workload import rows_to_train_on, spec_of_data, workload_of
from tool_aware.monitor import checks, display, printout
from tool_aware.monitor.alerts import Alerts, parse_condition, refuse_unknown
from tool_aware.monitor.commands import (
    CheckOptions,
    EstimateOptions,
    MonitorOptions,
    Options,
    PlotOptions,
    parse_command,
)
from tool_aware.monitor.plot import draw, read_log
from tool_aware.monitor.prometheus import LOOPBACK, Exporter
from tool_aware.monitor.recording import open_recorder
from tool_aware.monitor.sampling import Statistics
from tool_aware.monitor.watching import AlertPrinter, Consumers, Pace, StatisticsKeeper, open_view, watch
from tool_aware.paths import split_file

LARGEST_DATA_BYTES = 2**24  # train.json that the monitor reads: it has to stay small itself
STATUS_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


# ---- check -----------------------------------------------------------------------------------------------


def check(options: CheckOptions) -> int:
    """Check whether the configured training can run here."""
    config = load_config(options.config, options.overrides)
    spec, spec_problems = checks.spec_or_problem(config)
    gpus, lines = checks.check_machine(config, read_environment(), spec, is_deep=options.deep)
    lines += spec_problems
    if options.json:
        print(json.dumps({"lines": [line.as_dict() for line in lines], "gpus": list(map(asdict, gpus))}, indent=2))
    else:
        show_check(gpus, lines)
    return EXIT_USER if any(line.status == "problem" for line in lines) else EXIT_DONE


def show_check(gpus: Sequence[GpuReading], lines: Sequence[checks.CheckLine]) -> None:
    """Print the GPUs, then one line per check with its remedy."""
    for text in printout.overview(gpus):
        print(text)
    if gpus:
        print()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for status, text in printout.check_text(lines, width):
        print(style(status, STATUS_STYLES[status], stream=sys.stdout) + text[len(status) :] if status else text)
    print(f"\n{printout.verdict(lines)}")


# ---- monitor ---------------------------------------------------------------------------------------------


def monitor(options: MonitorOptions) -> int:
    """Show the GPUs again and again until told to stop; end with peak, mean and energy."""
    alerts = Alerts([parse_condition(text) for text in options.alert])
    needs_config = options.config != DEFAULT_CONFIG or options.config.exists()
    config = load_config(options.config, options.overrides) if needs_config else None
    driver, statistics = open_driver(options.gpu), Statistics()
    refuse_unknown(alerts.conditions, driver.read())
    consumers = Consumers(StatisticsKeeper(statistics), AlertPrinter(alerts))
    pace = Pace(options.interval, options.count, options.duration, options.until_exit)
    if options.prometheus is not None:
        exporter = Exporter(options.prometheus)
        consumers.add(exporter)
        say(f"http://{LOOPBACK}:{exporter.port}/metrics")
    if options.wrapped and shutil.which(options.wrapped[0]) is None:
        raise UserError("no such command", where=f"-- {options.wrapped[0]}", fix="see `which`, or give its whole path")
    if options.output:  # after all that may fail: a start that fails leaves an earlier log where it is
        consumers.add(open_recorder(options.output, options.interval, driver.read(), statistics))

    wrapped = subprocess.Popen(options.wrapped) if options.wrapped else None
    if wrapped:
        pace = replace(pace, process_id=wrapped.pid)
    else:  # else the terminal belongs to the command
        consumers.add(open_view(estimate_mark(config, driver.read()[0].total_bytes)))
    try:
        for _ in watch(driver, pace, consumers, config.training.output_dir if config else None):
            if consumers.is_unread and not (wrapped or options.output or options.prometheus):
                break  # `| head`: nothing else wants the samples
    finally:
        consumers.close()
        driver.close()
        code = end_of(wrapped) if wrapped else EXIT_DONE
        if statistics.samples:
            print(f"\n{display.summary(statistics)}")
            if options.output:
                say(f"samples are in {options.output}")

    return code or (EXIT_USER if consumers.has_lost else EXIT_GATE if alerts.fired else EXIT_DONE)


def estimate_mark(config: Config | None, vram_bytes: float | None) -> float | None:
    """Return what the configured training should take of such a card, to be marked in its memory; None if unknown."""
    if config is None or vram_bytes is None:
        return None
    rows = split_file(config.dataset.dir, "train")
    if rows.is_file() and rows.stat().st_size > LARGEST_DATA_BYTES:
        return None
    with contextlib.suppress(UserError):
        plan = make_plan(spec_of_data(config)[0], budget_on_card(vram_bytes, allowed_by(config)), open_choices(config))
        return estimate_training(plan.spec).total_bytes
    return None


def end_of(wrapped: subprocess.Popen[bytes]) -> int:
    """Wait for the wrapped command, which got the same Ctrl-C, and return its exit code; pass SIGTERM and SIGHUP on."""
    if isinstance(sys.exc_info()[1], Interrupted):
        wrapped.terminate()
    code = wrapped.wait()
    return code if code >= 0 else 128 - code


# ---- plot ------------------------------------------------------------------------------------------------


def plot(options: PlotOptions) -> int:
    """Draw a log that `monitor --output` wrote."""
    picture = options.output or options.log.with_suffix(".png")
    draw(read_log(options.log), picture, title=options.log.name)
    say(f"drew {picture}")
    return EXIT_DONE


# ---- estimate --------------------------------------------------------------------------------------------


def estimate(options: EstimateOptions) -> int:
    """Print the memory of a training step by term, whether it fits, and what would make it fit."""
    config = load_config(options.config, options.all_overrides)
    if options.evaluation:
        return evaluation(options, config)
    if options.write:
        check_writable(options, config)
    spec, is_open, allowed_gib = training_spec(options, config), open_choices(config), allowed_by(config)
    if options.table:
        print(f"{printout.fit_table(spec, is_open, allowed_gib)}\n\n{printout.cards_table(spec, is_open, allowed_gib)}")
        return EXIT_DONE
    card, vram_bytes, device = checks.card_of(options.card, options.vram)
    spec = spec.on(device)
    if options.write and vram_bytes is None:
        raise UserError("there is no GPU here to fit", where="--write", fix="name a size, for example --vram 10")

    answer = fit_card(spec, vram_bytes, is_open, allowed_gib) if vram_bytes else None
    spec = answer.plan.spec if answer else spec
    result = estimate_training(spec)
    exact = traced_step(spec, config) if options.exact else None
    if options.json:
        print(json.dumps(printout.estimate_record(result, answer, exact), indent=2))
    else:
        say(printout.spec_text(spec))
        parts = [printout.estimate_table(result), printout.basis_text(result)]
        parts += [printout.exact_text(exact)] if exact else []
        parts += [printout.fit_text(answer)] if answer else []
        print("\n".join(filter(None, [*parts, printout.speed_text(spec, card, examples_in_run(options, config))])))

    if answer and options.write:
        write_fitting_config(options.write, options.config, answer, options.all_overrides)
        say(f"wrote {options.write}: use it with --config {options.write}")
        if not options.json:
            print(f"\nNext: {next_command('train_tool_aware.py', ConfigOptions(config=options.write))}")
        return EXIT_DONE
    return EXIT_DONE if answer is None or answer.fits_as_it_is else EXIT_GATE


def evaluation(options: EstimateOptions, config: Config) -> int:
    """Print the memory of evaluate.py by term."""
    if options.exact or options.table or options.write or options.card:
        raise UserError("--exact, --table, --write and --card are about training", where="--evaluation")
    workload = workload_of(config)
    spec = GenerationSpec.from_config(config, workload, architecture_of(options, config))
    if options.seq_length is not None:
        shared = min(spec.prefix_tokens, options.seq_length)
        spec = replace(spec, prompt_tokens=options.seq_length, prefix_tokens=shared)
    tools, vram_bytes = len(config.toolbox.names), checks.card_of(options.card, options.vram)[1]
    result = estimate_evaluation(spec, tools)
    answer = fit_evaluation(spec, tools, vram_bytes) if vram_bytes else None
    if options.json:
        print(json.dumps(printout.estimate_record(result) | (answer.as_dict() if answer else {}), indent=2))
    else:
        say(f"lengths: {workload.source}")
        fit = printout.evaluation_fit_text(answer) if answer else None
        print("\n".join(filter(None, [printout.estimate_table(result), printout.basis_text(result), fit])))
    return EXIT_DONE if answer is None or answer.fits else EXIT_GATE


def check_writable(options: EstimateOptions, config: Config) -> None:
    """Raise UserError if a config file could not make the run that is estimated."""
    if options.table:
        raise UserError("--table is about many cards", where="--write", fix="name one: --vram 10")
    if options.model_size is not None:
        raise UserError("a model scaled to a size exists nowhere", where="--model-size", fix="name one with --model")
    wanted, configured = find_architecture(options.model or config.model.name), find_architecture(config.model.name)
    is_preset = options.model is not None and not options.is_model_name
    if is_preset and wanted != replace(configured, name=wanted.name):
        fix = "name its folder or its Hugging Face id"
        raise UserError("a preset has no weights", where=str(options.model), fix=fix)


def architecture_of(options: EstimateOptions, config: Config) -> Architecture:
    """Return the shapes that --model-size or --model names, else those of the config's model."""
    if options.model_size is not None:
        return scaled_mistral(options.model_size)
    return find_architecture(options.model or config.model.name)


def training_spec(options: EstimateOptions, config: Config) -> TrainingSpec:
    """Return the spec: lengths from --seq-length or the data, shapes from --model-size, --model or the config."""
    architecture = architecture_of(options, config)
    if options.seq_length is not None:
        say(f"every example is taken as {options.seq_length:,} tokens long")
        return TrainingSpec.from_config(config, architecture=architecture, longest_tokens=options.seq_length)
    spec, source = spec_of_data(config, architecture)
    say(f"lengths: {source}")
    return spec


def examples_in_run(options: EstimateOptions, config: Config) -> float | None:
    """Count the examples that a run of the config takes through the model; None without data."""
    rows = rows_to_train_on(config) if options.seq_length is None else None
    if rows is None:
        return None
    training = config.training
    if training.max_steps:
        return training.max_steps * training.per_device_train_batch_size * training.gradient_accumulation_steps
    return rows * training.num_train_epochs


def traced_step(spec: TrainingSpec, config: Config) -> printout.TracedStep:
    """Trace the planned step, or the nearest one that can be, and put the formula for the same step beside it."""
    nearest = traceable(spec)
    return printout.TracedStep(trace_step(nearest, config), estimate_training(nearest), spec)


def parse_arguments(argv: Sequence[str] | None = None) -> Options:
    """Read the command line."""
    return parse_command(__doc__, argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see the module docstring."""
    options = parse_arguments(argv)
    if isinstance(options, CheckOptions):
        return check(options)
    if isinstance(options, MonitorOptions):
        return monitor(options)
    if isinstance(options, PlotOptions):
        return plot(options)
    return estimate(options)


if __name__ == "__main__":
    run(main)
