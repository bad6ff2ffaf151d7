"""Any time: look at the GPUs, watch a run, or estimate what a training run will need.

    python monitor_gpu.py check
    python monitor_gpu.py monitor --interval 5 --output gpu_logs.json
    python monitor_gpu.py estimate --model-size 7.0 --quantization 4bit --lora-r 8 --batch-size 1 --seq-length 2048

Reads   config.yaml (or --config), the NVIDIA driver through NVML, output/metrics.jsonl of a run that goes on
Writes  the file given to --output, nothing else
Exit    0 done; 2 something to fix (no driver, no GPU, does not fit); 130/143 the monitor was stopped (log is complete)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from tool_aware.config import Config, add_config_arguments, load_config, read_environment
from tool_aware.console import EXIT_DONE, EXIT_USER, run, say, style
from tool_aware.gpu import checks, display
from tool_aware.gpu.architectures import PRESETS, find_architecture, scaled_mistral
from tool_aware.gpu.estimate import MemoryEstimate, TrainingSpec, estimate_training
from tool_aware.gpu.nvml import DriverUnavailable, GpuReading, open_driver
from tool_aware.gpu.recording import open_recorder
from tool_aware.gpu.sampling import Sample, Statistics, ticks

STATUS_STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


# ---- check -----------------------------------------------------------------------------------------------


def check(args: argparse.Namespace) -> int:
    """Say whether the configured training can run here."""
    config = load_config(args.config, args.overrides)
    spec = TrainingSpec.from_config(config)
    estimate = estimate_training(spec)
    gpus: list[GpuReading] = []
    lines: list[checks.CheckLine] = []
    try:
        driver = open_driver()
        gpus = driver.read()
        driver.close()
    except DriverUnavailable as error:
        lines += [checks.CheckLine("problem", "driver", error.what, error.fix), checks.check_torch(None)]
    else:
        lines += [checks.check_driver(driver.info), checks.check_torch(driver.info)]
    lines.append(checks.check_bitsandbytes())
    for gpu in gpus:
        lines += check_gpu(gpu, estimate)
    lines += checks.check_disk(config, spec.architecture)
    environment = read_environment()
    lines += [checks.check_token(config, environment), *checks.check_database(config, environment)]
    if args.json:
        print(json.dumps({"lines": [line.as_dict() for line in lines], "estimate": estimate.as_dict()}, indent=2))
    else:
        show_check(gpus, lines)
    return EXIT_USER if any(line.status == "problem" for line in lines) else EXIT_DONE


def check_gpu(gpu: GpuReading, estimate: MemoryEstimate) -> list[checks.CheckLine]:
    """The lines about one GPU."""
    if gpu.problem:
        return [checks.CheckLine("problem", f"GPU {gpu.index}", gpu.problem, "compare with `nvidia-smi`")]
    return [checks.check_precision(gpu), *checks.check_mig(gpu), checks.check_memory(gpu, estimate)]


def show_check(gpus: Sequence[GpuReading], lines: Sequence[checks.CheckLine]) -> None:
    """Print the GPUs, then one line per check with its remedy."""
    for text in display.overview(gpus):
        print(text)
    if gpus:
        print()
    width = max(len(line.name) for line in lines)
    for line in lines:
        print(f"{style(f'{line.status:<7}', STATUS_STYLES[line.status], stream=sys.stdout)}  "
              f"{line.name:<{width}}  {line.finding}")  # fmt: skip
        if line.remedy and line.status != "ok":
            print(f"{'':<7}  {'':<{width}}  fix: {line.remedy}")
    problems = sum(line.status == "problem" for line in lines)
    print(f"\n{'ready to train' if not problems else f'not ready: {problems} to fix'}")


# ---- monitor ---------------------------------------------------------------------------------------------


def monitor(args: argparse.Namespace) -> int:
    """Show the GPUs again and again until told to stop; end with peak and mean."""
    driver = open_driver(args.gpu)
    first = driver.read()
    recorder = open_recorder(args.output, args.interval, first) if args.output else None
    statistics = Statistics()
    show = make_view()
    try:
        for seconds in ticks(args.interval, count=args.count):
            sample = Sample(seconds, datetime.now().astimezone(), driver.read())
            statistics.add(sample)
            if recorder:
                recorder.add(sample)
            show(sample)
    finally:
        if recorder:
            recorder.close(statistics)
        driver.close()
        if statistics.samples:
            print(f"\n{display.summary(statistics)}")
            if args.output:
                say(f"samples are in {args.output}")
    return EXIT_DONE


def make_view() -> Callable[[Sample], None]:
    """Plain lines for pipes."""

    def show(sample: Sample) -> None:
        for line in display.plain_lines(sample):
            print(line, flush=True)

    return show


# ---- estimate --------------------------------------------------------------------------------------------


def estimate(args: argparse.Namespace) -> int:
    """Print the memory of a training step, term by term."""
    spec = spec_from(args)
    result = estimate_training(spec)
    if args.json:
        print(json.dumps(result.as_dict(), indent=2))
        return EXIT_DONE
    say(f"{spec.architecture.name}, {spec.quantization}, LoRA r={spec.lora_r}, "
        f"batch {spec.batch_size} x {spec.seq_length} tokens")  # fmt: skip
    print(display.estimate_table(result))
    say(f"calibrated on {result.calibration.source}: worst error {result.calibration.error_percent:.1f} %")
    return EXIT_DONE


def spec_from(args: argparse.Namespace) -> TrainingSpec:
    """Start from config.yaml and lay the flags over it."""
    config: Config = load_config(args.config, args.overrides)
    if args.model_size is not None:
        architecture = scaled_mistral(args.model_size)
    else:
        architecture = find_architecture(args.model or config.model.name)
    return TrainingSpec(
        architecture=architecture,
        quantization=args.quantization or config.quantization.kind,
        double_quantization=config.quantization.bnb_4bit_use_double_quant,
        lora_r=args.lora_r or config.lora.r,
        batch_size=args.batch_size or config.training.per_device_train_batch_size,
        seq_length=args.seq_length or config.model.max_seq_length,
        checkpointing=config.optimization.gradient_checkpointing,
        optimizer=config.optimization.optim,
    )


# ---- command line ----------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="monitor_gpu.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    sub = commands.add_parser("check", help="can I train here?")
    add_config_arguments(sub)
    sub.add_argument("--json", action="store_true", help="print the answer as JSON")
    sub.set_defaults(command=check)

    sub = commands.add_parser("monitor", help="watch the GPUs")
    sub.add_argument("--interval", type=positive(float), default=1.0, metavar="S", help="seconds (default: 1)")
    sub.add_argument("--output", type=Path, metavar="FILE", help="also write samples: .json, .jsonl or .csv")
    sub.add_argument("--count", type=positive(int), metavar="N", help="stop after N samples")
    sub.add_argument("--gpu", type=gpu_list, metavar="0,1", help="GPUs to watch (default: all)")
    sub.set_defaults(command=monitor)

    sub = commands.add_parser("estimate", help="memory of a training run, by term; needs no GPU")
    add_config_arguments(sub)
    sub.add_argument("--model-size", type=positive(float), metavar="B", help="Mistral-7B scaled to B billion weights")
    sub.add_argument("--model", metavar="NAME", help=f"a folder, a Hugging Face id, or {', '.join(PRESETS)}")
    sub.add_argument("--quantization", choices=("4bit", "8bit", "none"))
    sub.add_argument("--lora-r", type=positive(int), metavar="R")
    sub.add_argument("--batch-size", type=positive(int), metavar="N", help="examples per forward pass")
    sub.add_argument("--seq-length", type=positive(int), metavar="T", help="tokens per example")
    sub.add_argument("--json", action="store_true", help="print the estimate as JSON")
    sub.set_defaults(command=estimate)
    return parser.parse_args(argv)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see the module docstring."""
    args = parse_arguments(argv)
    return args.command(args)


if __name__ == "__main__":
    run(main)
