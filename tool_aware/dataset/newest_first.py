"""Sorts records of the log by age, with a bounded number of them in memory."""

from __future__ import annotations

import heapq
import pickle
import re
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import chain, islice
from typing import IO, Any

from tool_aware.dataset.log_records import LogRecord

Keyed = tuple[str | None, LogRecord]  # (id, record)

RECORDS_IN_MEMORY = 100_000
_RECORDS_READ = 1_000  # of each sorted run at once
_WHOLE_NUMBER = re.compile(r"-?\d{1,40}")


def newest_first(keyed: Iterable[Keyed], *, in_memory: int = RECORDS_IN_MEMORY) -> Iterator[LogRecord]:
    """Yield records newest first, as a table is read: by id where ids are numbers, else by time and then by id.

    The first ids decide. Records without what is sorted by come last, in the order in which they came; so do equal
    ones. More than `in_memory` records are sorted in runs that wait in temporary files.
    """
    source = iter(keyed)
    first = list(islice(source, in_memory))
    ids = [identity for identity, _ in first if identity is not None]
    by_number = bool(ids) and all(_WHOLE_NUMBER.fullmatch(identity) for identity in ids)
    key = _by_number if by_number else _by_time
    first.sort(key=key, reverse=True)
    rest = next(source, None)
    if rest is None:
        yield from (record for _, record in first)
        return
    source = chain([rest], source)
    runs = [_stored(first)]
    try:
        while run := list(islice(source, in_memory)):
            run.sort(key=key, reverse=True)
            runs.append(_stored(run))
        yield from (record for _, record in heapq.merge(*map(_loaded, runs), key=key, reverse=True))
    finally:
        for file in runs:
            file.close()


def once_all_are_read(records: Iterable[LogRecord], *, in_memory: int = RECORDS_IN_MEMORY) -> Iterator[LogRecord]:
    """Yield records in their order once there are no more; beyond `in_memory` they wait in temporary files."""
    source = iter(records)
    run = list(islice(source, in_memory))
    files = []
    try:
        while len(run) == in_memory:
            files.append(_stored([(None, record) for record in run]))
            run = list(islice(source, in_memory))
        yield from (record for file in files for _, record in _loaded(file))
        yield from run
    finally:
        for file in files:
            file.close()


def _by_number(item: Keyed) -> tuple[bool, int]:
    identity = item[0]
    is_number = identity is not None and _WHOLE_NUMBER.fullmatch(identity) is not None
    return is_number, int(identity) if identity is not None and is_number else 0


def _by_time(item: Keyed) -> tuple[bool, datetime, bool, str]:
    identity, record = item
    moment = record.timestamp
    return moment is not None, moment or datetime.min, identity is not None, identity or ""


def _stored(run: list[Keyed]) -> IO[bytes]:
    file: Any = tempfile.TemporaryFile(prefix="tool-aware-log-")  # noqa: SIM115 - closed by the caller
    for start in range(0, len(run), _RECORDS_READ):
        pickle.dump(run[start : start + _RECORDS_READ], file, pickle.HIGHEST_PROTOCOL)
    file.seek(0)
    return file


def _loaded(file: IO[bytes]) -> Iterator[Keyed]:
    """Yield what `_stored` wrote: this program's own file, deleted when it is closed."""
    while True:
        try:
            yield from pickle.load(file)
        except EOFError:
            return
