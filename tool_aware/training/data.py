"""The rows that a run trains and is scored on: read, compared with their manifest, tokenised."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tool_aware.chat_format import EncodedExample, cut_answers, with_heavy_name
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, UserError, listing, say, warn
from tool_aware.data_folder import DataReading, refuse_other_tools
from tool_aware.history import fit_histories
from tool_aware.paths import split_file
from tool_aware.prompt import render_preamble
from tool_aware.rows import LoadedRows, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TRAINED_ON = ("train", "val")


def read_data(
    config: Config, fallbacks: Fallbacks, reading: DataReading | None = None
) -> tuple[dict[str, LoadedRows], LoadedRows | None]:
    """Read the rows of train.json and val.json, and those of test.json, on which the merged model is checked, if any.

    All are read here or in `reading`, once: afterwards nothing is needed that may have changed or gone meanwhile. It is
    a fallback if train or val are not what prepare_dataset.py wrote. Raises UserError for malformed rows, and for data
    that was made for other tools than config.yaml lists.
    """
    folder = config.dataset.dir
    found = (reading or DataReading(folder, config.toolbox, TRAINED_ON)).result()
    data = {split: found.rows[split] for split in TRAINED_ON}
    if found.manifest is None:
        say(f"{folder} has no manifest: training on these files as custom data")
    else:
        for split in found.changed:
            if split in data:
                file = split_file(folder, split)
                fallbacks.add(f"{file} has changed since prepare_dataset.py wrote it; it is used as it is")
        refuse_other_tools(found, config)
    for split, rows in data.items():
        if rows.stored_as:
            say(f"{split_file(folder, split)} read as {rows.stored_as}")
    if unwrapped := sum(rows.unwrapped for rows in data.values()):
        say(f"<s>[INST] ... [/INST] removed from {unwrapped} instructions; it is added during tokenisation")
    if respelled := sum(rows.respelled for rows in data.values()):
        say(f"{respelled} responses had other spacing or JSON than docs/FORMATS.md shows; trained on as shown there")
    return data, found.rows.get("test")


def encode_data(
    data: Mapping[str, LoadedRows], tokenizer: PreTrainedTokenizerBase, config: Config
) -> tuple[dict[str, list[EncodedExample]], dict[str, list[Row]]]:
    """Tokenise all rows; return the examples, and the rows that they are of.

    None is cut: one above max_seq_length loses its oldest earlier turns; if it has none left, it is an error or
    dropped, as training.too_long says.
    """
    limit = config.model.max_seq_length
    encoded: dict[str, list[EncodedExample]] = {}
    kept: dict[str, list[Row]] = {}
    too_long: list[tuple[int, str]] = []
    shortened = 0
    for split, loaded in data.items():
        fitted = fit_histories(tokenizer, loaded.rows, limit, shared=render_preamble(config.toolbox))
        shortened += sum(turns > 0 for *_, turns in fitted)
        file = split_file(config.dataset.dir, split)
        too_long += [(len(e), f"{file}: row {n}") for n, (_, e, _) in enumerate(fitted, start=1) if len(e) > limit]
        weight = config.training.tool_weight if split == "train" else 1.0
        encoded[split] = [
            with_heavy_name(
                tokenizer, example, row.tool, weight, rest=float(split != "train" or not row.is_choice_only)
            )
            for row, example, _ in fitted
            if len(example) <= limit
        ]
        kept[split] = [row for row, example, _ in fitted if len(example) <= limit]
    if shortened:
        say(f"{shortened} rows are shown with fewer earlier turns, to fit model.max_seq_length")
    if too_long and config.training.too_long == "error":
        raise UserError(
            f"above {limit} tokens: " + listing([f"{where}: {tokens} tokens" for tokens, where in too_long], "example"),
            where="model.max_seq_length",
            fix=f"--set model.max_seq_length={max(too_long)[0]}, or --set training.too_long=drop",
        )
    if too_long:
        warn(f"{len(too_long)} examples above {limit} tokens are dropped")
    if not encoded["train"]:
        raise UserError("no training example is left", where=str(split_file(config.dataset.dir, "train")))
    if cut := cut_answers(encoded["train"], config.evaluation.max_new_tokens):
        warn(cut)
    return encoded, kept


def length_percentiles(examples: Sequence[EncodedExample]) -> tuple[str, str, str]:
    """Return the median, the 95th percentile and the maximum of the examples' lengths in tokens, as text."""
    lengths = sorted(map(len, examples))
    if not lengths:
        return ("-", "-", "-")
    return str(round(statistics.median(lengths))), str(lengths[int(0.95 * (len(lengths) - 1))]), str(lengths[-1])
