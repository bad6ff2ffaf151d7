"""Measure which planted secrets redaction finds, which clean sentences it touches, and how fast it is.

    python benchmarks/redaction.py
    python benchmarks/redaction.py --json benchmarks/results/redaction.json
    python benchmarks/redaction.py --rows 20000

Reads   tests/cases/redaction/: plants to develop on, plants held out, clean sentences; config.yaml and the content
Writes  kind -> found of planted, the clean sentences touched, rows a second; --json keeps them
Exit    0 done; 2 something to fix

A plant is found if neither the secret nor its first, middle or last half is left. Every plant is drawn three times.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks run from a checkout, nothing is installed

from tests.fixtures.planted_secrets import DEVELOPED_ON, HELD_OUT, clean_sentences, plants  # noqa: E402
from tool_aware.config.settings import load_config  # noqa: E402
from tool_aware.console import run, say, table  # noqa: E402
from tool_aware.dataset.redaction import Redactor  # noqa: E402
from tool_aware.files import write_json  # noqa: E402

SEEDS = (13, 14, 15)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--rows", type=int, default=100_000, help="clean queries for the speed (default: 100000)")
    options = parser.parse_args(argv)
    developed, held_out = found_by_kind(DEVELOPED_ON), found_by_kind(HELD_OUT)
    lines = [(kind, *(f"{part[kind][0]}/{part[kind][1]}" for part in (developed, held_out))) for kind in developed]
    totals = [tuple(sum(counts[at] for counts in part.values()) for at in (0, 1)) for part in (developed, held_out)]
    print(table(("kind", "developed on", "held out"), [*lines, ("all", *(f"{a}/{b}" for a, b in totals))]))
    sentences = clean_sentences()
    touched = [text for text in sentences if Redactor().redact(text) != text]
    print(f"\nclean sentences touched: {len(touched)} of {len(sentences)}")
    for text in touched:
        print(f"  {text}")
    speeds = rows_a_second(options.rows)
    print("\n" + table(("rows a second", ""), [(name, f"{speed:,.0f}") for name, speed in speeds.items()]))
    if options.json:
        figures: dict[str, Any] = {"developed_on": developed, "held_out": held_out, "clean": len(sentences)}
        write_json(options.json, figures | {"touched": touched, "rows_a_second": speeds, "machine": platform.machine()})
        say(f"{options.json} written")
    return 0


def found_by_kind(file: Path) -> dict[str, tuple[int, int]]:
    """Return by kind how many plants of a file are found, and how many there are."""
    found: Counter[str] = Counter()
    planted: Counter[str] = Counter()
    for seed in SEEDS:
        for plant in plants(file, seed):
            planted[plant.kind] += 1
            found[plant.kind] += not plant.survivors(Redactor().redact(plant.text))
    return {kind: (found[kind], number) for kind, number in planted.items()}


def rows_a_second(rows: int) -> dict[str, float]:
    """Return how many clean queries, and how many texts with a secret each, are redacted in a processor second."""
    from tool_aware.dataset.synthesis.content import load_content
    from tool_aware.dataset.synthesis.generator import Generator

    tools = load_config(REPOSITORY / "config.yaml").toolbox
    generator = Generator(load_content(), tools, seed=9)
    some = [row.query for name in tools.names for row in generator.rows_for(name, 2_500)]
    clean = (some * (rows // len(some) + 1))[:rows]
    planted = [plant.text for seed in range(30) for plant in plants(DEVELOPED_ON, seed)]
    return {
        "clean queries": _speed(Redactor().redact, clean),
        "texts with a secret": _speed(Redactor().redact, planted),
    }


def _speed(redact: Callable[[str], str], texts: Sequence[str]) -> float:
    redact(texts[0])
    started = time.process_time()
    for text in texts:
        redact(text)
    return len(texts) / (time.process_time() - started)


if __name__ == "__main__":
    run(main)
