"""Checks before anything slow begins: the model under test, its tools, and the results already there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tool_aware.chat_format import chat_format
from tool_aware.config.sections import ModelSection
from tool_aware.config.settings import Config
from tool_aware.console import UserError
from tool_aware.evaluation.held_out import TestSet
from tool_aware.evaluation.tool_changes import earlier_tools
from tool_aware.manifest import one_set
from tool_aware.model.adapter import base_name_of, check_saved_adapter
from tool_aware.model.adapter_record import refuse_another_chat_format
from tool_aware.model.base import check_model_available, check_windows, same_model
from tool_aware.paths import (
    ADAPTER_CONFIG_NAME,
    BASE_MODEL,
    COMPARISON_NAME,
    FINETUNED_MODEL,
    GRAMMAR_GBNF_NAME,
    GRAMMAR_REGEX_NAME,
    REPORT_HTML_NAME,
    REPORT_MARKDOWN_NAME,
    confusion_name,
    metrics_name,
    results_name,
)
from tool_aware.text import shortlist
from tool_aware.tokenizer import load_tokenizer
from tool_aware.transaction import refuse_unsafe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RESULT_NAMES = frozenset(
    (
        *(
            name(model)
            for name in (confusion_name, metrics_name, results_name)
            for model in (BASE_MODEL, FINETUNED_MODEL)
        ),
        *(COMPARISON_NAME, REPORT_HTML_NAME, REPORT_MARKDOWN_NAME, GRAMMAR_GBNF_NAME, GRAMMAR_REGEX_NAME),
    )
)


def check_adapter(config: Config, adapter: Path) -> None:
    """Refuse an adapter that is missing or belongs to another base model."""
    trained_on = base_name_of(adapter)
    if not same_model(trained_on, config.model.name):
        raise UserError(
            f"was trained on {trained_on}, but model.name is {config.model.name}",
            where=str(adapter),
            fix=f"--set model.name={trained_on}, or train an adapter for {config.model.name}",
        )


def check_weights(model: ModelSection, adapter: Path | None, *, hf_token: str | None) -> PreTrainedTokenizerBase:
    """Refuse a model, tokenizer or adapter that is not whole, or an adapter that does not fit; return the tokenizer.

    No weights are loaded yet. What is not on this machine yet is checked when it is loaded.
    """
    check_model_available(model.name, revision=model.revision, hf_token=hf_token)
    check_windows(model)
    tokenizer = load_tokenizer(model.name, revision=model.revision, token=hf_token)
    if adapter:
        refuse_another_chat_format(adapter, chat_format(tokenizer), model.name)
        check_saved_adapter(adapter, model)
    return tokenizer


def check_merged_model(folder: Path) -> None:
    """Refuse a folder that is not there, or holds an adapter only."""
    if not folder.is_dir():
        raise UserError("no such folder", where=f"--model {folder}", fix="name the folder of the merged model")
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        raise UserError("holds an adapter, not a merged model", where=f"--model {folder}", fix=f"--adapter {folder}")


def limitations(config: Config, test: TestSet, *, is_merged: bool) -> list[str]:
    """Return, in words, what makes this evaluation say less than it could."""
    found = []
    asked_for = {row.tool for row in test.rows.values()}
    missing = [name for name in config.toolbox.names if name not in asked_for]
    if missing:
        found.append(f"no test rows for {shortlist(missing)}: their figures are n/a")
    folder = test.path.parent
    data = earlier_tools(folder, config, stage="prepare_dataset")
    if data and data.change:
        found.append(f"{folder} was made for other tools than the config lists ({data.change})")
    if test.changed:
        found.append(f"{', '.join(test.changed)} changed since {folder} was made: the changed rows are evaluated")
    if is_merged and config.quantization.kind != "none":
        found.append(
            f"the merged model is quantised to {config.quantization.kind} again, which can undo what tuning did; "
            "--set quantization.load_in_4bit=false evaluates it as it was saved"
        )
    if not test.val:
        found.append("no val.json: probabilities stay uncalibrated and no threshold is chosen")
    if not test.train:
        found.append("no train.json: no baseline can learn, and test rows could not be checked against it")
    return found


def check_results_folder(folder: Path, test: TestSet, partial: Sequence[str], *, overwrite: bool) -> None:
    """Refuse a folder that is not one of results alone, and, unless `overwrite`, one whose results are of another kind:
    of another test file, files of which no manifest of an evaluation knows, or a whole evaluation for a part of one.

    `partial` names the options that make this run a part of an evaluation.
    """
    refuse_unsafe(folder)
    with one_set(folder) as manifest:
        earlier = manifest or {}
    if earlier.get("stage", "evaluate") != "evaluate":
        fix = "--set evaluation.results_dir=evaluation_results"
        raise UserError(f"holds what {earlier['stage']} wrote, and its manifest", where=str(folder), fix=fix)
    if overwrite:
        return
    foreign = sorted(name for name in RESULT_NAMES - earlier.get("outputs", {}).keys() if (folder / name).exists())
    if foreign:
        what = f"has files that no finished evaluation lists: {shortlist(foreign)}"
        raise UserError(what, where=str(folder), fix="move them away, or --overwrite to replace them")
    sha256 = earlier.get("dataset_sha256")
    if sha256 not in (None, test.sha256):
        raise UserError(
            f"holds the results of another test file (sha256 {sha256[:12]}, now {test.sha256[:12]})",
            where=str(folder),
            fix="--overwrite, or keep both with --set evaluation.results_dir=evaluation_results_2",
        )
    if partial and sha256 and not earlier.get("partial"):
        raise UserError(
            f"holds a whole evaluation, which {' '.join(partial)} would replace by a part of one",
            where=str(folder),
            fix="--set evaluation.results_dir=evaluation_results_part, or --overwrite",
        )
