"""Write samples to a file that can be read at any moment, and read it back.

By extension: .json (one document, replaced whole each time), .jsonl (one sample a line), .csv (one GPU of one sample
a line). The JSON document is bounded: once it holds MAX_SAMPLES, every second sample is dropped and only every other
one is kept from then on, so a week reads as easily as an hour. JSON Lines and CSV keep everything.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from tool_aware.console import UserError
from tool_aware.gpu.readings import GpuReading
from tool_aware.monitor.sampling import Sample, Statistics
from tool_aware.transaction import FileLock
from tool_aware.units import MIB

MAX_SAMPLES = 7200  # two hours at one sample a second, about 1.2 MiB for one GPU
WRITE_BYTES_PER_S = 64 * 1024  # a document is replaced so rarely that this is not exceeded: no worn-out disks

_CSV_FIELDS = (
    "index", "memory_used_mib", "utilization_percent", "temperature_c", "power_w", "sm_clock_mhz", "throttled_by",
    "problem",
)  # fmt: skip


class Recorder(Protocol):
    """Somewhere samples go."""

    def take(self, sample: Sample) -> None:
        """Take one sample."""

    def close(self) -> None:
        """Write what is left, and the summary where the format has a place for it."""


OpensRecorder = Callable[[Path, float, Sequence[GpuReading], Statistics], Recorder]


def open_recorder(path: Path, interval_s: float, gpus: Sequence[GpuReading], statistics: Statistics) -> Recorder:
    """Choose a format by extension. A file that is already there is kept under a name with its date.

    Raises UserError for any other extension, for a folder, for a place that cannot be written, and if another monitor
    is writing the file.
    """
    kinds: Mapping[str, OpensRecorder] = {
        ".json": JsonLog,
        ".jsonl": JsonLinesLog,
        ".csv": CsvLog,
    }
    kind = kinds.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"cannot write {path.suffix or 'a file without extension'}", where=f"--output {path}",
                        fix=f"end it in {', '.join(kinds)}")  # fmt: skip
    if path.is_dir():
        raise UserError("is a folder", where=f"--output {path}", fix=f"name a file, such as {path / 'gpu_logs.json'}")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path, "wait for it or stop it, or name another file with --output")
        try:
            keep_previous(path)
            return Locked(kind(path, interval_s, gpus, statistics), lock)
        except BaseException:
            lock.release()
            raise


class Locked:
    """A recorder whose file no other monitor may write meanwhile."""

    def __init__(self, recorder: Recorder, lock: FileLock) -> None:
        self._recorder, self._lock = recorder, lock

    def take(self, sample: Sample) -> None:
        """Take one sample."""
        self._recorder.take(sample)

    def close(self) -> None:
        """Close the file and let others write it."""
        try:
            self._recorder.close()
        finally:
            self._lock.release()


def keep_previous(path: Path) -> Path | None:
    """Move an earlier log out of the way, to a name that carries the time it was last written and is not taken."""
    if not path.exists():
        return None
    written_at = datetime.fromtimestamp(path.stat().st_mtime)
    name = f"{path.stem}.{written_at:%Y%m%d-%H%M%S}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(1)))
    kept = next(free for each in names if not (free := path.with_name(each + path.suffix)).exists())
    os.replace(path, kept)
    return kept


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a full disk or the like into a message that names the log; write(2) itself does not name its file."""
    try:
        yield
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some space" if is_full else "name a file in a place that can be written with --output"
        raise UserError(f"cannot be written: {error.strerror}", where=str(path), fix=fix) from error


class JsonLog:
    """One JSON document. It is replaced by rename, so that a reader, or a kill -9, never meets half of it."""

    def __init__(self, path: Path, interval_s: float, gpus: Sequence[GpuReading], statistics: Statistics) -> None:
        self._path, self._statistics = path, statistics
        self._part = path.with_name(f".{path.name}.part")
        self._gpus = Identities(gpus)
        self._head = {
            "started_at": datetime.now().astimezone().isoformat(timespec="seconds"),
            "interval_s": interval_s,
        }
        self._samples: list[str] = []  # already JSON: rewriting the document then costs a join
        self._keep_every, self._seen = 1, 0
        self._next_write_s = 0.0
        self._write(None)

    def take(self, sample: Sample) -> None:
        """Take one sample; on disk at once while the document is small, within seconds when it is large."""
        self._gpus.complete(sample.gpus)
        if self._seen % self._keep_every == 0:
            self._samples.append(json.dumps(sample.as_dict()))
        self._seen += 1
        if len(self._samples) > MAX_SAMPLES:
            self._samples = self._samples[::2]
            self._keep_every *= 2
        if time.monotonic() >= self._next_write_s:
            self._write(None)

    def close(self) -> None:
        """Write the document for the last time, with the summary."""
        self._write(self._statistics.as_dict())

    def _write(self, summary: Mapping[str, Any] | None) -> None:
        about = {**self._head, "gpus": self._gpus.records, "kept_every": self._keep_every, "summary": summary}
        head = json.dumps(about, indent=1)
        samples = ",\n".join(self._samples)
        text = f'{head.removesuffix(chr(10) + "}")},\n "samples": [\n{samples}\n]}}\n'
        try:
            with _writing(self._path):
                self._part.write_text(text, encoding="utf-8")
                os.replace(self._part, self._path)
        finally:
            self._part.unlink(missing_ok=True)
        self._next_write_s = time.monotonic() + len(text) / WRITE_BYTES_PER_S


class JsonLinesLog:
    """One sample a line. Lines are appended whole; after a kill -9 at most the last one is torn."""

    def __init__(self, path: Path, interval_s: float, gpus: Sequence[GpuReading], statistics: Statistics) -> None:
        self._path, self._statistics = path, statistics
        self._file = path.open("ab", buffering=0)
        self._interval_s, self._gpus = interval_s, Identities(gpus)
        self._append_head()

    def take(self, sample: Sample) -> None:
        """Append one line; before it the head again, if more is known of a GPU by now."""
        if self._gpus.complete(sample.gpus):
            self._append_head()
        self._append(sample.as_dict())

    def close(self) -> None:
        """Append the summary as the last line."""
        self._append({"summary": self._statistics.as_dict()})
        self._file.close()

    def _append_head(self) -> None:
        self._append({"interval_s": self._interval_s, "gpus": self._gpus.records})

    def _append(self, record: Mapping[str, Any]) -> None:
        with _writing(self._path):
            self._file.write(json.dumps(record).encode() + b"\n")


class CsvLog:
    """One GPU of one sample a line, for spreadsheets. It has no place for names and summary."""

    def __init__(self, path: Path, *_: object) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._file.write(_csv_line(["time", "seconds", *_CSV_FIELDS]))

    def take(self, sample: Sample) -> None:
        """Append one line per GPU, in one write."""
        record = sample.as_dict()
        lines = [
            _csv_line([record["time"], record["seconds"], *(gpu.get(name) for name in _CSV_FIELDS)])
            for gpu in record["gpus"]
        ]
        with _writing(self._path):
            self._file.write(b"".join(lines))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Identities:
    """The GPUs as named in the head of a log. One that is silent at the start is completed when it answers."""

    def __init__(self, gpus: Sequence[GpuReading]) -> None:
        self.records = [_identity(gpu) for gpu in gpus]

    def complete(self, gpus: Sequence[GpuReading]) -> bool:
        """Take from readings what was not known before; return whether there was any."""
        answers = {gpu.index: _identity(gpu) for gpu in gpus if not gpu.problem}
        records = [
            answers.get(record["index"], record) if record["memory_total_mib"] is None else record
            for record in self.records
        ]
        is_new, self.records = records != self.records, records
        return is_new


def _identity(gpu: GpuReading) -> dict[str, Any]:
    total_mib = None if gpu.total_bytes is None else round(gpu.total_bytes / MIB)
    return {"index": gpu.index, "name": gpu.name, "uuid": gpu.uuid, "memory_total_mib": total_mib}


def _csv_line(values: Sequence[object]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(["" if value is None else value for value in values])
    return line.getvalue().encode()
