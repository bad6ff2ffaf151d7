"""Measure whether a tuned model fills in the parameters of the right tool so that an agent can use the call.

    python benchmarks/parameters.py --model DIR                     # one GPU of 80 GB
    python benchmarks/parameters.py --model DIR --parts tuned --seeds 2 --seconds 400   # what the file has is kept
    python benchmarks/parameters.py --tiny                          # a smoke test without a GPU
    python benchmarks/parameters.py --model DIR --adapter DIR --output FILE    # an adapter as it is; a CPU is enough
    python benchmarks/parameters.py --judge-again FILE              # the answers in the results, by today's rules
    python benchmarks/parameters.py --read FILE --run tuned-seed-1  # queries, references and answers, side by side
    python benchmarks/parameters.py --markdown FILE                 # the tables of docs/benchmarks/quality.md

Parts   base    the model as it is
        tuned   3 epochs on the default data set, 16 examples a step, as config.yaml teaches: other lists of tools in
                half of the steps, the tool's name with weight 3; rank 64 (as tool_lists.py tries). Rows that
                resemble a hand-written query (trigram cosine of 0.6 or more) are left out
        unseen  the same without all rows of the templates of such rows, and without all programs that do what a
                hand-written query asks for, whatever their query (`taught_by` in the probe)
        plain   as tuned, with every prompt listing the tools as they are, all labels alike, rank 16 (real_model.py)

Tested on 200 hand-written queries with their calls (benchmarks/probe/parameters_probe.yaml), which the content of the
training rows was improved by, on 100 that were written without a look at either (fresh_probe.yaml), and on 400 rows of
the test split, spread evenly. Parameters are judged given the right tool: where the model's own answer chose another,
the answer that begins with `Tool: <right tool>` is judged; the figure `right tool` is of the model's own answers.
Beside them: the query copied as it stands. All answers are kept in the results. Intervals are 95 %, over templates and
all seeds together.

Reads   config.yaml, benchmarks/probe/, the model; earlier results, whose runs are not repeated
Writes  benchmarks/results/parameters_<device>.json, as runs end
Exit    0 done; 2 something to fix; 3 runs failed or were not begun in time
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _options import add_run_options
from _parameters import (
    FRESH_FILE,
    answer_under_right_tool,
    copied,
    load_parameters_probe,
    reasoning_flags,
    restored,
    stored,
    verdicts,
    without_kinds,
)
from _parameters_tables import markdown, side_by_side
from _random_mistral import environment, results_file
from _real_model import Material, Run
from _side_by_side import perform_all, perform_in_child
from dataset_probe import labelled
from real_model import (
    TINY,
    default_splits,
    demand_all,
    described_set,
    earlier_results,
    is_known,
    settings_of,
    unlike_probes,
    unlike_queries,
)

from tool_aware.config.settings import Config, load_config
from tool_aware.console import UserError, run, say, warn
from tool_aware.evaluation.scoring.program_output import ProgramRuns
from tool_aware.evaluation.scoring.reasoning import Reader, reader_of_reasonings
from tool_aware.evaluation.scoring.usable import ParameterJudge
from tool_aware.files import write_json
from tool_aware.rows import Row
from tool_aware.sandbox import NotIsolated, check_isolation
from tool_aware.text import spread_evenly

SETS = PROBE, FRESH, TEST = "probe", "fresh", "test"
COPY = "copy"  # the run of the query as it stands, without a model
UNSEEN, ADAPTER = "unseen", "adapter"
PARTS = ("base", "tuned", UNSEEN, "plain")
TEST_ROWS = 400
ANSWERS_AT_ONCE = 64  # of each run; several share the card, and a base does not end its answers
TRAINING: dict[str, dict[str, Any]] = {
    "tuned": {"epochs": 3, "batch": 16, "r": 64, "alpha": 128.0, "tool_variation": 0.5, "tool_weight": 3.0},
    "plain": {"epochs": 3, "r": 16, "alpha": 32.0},
}
TRAINING[UNSEEN] = TRAINING["tuned"] | {"taught": UNSEEN}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare rows, perform the runs that the results lack, judge their answers, print the tables."""
    arguments = parse_arguments(argv)
    if read := arguments.markdown or arguments.read or arguments.judge_again:
        return show(arguments, json.loads(read.read_text(encoding="utf-8")))
    parts = wanted_parts(arguments)
    began_s, origin = time.monotonic(), environment()
    output = arguments.output or results_file("parameters", origin["device"])
    with tempfile.TemporaryDirectory(prefix="parameters-") as made:
        material = prepare(arguments, Path(made))
        results = earlier_results(output, material) | {"command": " ".join(sys.argv)}
        results["rows"] = {name: [stored(row) for row in rows] for name, rows in material.tests.items()}
        results["sets"] = {name: described_set(rows) for name, rows in material.tests.items()}
        results["taught"] = {name: taught(rows) for name, rows in {"": material.train, **material.other_train}.items()}
        material.save(Path(made) / "material")
        by = parameter_judge(results, material.config, is_isolated=not arguments.run_unisolated)
        answers = {name: copied(rows, material.config.toolbox) for name, rows in material.tests.items()}
        results["runs"][COPY] = {"run": {"name": COPY}, "answers": answers, "sets": {}, "origin": origin}
        judge_run(results, COPY, by, material.config)
        read = reader_of_reasonings(material.train, material.config.toolbox.names)
        counted = f"{len(material.train)} training rows, {len(material.other_train[UNSEEN])} of part {UNSEEN}"
        say(f"{counted}, prepared in {time.monotonic() - began_s:.0f} s")
        wanted = [each for part in parts for each in runs_of(part, arguments)]
        missing = [each for each in wanted if not is_known(each, results)]
        limits = {"side_by_side": arguments.side_by_side, "until_s": began_s + arguments.seconds}
        for outcome in perform_all(missing, Path(__file__).resolve(), Path(made), **limits):
            results["runs"][outcome.run["name"]] = {**asdict(outcome), "origin": origin}
            write_json(output, results)
            judge_run(results, outcome.run["name"], by, material.config, read)
            write_json(output, results)
    print(markdown(results))
    say(f"{output}: {len(results['runs'])} runs, {time.monotonic() - began_s:.0f} s")
    demand_all(wanted, results)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add_run_options(parser, PARTS)
    add("--steps", type=int, metavar="N", help="train so many steps instead of 3 epochs: for a trial on a CPU")
    add("--set", action="append", default=[], metavar="K=V", help="other settings of config.yaml, such as more rows")
    add("--tests", type=int, metavar="N", help="N rows of each set, spread evenly: for a trial on a CPU")
    add("--sets", default=",".join(SETS), metavar="A,B", help=f"tested on some of {', '.join(SETS)}")
    add("--adapter", type=Path, metavar="DIR", help="an adapter of the model that answers as it is; no trainings")
    add("--side-by-side", type=int, default=7, metavar="N", help="runs on the card at once (default: 7)")
    add("--run-unisolated", action="store_true", help="run programs also where the kernel does not isolate them")
    add("--judge-again", type=Path, metavar="FILE", help="judge the answers of these results again and stop")
    add("--read", type=Path, metavar="FILE", help="print queries, references and answers of these results and stop")
    add("--run", default="tuned-seed-1", metavar="NAME", help="whose answers --read prints (default: tuned-seed-1)")
    return parser.parse_args(argv)


def show(arguments: argparse.Namespace, results: dict[str, Any]) -> int:
    """Print what earlier results hold, judged again if wanted."""
    if arguments.read:
        if arguments.run not in results["runs"]:
            known = ", ".join(results["runs"])
            raise UserError(f"no run {arguments.run!r}", where=str(arguments.read), fix=f"--run: one of {known}")
        print(side_by_side(results, arguments.run))
        return 0
    if arguments.judge_again:
        config = load_config(Path(__file__).resolve().parent.parent / "config.yaml", [])
        by = parameter_judge(results, config, is_isolated=not arguments.run_unisolated)
        for name in results["runs"]:
            judge_run(results, name, by, config)
        write_json(arguments.judge_again, results)
    print(markdown(results))
    return 0


def wanted_parts(arguments: argparse.Namespace) -> list[str]:
    """Return the parts to measure. Raises UserError for unknown ones, and where no model is named."""
    parts = list(dict.fromkeys(arguments.parts.split(",")))
    if arguments.adapter:
        parts = [ADAPTER]
    elif unknown := sorted(set(parts) - set(PARTS)):
        raise UserError(f"unknown: {', '.join(unknown)}", where="--parts", fix=f"some of {', '.join(PARTS)}")
    if not (arguments.model or arguments.tiny):
        raise UserError("which model?", where="--model", fix="name the folder of an instruct model, or give --tiny")
    return parts


def runs_of(part: str, arguments: argparse.Namespace) -> list[Run]:
    """List the runs of a part: one training a seed, or none at all."""
    if part == ADAPTER:
        return [Run(ADAPTER, "base", adapter=str(arguments.adapter.resolve()))]
    if part == "base":
        return [Run("base", "base")]
    tiny = TINY if arguments.tiny else {}
    steps = {"steps": arguments.steps} if arguments.steps else {}
    settings = {**TRAINING[part], **tiny, **steps}
    return [Run(f"{part}-seed-{seed}", seed=seed, **settings) for seed in range(1, arguments.seeds + 1)]


def prepare(arguments: argparse.Namespace, folder: Path) -> Material:
    """Make the default data set, take out what resembles the hand-written queries, read these."""
    config = settings_of(arguments, folder)
    probe, fresh = load_parameters_probe(config), load_parameters_probe(config, FRESH_FILE)
    parts = default_splits(config)
    train = unlike_queries(parts["train"], labelled([*probe, *fresh]))
    unseen = without_kinds(unlike_probes(parts["train"], labelled(probe)), probe, config.toolbox)
    most = 6 if arguments.tiny else arguments.tests
    test = [row for row in parts["test"] if not row.is_choice_only]
    tests = {name: spread_evenly(rows, most or len(rows)) for name, rows in {PROBE: probe, FRESH: fresh}.items()}
    tests[TEST] = spread_evenly(test, most or TEST_ROWS)
    wanted = arguments.sets.split(",")
    if unknown := sorted(set(wanted) - set(SETS)):
        raise UserError(f"unknown: {', '.join(unknown)}", where="--sets", fix=f"some of {', '.join(SETS)}")
    tests = {name: rows for name, rows in tests.items() if name in wanted}
    return Material(config, train, tests, batch_size=8 if most else ANSWERS_AT_ONCE, other_train={UNSEEN: unseen})


def taught(rows: Sequence[Row]) -> dict[str, int]:
    """Count the rows of each tool."""
    return dict(sorted(Counter(row.tool for row in rows).items()))


# ---- verdicts -------------------------------------------------------------------------------------------


def parameter_judge(results: dict[str, Any], config: Config, *, is_isolated: bool) -> ParameterJudge:
    """Return the judge that evaluate.py uses, with the queries and search texts of the rows among its passages.

    Where the kernel cannot isolate programs and `is_isolated` demands it, none is run; the answers are kept and can be
    judged again on another machine.
    """
    runs: ProgramRuns | None = ProgramRuns(is_isolated=is_isolated)
    try:
        if is_isolated:
            check_isolation()
    except NotIsolated as found:
        runs = None
        warn(
            f"{found.what}; none is run: --judge-again on another machine, or --run-unisolated if nothing can be harmed"
        )
    rows = [restored(item, config.toolbox) for part in results["rows"].values() for item in part]
    calls = [row.answer.call for row in rows]
    texts = [row.query for row in rows]
    texts += [value for call in calls if call for value in call.parameters.values() if isinstance(value, str)]
    return ParameterJudge(texts=texts, programs=runs)


def judge_run(
    results: dict[str, Any], name: str, by: ParameterJudge, config: Config, read: Reader | None = None
) -> None:
    """Write the verdicts on a run's answers beside them; without `read`, where each reasoning leads stays as it was."""
    tools, its_own = config.toolbox, results["runs"][name]
    for test, answers in its_own["answers"].items():
        rows = [restored(item, tools) for item in results["rows"][test]]
        found = verdicts(rows, answers, by, tools)
        for item, why in zip(answers, found.pop("why"), strict=True):
            item["verdict"] = why or "usable"
        for item, kinds in zip(answers, found.pop("kinds"), strict=True):
            item["parameters"] = kinds
        its_own["sets"][test] = found
        if name == COPY:  # which knows the right tool
            found["tool"] = "-" * len(rows)
        else:
            found |= reasoning_flags(rows, answers, tools, read)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        perform_in_child(sys.argv[2:], answer_under_right_tool)
    else:
        run(main)
