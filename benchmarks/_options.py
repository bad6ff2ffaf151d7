"""The options that the benchmarks of trained models share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path


def add_run_options(parser: argparse.ArgumentParser, parts: Iterable[str]) -> None:
    """Add the options that say what is trained and measured, for how long, and where the results go."""
    parts, add = tuple(parts), parser.add_argument
    add("--model", type=Path, metavar="DIR", help="folder of an instruct model and its tokenizer")
    add("--parts", default=",".join(parts), metavar="A,B", help=f"which parts: {', '.join(parts)}")
    add("--seeds", type=int, default=3, metavar="N", help="trainings of each kind (default: 3)")
    add("--seconds", type=float, default=1e9, metavar="S", help="begin no run after so long")
    add("--tiny", action="store_true", help="a few rows; without --model on a tiny random model")
    add("--output", type=Path, metavar="FILE", help="instead of benchmarks/results/...")
    add("--markdown", type=Path, metavar="FILE", help="print the tables of these results and stop")
