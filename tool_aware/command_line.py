"""The parts of a command line that several scripts share: the parser, `--version`, the types of arguments."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tool_aware.versions import toolkit_version


def script_parser(docstring: str | None, *, prog: str | None = None) -> argparse.ArgumentParser:
    """Return a parser whose `--help` shows the script's docstring as it is written."""
    return argparse.ArgumentParser(
        prog=prog, description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_version_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--version`. `add_config_arguments` does so too; a script with subcommands calls this on its main parser."""
    parser.add_argument("--version", action=_PrintVersion, help="print the version of this toolkit and stop")


class _PrintVersion(argparse.Action):
    """Prints the version and exits; argparse's own action would ask git for the commit at every start."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, **{**options, "dest": argparse.SUPPRESS})

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        print(f"tool-aware-finetuning {toolkit_version()}")
        parser.exit()


# ---- types of arguments: `type=positive_int` ----------------------------------------------------------------


def path_argument(text: str) -> Path:
    """Read the path of a file or folder, exactly as it is typed."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty: name a file or folder")
    return Path(text)


def positive_int(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small: it must be at least 1")
    return value


def positive_float(text: str) -> float:
    """Read a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def tcp_port(text: str) -> int:
    """Read the number of a TCP port; 0 stands for any free one."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number (0 to 65535)")
    return value
