"""The output of an evaluation: tables on stdout, files in the results folder, figures beside the adapter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from tool_aware.config.settings import Config
from tool_aware.console import UserError, warn
from tool_aware.evaluation.answering.probe import make_probe
from tool_aware.evaluation.held_out import TestSet
from tool_aware.evaluation.preflight import RESULT_NAMES
from tool_aware.evaluation.report.chapters import build_report
from tool_aware.evaluation.report.figures import draw_confusion
from tool_aware.evaluation.report.html import render_html, shown_rows
from tool_aware.evaluation.report.markdown import render_markdown
from tool_aware.evaluation.report.tables import (
    comparison_table,
    confusion_table,
    earlier_turns_table,
    errors_table,
    kinds_table,
    per_tool_table,
    reasoning_table,
    systems_table,
    two_requests_table,
)
from tool_aware.evaluation.results import Results, title
from tool_aware.evaluation.scoring.calibration import routing_thresholds
from tool_aware.evaluation.scoring.intervals import Estimate
from tool_aware.evaluation.scoring.judgement import Judgement
from tool_aware.files import (
    INDENT,
    JsonText,
    indented_json,
    sha256_of,
    write_json,
    write_json_array,
    write_pieces,
    write_text,
)
from tool_aware.inference import grammar
from tool_aware.manifest import read_manifest, write_manifest
from tool_aware.paths import (
    ADAPTER_WEIGHTS_NAME,
    BASE_MODEL,
    CARD_NAME,
    COMPARISON_NAME,
    FINETUNED_MODEL,
    GRAMMAR_GBNF_NAME,
    GRAMMAR_REGEX_NAME,
    MANIFEST_NAME,
    PROBE_NAME,
    REPORT_HTML_NAME,
    REPORT_MARKDOWN_NAME,
    THRESHOLDS_NAME,
    confusion_name,
    metrics_name,
    results_name,
)
from tool_aware.text_files import read_text
from tool_aware.transaction import FileSet, locked

_FILES = {
    "base": BASE_MODEL,
    "base_choice": BASE_MODEL,
    "finetuned": FINETUNED_MODEL,
    "finetuned_choice": FINETUNED_MODEL,
}
_VERDICT = tuple(field.name for field in fields(Judgement) if field.name != "row")
_verdict_of = attrgetter(*_VERDICT)


def write_results(
    folder: Path,
    results: Results,
    config: Config,
    test: TestSet,
    *,
    partial: Sequence[str] = (),
    fallbacks: Collection[str] = (),
    inputs: Mapping[str, str] | None = None,
    served: Mapping[str, Any] | None = None,
    started_s: float,
) -> list[Path]:
    """Replace metrics, per-row results, comparison, figures, reports, grammars and manifest, all of them together.

    `partial` names the options that made this a part of an evaluation; `inputs` has the sha256 of files besides the
    data, by path; `served` is what a server says of itself. The folder must be locked.
    """
    files = FileSet(folder)
    try:
        _write_all(files, results, config, test)
        write_manifest(
            files.new,
            stage="evaluate",
            config=config.as_dict(),
            seed=config.evaluation.seed,
            started_s=started_s,
            inputs={**test.inputs, **(inputs or {})},
            outputs=files.hashes(),
            counts={"rows": len(test.rows)},
            fallbacks=fallbacks,
            dataset_sha256=test.sha256,
            partial=list(partial),
            **({"served": dict(served)} if served else {}),
        )
        names = list(files.hashes())
        files.commit(_outdated(folder, names))
    except BaseException:
        files.discard()
        raise
    return [folder / name for name in names]


def _write_all(files: FileSet, results: Results, config: Config, test: TestSet) -> None:
    def put(name: str, writer: Callable[..., None], *content: object) -> None:
        writer(files.path(name), *content)

    for system in results.main:
        name = _FILES[system]
        put(metrics_name(name), write_json, results.metrics[system].as_dict())
        put(results_name(name), write_json_array, result_rows(results, system))
        put(confusion_name(name), draw_confusion, title(system), results.metrics[system])
    put(COMPARISON_NAME, write_json, comparison(results))
    sections = build_report(results)
    put(REPORT_MARKDOWN_NAME, write_text, render_markdown(sections))
    put(REPORT_HTML_NAME, write_pieces, render_html(results, sections, facts=_facts(config, test, results)))
    put(GRAMMAR_GBNF_NAME, write_text, grammar.gbnf(config.toolbox))
    put(GRAMMAR_REGEX_NAME, write_text, grammar.regex(config.toolbox) + "\n")


def _outdated(folder: Path, names: Collection[str]) -> list[str]:
    """Return the outputs of the folder's earlier manifest that this run did not write: they are of other answers."""
    earlier = read_manifest(folder) or {}
    return [] if earlier.get("stage") != "evaluate" else sorted(RESULT_NAMES & earlier["outputs"].keys() - set(names))


def result_rows(results: Results, system: str) -> Iterator[dict[str, Any]]:
    """Yield one object a row for `write_json_array`: the row, the answer, the judgement."""
    for prediction, judgement in zip(results.predictions[system], results.judgements[system], strict=True):
        row = results.rows[prediction.row]
        yield {
            "row": prediction.row,
            "query": row.query,
            "expected_response": row.response,
            "response": prediction.text,
            **dict(zip(_VERDICT, _verdict_of(judgement), strict=True)),
            "parameters": _written(judgement.parameters),
            "uses": _written(judgement.uses),
            "scores": prediction.scores,
            "metadata": dict(row.metadata),
        }


@lru_cache(maxsize=16_384)
def _written(parts: tuple[Any, ...]) -> JsonText:
    """Return verdicts as they stand in an object of an array; most rows have the few of right answers."""
    return JsonText(indented_json(list(map(asdict, parts)), 2 * INDENT))


def comparison(results: Results) -> dict[str, Any]:
    """Return base against tuned, tuned against each baseline, and what only the report shows otherwise."""
    return {
        "headline": results.headline(),
        "base_against_finetuned": results.comparison.as_dict() if results.comparison else None,
        "rivals": [baseline.as_dict() for baseline in results.against_baselines],
        "systems": {name: figures.as_dict() for name, figures in results.metrics.items() if name not in results.main},
        "trust": results.calibration.as_dict() if results.calibration else None,
        "robustness": {system: [asdict(shift) for shift in shifts] for system, shifts in results.shifts.items()},
        "other_tools": {system: [asdict(found) for found in lists] for system, lists in results.on_lists.items()},
        "earlier_turns": {
            system: [asdict(found) for found in kinds] for system, kinds in results.earlier_turns.items()
        },
        "two_requests": {system: asdict(found) for system, found in results.two_requests.items()},
        "reference_reasoning": asdict(results.reference_reasoning) if results.reference_reasoning else None,
        "parts": [asdict(part) for part in results.parts],
        "add_to_the_data_next": [asdict(item) | {"advice": item.advice()} for item in results.confusions],
        "seconds_per_token": dict(results.seconds_per_token),
    }


def _facts(config: Config, test: TestSet, results: Results) -> list[str]:
    rows = f"{len(test.rows) - test.added} of {test.total} rows of {test.path} (sha256 {test.sha256[:12]})"
    rows += f" and {test.added} made from examples of new tools" if test.added else ""
    listed = len(shown_rows(results))
    files = " and ".join(results_name(_FILES[system]) for system in results.main)
    few = [f"{listed} rows are listed here, spread evenly; {files} have all"] if listed < len(results.rows) else []
    return [rows, *few, f"base model {config.model.name}", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")]


def update_adapter(
    adapter: Path, results: Results, config: Config, test: TestSet, *, weights_sha256: str | None
) -> None:
    """Write beside the adapter what its users need: thresholds, a probe for servers, the figures in its model card.

    Warns and writes nothing if its weights are no longer those that were evaluated, or if a training is writing there.
    """
    run = adapter.resolve().parent
    try:
        with locked(run) if (run / MANIFEST_NAME).is_file() else contextlib.nullcontext():
            if sha256_of(adapter / ADAPTER_WEIGHTS_NAME) != weights_sha256:
                raise UserError("holds other weights than those that were evaluated", where=str(adapter))
            _write_beside(adapter, results, config, test)
    except OSError as error:
        warn(f"{adapter} cannot be written ({error.strerror}): no thresholds, probe or figures left there")
    except UserError as error:
        warn(f"no thresholds, probe or figures left beside the adapter: {error}")


def _write_beside(adapter: Path, results: Results, config: Config, test: TestSet) -> None:
    if results.calibration:
        thresholds = routing_thresholds(
            results.calibration,
            config.evaluation.costs,
            config.toolbox.names,
            dataset_sha256=test.sha256,
            base_model=config.model.name,
        )
        write_json(adapter / THRESHOLDS_NAME, thresholds)
    if results.main == ("base", "finetuned"):
        base, tuned = (results.predictions[name] for name in results.main)
        write_json(adapter / PROBE_NAME, [asdict(item) for item in make_probe(results.rows, base, tuned)])
    if results.tuned == "finetuned":  # what only chooses has no whole calls, whose share the card shows
        _update_model_card(adapter / CARD_NAME, results, test)


def _update_model_card(card: Path, results: Results, test: TestSet) -> None:
    """Write the `model-index` of Hugging Face's model card metadata, into a card that has metadata."""
    if not card.is_file():
        return
    import yaml

    front, end, body = read_text(card).removeprefix("---\n").partition("\n---\n")
    try:
        metadata = yaml.safe_load(front) if end else None
    except (yaml.YAMLError, ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        raise UserError("does not begin with the metadata of a model card, in YAML", where=str(card))
    m = results.metrics[results.tuned]
    figures = {"accuracy": m.accuracy, "macro_f1": m.macro_f1, "whole_call_accuracy": m.call_accuracy}
    metrics = [
        {"type": name, "value": round(figure.value, 4), "name": name.replace("_", " ")}
        for name, figure in figures.items()
        if isinstance(figure, Estimate)
    ]
    dataset = {"name": "held-out tool choice", "type": "custom", "revision": test.sha256[:12]}
    result = {"task": {"type": "text-generation", "name": "tool choice"}, "dataset": dataset, "metrics": metrics}
    metadata["model-index"] = [{"name": card.resolve().parent.name, "results": [result]}]
    write_text(card, f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n{body}")


def print_results(results: Results) -> None:
    """Print the tables: base against tuned first, then all systems, then the tuned model in detail."""
    metrics = results.metrics
    if results.comparison:
        base, tuned = (metrics[name] for name in results.main)
        print(comparison_table(base, tuned, results.comparison))
    print("\n" + "\n".join(results.headline()[1:] if results.comparison else results.headline()))
    print("\nAll systems on the same rows\n" + systems_table(list(metrics.values())))
    print(f"\n{title(results.tuned)}: figures per tool\n{per_tool_table(metrics[results.tuned])}")
    if metrics[results.tuned].kinds:
        print(f"\n{title(results.tuned)}: parameters by kind, given the tool\n{kinds_table(metrics[results.tuned])}")
    for name in results.main:
        print(f"\n{title(name)}: confusion matrix\n{confusion_table(metrics[name])}")
    for name, kinds in results.earlier_turns.items():
        print(f"\n{title(name)}, choice only: with the earlier turns and without\n{earlier_turns_table(kinds)}")
    if results.two_requests:
        asked = {title(name): found for name, found in results.two_requests.items()}
        print("\nTwo requests in one query\n" + two_requests_table(asked))
    if reasonings := results.reasonings():
        print("\nReasoning\n" + reasoning_table(reasonings))
    main = {title(name): metrics[name] for name in results.main}
    if any(figures.errors for figures in main.values()):
        print("\nWhy rows are wrong\n" + errors_table(main))
