"""Any time: look at the GPUs, watch a run, or estimate what a training run will need.

    python monitor_gpu.py check
    python monitor_gpu.py monitor --interval 5 --output gpu_logs.json
    python monitor_gpu.py estimate --model-size 7.0 --quantization 4bit --lora-r 8 --batch-size 1 --seq-length 2048

Reads   config.yaml (or --config), the NVIDIA driver through NVML, output/metrics.jsonl of a run that goes on
Writes  the file given to --output or --write, nothing else
Exit    0 done; 2 something to fix (no driver, no GPU, not ready to train); 3 an alert fired, or the estimate does not
        fit the card; 129/130/143 the monitor was stopped (its log is complete); of a wrapped command its own
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tool_aware.command_line import add_version_argument
from tool_aware.config.environment import read_environment
from tool_aware.config.options import add_config_arguments
from tool_aware.config.settings import DEFAULT_CONFIG, Config, load_config
from tool_aware.console import EXIT_DONE, EXIT_GATE, EXIT_USER, Interrupted, UserError, run, say, style, warn
from tool_aware.gpu.nvml import open_driver
from tool_aware.gpu.readings import GIB, GpuReading
from tool_aware.memory.architectures import PRESETS, Architecture, find_architecture, scaled_mistral
from tool_aware.memory.budget import allowed_by, budget_on_card
from tool_aware.memory.estimate import estimate_training
from tool_aware.memory.evaluation_estimate import GenerationSpec, estimate_evaluation, fit_evaluation
from tool_aware.memory.fit import fit_card, write_fitting_config
from tool_aware.memory.plan import make_plan, open_choices
from tool_aware.memory.spec import TrainingSpec
from tool_aware.memory.trace import trace_step, traceable
from tool_aware.memory.workload import spec_of_data, workload_of
from tool_aware.monitor import checks, display
from tool_aware.monitor import printout as report
from tool_aware.monitor.alerts import Alerts, parse_condition
from tool_aware.monitor.plot import draw, read_log
from tool_aware.monitor.prometheus import LOOPBACK, Exporter
from tool_aware.monitor.recording import open_recorder
from tool_aware.monitor.sampling import Statistics
from tool_aware.monitor.watching import Alarming, Audience, Pace, Summing, open_view, watch
from tool_aware.paths import split_file

LARGEST_DATA_BYTES = 2**24  # train.json that the monitor reads: it has to stay small itself
STATUS_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


# ---- check -----------------------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """Say whether the configured training can run here."""
    config = load_config(args.config, args.overrides)
    spec, unknown = checks.spec_or_problem(config)
    gpus, lines = checks.check_machine(config, read_environment(), spec, is_deep=args.deep)
    lines += unknown
    if args.json:
        print(json.dumps({"lines": [line.as_dict() for line in lines], "gpus": list(map(asdict, gpus))}, indent=2))
    else:
        show_check(gpus, lines)
    return EXIT_USER if any(line.status == "problem" for line in lines) else EXIT_DONE


def show_check(gpus: Sequence[GpuReading], lines: Sequence[checks.CheckLine]) -> None:
    """Print the GPUs, then one line per check with its remedy."""
    for text in report.overview(gpus):
        print(text)
    if gpus:
        print()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for status, text in report.check_text(lines, width):
        print(style(status, STATUS_STYLES[status], stream=sys.stdout) + text[len(status) :] if status else text)
    print(f"\n{report.verdict(lines)}")


# ---- monitor ---------------------------------------------------------------------------------------------


def monitor(args: argparse.Namespace) -> int:
    """Show the GPUs again and again until told to stop; end with peak, mean and energy."""
    alerts = Alerts([parse_condition(text) for text in args.alert])
    config = load_config(args.config, args.overrides) if args.config != DEFAULT_CONFIG or args.config.exists() else None
    driver = open_driver(args.gpu)
    statistics = Statistics()
    audience = Audience(Summing(statistics), Alarming(alerts))
    pace = Pace(args.interval, args.count, args.duration, args.until_exit)
    if args.prometheus is not None:
        exporter = Exporter(args.prometheus)
        audience.add(exporter)
        say(f"http://{LOOPBACK}:{exporter.port}/metrics")
    if args.wrapped and shutil.which(args.wrapped[0]) is None:
        raise UserError("no such command", where=f"-- {args.wrapped[0]}", fix="see `which`, or give its whole path")
    if args.output:  # after all that may fail: a start that fails leaves an earlier log where it is
        audience.add(open_recorder(args.output, args.interval, driver.read(), statistics))
    wrapped = subprocess.Popen(args.wrapped) if args.wrapped else None
    if wrapped:
        pace = replace(pace, process_id=wrapped.pid)
    else:  # else the terminal belongs to the command
        audience.add(open_view(estimate_mark(config, driver.read()[0].total_bytes)))
    try:
        for _ in watch(driver, pace, audience, config.training.output_dir if config else None):
            pass
    finally:
        audience.close()
        driver.close()
        code = end_of(wrapped) if wrapped else EXIT_DONE
        if statistics.samples:
            print(f"\n{display.summary(statistics)}")
            if args.output:
                say(f"samples are in {args.output}")
    return code or (EXIT_USER if audience.has_lost else EXIT_GATE if alerts.fired else EXIT_DONE)


def estimate_mark(config: Config | None, vram_bytes: float | None) -> float | None:
    """What the configured training should take of such a card, to be marked in its memory; None if it is not known."""
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


def plot(args: argparse.Namespace) -> int:
    """Draw a log that `monitor --output` wrote."""
    picture = args.output or args.log.with_suffix(".png")
    draw(read_log(args.log), picture, title=args.log.name)
    say(f"drew {picture}")
    return EXIT_DONE


# ---- estimate --------------------------------------------------------------------------------------------


def estimate(args: argparse.Namespace) -> int:
    """Print the memory of a training step by term, whether it fits, and what would make it fit."""
    config = load_config(args.config, [*args.overrides, *overrides_of(args)])
    if args.evaluation:
        return evaluation(args, config)
    if args.write:
        refuse_what_no_config_says(args, config)
    spec = training_spec(args, config)
    if args.table:
        print(report.fit_table(spec, open_choices(config), allowed_by(config)))
        return EXIT_DONE
    card, vram_bytes = card_of(args)
    if args.write and vram_bytes is None:
        raise UserError("there is no GPU here to fit", where="--write", fix="name a size, for example --vram 10")
    answer = fit_card(spec, vram_bytes, open_choices(config), allowed_by(config)) if vram_bytes else None
    spec = answer.plan.spec if answer else spec
    result = estimate_training(spec)
    exact = traced_step(spec, config) if args.exact else None
    if args.json:
        print(json.dumps(report.estimate_record(result, answer, exact), indent=2))
    else:
        say(report.spec_text(spec))
        parts = [report.estimate_table(result), report.basis_text(result)]
        parts += [report.exact_text(exact)] if exact else []
        parts += [report.fit_text(answer)] if answer else []
        print("\n".join(filter(None, [*parts, report.speed_text(spec, card, examples_in_run(args, config))])))
    if answer and args.write:
        write_fitting_config(args.write, args.config, answer, [*args.overrides, *overrides_of(args)])
        say(f"wrote {args.write}: use it with --config {args.write}")
        return EXIT_DONE
    return EXIT_DONE if answer is None or answer.fits_as_it_is else EXIT_GATE


def evaluation(args: argparse.Namespace, config: Config) -> int:
    """Print the memory of evaluate.py by term."""
    if args.exact or args.table or args.write or args.card:
        raise UserError("--exact, --table, --write and --card are about training", where="--evaluation")
    workload = workload_of(config)
    spec = GenerationSpec.from_config(config, workload, architecture_of(args, config))
    if args.seq_length is not None:
        spec = replace(spec, prompt_tokens=args.seq_length, prefix_tokens=min(spec.prefix_tokens, args.seq_length))
    tools, vram_bytes = len(config.toolbox.names), card_of(args)[1]
    result = estimate_evaluation(spec, tools)
    answer = fit_evaluation(spec, tools, vram_bytes) if vram_bytes else None
    if args.json:
        print(json.dumps(report.estimate_record(result) | (answer.as_dict() if answer else {}), indent=2))
    else:
        say(f"lengths: {workload.source}")
        fit = report.evaluation_fit_text(answer) if answer else None
        print("\n".join(filter(None, [report.estimate_table(result), report.basis_text(result), fit])))
    return EXIT_DONE if answer is None or answer.fits else EXIT_GATE


def refuse_what_no_config_says(args: argparse.Namespace, config: Config) -> None:
    """Refuse --write for what the file could not say: it has to make the run that was estimated."""
    if args.table:
        raise UserError("--table is about many cards", where="--write", fix="name one: --vram 10")
    if args.model_size is not None:
        raise UserError("a model scaled to a size exists nowhere", where="--model-size", fix="name one with --model")
    is_preset = args.model is not None and not is_model_name(args.model)
    wanted, configured = find_architecture(args.model or config.model.name), find_architecture(config.model.name)
    if is_preset and wanted != replace(configured, name=wanted.name):
        raise UserError("a preset has no weights", where=args.model, fix="name its folder or its Hugging Face id")


def is_model_name(model: str) -> bool:
    """Whether config.yaml can name this model: a folder or a Hugging Face id, not a preset's shapes."""
    return "/" in model or Path(model).is_dir()


def overrides_of(args: argparse.Namespace) -> list[str]:
    """The flags are short forms of --set."""
    pairs: dict[str, Any] = {"lora.r": args.lora_r}
    if args.model is not None and is_model_name(args.model):
        pairs["model.name"] = json.dumps(args.model)
    if args.evaluation:
        pairs |= {"evaluation.batch_size": args.batch_size}
    else:
        pairs |= {
            "training.per_device_train_batch_size": args.batch_size,
            "optimization.micro_batch": '"fixed"' if args.batch_size else None,
            "model.max_seq_length": args.seq_length,
        }
    overrides = [f"{key}={value}" for key, value in pairs.items() if value is not None]
    if args.quantization:
        overrides += [
            f"quantization.load_in_{kind}={str(args.quantization == kind).lower()}" for kind in ("4bit", "8bit")
        ]
    return overrides


def architecture_of(args: argparse.Namespace, config: Config) -> Architecture:
    """The shapes that --model-size or --model names, else those of the config's model."""
    if args.model_size is not None:
        return scaled_mistral(args.model_size)
    return find_architecture(args.model or config.model.name)


def training_spec(args: argparse.Namespace, config: Config) -> TrainingSpec:
    """Take lengths from --seq-length or from the data, and the shapes from --model-size, --model or the config."""
    architecture = architecture_of(args, config)
    if args.seq_length is not None:
        say(f"every example is taken as {args.seq_length:,} tokens long")
        return TrainingSpec.from_config(config, architecture=architecture, longest_tokens=args.seq_length)
    spec, source = spec_of_data(config, architecture)
    say(f"lengths: {source}")
    return spec


def examples_in_run(args: argparse.Namespace, config: Config) -> float | None:
    """Count the examples that a run of the config takes through the model; None without data."""
    training, rows = config.training, workload_of(config).rows
    if args.seq_length is not None or rows is None:
        return None
    if training.max_steps:
        return training.max_steps * training.per_device_train_batch_size * training.gradient_accumulation_steps
    return rows * training.num_train_epochs


def card_of(args: argparse.Namespace) -> tuple[str | None, float | None]:
    """Name and memory of the card to fit: --vram, else the GPU or slice that a run here would take, if there is one."""
    if args.vram is not None:
        return args.card, args.vram * GIB
    gpu, lines = checks.gpu_here()
    for line in lines:
        warn(line.finding)
    name = gpu.name if gpu and not gpu.is_mig else None  # a slice is slower than its card
    return args.card or name, gpu.total_bytes if gpu else None


def traced_step(spec: TrainingSpec, config: Config) -> report.TracedStep:
    """Trace the planned step, or the nearest one that can be, and put the formula for the same step beside it."""
    nearest = traceable(spec)
    return report.TracedStep(trace_step(nearest, config), estimate_training(nearest), spec)


# ---- command line ----------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="monitor_gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_version_argument(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    sub = commands.add_parser("check", help="can I train here?")
    add_config_arguments(sub)
    sub.add_argument("--deep", action="store_true", help="also import torch and compute something on the GPU")
    sub.add_argument("--json", action="store_true", help="print the answer as JSON")
    sub.set_defaults(command=check)

    sub = commands.add_parser(
        "monitor",
        help="watch the GPUs",
        description="Watch the GPUs. `monitor [options] -- COMMAND` runs a command and ends with it.",
    )
    add_config_arguments(sub)
    sub.add_argument("--interval", type=positive(float), default=1.0, metavar="S", help="seconds (default: 1)")
    sub.add_argument("--output", type=Path, metavar="FILE", help="also write samples: .json, .jsonl or .csv")
    sub.add_argument("--gpu", type=gpu_list, metavar="0,1", help="GPUs to watch (default: all)")
    sub.add_argument("--count", type=positive(int), metavar="N", help="stop after N samples")
    sub.add_argument("--duration", type=positive(float), metavar="S", help="stop after S seconds")
    sub.add_argument("--until-exit", type=positive(int), metavar="PID", help="stop when this process ends")
    sub.add_argument(
        "--alert", action="append", default=[], metavar="CONDITION",
        help="tell when memory>95%%, memory>11GiB, temperature>85, use<10%% or power>250W, and exit with 3; repeatable",
    )  # fmt: skip
    sub.add_argument("--prometheus", type=port, metavar="PORT", help=f"serve http://{LOOPBACK}:PORT/metrics")
    sub.set_defaults(command=monitor)

    sub = commands.add_parser("plot", help="draw a log that the monitor wrote")
    sub.add_argument("log", type=Path, help="gpu_logs.json, .jsonl or .csv")
    sub.add_argument("--output", type=Path, metavar="PNG", help="picture to write (default: the log's name)")
    sub.set_defaults(command=plot)

    sub = commands.add_parser("estimate", help="memory of a training run, by term; needs no GPU")
    add_config_arguments(sub)
    sub.add_argument("--model-size", type=positive(float), metavar="B", help="Mistral-7B scaled to B billion weights")
    sub.add_argument("--model", metavar="NAME", help=f"a folder, a Hugging Face id, or {', '.join(PRESETS)}")
    sub.add_argument("--quantization", choices=("4bit", "8bit", "none"))
    sub.add_argument("--lora-r", type=positive(int), metavar="R")
    sub.add_argument("--batch-size", type=positive(int), metavar="N", help="examples per forward pass")
    sub.add_argument(
        "--seq-length", type=positive(int), metavar="T", help="tokens per example; of a prompt with --evaluation"
    )
    sub.add_argument("--vram", type=positive(float), metavar="GIB", help="does it fit this card? (default: yours)")
    sub.add_argument("--write", type=Path, metavar="FILE", help="write a config that fits, such as config.10gb.yaml")
    sub.add_argument("--exact", action="store_true", help="also trace the real step on tensors without data (10-30 s)")
    sub.add_argument("--evaluation", action="store_true", help="estimate evaluate.py instead of training")
    sub.add_argument("--card", metavar="NAME", help="estimate the time on this card, such as 'RTX 4070 Ti'")
    sub.add_argument("--table", action="store_true", help="what fits cards of 6 to 80 GB")
    sub.add_argument("--json", action="store_true", help="print the estimate as JSON")
    sub.set_defaults(command=estimate)
    own, wrapped = split_at_dashes(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(own)
    args.wrapped = wrapped
    if wrapped and args.command is not monitor:
        parser.error("only monitor runs a command")
    return args


def split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line at `--` into this script's own part and a command to wrap."""
    words = list(argv)
    if "--" not in words:
        return words, []
    position = words.index("--")
    return words[:position], words[position + 1 :]


def positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    """An argparse type: a number above 0."""

    def convert(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    convert.__name__ = "number above 0"
    return convert


def gpu_list(text: str) -> list[int]:
    """An argparse type: GPU numbers with commas between them."""
    return sorted({int(part) for part in text.split(",")})


def port(text: str) -> int:
    """An argparse type: a TCP port, 0 for any free one."""
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"{text} is no port number")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see the module docstring."""
    args = parse_arguments(argv)
    return args.command(args)


if __name__ == "__main__":
    run(main)
