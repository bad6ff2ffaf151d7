"""Measure how well a pretrained model chooses tools before and after training, beside cheap rivals and TRL.

    python benchmarks/real_model.py --model DIR                          # one GPU of 80 GB; about 12 minutes
    python benchmarks/real_model.py --model DIR --parts base,epochs      # only these parts; what the file has is kept
    python benchmarks/real_model.py --model DIR --parts speed,trl        # the timed runs, each alone on the card
    python benchmarks/real_model.py --tiny                               # a smoke test without a GPU
    python benchmarks/real_model.py --markdown FILE                      # the tables of docs/benchmarks/, from the file

Parts   base    the model as it is, under its own chat template
        epochs  after 1 and after 3 epochs, each a run with its own learning rate schedule
        curve   trained on fewer rows; their last point is `epochs` 3
        rivals  the keyword router, and TF-IDF with logistic regression on the same rows; no GPU needed
        speed   1 epoch alone on the card, with the time and memory of its steps: as the memory plan of
                train_tool_aware.py has it, and with gradient checkpointing
        trl     the same with TRL's SFTTrainer: same ids, labels, order, steps and learning rates (needs trl)

Every run is a process of its own: it trains, saves the adapter, loads it again as evaluate.py does, lets it choose by
probability and write whole answers. Runs of the first three parts share the card, and none of their times is reported.

The rows are the default data set's. Its training rows that resemble a query of any probe are left out, with all rows of
their template, as in dataset_probe.py. Tested on the three probes, of which only the right tool is known, and on the
test split. Intervals are 95 %, over templates where rows share one and over all seeds together.

Reads   config.yaml, benchmarks/probe/*.yaml, the model; earlier results in the same file, whose runs are not repeated
Writes  benchmarks/results/real_model_<device>.json, as runs end
Exit    0 done; 2 something to fix; 3 runs failed or were not begun in time
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _options import add_run_options
from _random_mistral import REPOSITORY, environment, results_file
from _real_model import PROBE, Material, Run, drawn
from _real_model_tables import markdown
from _side_by_side import perform_all, perform_in_child
from _trl import missing_packages, trl_version
from dataset_probe import PROBES, Labelled, labelled, load_probe, without_lookalikes

from tool_aware.config.settings import Config, load_config
from tool_aware.console import GateFailed, UserError, run, say
from tool_aware.evaluation.scoring.judgement import group_of
from tool_aware.files import write_json
from tool_aware.rows import Row

PARTS = ("base", "epochs", "curve", "rivals", "speed", "trl")
EPOCHS = (1, 3)
CURVE = {80: 20, 320: 20, 1280: 10, 5120: 3}  # rows -> epochs: so many that few rows are not also few steps
SPEED = {"speed": "ours", "speed-checkpoints": "ours-checkpoints"}  # name -> stack
TINY_CURVE = {8: 1}
TINY = {"rows": 8, "steps": 2, "batch": 2, "r": 4, "alpha": 8.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare rows, perform the runs that the results lack, print the tables."""
    arguments = parse_arguments(argv)
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text(encoding="utf-8"))))
        return 0
    parts = wanted_parts(arguments)
    began_s, origin = time.monotonic(), environment()
    origin["versions"] |= trl_version()
    output = arguments.output or results_file("real_model", origin["device"])
    with tempfile.TemporaryDirectory(prefix="real-model-") as made:
        folder = Path(made)
        material = prepare(arguments, folder)
        results = earlier_results(output, material) | {"command": " ".join(sys.argv)}
        material.save(folder / "material")
        say(f"{len(material.train)} training rows, prepared in {time.monotonic() - began_s:.0f} s")
        runs = [each for part in parts for each in runs_of(part, arguments)]
        missing = [each for each in runs if not is_known(each, results)]
        limits = {"side_by_side": arguments.side_by_side, "until_s": began_s + arguments.seconds}
        with ThreadPoolExecutor(max_workers=1) as pool:  # rivals need one core while the runs need the card
            waiting = pool.submit(rivals, material, arguments) if "rivals" in parts else None
            for outcome in perform_all(missing, Path(__file__).resolve(), folder, **limits):
                results["runs"][outcome.run["name"]] = {**asdict(outcome), "origin": origin}
                write_json(output, results)
            if waiting:
                results["rivals"] = waiting.result()
    write_json(output, results)
    print(markdown(results))
    say(f"{output}: {len(results['runs'])} runs, {time.monotonic() - began_s:.0f} s")
    demand_all(runs, results)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser, PARTS)
    parser.add_argument(
        "--side-by-side", type=int, default=4, metavar="N", help="runs on the card at once (default: 4)"
    )
    return parser.parse_args(argv)


def demand_all(wanted: Sequence[Run], results: dict[str, Any]) -> None:
    """Raise GateFailed if runs failed or were not begun in time."""
    if lacking := [each.name for each in wanted if not is_known(each, results)]:
        raise GateFailed(f"not measured: {', '.join(lacking)}; run the same again for them")


def wanted_parts(arguments: argparse.Namespace) -> list[str]:
    """Return the parts to measure, without TRL's if it cannot be imported. Raises UserError for unknown ones."""
    parts = arguments.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise UserError(f"unknown: {', '.join(unknown)}", where="--parts", fix=f"some of {', '.join(PARTS)}")
    if not (arguments.model or arguments.tiny):
        raise UserError("which model?", where="--model", fix="name the folder of an instruct model, or give --tiny")
    missing = missing_packages() if "trl" in parts else []
    if missing:
        say(f"part trl is left out, cannot be imported: {'; '.join(missing)} (pip install trl)")
    return [part for part in parts if part != "trl" or not missing]


def is_known(run: Run, results: Mapping[str, Any]) -> bool:
    """Return whether the results hold this run, with these settings."""
    known = results["runs"].get(run.name)
    if not known:
        return False
    its = asdict(Run(run.name)) | known["run"]  # older results lack newer settings
    return bool(json.loads(json.dumps(its)) == json.loads(json.dumps(asdict(run))))  # tuples are lists in JSON


def runs_of(part: str, arguments: argparse.Namespace) -> list[Run]:
    """List the runs of a part; those with the most steps first, so that the card is used to the end."""
    tests = ("test", *(path.stem for path in PROBES))
    tiny: dict[str, Any] = TINY if arguments.tiny else {}
    seeds = range(1, arguments.seeds + 1)
    if part == "base":
        return [Run("base", "base", answers=tests)]
    if part == "epochs":
        kinds = [(epochs, seed) for epochs in sorted(EPOCHS, reverse=True) for seed in seeds]
        return [
            Run(f"epochs-{epochs}-seed-{seed}", seed=seed, epochs=epochs, answers=tests, **tiny)
            for epochs, seed in kinds
        ]
    if part == "curve":
        curve = TINY_CURVE if arguments.tiny else CURVE
        points = [(rows, epochs, seed) for rows, epochs in curve.items() for seed in seeds]
        points.sort(key=lambda point: -point[0] * point[1])
        return [
            Run(f"rows-{rows}-seed-{seed}", seed=seed, **{**tiny, "rows": rows, "epochs": epochs})
            for rows, epochs, seed in points
        ]
    if part == "speed":
        return [Run(name, stack, answers=tests, alone=True, **tiny) for name, stack in SPEED.items()]
    if part == "trl":
        return [Run(name, name, answers=tests, alone=True, **tiny) for name in ("trl", "trl-no-checkpoints")]
    return []


# ---- the rows -------------------------------------------------------------------------------------------


def prepare(arguments: argparse.Namespace, folder: Path) -> Material:
    """Make the default data set, take out what resembles the probes, read the probes."""
    config = settings_of(arguments, folder)
    parts = default_splits(config)
    probes = {path.stem: load_probe(path) for path in PROBES}
    train = unlike_probes(parts["train"], [query for probe in probes.values() for query in probe])
    tests = {"test": parts["test"]} | {name: probe_rows(probe, config) for name, probe in probes.items()}
    if arguments.tiny:
        return Material(config, train, {name: part[:6] for name, part in tests.items()}, batch_size=8)
    return Material(config, train, tests)


def settings_of(arguments: argparse.Namespace, folder: Path, *, follow_ups: int = 8, two_requests: int = 8) -> Config:
    """Return config.yaml for the model that is measured, with the options of `--set` where a script has it.

    The numbers of rows are those of a trial with `--tiny`.
    """
    model = arguments.model.resolve() if arguments.model else tiny_model(folder / "model")
    overrides = [f"model.name={model}", "quantization.load_in_4bit=false", "logging.tensorboard=false"]
    if arguments.tiny:
        overrides += [
            "dataset.synthetic_per_tool=60",
            "dataset.ambiguous=8",
            f"dataset.follow_ups={follow_ups}",
            f"dataset.two_requests={two_requests}",
            "evaluation.max_new_tokens=8",
        ]
    return load_config(REPOSITORY / "config.yaml", [*overrides, *getattr(arguments, "set", [])])


def default_splits(config: Config) -> Mapping[str, list[Row]]:
    """Return the rows that stage 1 makes of a config without a log, by split."""
    from tool_aware.dataset.assembly import assemble
    from tool_aware.dataset.splitting import split_rows
    from tool_aware.dataset.synthesis.content import load_content

    rows = assemble(config, load_content(), []).rows
    return split_rows(rows, config.dataset.splits, config.dataset.seed).rows


def tiny_model(folder: Path) -> Path:
    """Write a tiny Mistral of random weights."""
    from tool_aware.demo.toy_model import new_model, save_tokenizer

    save_tokenizer(folder)
    new_model().save_pretrained(folder)
    return folder


def unlike_probes(train: Sequence[Row], probe: Sequence[Labelled]) -> list[Row]:
    """Return the rows without templates of which any row resembles a probe query."""
    described = labelled(train)
    groups = {row.group for row in without_lookalikes(described, probe)}
    return [row for row, its in zip(train, described, strict=True) if its.group in groups]


def unlike_queries(train: Sequence[Row], probe: Sequence[Labelled]) -> list[Row]:
    """Return the rows that resemble no probe query themselves; others of their templates stay."""
    rows = [Labelled(row.query, row.tool, group=str(number)) for number, row in enumerate(train)]
    return [train[int(row.group)] for row in without_lookalikes(rows, probe)]


def probe_rows(probe: Sequence[Labelled], config: Config) -> list[Row]:
    """Return the queries as rows; the call in their response is only a form, as they have no right one."""
    from tool_aware.prompt import render_instruction, render_response
    from tool_aware.tools import ToolCall

    return [
        Row(
            render_instruction(row.query, config.toolbox),
            render_response(ToolCall(row.tool, {}, "Unknown.")),
            {"source": PROBE, "tool": row.tool, "group": row.query, "slice": row.slice},
        )
        for row in probe
    ]


def earlier_results(output: Path, material: Material) -> dict[str, Any]:
    """Return the results so far, or empty ones. Raises UserError if they are of other rows or another model."""
    described = {
        "model": Path(material.config.model.name).name,
        "train_rows": len(material.train),
        "data_sha256": digest(material),
        "sets": {name: described_set(rows) for name, rows in material.tests.items()},
    }
    if not output.is_file():
        return {**described, "runs": {}, "rivals": {}}
    earlier = json.loads(output.read_text(encoding="utf-8"))
    if earlier.get("data_sha256") != described["data_sha256"]:
        raise UserError("holds results of other rows or another model", where=str(output), fix="name another --output")
    return dict(earlier)


def described_set(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what the tables need to know of test rows: their groups, as numbers, and their tools."""
    groups: dict[str, int] = {}
    keys = [group_of(number, row) for number, row in enumerate(rows)]
    return {
        "rows": len(rows),
        "groups": [groups.setdefault(key, len(groups)) for key in keys],
        "tools": [row.tool for row in rows],
        "slices": [str(row.metadata.get("slice", "")) for row in rows],
    }


def digest(material: Material) -> str:
    """Return the identity of the rows, the settings and the model's files."""
    folder = Path(material.config.model.name)
    files = [(path.name, path.stat().st_size) for path in sorted(folder.iterdir()) if path.is_file()]
    parts = [material.train, *material.tests.values(), *material.other_train.values()]
    rows = [(row.instruction, row.response) for part in parts for row in part]
    return hashlib.sha256(json.dumps([files, rows]).encode()).hexdigest()


# ---- cheap rivals ---------------------------------------------------------------------------------------


def rivals(material: Material, arguments: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Return, by rival and set, whether each row's tool was right; TF-IDF also on the fewer rows of the curve."""
    from tool_aware.evaluation.scoring.baselines import keyword_router, tfidf_regression
    from tool_aware.evaluation.scoring.one_thread import on_one_thread

    router = material.config.evaluation.keyword_router
    choosers = {"keyword router": lambda: keyword_router(router, material.config.toolbox.names)}
    curve, seeds = TINY_CURVE if arguments.tiny else CURVE, range(1, arguments.seeds + 1)
    parts = {f"tf-idf rows-{rows}-seed-{seed}": drawn(material.train, rows, seed) for rows in curve for seed in seeds}
    for name, rows in {"tf-idf": material.train, **parts}.items():
        queries, labels = [row.query for row in rows], [row.tool for row in rows]
        choosers[name] = lambda queries=queries, labels=labels: tfidf_regression(queries, labels)
    found: dict[str, dict[str, str]] = {}
    with on_one_thread("sklearn"):
        for name, fit in choosers.items():
            choose = fit()
            found[name] = {}
            for test, rows in material.tests.items():
                chosen = choose([row.query for row in rows])
                right = (tool in row.acceptable_tools for row, (tool, _) in zip(rows, chosen, strict=True))
                found[name][test] = "".join("01"[is_right] for is_right in right)
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        perform_in_child(sys.argv[2:])
    else:
        run(main)
