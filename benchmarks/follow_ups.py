"""Measure whether a tuned model reads the conversation it is in, and what it does with two requests in one query.

    python benchmarks/follow_ups.py --model DIR                       # one GPU of 80 GB
    python benchmarks/follow_ups.py --model DIR --parts with --seconds 300   # in parts; what the file has is kept
    python benchmarks/follow_ups.py --tiny                            # a smoke test without a GPU
    python benchmarks/follow_ups.py --markdown FILE                   # the tables of docs/benchmarks/quality.md

Parts   base      the model as it is: choices only
        with      trained on the default data set, with its follow-ups and its queries that ask for two things
        without   trained on the same rows without these two: what they cost the others, and what they gain

Trained as by tool_lists.py: 3 epochs, 32 examples a step, other lists of tools in 70 % of the steps. Tested by
probability and by whole answers on the test split, the three probes, 120 hand-written conversations, the same without
their earlier turns, and 60 hand-written queries that ask for two things. Training rows that resemble any hand-written
row are left out, with all rows of their template. Every run is a process of its own and is written as it ends: after a
limit of time, run the same again for what is missing. Intervals are 95 %, over templates and all seeds together.

Reads   config.yaml, benchmarks/probe/, benchmarks/follow_ups/, the model; earlier results, whose runs are not repeated
Writes  benchmarks/results/follow_ups_<device>.json, as runs end
Exit    0 done; 2 something to fix; 3 runs failed or were not begun in time
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _follow_ups import load_conversations, load_two_requests
from _follow_ups_tables import markdown
from _options import add_run_options
from _random_mistral import environment, results_file
from _real_model import Material, Run
from _side_by_side import perform_all, perform_in_child
from dataset_probe import PROBES, Labelled, labelled, load_probe, without_lookalikes
from real_model import (
    TINY,
    default_splits,
    demand_all,
    described_set,
    earlier_results,
    is_known,
    probe_rows,
    settings_of,
    unlike_probes,
)

from tool_aware.console import UserError, run, say
from tool_aware.evaluation.scoring.earlier_turns import without_earlier_turns
from tool_aware.files import write_json
from tool_aware.rows import Row

PARTS = ("base", "with", "without")
ADDED = ("follow-up", "two requests")  # the slices that the model of part `without` does not see
TRAINING: dict[str, Any] = {"epochs": 3, "r": 64, "alpha": 128.0, "tool_variation": 0.7, "tool_weight": 20.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare rows, perform the runs that the results lack, print the tables."""
    arguments = parse_arguments(argv)
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text(encoding="utf-8"))))
        return 0
    parts = wanted_parts(arguments)
    began_s, origin = time.monotonic(), environment()
    output = arguments.output or results_file("follow_ups", origin["device"])
    with tempfile.TemporaryDirectory(prefix="follow-ups-") as made:
        material = prepare(arguments, Path(made))
        results = earlier_results(output, material) | {"command": " ".join(sys.argv)}
        results["sets"] = {name: described(rows) for name, rows in material.tests.items()}
        runs = {part: runs_of(part, arguments, list(material.tests)) for part in parts}
        say(f"{len(material.train)} training rows, prepared in {time.monotonic() - began_s:.0f} s")
        for part, wanted in runs.items():
            folder = Path(made) / part
            folder.mkdir()
            rows = material.train if part != "without" else [row for row in material.train if not is_added(row)]
            replace(material, train=rows).save(folder / "material")
            missing = [each for each in wanted if not is_known(each, results)]
            limits = {"side_by_side": arguments.side_by_side, "until_s": began_s + arguments.seconds}
            for outcome in perform_all(missing, Path(__file__).resolve(), folder, **limits):
                results["runs"][outcome.run["name"]] = {**asdict(outcome), "origin": origin}
                write_json(output, results)
    print(markdown(results))
    say(f"{output}: {len(results['runs'])} runs, {time.monotonic() - began_s:.0f} s")
    demand_all([each for wanted in runs.values() for each in wanted], results)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_run_options(parser, PARTS)
    add("--steps", type=int, metavar="N", help="train so many steps instead of 3 epochs: for a trial on a CPU")
    add("--tests", type=int, metavar="N", help="the first N rows of each set: for a trial on a CPU")
    add("--side-by-side", type=int, default=3, metavar="N", help="runs on the card at once (default: 3)")
    return parser.parse_args(argv)


def wanted_parts(arguments: argparse.Namespace) -> list[str]:
    """Return the parts to measure. Raises UserError for unknown ones, and where no model is named."""
    parts = list(dict.fromkeys(arguments.parts.split(",")))
    if unknown := sorted(set(parts) - set(PARTS)):
        raise UserError(f"unknown: {', '.join(unknown)}", where="--parts", fix=f"some of {', '.join(PARTS)}")
    if not (arguments.model or arguments.tiny):
        raise UserError("which model?", where="--model", fix="name the folder of an instruct model, or give --tiny")
    return parts


def runs_of(part: str, arguments: argparse.Namespace, tests: Sequence[str]) -> list[Run]:
    """List the runs of a part: one training a seed."""
    if part == "base":
        return [Run("base", "base")]
    tiny = TINY if arguments.tiny else {}
    steps = {"steps": arguments.steps} if arguments.steps else {}
    settings = {**TRAINING, **tiny, **steps, "answers": tuple(tests)}
    return [Run(f"{part}-seed-{seed}", seed=seed, **settings) for seed in range(1, arguments.seeds + 1)]


# ---- the rows -------------------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace, folder: Path) -> Material:
    """Make the default data set, take out what resembles hand-written rows, read these."""
    config = settings_of(arguments, folder, follow_ups=40, two_requests=24)
    conversations, two = load_conversations(config), load_two_requests(config)
    probes = {path.stem: load_probe(path) for path in PROBES}
    parts = default_splits(config)
    train = unlike_probes(parts["train"], [*labelled(two), *(query for probe in probes.values() for query in probe)])
    train = unlike_conversations(train, conversations)
    if not arguments.tiny and not any(map(is_added, train)):
        fix = "set dataset.follow_ups and dataset.two_requests: there is nothing to compare"
        raise UserError(f"makes no rows of the slices {', '.join(ADDED)}", where="config.yaml", fix=fix)
    tests = {
        "test": parts["test"],
        **{name: probe_rows(probe, config) for name, probe in probes.items()},
        "conversations": conversations,
        "conversations alone": list(without_earlier_turns(dict(enumerate(conversations))).values()),
        "two requests": two,
    }
    most = 6 if arguments.tiny else arguments.tests
    tests = {name: part[:most] for name, part in tests.items()}
    return Material(config, train, tests, **({"batch_size": 8} if most else {}))


def unlike_conversations(train: Sequence[Row], conversations: Sequence[Row]) -> list[Row]:
    """Return the rows without templates of which any conversation, queries together, resembles a hand-written one."""

    def described_whole(rows: Sequence[Row]) -> list[Labelled]:
        pairs = zip(rows, labelled(rows), strict=True)
        return [replace(its, query=row.conversation, group=its.group) for row, its in pairs]

    its_own = described_whole(train)
    groups = {row.group for row in without_lookalikes(its_own, described_whole(conversations))}
    return [row for row, its in zip(train, its_own, strict=True) if its.group in groups]


def is_added(row: Row) -> bool:
    """Return whether a row is a follow-up or asks for two things."""
    return row.metadata.get("slice") in ADDED


def described(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what the tables need to know of test rows."""
    kinds = [str(row.metadata.get("follow_up", "")) for row in rows]
    return {**described_set(rows), "kinds": kinds, "languages": [str(row.metadata.get("language", "")) for row in rows]}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        perform_in_child(sys.argv[2:])
    else:
        run(main)
