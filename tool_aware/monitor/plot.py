"""Read a log that the monitor wrote and draw it."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_aware.console import UserError
from tool_aware.text_files import json_lines, read_json_text, read_text
from tool_aware.units import GIB, MIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 4000  # per line of the figure: more than its pixels; of each stretch the largest value is kept
_PANELS = (
    ("memory_used_mib", "memory, GiB\n(dotted: all)", MIB / GIB),
    ("utilization_percent", "use, %", 1.0),
    ("power_w", "power, W", 1.0),
    ("temperature_c", "temperature, °C", 1.0),
)
_LARGEST = 1e15  # of a value, that a picture can be scaled to
PICTURES = (".png", ".svg", ".pdf", ".jpg")


@dataclass(frozen=True)
class Log:
    """Samples of a log: per GPU a list of (seconds, record). `names` and `totals_mib` where the format has them."""

    series: Mapping[int, list[tuple[float, Mapping[str, Any]]]]
    names: Mapping[int, str]
    totals_mib: Mapping[int, float]


def read_log(path: Path) -> Log:
    """Read .json, .jsonl or .csv; a torn last line, as a kill leaves it, is skipped.

    Raises UserError if the file is missing, is no such log, or has no samples in which anything is known.
    """
    readers = {".json": _read_json, ".jsonl": _read_json_lines, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError("is not a log of the monitor", where=str(path), fix=f"name a {', '.join(readers)} file")
    if not path.is_file():
        raise UserError("not found", where=str(path), fix=f"python monitor_gpu.py monitor --output {path}")
    series: dict[int, list[tuple[float, Mapping[str, Any]]]] = defaultdict(list)
    try:
        heads, samples = reader(path)
        for seconds, gpu in samples:
            series[int(gpu["index"])].append((_number(seconds), _checked(gpu)))
        names = {head["index"]: _printable(head.get("name") or "") for head in heads}
        known_totals = [(head["index"], head["memory_total_mib"]) for head in heads if head.get("memory_total_mib")]
        totals_mib = {index: _number(total) for index, total in known_totals}
    except KeyError as error:
        raise UserError(f"is not a log of the monitor: it lacks {error}", where=str(path)) from error
    except (ValueError, TypeError, AttributeError, OverflowError, csv.Error) as error:
        raise UserError(f"is not a log of the monitor: {error}", where=str(path)) from error
    if not series:
        raise UserError("holds no samples", where=str(path))
    log = Log(dict(series), names, totals_mib)
    if not any(values(log, index, field) for index in series for field, *_ in _PANELS):
        raise UserError("holds no values: no GPU reported a value", where=str(path))
    return log


_Read = tuple[list[Mapping[str, Any]], Iterator[tuple[float, Mapping[str, Any]]]]


def _read_json(path: Path) -> _Read:
    document = read_json_text(path)
    return document["gpus"], _flat(document["samples"])


def _read_json_lines(path: Path) -> _Read:
    records = [line.value for line in json_lines(path) if line.problem is None]
    heads = [record["gpus"] for record in records if "interval_s" in record]
    return heads[-1] if heads else [], _flat(record for record in records if "seconds" in record and "gpus" in record)


def _flat(samples: Any) -> Iterator[tuple[float, Mapping[str, Any]]]:
    for sample in samples:
        for gpu in sample["gpus"]:
            yield sample["seconds"], gpu


def _read_csv(path: Path) -> _Read:
    rows = list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    whole = [row for row in rows if row.get("problem") is not None]
    return [], ((_number(row["seconds"]), {name: text or None for name, text in row.items()}) for row in whole)


def _checked(gpu: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a record whose drawn values are numbers or None. Raises ValueError or TypeError for any other."""
    known = {field: gpu.get(field) for field, *_ in _PANELS}
    return {**gpu, **{field: None if value is None else _number(value) for field, value in known.items()}}


def _number(value: Any) -> float:
    number = float(value)
    if not abs(number) < _LARGEST:  # NaN is not
        raise ValueError(f"{value} is no number")
    return number


def _printable(text: object) -> str:
    """Return a text that a font can draw: without control characters and halves of surrogate pairs."""
    return "".join(character if character.isprintable() else "?" for character in str(text))


# ---- drawing ---------------------------------------------------------------------------------------------


def draw(log: Log, path: Path, *, title: str) -> None:
    """Draw memory, use, power and temperature over time, one line per GPU, into a picture.

    Raises UserError for an extension that is none of PICTURES.
    """
    if path.suffix.lower() not in PICTURES:
        raise UserError(f"cannot draw {path.suffix or 'a file without extension'}", where=f"--output {path}",
                        fix=f"end it in {', '.join(PICTURES)}")  # fmt: skip
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    known = [panel for panel in _PANELS if any(values(log, index, panel[0]) for index in log.series)]
    figure, axes = pyplot.subplots(
        len(known), 1, figsize=(9, 2.1 * len(known) + 0.8), sharex=True, squeeze=False, layout="constrained"
    )
    longest_s = max(points[-1][0] for points in log.series.values())
    unit, seconds_per_unit = ("hours", 3600) if longest_s > 7200 else ("minutes", 60) if longest_s > 180 else ("s", 1)
    for axis, (field, label, scale) in zip(axes[:, 0], known, strict=True):
        _draw_panel(axis, log, field, scale, seconds_per_unit)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(loc="best", fontsize="small")
    axes[-1, 0].set_xlabel(f"time, {unit}")
    figure.suptitle(_printable(title), fontsize="medium", parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _draw_panel(axis: Axes, log: Log, field: str, scale: float, seconds_per_unit: float) -> None:
    for index in sorted(log.series):
        points = thinned(values(log, index, field))
        if not points:
            continue
        name = f"GPU {index} {log.names.get(index, '')}".strip().replace("$", r"\$")  # else it begins a formula
        line = axis.plot([s / seconds_per_unit for s, _ in points], [v * scale for _, v in points], lw=1.2, label=name)
        if field == "memory_used_mib" and index in log.totals_mib:
            axis.axhline(log.totals_mib[index] * scale, color=line[0].get_color(), ls=":", lw=1)


def values(log: Log, index: int, field: str) -> list[tuple[float, float]]:
    """Return (seconds, value) of one field of one GPU, where it is known."""
    return [(seconds, record[field]) for seconds, record in log.series[index] if record.get(field) is not None]


def thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most MAX_POINTS points: of each stretch the largest value, so that no peak is lost."""
    stretch = -(-len(points) // MAX_POINTS) or 1
    return [max(points[i : i + stretch], key=lambda point: point[1]) for i in range(0, len(points), stretch)]
