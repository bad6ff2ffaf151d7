"""Options of the scripts: typed, with the settings that are carried on to the next stage."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

import pytest

from tool_aware.config.options import (
    ConfigOptions,
    add_config_arguments,
    add_output_dir_argument,
    next_command,
    parse_options,
)
from tool_aware.config.settings import DEFAULT_CONFIG


@dataclass(frozen=True, kw_only=True)
class Options(ConfigOptions):
    """The options of a script with one of its own."""

    limit: int | None


@dataclass(frozen=True, kw_only=True)
class OptionsWithoutArgument(ConfigOptions):
    """A field that no argument fills."""

    absent: int


def parser() -> ArgumentParser:
    made = ArgumentParser()
    add_config_arguments(made)
    add_output_dir_argument(made)
    made.add_argument("--limit", type=int)
    return made


def test_options_are_what_was_typed():
    options = parse_options(Options, parser(), ["--config", "a.yaml", "--set", "lora.r=4", "--limit", "3"])
    assert options == Options(config=Path("a.yaml"), overrides=["lora.r=4"], limit=3)


def test_without_arguments_options_are_the_defaults():
    assert parse_options(Options, parser(), []) == Options(config=DEFAULT_CONFIG, overrides=[], limit=None)


@pytest.mark.parametrize("flag", ["--output_dir", "--output-dir"])
def test_the_output_directory_is_the_last_override(flag):
    options = parse_options(Options, parser(), [flag, "./elsewhere", "--set", "training.output_dir=other"])
    assert options.overrides == ["training.output_dir=other", "training.output_dir=elsewhere"]


def test_a_field_without_an_argument_is_a_bug():
    with pytest.raises(AttributeError, match="absent"):
        parse_options(OptionsWithoutArgument, parser(), [])


def test_the_next_stage_is_named_with_the_settings_in_use():
    plain = ConfigOptions(config=Path("config.yaml"), overrides=[])
    assert next_command("evaluate.py", plain) == "python evaluate.py"
    own = ConfigOptions(config=Path("my config.yaml"), overrides=["lora.r=16", "training.output_dir=./output_stage2"])
    expected = "python evaluate.py --config 'my config.yaml' --set lora.r=16 --output_dir ./output_stage2"
    assert next_command("evaluate.py", own) == expected
    assert next_command("evaluate.py", plain, config=Path("a.yaml")) == "python evaluate.py --config a.yaml"
