"""Options of the scripts: those that every script has, and the typed form of what argparse reads."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tool_aware.command_line import add_version_argument, path_argument
from tool_aware.config.settings import DEFAULT_CONFIG
from tool_aware.config.yaml_file import path_in, path_override

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """Options of every script that reads config.yaml; a script adds its own as fields of a subclass."""

    config: Path = DEFAULT_CONFIG
    overrides: Sequence[str] = ()  # section.key=value, as --set is given


OptionsT = TypeVar("OptionsT", bound="DataclassInstance")


def parse_options(kind: type[OptionsT], parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> OptionsT:
    """Read a command line into a dataclass whose fields are named as the arguments' destinations."""
    return options_from(kind, parser.parse_args(argv))


def options_from(kind: type[OptionsT], parsed: argparse.Namespace) -> OptionsT:
    """Return the fields of `kind` as argparse has read them; `--output_dir` becomes the last override."""
    values = {field.name: getattr(parsed, field.name) for field in fields(kind)}
    if getattr(parsed, "output_dir", None):
        values["overrides"] = [*parsed.overrides, path_override("training.output_dir", parsed.output_dir)]
    return kind(**values)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every script has: `--version`, `--config` and `--set`."""
    add_version_argument(parser)
    parser.add_argument(
        "--config", type=path_argument, default=DEFAULT_CONFIG, metavar="FILE", help="settings (default: %(default)s)"
    )
    text = "override one setting, for example --set lora.r=16; repeatable"
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=VALUE", help=text)


def add_output_dir_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--output_dir`, short for `--set training.output_dir=DIR`."""
    parser.add_argument(
        "--output_dir", "--output-dir", type=path_argument, metavar="DIR", help="instead of training.output_dir"
    )


def next_command(script: str, options: ConfigOptions, *, config: Path | None = None) -> str:
    """Write out how the next stage is run under the same settings; `config` is its file if it is another one."""
    file = config or options.config
    words = ["python", *script.split(), *(["--config", str(file)] if file != DEFAULT_CONFIG else [])]
    for override in options.overrides:
        key, _, _ = override.partition("=")
        words += ["--output_dir", str(path_in(override))] if key == "training.output_dir" else ["--set", override]
    return shlex.join(words)
