"""Measure whether a tuned model reads the tools it is offered, for several shares of varied lists in training.

    python benchmarks/tool_lists.py --model DIR         # one GPU of 80 GB, about 9 minutes
    python benchmarks/tool_lists.py --model DIR --weights 3,20 --output FILE    # the defaults but for the weight
    python benchmarks/tool_lists.py --markdown FILE     # the table of docs/benchmarks/quality.md, from the results

Every run trains 3 epochs on the default data set, 32 examples a step, and chooses for test rows with the lists that
evaluate.py tries as well: other order, names, descriptions; one tool more or fewer; tools that no training sees.

Reads   config.yaml, the model; earlier results in the same file, whose runs are not repeated
Writes  benchmarks/results/tool_lists_<device>.json, as runs end
Exit    0 done; 2 something to fix
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _random_mistral import REPOSITORY, environment, results_file
from _real_model import Material, Run
from _real_model_tables import lines
from _side_by_side import perform_all, perform_in_child, share_of
from real_model import is_known

from tool_aware.config.settings import load_config
from tool_aware.console import UserError, run, say
from tool_aware.files import write_json
from tool_aware.text import spread_evenly

EPOCHS = 3
# (share of steps with other lists, weight of the tool's name, rank, seed)
GRID = (
    *((0.0, 1.0, 16, 1), (0.0, 1.0, 16, 2), (0.0, 8.0, 16, 1)),
    *((0.7, 8.0, 16, 1), (0.9, 8.0, 16, 1), (0.7, 8.0, 64, 1)),
    *((0.5, 20.0, 16, 1), (0.7, 20.0, 16, 1), (0.7, 40.0, 16, 1)),
    *((0.7, 20.0, 64, 1), (0.7, 20.0, 64, 2), (0.85, 20.0, 64, 1)),
)
COLUMNS = {  # of the table: the set of questions that each shows
    "test split (1,275)": "test",
    "another order": "tools in another order, test rows",
    "renamed": "tools renamed, test rows",
    "masked": "tool names masked, test rows",
    "reworded": "descriptions reworded, test rows",
    "fifth tool: its queries (100)": "one more tool, library",
    "fifth tool: the others": "one more tool, test rows",
    "one fewer": "one tool fewer, test rows",
    "five unseen tools (200)": "five other tools, library",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare rows, perform the runs that the results lack, print the table."""
    arguments = parse_arguments(argv)
    if arguments.markdown:
        print(lines(table(json.loads(arguments.markdown.read_text(encoding="utf-8"))["runs"])))
        return 0
    if not arguments.model:
        raise UserError("which model?", where="--model", fix="name the folder of an instruct model")
    began_s, origin = time.monotonic(), environment()
    output = arguments.output or results_file("tool_lists", origin["device"])
    found = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"runs": {}}
    with tempfile.TemporaryDirectory(prefix="tool-lists-") as folder:
        material(arguments.model.resolve()).save(Path(folder) / "material")
        grid = [(0.7, float(each), 64, 1) for each in arguments.weights.split(",")] if arguments.weights else GRID
        missing = [each for each in runs(grid, with_base=not arguments.weights) if not is_known(each, found)]
        for outcome in perform_all(
            missing, Path(__file__).resolve(), Path(folder), side_by_side=arguments.side_by_side
        ):
            found["runs"][outcome.run["name"]] = {**asdict(outcome), "origin": origin}
            write_json(output, found | {"command": " ".join(sys.argv)})
    print(lines(table(found["runs"])))
    say(f"{output}: {len(found['runs'])} runs, {time.monotonic() - began_s:.0f} s")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="DIR", help="folder of an instruct model and its tokenizer")
    parser.add_argument("--side-by-side", type=int, default=7, metavar="N", help="runs at once (default: 7)")
    parser.add_argument("--weights", metavar="W,W", help="of the tool's name, in place of the grid")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of benchmarks/results/...")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print the table of these results and stop")
    return parser.parse_args(argv)


def runs(grid: Sequence[tuple[float, float, int, int]], *, with_base: bool) -> list[Run]:
    """Return the base model, if wanted, and one training for each line of a grid."""
    trained = [
        Run(
            f"share-{share:g}-weight-{weight:g}-r-{r}-seed-{seed}",
            seed=seed,
            epochs=EPOCHS,
            r=r,
            alpha=2.0 * r,
            tool_variation=share,
            tool_weight=weight,
            lists="test",
        )
        for share, weight, r, seed in grid
    ]
    return [Run("base", "base", lists="test"), *trained] if with_base else trained


def material(model: Path) -> Material:
    """Make the default data set."""
    from tool_aware.dataset.assembly import assemble
    from tool_aware.dataset.splitting import split_rows
    from tool_aware.dataset.synthesis.content import load_content

    overrides = [f"model.name={model}", "quantization.load_in_4bit=false", "logging.tensorboard=false"]
    config = load_config(REPOSITORY / "config.yaml", overrides)
    rows = assemble(config, load_content(), []).rows
    parts = split_rows(rows, config.dataset.splits, config.dataset.seed).rows
    return Material(config, parts["train"], {"test": parts["test"]})


def table(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the shares of right choices in percent, a line a run; plain is the 400 rows of the columns behind it."""
    rows: list[tuple[str, ...]] = [("share, weight, rank, seed", "plain (400)", *COLUMNS)]
    for each in found.values():
        given, sets = each["run"], each["sets"]
        same = spread_evenly(sets["test"]["choice"], 400)
        name = "base"
        if given["stack"] != "base":
            name = f"{given['tool_variation']:g}, {given['tool_weight']:g}, {given['r']}, {given['seed']}"
        figures = [share_of("".join(same)), *(share_of(sets[key]["choice"]) for key in COLUMNS.values())]
        rows.append((name, *(f"{100 * figure:.1f}" for figure in figures)))
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        perform_in_child(sys.argv[2:])
    else:
        run(main)
