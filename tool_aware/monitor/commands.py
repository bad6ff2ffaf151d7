"""The command line of monitor_gpu.py: four commands, each with its typed options."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tool_aware.command_line import add_version_argument, positive_float, positive_int, script_parser, tcp_port
from tool_aware.config.options import ConfigOptions, add_config_arguments, options_from
from tool_aware.memory.architectures import PRESETS
from tool_aware.monitor.prometheus import LOOPBACK


@dataclass(frozen=True, kw_only=True)
class CheckOptions(ConfigOptions):
    """Options of `check`."""

    deep: bool
    json: bool


@dataclass(frozen=True, kw_only=True)
class MonitorOptions(ConfigOptions):
    """Options of `monitor`; `wrapped` is the command behind `--`."""

    interval: float
    output: Path | None
    gpu: Sequence[int] | None
    count: int | None
    duration: float | None
    until_exit: int | None
    alert: Sequence[str]
    prometheus: int | None
    wrapped: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """Options of `plot`."""

    log: Path
    output: Path | None


@dataclass(frozen=True, kw_only=True)
class EstimateOptions(ConfigOptions):
    """Options of `estimate`."""

    model_size: float | None
    model: str | None
    quantization: str | None
    lora_r: int | None
    batch_size: int | None
    seq_length: int | None
    vram: float | None
    write: Path | None
    exact: bool
    evaluation: bool
    card: str | None
    table: bool
    json: bool

    @property
    def is_model_name(self) -> bool:
        """Return whether config.yaml can name this model: a folder or a Hugging Face id, not a preset's shapes."""
        return self.model is not None and ("/" in self.model or Path(self.model).is_dir())

    @property
    def all_overrides(self) -> list[str]:
        """Return `--set` and the flags, which are short forms of it."""
        pairs: dict[str, str | int | None] = {"lora.r": self.lora_r}
        if self.is_model_name:
            pairs["model.name"] = json.dumps(self.model)
        if self.evaluation:
            pairs |= {"evaluation.batch_size": self.batch_size}
        else:
            pairs |= {
                "training.per_device_train_batch_size": self.batch_size,
                "optimization.micro_batch": '"fixed"' if self.batch_size else None,
                "model.max_seq_length": self.seq_length,
            }
        flags = [f"{key}={value}" for key, value in pairs.items() if value is not None]
        if self.quantization:
            is_chosen = {kind: str(self.quantization == kind).lower() for kind in ("4bit", "8bit")}
            flags += [f"quantization.load_in_{kind}={value}" for kind, value in is_chosen.items()]
        return [*self.overrides, *flags]


Options = CheckOptions | MonitorOptions | PlotOptions | EstimateOptions


def parse_command(docstring: str | None, argv: Sequence[str] | None) -> Options:
    """Read the command line into the options of its command."""
    parser = script_parser(docstring, prog="monitor_gpu.py")
    add_version_argument(parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_check(commands)
    _add_monitor(commands)
    _add_plot(commands)
    _add_estimate(commands)
    own, wrapped = split_at_dashes(sys.argv[1:] if argv is None else argv)
    parsed = parser.parse_args(own)
    parsed.wrapped = wrapped
    if wrapped and parsed.kind is not MonitorOptions:
        parser.error("only monitor runs a command")
    options: Options = options_from(parsed.kind, parsed)
    return options


Commands = argparse._SubParsersAction  # argparse gives its type no public name


def _add_check(commands: Commands[argparse.ArgumentParser]) -> None:
    sub = commands.add_parser("check", help="can I train here?")
    add_config_arguments(sub)
    sub.add_argument("--deep", action="store_true", help="also import torch and compute something on the GPU")
    sub.add_argument("--json", action="store_true", help="print the answer as JSON")
    sub.set_defaults(kind=CheckOptions)


def _add_monitor(commands: Commands[argparse.ArgumentParser]) -> None:
    sub = commands.add_parser(
        "monitor",
        help="watch the GPUs",
        description="Watch the GPUs. `monitor [options] -- COMMAND` runs a command and ends with it.",
    )
    add_config_arguments(sub)
    sub.add_argument("--interval", type=positive_float, default=1.0, metavar="S", help="seconds (default: 1)")
    sub.add_argument("--output", type=Path, metavar="FILE", help="also write samples: .json, .jsonl or .csv")
    sub.add_argument("--gpu", type=gpu_list, metavar="0,1", help="GPUs to watch (default: all)")
    sub.add_argument("--count", type=positive_int, metavar="N", help="stop after N samples")
    sub.add_argument("--duration", type=positive_float, metavar="S", help="stop after S seconds")
    sub.add_argument("--until-exit", type=positive_int, metavar="PID", help="stop when this process ends")
    conditions = "memory>95%%, memory>11GiB, temperature>85, use<10%% or power>250W"
    text = f"tell when {conditions}, and exit with 3; repeatable"
    sub.add_argument("--alert", action="append", default=[], metavar="CONDITION", help=text)
    sub.add_argument("--prometheus", type=tcp_port, metavar="PORT", help=f"serve http://{LOOPBACK}:PORT/metrics")
    sub.set_defaults(kind=MonitorOptions)


def _add_plot(commands: Commands[argparse.ArgumentParser]) -> None:
    sub = commands.add_parser("plot", help="draw a log that the monitor wrote")
    sub.add_argument("log", type=Path, help="gpu_logs.json, .jsonl or .csv")
    sub.add_argument("--output", type=Path, metavar="PNG", help="picture to write (default: the log's name)")
    sub.set_defaults(kind=PlotOptions)


def _add_estimate(commands: Commands[argparse.ArgumentParser]) -> None:
    sub = commands.add_parser("estimate", help="memory of a training run, by term; needs no GPU")
    add_config_arguments(sub)
    sub.add_argument("--model-size", type=positive_float, metavar="B", help="Mistral-7B scaled to B billion weights")
    sub.add_argument("--model", metavar="NAME", help=f"a folder, a Hugging Face id, or {', '.join(PRESETS)}")
    sub.add_argument("--quantization", choices=("4bit", "8bit", "none"))
    sub.add_argument("--lora-r", type=positive_int, metavar="R")
    sub.add_argument("--batch-size", type=positive_int, metavar="N", help="examples per forward pass")
    text = "tokens per example; of a prompt with --evaluation"
    sub.add_argument("--seq-length", type=positive_int, metavar="T", help=text)
    sub.add_argument("--vram", type=positive_float, metavar="GIB", help="does it fit this card? (default: yours)")
    sub.add_argument("--write", type=Path, metavar="FILE", help="write a config that fits, such as config.10gb.yaml")
    sub.add_argument("--exact", action="store_true", help="also trace the real step on tensors without data (10-30 s)")
    sub.add_argument("--evaluation", action="store_true", help="estimate evaluate.py instead of training")
    sub.add_argument("--card", metavar="NAME", help="estimate the time on this card, such as 'RTX 4070 Ti'")
    sub.add_argument("--table", action="store_true", help="what fits cards of 6 to 80 GB")
    sub.add_argument("--json", action="store_true", help="print the estimate as JSON")
    sub.set_defaults(kind=EstimateOptions)


def split_at_dashes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line at `--` into this script's own part and a command to wrap."""
    words = list(argv)
    if "--" not in words:
        return words, []
    position = words.index("--")
    return words[:position], words[position + 1 :]


def gpu_list(text: str) -> list[int]:
    """Read GPU numbers with commas between them."""
    return sorted({int(part) for part in text.split(",")})
