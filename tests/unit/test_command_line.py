"""Arguments that several scripts share are read in one way, and `--version` is everywhere."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

import tool_aware
from tests.fixtures.repository import REPOSITORY
from tool_aware import versions
from tool_aware.command_line import positive_float, positive_int, tcp_port

SCRIPTS = ("prepare_dataset.py", "train_tool_aware.py", "evaluate.py", "monitor_gpu.py")


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(positive_int, "3", 3), (positive_float, "0.5", 0.5), (positive_float, "7", 7.0), (tcp_port, "0", 0)],
)
def test_numbers_are_read(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        (positive_int, "0", "at least 1"),
        (positive_int, "-4", "at least 1"),
        (positive_int, "2.5", "not a whole number"),
        (positive_float, "0", "not above 0"),
        (positive_float, "inf", "not above 0"),
        (positive_float, "nan", "not above 0"),
        (positive_float, "much", "not a number"),
        (tcp_port, "65536", "not a port number"),
        (tcp_port, "http", "not a port number"),
    ],
)
def test_other_numbers_are_refused_in_words(kind, text, problem):
    with pytest.raises(argparse.ArgumentTypeError, match=problem):
        kind(text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_prints_its_version(script):
    result = subprocess.run(
        [sys.executable, script, "--version"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith(f"tool-aware-finetuning {tool_aware.__version__}")
    assert result.stderr == ""


def test_the_version_names_the_commit_of_a_clone_only(monkeypatch, tmp_path):
    monkeypatch.setattr(versions, "git_commit", lambda: "abc-dirty")
    assert versions.toolkit_version() == f"{tool_aware.__version__} (commit abc-dirty)"
    monkeypatch.undo()
    monkeypatch.setattr(versions, "_REPOSITORY", tmp_path)
    assert versions.toolkit_version() == tool_aware.__version__


def test_the_versions_of_a_bug_report_name_python_and_the_libraries():
    words = versions.versions_in_words()
    assert words.startswith("tool-aware-finetuning ")
    assert "Python 3." in words
    assert "torch 2." in words
