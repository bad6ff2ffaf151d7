#!/usr/bin/env python3
"""Stage 3: answer the test rows with the base and the fine-tuned model and say whether, and at what, tuning helped.

    python evaluate.py                        # base against output/lora_adapters, on data/test.json
    python evaluate.py --limit 40             # a quick look at 40 rows spread over the file
    python evaluate.py --model ./merged_model # one merged model, against the base's answers of an earlier run

Reads:  config.yaml, data/test.json (and data/train.json, to refuse shared rows), output/lora_adapters/
Writes: evaluation_results/ base_model_metrics.json, base_model_results.json, finetuned_model_metrics.json,
        finetuned_model_results.json, comparison.json, *_confusion.png, *_predictions.jsonl, manifest.json
Exit codes: 0 done, 2 something to fix, 3 a gate failed, 130/143 stopped (run again to go on where it stopped)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tool_aware.base_model import adapter_base, attach_adapter, load_base_model, locate_model, same_model
from tool_aware.config import Config, Environment, add_config_arguments, load_config, read_environment
from tool_aware.console import UserError, duration, heading, run, say
from tool_aware.evaluation.figures import draw_confusion
from tool_aware.evaluation.judgement import Judgement, Prediction, judge
from tool_aware.evaluation.local_model import LocalModel, answer_rows
from tool_aware.evaluation.metrics import Metrics, summarise
from tool_aware.evaluation.predictions import PredictionLog
from tool_aware.evaluation.significance import Comparison, compare
from tool_aware.evaluation.tables import comparison_table, confusion_table, per_tool_table, systems_table
from tool_aware.evaluation.test_rows import TestSet, load_test_set
from tool_aware.prompt import load_tokenizer
from tool_aware.records import read_manifest, sha256_of, write_json, write_manifest

ADAPTER_FOLDER = "lora_adapters"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SEED = 42  # bootstrap resamples
FILES = {"base": "base_model", "finetuned": "finetuned_model"}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit code."""
    started_s = time.time()
    args = parse_arguments(argv)
    config = load_config(args.config, args.overrides)
    environment = read_environment()
    test = load_test_set(config.dataset.dir, config.toolbox, limit=args.limit)
    adapter = None if args.model else args.adapter or config.training.output_dir / ADAPTER_FOLDER
    check_inputs(config, adapter)
    logs = open_logs(config, test, adapter, args)
    print_plan(config, test, adapter, args, logs)
    if args.dry_run:
        return 0

    predictions = answer(config, environment, test, adapter, args, logs)
    judgements = {
        system: [judge(prediction, test.rows[prediction.row], config.toolbox) for prediction in answers]
        for system, answers in predictions.items()
    }
    metrics = {
        system: summarise(system, judged, config.toolbox.names, no_tool="direct_chat", seed=SEED)
        for system, judged in judgements.items()
    }
    comparison = None
    if "base" in judgements:
        comparison = compare(
            judgements["base"], judgements["finetuned"], config.toolbox.names, names=("base", "finetuned"), seed=SEED
        )
    write_results(config, test, predictions, judgements, metrics, comparison, started_s)
    print_results(metrics, comparison)
    say(f"\nresults in {config.evaluation.results_dir}/ after {duration(time.time() - started_s)}")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="See the top of this file for files.")
    add_config_arguments(parser)
    parser.add_argument(
        "--adapter", type=Path, metavar="DIR", help="adapter to evaluate (default: OUTPUT_DIR/lora_adapters)"
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="evaluate this merged model instead of an adapter")
    parser.add_argument("--limit", type=_positive, metavar="N", help="evaluate N rows spread evenly over the test file")
    parser.add_argument(
        "--overwrite", action="store_true", help="answer anew, and replace results of another test file"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


# ---- before anything slow ---------------------------------------------------------------------------------


def check_inputs(config: Config, adapter: Path | None) -> None:
    """Refuse an adapter that is missing, belongs to another base model, or was trained with other tools."""
    if adapter is None:
        return
    if not adapter.is_dir():
        raise UserError("no adapter found", where=str(adapter), fix="python train_tool_aware.py")
    trained_on = adapter_base(adapter)
    if not same_model(trained_on, config.model.name):
        raise UserError(
            f"was trained on {trained_on}, but model.name is {config.model.name}",
            where=str(adapter),
            fix=f"--set model.name={trained_on}, or train an adapter for {config.model.name}",
        )
    manifest = read_manifest(adapter.parent) or {}
    trained_with = [tool["name"] for tool in manifest.get("config", {}).get("tools", [])]
    if trained_with and sorted(trained_with) != sorted(config.toolbox.names):
        raise UserError(
            f"was trained with the tools {', '.join(trained_with)}; the config lists {', '.join(config.toolbox.names)}",
            where=str(adapter),
            fix="python prepare_dataset.py && python train_tool_aware.py, or evaluate with the config it was trained with",
        )


def open_logs(
    config: Config, test: TestSet, adapter: Path | None, args: argparse.Namespace
) -> dict[str, PredictionLog]:
    """Open the answers that earlier runs left; those of the same origin are not generated again."""
    folder = config.evaluation.results_dir
    earlier = (read_manifest(folder) or {}).get("dataset_sha256")
    if earlier not in (None, test.sha256) and not args.overwrite:
        raise UserError(
            f"holds the results of another test file (sha256 {earlier[:12]}, now {test.sha256[:12]})",
            where=str(folder),
            fix="--overwrite, or keep both with --set evaluation.results_dir=evaluation_results_2",
        )
    shared = {"dataset": test.sha256, "max_new_tokens": config.evaluation.max_new_tokens, "mode": "free"}
    base = {**shared, "model": config.model.name, "revision": config.model.revision}
    base["quantization"] = config.quantization.model_dump(mode="json")
    tuned = {**base, "adapter": sha256_of(adapter / ADAPTER_WEIGHTS)} if adapter else {**base, "model": str(args.model)}
    origins = {"base": base, "finetuned": tuned}
    paths = {system: folder / f"{name}_predictions.jsonl" for system, name in FILES.items()}
    if args.overwrite:
        for path in paths.values():
            path.unlink(missing_ok=True)
    return {system: PredictionLog(paths[system], origin) for system, origin in origins.items()}


def print_plan(
    config: Config, test: TestSet, adapter: Path | None, args: argparse.Namespace, logs: dict[str, PredictionLog]
) -> None:
    """Say what will be done before doing it."""
    counts = {name: sum(row.tool == name for row in test.rows.values()) for name in config.toolbox.names}
    say(f"test rows   {len(test.rows)} of {test.total} in {test.path}")
    say(f"            {', '.join(f'{name} {count}' for name, count in counts.items())}")
    say(f"base model  {config.model.name}, {config.quantization.kind}")
    say(f"fine-tuned  {adapter or args.model}")
    for system, log in logs.items():
        known = sum(index in log.done for index in test.rows)
        if known:
            say(f"            {known} answers of {system} are kept from an earlier run ({log.path})")


# ---- the models -------------------------------------------------------------------------------------------


def answer(
    config: Config,
    environment: Environment,
    test: TestSet,
    adapter: Path | None,
    args: argparse.Namespace,
    logs: dict[str, PredictionLog],
) -> dict[str, list[Prediction]]:
    """Answer all test rows with each system, in one load of the model; nothing is loaded if all answers are known."""
    systems = ["base", "finetuned"] if adapter or test.rows.keys() <= logs["base"].done.keys() else ["finetuned"]
    local = None
    predictions = {}
    for system in systems:
        log = logs[system]
        if local is None and not test.rows.keys() <= log.done.keys():
            local = load(config, environment, adapter, args.model)
        heading(f"{system}: {len(test.rows)} rows")
        begun_s = time.time()
        predictions[system] = answer_rows(
            local, test.rows, log, uses_adapter=system != "base", label=system,
            max_new_tokens=config.evaluation.max_new_tokens, batch_size=config.evaluation.batch_size,
        )  # fmt: skip
        say(f"{system}: {len(test.rows)} answers, {duration(time.time() - begun_s)}")
    return predictions


def load(config: Config, environment: Environment, adapter: Path | None, merged: Path | None) -> LocalModel:
    """Load the base model with the adapter on it, or a merged model."""
    model = config.model.model_copy(update={"name": str(merged), "revision": None}) if merged else config.model
    heading(f"loading {model.name}")
    locate_model(model.name, revision=model.revision, hf_token=environment.hf_token)
    tokenizer = load_tokenizer(model.name, revision=model.revision, token=environment.hf_token)
    base = load_base_model(model, config.quantization, hf_token=environment.hf_token)
    if adapter:
        base = attach_adapter(base, adapter, base_name=config.model.name)
    return LocalModel(base.eval(), tokenizer)


# ---- results ----------------------------------------------------------------------------------------------


def write_results(
    config: Config,
    test: TestSet,
    predictions: dict[str, list[Prediction]],
    judgements: dict[str, list[Judgement]],
    metrics: dict[str, Metrics],
    comparison: Comparison | None,
    started_s: float,
) -> None:
    """Write metrics, per-row results, comparison, figures and the manifest."""
    folder = config.evaluation.results_dir
    outputs = []
    for system, figures in metrics.items():
        name = FILES[system]
        write_json(folder / f"{name}_metrics.json", figures.as_dict())
        rows = [
            result_row(test, prediction, judgement)
            for prediction, judgement in zip(predictions[system], judgements[system], strict=True)
        ]
        write_json(folder / f"{name}_results.json", rows)
        draw_confusion(folder / f"{name}_confusion.png", system, figures)
        outputs += [folder / f"{name}_{kind}" for kind in ("metrics.json", "results.json", "confusion.png")]
    if comparison:
        write_json(folder / "comparison.json", comparison.as_dict())
        outputs.append(folder / "comparison.json")
    write_manifest(
        folder, stage="evaluate", config=config.as_dict(), seed=SEED, started_s=started_s, inputs=[test.path],
        outputs=outputs, counts={"rows": len(test.rows)}, dataset_sha256=test.sha256,
    )  # fmt: skip


def result_row(test: TestSet, prediction: Prediction, judgement: Judgement) -> dict[str, Any]:
    """One line of the results file: the row, the answer, the verdict."""
    row = test.rows[prediction.row]
    verdict = {key: value for key, value in asdict(judgement).items() if key not in ("row", "scores")}
    return {
        "row": prediction.row,
        "query": row.query,
        "expected_response": row.response,
        "response": prediction.text,
        **verdict,
        "metadata": dict(row.metadata),
    }


def print_results(metrics: dict[str, Metrics], comparison: Comparison | None) -> None:
    """Print the tables."""
    if comparison:
        print(comparison_table(metrics["base"], metrics["finetuned"], comparison))
    print()
    print(systems_table(list(metrics.values())))
    for system, figures in metrics.items():
        print(f"\n{system}: figures per tool\n{per_tool_table(figures)}")
        print(f"\n{system}: confusion matrix\n{confusion_table(figures)}")


if __name__ == "__main__":
    run(main)
