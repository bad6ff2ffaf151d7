"""Options of the scripts: typed, with the settings that are carried on to the next stage."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fixtures.repository import REPOSITORY
from tool_aware.config.options import (
    ConfigOptions,
    add_config_arguments,
    add_output_dir_argument,
    next_command,
    parse_options,
)
from tool_aware.config.sections import Section
from tool_aware.config.settings import DEFAULT_CONFIG, Config, load_config
from tool_aware.config.yaml_file import PATH_KEYS, path_override
from tool_aware.console import UserError


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


# ---- paths ------------------------------------------------------------------------------------------------

NAMES = [
    *("run #3", "2024", "a: b", "null", "on", "1e3", "ends in a space ", " begins with one", "[x]", "{x", "- x", "&a"),
    *(
        "*a",
        "!x",
        '"quoted"',
        "'quoted'",
        "it's",
        'say "x',
        "%x",
        "a\\b",
        "@x",
        "`x`",
        "x=y",
        "Läufe",
        "🙂",
        "x#y",
        "'",
    ),
]


def config_of(words: list[str]) -> Config:
    options = parse_options(Options, parser(), ["--config", str(REPOSITORY / "config.yaml"), *words])
    return load_config(options.config, options.overrides)


@pytest.mark.parametrize("name", NAMES)
def test_paths_are_what_was_typed(name):
    assert str(config_of(["--output_dir", name]).training.output_dir) == name
    assert str(config_of(["--set", path_override("dataset.dir", Path(name))]).dataset.dir) == name


@pytest.mark.parametrize("name", [name for name in NAMES if name[0] not in "\"'"])
def test_settings_that_are_paths_are_what_was_typed(name):
    assert str(config_of(["--set", f"dataset.dir={name}"]).dataset.dir) == name
    assert config_of(["--set", f"model.name={name}"]).model.name == name


def test_a_path_may_be_quoted_as_in_the_file():
    for value in ('"run #3"', "'run #3'"):
        assert config_of(["--set", f"evaluation.results_dir={value}"]).evaluation.results_dir == Path("run #3")


def test_null_takes_back_a_path_that_may_be_absent():
    assert (
        config_of(["--set", "dataset.splits_from=old", "--set", "dataset.splits_from=null"]).dataset.splits_from is None
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_next_stage_is_told_the_same_path(name):
    words = ["--output_dir", name, "--set", path_override("dataset.dir", Path(name))]
    options = parse_options(Options, parser(), words)
    told = parse_options(Options, parser(), shlex.split(next_command("evaluate.py", options))[2:])
    assert told.overrides == options.overrides


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_path_is_refused(name, capsys):
    with pytest.raises(SystemExit):
        parse_options(Options, parser(), ["--output_dir", name])
    assert "is empty: name a file or folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="dir: must not be empty"):
        config_of(["--set", f"dataset.dir={name}"])


def test_a_home_directory_is_not_guessed():
    with pytest.raises(UserError, match="output_dir: ~ is not expanded here"):
        config_of(["--output_dir", "~"])


def test_all_settings_that_are_folders_are_known_as_paths():
    def folders(section: type[Section]) -> set[str]:
        return {name for name, field in section.model_fields.items() if "Path" in str(field.annotation)}

    found = {f"{name}.{key}" for name, field in Config.model_fields.items() for key in folders_of(field, folders)}
    assert found == PATH_KEYS - {"model.name"}


def folders_of(field, folders):
    is_section = isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    return folders(field.annotation) if is_section else set()
