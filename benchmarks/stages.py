"""Measure what a person waits for: each stage of the four scripts, from start to the report of the evaluation.

    python benchmarks/stages.py --model FOLDER                        # a small chat model, such as SmolLM2
    python benchmarks/stages.py --preset 7b --limit 40 --steps 10     # a Mistral of random weights, 30 GB of disk
    python benchmarks/stages.py --model FOLDER --tag before           # one more column of the results

The scripts run as a user runs them, each in a process of its own; the seconds are those that they write into their
manifests. Steps of training and rows of the evaluation are few (`--steps`, `--limit`): all else is what it is for a
whole run. The sum leaves out training and answering. Imports take twice as long where Python may keep no bytecode
(PYTHONDONTWRITEBYTECODE, a folder that cannot be written to): the results say whether it is kept.

Reads   config.real.yaml, or the file given with --config
Writes  benchmarks/results/stages_<device>.json, in which other runs of this script stay
Exit    0 done; 2 something to fix; otherwise the exit code of the script that failed
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _random_mistral import REPOSITORY, SHAPES, environment, make_model, results_file

from tool_aware.console import EXIT_DONE, EXIT_GATE, EXIT_USER, UserError, run, say, table
from tool_aware.files import read_json, write_json

THE_WORK = {"training", "scoring val.json", "choosing", "answering", "answering under the grammar"}
ACCEPTED = {"train_tool_aware.py": (EXIT_DONE, EXIT_GATE), "monitor_gpu.py": (EXIT_DONE, EXIT_USER)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the scripts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, metavar="DIR", help="a folder with a model and its tokenizer")
    which.add_argument("--preset", choices=SHAPES, help="a Mistral of random weights of this size")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "config.real.yaml")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps (%(default)s)")
    parser.add_argument("--limit", type=int, default=200, help="rows of the evaluation (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where all is written; what is there is used again")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as the scripts take it")
    parser.add_argument("--evaluate-with", default="--no-robustness", help="options of evaluate.py (%(default)s)")
    parser.add_argument("--tag", help="the name of the run in the results (default: the model's)")
    arguments = parser.parse_args(argv)
    facts = environment()  # what is missing is said before anything slow
    with tempfile.TemporaryDirectory() as temporary:
        scripts = measure(arguments, arguments.folder or Path(temporary))
    tag = arguments.tag or arguments.preset or arguments.model.name
    file = results_file("stages", facts["device"])
    command = "python benchmarks/stages.py " + " ".join(sys.argv[1:] if argv is None else argv)
    bytecode = (
        "kept" if not sys.dont_write_bytecode else "compiled anew by each script, as PYTHONDONTWRITEBYTECODE says"
    )
    result = {**facts, "bytecode": bytecode, "command": command, "scripts": scripts}
    result["sum_without_the_work"] = sum_of(scripts)
    write_json(file, {**(read_json(file) or {}), tag: result})
    print(table(("script", "stage", "seconds", "processor s"), rows_of(scripts), align="<<>>"))
    print(f"{tag}: {sum_of(scripts):.1f} s that are neither training nor answering; {file}")
    return EXIT_DONE


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run the four scripts; return the seconds of each from outside, and by stage."""
    model = arguments.model or folder / "base"
    if arguments.preset and not (model / "config.json").is_file():
        from tool_aware.demo.toy_model import save_tokenizer

        say(f"writing a {arguments.preset} of random weights to {model}")
        make_model(model, arguments.preset)
        save_tokenizer(model)
    places = {
        "model.name": model,
        "dataset.dir": folder / "data",
        "training.output_dir": folder / "output",
        "evaluation.results_dir": folder / "results",
        "training.max_steps": arguments.steps,
    }
    settings = [f"--set={key}={value}" for key, value in places.items()] + [f"--set={one}" for one in arguments.set]
    options = ["--config", str(arguments.config), *settings]
    evaluated = ["--overwrite", "--limit", str(arguments.limit), *arguments.evaluate_with.split()]
    return {
        "monitor_gpu.py": timed(["monitor_gpu.py", "check", *options], None),
        "prepare_dataset.py": timed(["prepare_dataset.py", "--overwrite", *options], folder / "data"),
        "train_tool_aware.py": timed(["train_tool_aware.py", "--overwrite", *options], folder / "output"),
        "evaluate.py": timed(["evaluate.py", *options, *evaluated], folder / "results"),
    }


def timed(command: list[str], written: Path | None) -> dict[str, Any]:
    """Run a script in a process of its own; return its seconds, and those of its stages from its manifest."""
    say(f"== {command[0]}")
    began_s = time.perf_counter()
    done = subprocess.run([sys.executable, str(REPOSITORY / command[0]), *command[1:]], stdout=2, check=False)
    seconds = time.perf_counter() - began_s
    if done.returncode not in ACCEPTED.get(command[0], (EXIT_DONE,)):
        raise UserError(f"exited with code {done.returncode}; its message is above", where=command[0])
    manifest = read_json(written / "manifest.json") if written else {}
    return {"seconds": round(seconds, 2), "stages": manifest.get("stages", {})}


def sum_of(scripts: dict[str, Any]) -> float:
    """Return the seconds of all scripts that are neither training nor answering."""
    work = (
        spent["seconds"] for script in scripts.values() for name, spent in script["stages"].items() if name in THE_WORK
    )
    return round(sum(script["seconds"] for script in scripts.values()) - sum(work), 2)


def rows_of(scripts: dict[str, Any]) -> list[tuple[str, ...]]:
    """Format the stages, and for each script what its manifest does not count: its last lines and its end."""
    rows = []
    for script, found in scripts.items():
        rows += [
            (script, name, f"{spent['seconds']:.2f}", f"{spent['processor_seconds']:.2f}")
            for name, spent in found["stages"].items()
        ]
        counted = sum(spent["seconds"] for spent in found["stages"].values())
        rows += [(script, "after the manifest", f"{found['seconds'] - counted:.2f}", "")]
        rows += [(script, "in all", f"{found['seconds']:.2f}", "")]
    return rows


if __name__ == "__main__":
    run(main)
