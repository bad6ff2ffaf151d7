"""Checks of data files of any origin: bad rows, missing files, class balance, token lengths, leakage."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tool_aware.chat_format import encode_example
from tool_aware.config.settings import Config
from tool_aware.console import Fallbacks, UserError, say, table, warn
from tool_aware.data_folder import (
    DataFolder,
    load_all,
    read_data_folder,
    refuse_other_tools,
    refuse_test_rows_in_train,
)
from tool_aware.dataset.deduplication import NEAR_DUPLICATE
from tool_aware.dataset.previews import load_local_tokenizer
from tool_aware.dataset.redaction import Redactor, kinds_in
from tool_aware.dataset.similarity import compared, nearest
from tool_aware.history import history_in_words
from tool_aware.paths import split_file, split_name
from tool_aware.rows import SPLITS, LoadedRows
from tool_aware.text import shortened
from tool_aware.tools import Toolbox

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_NAMED = 5  # of a file, in a warning
CHARACTERS_PER_TOKEN = 3.6  # measured on our prompts with Mistral's v0.2 vocabulary; used where there is no tokenizer


@dataclass(frozen=True)
class Leakage:
    """Two files that share queries: exact ones, and those at or above the near-duplicate threshold."""

    held_out: str
    exact: int
    near: int
    example: str

    def __str__(self) -> str:
        return (
            f"{self.held_out} shares {self.exact} queries with train and {self.near} nearly; for example {self.example}"
        )


def check(path: Path, config: Config, hf_token: str | None) -> None:
    """Check a file or folder as training and evaluation read it: print balance and lengths, warn, say what it is.

    Raises UserError for what training or evaluation refuses: malformed rows, missing files, files of two data sets,
    data that was made for other tools, test rows that are in train.json.
    """
    files, tools, limit = files_to_check(path), config.toolbox, config.model.max_seq_length
    data = read_data_folder(path, tools) if path.is_dir() else DataFolder(path, load_all(files, tools), manifest=None)
    loaded = data.rows
    tokenizer = load_local_tokenizer(config.model, hf_token, Fallbacks())
    lengths = {name: token_lengths(part, tokenizer) for name, part in loaded.items()}
    print(balance(loaded, tools))
    print(describe_lengths(next(iter(lengths.values())), limit, is_estimate=tokenizer is None))
    for message in [
        *imbalance(loaded, tools),
        *too_long(lengths, limit),
        *map(str, leakage(loaded)),
        *secrets_in_rows(loaded),
    ]:
        warn(message)
    for name, part in loaded.items():
        if part.stored_as:
            say(f"{files[name]} read as {part.stored_as}")
    if told := history_in_words(row for part in loaded.values() for row in part.rows):
        say(told)
    say(f"{sum(len(part.rows) for part in loaded.values())} rows, all well-formed")
    if lacks_test_file(path, files):
        say("no test.json: it can be trained on, but evaluate.py needs one")
    refuse_missing_files(path, files)
    refuse_other_tools(data, config)
    if "test" in loaded and "train" in loaded:
        refuse_test_rows_in_train(loaded["test"].rows, loaded["train"].rows, files["test"])


def files_to_check(path: Path) -> dict[str, Path]:
    """Return the files that PATH stands for: one JSON file, or the splits in a folder.

    Raises UserError if there is none.
    """
    if path.is_dir():
        files = {name: split_file(path, name) for name in SPLITS if split_file(path, name).is_file()}
        if not files:
            others = sorted(file.name for file in path.iterdir() if file.stem in SPLITS)
            fix = f"rename {', '.join(others)}: JSON Lines are read too" if others else "see docs/FORMATS.md"
            raise UserError("holds none of train.json, val.json, test.json", where=str(path), fix=fix)
        return files
    if not path.is_file():
        raise UserError("not found", where=str(path), fix="name a JSON file or the folder of train.json")
    return {path.stem: path}


def lacks_test_file(path: Path, files: Mapping[str, Path]) -> bool:
    """Return whether PATH is a folder without test.json, which only evaluation needs."""
    return path.is_dir() and "test" not in files


def refuse_missing_files(path: Path, files: Mapping[str, Path]) -> None:
    """Raise UserError if PATH is a folder that lacks files which training needs."""
    absent = [split_name(name) for name in SPLITS if name not in files and name != "test"]
    if path.is_dir() and absent:
        raise UserError(
            f"no {' and no '.join(absent)}: training needs train.json and val.json",
            where=str(path),
            fix="write rows there that the other files do not have; a tenth of them all is usual (docs/FORMATS.md)",
        )


def balance(loaded: Mapping[str, LoadedRows], tools: Toolbox) -> str:
    """Return a table of the rows of each tool in each file."""
    counts = {name: Counter(row.tool for row in part.rows) for name, part in loaded.items()}
    lines = [(tool, *(counts[name][tool] for name in loaded)) for tool in tools.names]
    return table(("rows", *loaded), [*lines, ("all", *(len(part.rows) for part in loaded.values()))])


def imbalance(loaded: Mapping[str, LoadedRows], tools: Toolbox) -> list[str]:
    """Return a warning for each tool of the first file (train) with under a fifth of the rows of the most frequent."""
    name, part = next(iter(loaded.items()))
    counts = Counter(row.tool for row in part.rows)
    most = max(counts.values())
    return [
        f"{name}: {tool} has {counts[tool]} rows, the most frequent tool {most}; a tool that rare is seldom chosen"
        for tool in tools.names
        if counts[tool] * 5 < most
    ]


def token_lengths(loaded: LoadedRows, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """Return the tokens of each example, counted as training does, or estimated from characters without tokenizer."""
    if tokenizer is None:
        return [round((len(row.instruction) + len(row.response)) / CHARACTERS_PER_TOKEN) + 8 for row in loaded.rows]
    return [len(encode_example(tokenizer, row.instruction, row.response)) for row in loaded.rows]


def too_long(lengths: Mapping[str, Sequence[int]], limit: int) -> list[str]:
    """Return a warning for each file with examples above the limit."""
    counts = {name: sum(length > limit for length in part) for name, part in lengths.items()}
    return [
        f"{name}: {count} of {len(lengths[name])} examples above model.max_seq_length {limit}, the longest has "
        f"{max(lengths[name])} tokens; training refuses them unless training.too_long is drop"
        for name, count in counts.items()
        if count
    ]


def secrets_in_rows(loaded: Mapping[str, LoadedRows]) -> list[str]:
    """Return a warning for each file with what looks like secrets or personal data: how many, of which kind, where."""
    found = []
    for name, part in loaded.items():
        kinds: Counter[str] = Counter()
        numbers = []
        for number, row in enumerate(part.rows, start=1):
            call = row.answer.call
            if in_row := kinds_in([row.conversation, dict(call.parameters) if call else {}]):
                kinds.update(in_row)
                numbers.append(number)
        if numbers:
            shown = ", ".join(map(str, numbers[:_ROWS_NAMED])) + (", ..." if len(numbers) > _ROWS_NAMED else "")
            what = ", ".join(f"{kind.replace('_', ' ')} {count}" for kind, count in kinds.most_common())
            found.append(
                f"{name}: {len(numbers)} rows hold what looks like secrets or personal data ({what}): rows {shown}; "
                "--import and --logs replace these by placeholders, a data file of your own is used as it is"
            )
    return found


def describe_lengths(lengths: Sequence[int], limit: int, *, is_estimate: bool) -> str:
    """Return a line with the median, 95th percentile and maximum, and how many examples are too long."""
    ordered = sorted(lengths)
    p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    too_long = sum(length > limit for length in lengths)
    kind = "tokens (estimated)" if is_estimate else "tokens"
    return (
        f"{kind}: median {statistics.median(ordered):.0f}, p95 {p95}, max {ordered[-1]}; "
        f"{too_long} above model.max_seq_length {limit}"
    )


def leakage(loaded: Mapping[str, LoadedRows]) -> list[Leakage]:
    """Return the queries of val and test that train has as well, or nearly."""
    if "train" not in loaded:
        return []
    train = loaded["train"].rows
    known = {row.identity for row in train}
    found = []
    for name in SPLITS[1:]:
        if name not in loaded:
            continue
        rows = loaded[name].rows
        exact = sum(row.identity in known for row in rows)
        values, indices, _ = nearest(list(map(compared, rows)), list(map(compared, train)))
        near = [at for at, value in enumerate(values) if value >= NEAR_DUPLICATE]
        if near:
            redactor = Redactor()
            first, second = redactor.redact(rows[near[0]].query), redactor.redact(train[indices[near[0]]].query)
            example = f"{shortened(first)!r} and {shortened(second)!r}"
            found.append(Leakage(name, exact, len(near) - exact, example))
    return found
