"""Reads the items of an import one by one: JSON Lines, a JSON array, CSV, Parquet, Arrow, saved datasets, the Hub."""

from __future__ import annotations

import csv
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tool_aware.console import UserError, say
from tool_aware.dataset.imports.left_out import decoded
from tool_aware.text_files import is_json_array, json_items, lines_of, read_json_text, text_format

_HUB_ID = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?::(?P<subset>[\w][\w.-]*))?")
_FILE_ENDINGS = (
    ".json",
    ".jsonl",
    ".ndjson",
    ".parquet",
    ".arrow",
    ".csv",
    ".tsv",
    ".gz",
    ".bz2",
    ".xz",
    ".zst",
    ".txt",
)
# First bytes, https://parquet.apache.org/docs/file-format/ and https://arrow.apache.org/docs/format/Columnar.html
_TABLES = {b"PAR1": "parquet", b"ARRO": "arrow", b"\xff\xff\xff\xff": "arrow"}
_SAVED = ("dataset_dict.json", "state.json")  # what datasets.save_to_disk writes
_KEYS_OF_ITEMS = (
    "messages",
    "conversations",
    "conversation",
    "question",
    "ground_truth",
    "query",
    "input",
    "prompt",
    "contents",
    "chat",
)
_HUB_TIMEOUT_S = 15
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class Item:
    """One item of a file: where it is, its value, or the problem that keeps it from being read."""

    place: str
    value: Any = None
    problem: str | None = None


def is_hub_id(source: Path) -> bool:
    """Check whether a source that is neither file nor folder names a dataset of the Hugging Face Hub."""
    return not source.exists() and _HUB_ID.fullmatch(str(source)) is not None and source.suffix not in _FILE_ENDINGS


def read_items(
    source: Path, encoding: str | None = None, *, split: str | None = None, token: str | None = None
) -> Iterator[Item]:
    """Yield the items of a file, a folder, or a dataset of the Hub, whichever `source` names.

    Raises UserError for a source that is none of these or cannot be read at all.
    """
    if is_hub_id(source):
        yield from _of_hub(str(source), split, token)
    elif source.is_dir():
        yield from _of_folder(source, split)
    elif (kind := _table_kind(source)) is not None:
        yield from _of_tables(kind, [str(source)], str(source))
    elif {".csv", ".tsv"} & set(source.suffixes):
        yield from _of_csv(source, encoding)
    else:
        _say_format(source, encoding)
        yield from _of_json(source, encoding)


def _of_json(source: Path, encoding: str | None) -> Iterator[Item]:
    """Yield the items of a JSON array, of the one list in a JSON object, or the lines of JSON Lines."""
    option = "--encoding"
    filled = (line.strip() for line in lines_of(source, encoding, option=option) if line.strip())
    first, is_only = next(filled, ""), next(filled, None) is None
    if first == "{":  # an object over several lines, as json.dump(..., indent=2) writes it
        value = read_json_text(source, encoding, option=option)
        values = _items_within(value) or [value]
        yield from (Item(f"row {number}", item) for number, item in enumerate(values, start=1))
        return
    if is_only and first.startswith("{") and (values := _items_within(decoded(first))):
        yield from (Item(f"row {number}", item) for number, item in enumerate(values, start=1))
        return
    kind = "row" if is_json_array(source, encoding, option=option) else "line"
    for line in json_items(source, encoding, option=option):
        repeated = f"a key that is given twice: {', '.join(line.repeated)}" if line.repeated else None
        yield Item(f"{kind} {line.number}", line.value, line.problem or repeated)


def _items_within(value: Any) -> list[Any]:
    """Return the items of an object around them: its one list of objects; [] for an object that is an item itself."""
    if not isinstance(value, dict) or any(key in value for key in _KEYS_OF_ITEMS):
        return []
    lists = [item for item in value.values() if isinstance(item, list) and item and isinstance(item[0], dict)]
    return lists[0] if len(lists) == 1 else []


def _say_format(source: Path, encoding: str | None) -> None:
    if unusual := str(text_format(source, encoding)):
        say(f"{source} is read as {unusual}")


def _table_kind(source: Path) -> str | None:
    if not source.is_file():
        return None
    with source.open("rb") as file:
        start = file.read(4)
    return _TABLES.get(start)


# ---- CSV ------------------------------------------------------------------------------------------------


def _of_csv(source: Path, encoding: str | None) -> Iterator[Item]:
    _say_format(source, encoding)
    lines = lines_of(source, encoding, option="--encoding")
    header = next((line for line in lines if line.strip()), "")
    separator = max(_SEPARATORS, key=header.count)
    if separator != ",":
        say(f"{source}: columns are separated by {_SEPARATORS[separator]}")
    csv.field_size_limit(sys.maxsize)
    try:
        names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
        if len(set(names)) < len(names):
            raise UserError("a column occurs twice in the first line", where=str(source), fix="rename one of them")
        rows = csv.reader(lines, delimiter=separator)
        for number, cells in enumerate(rows, start=2):
            if not cells:
                continue
            if len(cells) != len(names):
                what = f"has {len(cells)} cells, and the first line {len(names)}"
                yield Item(f"row {number}", problem=what)
                continue
            values = {name: decoded(cell) for name, cell in zip(names, cells, strict=True) if cell != ""}
            yield Item(f"row {number}", values)
    except csv.Error as error:
        raise UserError(f"is not CSV: {error}", where=f"{source}:{rows.line_num + 1}") from error


# ---- datasets of Hugging Face ---------------------------------------------------------------------------


@contextmanager
def _library_errors(where: str, fix: str | None = None) -> Iterator[None]:
    """Report whatever `datasets` and its file formats raise as one message: their errors have no common class."""
    try:
        yield
    except (UserError, ImportError, MemoryError):
        raise
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        raise UserError(f"cannot be read: {type(error).__name__}: {first[:300]}", where=where, fix=fix) from error


def _datasets() -> Any:
    """Return the library, silent: its progress bars and notes are no result of this script."""
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    return datasets


def _of_tables(kind: str, files: list[str], where: str) -> Iterator[Item]:
    """Yield the rows of Parquet or Arrow files, streamed: the library's cache and locks go to a temporary folder."""
    with tempfile.TemporaryDirectory() as cache:
        with _library_errors(files[0]):
            rows = _datasets().load_dataset(kind, data_files=files, split="train", streaming=True, cache_dir=cache)
        yield from _rows(rows, where)


def _rows(rows: Iterable[Mapping[str, Any]], where: str) -> Iterator[Item]:
    iterator = iter(rows)
    number = 0
    while True:
        number += 1
        with _library_errors(f"{where}, row {number}"):
            row = next(iterator, None)
        if row is None:
            return
        yield Item(f"row {number}", without_nulls(row))


def without_nulls(value: Any) -> Any:
    """Return a value of Arrow without null fields: Arrow gives every object the keys of all the others."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def _of_folder(source: Path, split: str | None) -> Iterator[Item]:
    if any((source / name).is_file() for name in _SAVED):
        with _library_errors(str(source)):
            saved = _datasets().load_from_disk(str(source))
        rows = _chosen(saved, split, str(source)) if isinstance(saved, Mapping) else saved
        yield from _rows(rows, str(source))
        return
    for kind in ("parquet", "arrow"):
        if files := sorted(map(str, source.rglob(f"*.{kind}"))):
            yield from _of_tables(kind, files, str(source))
            return
    names = sorted(path.name for path in source.iterdir() if path.suffix in _FILE_ENDINGS)
    what = "is a folder without Parquet or Arrow files, and not from datasets.save_to_disk"
    fix = f"name one of its files: {', '.join(names[:5])}" if names else "name a file"
    raise UserError(what, where=str(source), fix=fix)


def _chosen(splits: Mapping[str, Any], split: str | None, where: str) -> Any:
    """Return one split. Raises UserError if there are several and none is named: half a wrong guess is a leak."""
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is not None and split in splits:
        return splits[split]
    names = ", ".join(splits)
    what = f"has no split {split}; it has {names}" if split else f"has the splits {names}"
    raise UserError(what, where=where, fix=f"choose one: --split {next(iter(splits), 'train')}")


def _of_hub(name: str, split: str | None, token: str | None) -> Iterator[Item]:
    match = _HUB_ID.fullmatch(name)
    assert match is not None  # `is_hub_id` checked it
    _refuse_unreachable(match["id"], token)
    library = _datasets()
    with _library_errors(name):
        subsets = library.get_dataset_config_names(match["id"], token=token)
    subset = match["subset"] or (subsets[0] if len(subsets) == 1 else None)
    if subset not in subsets:
        what = f"has the subsets {', '.join(subsets[:20])}"
        raise UserError(what, where=name, fix=f"choose one: --import {match['id']}:{subsets[0] if subsets else 'NAME'}")
    with _library_errors(name):
        splits = library.load_dataset(match["id"], subset, streaming=True, token=token)
    say(f"{name} is read from the Hugging Face Hub")
    yield from _rows(_chosen(splits, split, name), name)


def _refuse_unreachable(name: str, token: str | None) -> None:
    """Raise UserError for a dataset that the Hub does not give, or without a network: asked once, at once."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi(token=token).dataset_info(name, timeout=_HUB_TIMEOUT_S)
    except GatedRepoError as error:
        fix = f"accept its terms at https://huggingface.co/datasets/{name}, and set HF_TOKEN"
        raise UserError("is only given to those who accepted its terms", where=name, fix=fix) from error
    except RepositoryNotFoundError as error:
        what = "is neither a file here nor a dataset of the Hugging Face Hub that this token may read"
        raise UserError(what, where=name) from error
    except (OSError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise _unreachable(name, error) from error
    except Exception as error:  # httpx's errors, which are no OSError
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpcore", "requests", "urllib3"):
            raise
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: Exception) -> UserError:
    what = f"is no file here, and the Hugging Face Hub cannot be asked for it ({type(error).__name__})"
    fix = "check the path; or download the dataset where there is a network, and name its Parquet file or folder"
    return UserError(what, where=name, fix=fix)
