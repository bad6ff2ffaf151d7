"""The monitor's output as text: lines for pipes, blocks for terminals, tables for the end. Nothing here prints.

A value the driver does not give is shown as n/a, never as 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tool_aware.console import duration, table
from tool_aware.gpu.readings import GpuReading, Process
from tool_aware.monitor.sampling import GpuStatistics, Sample, Statistics, TrainingProgress
from tool_aware.units import GIB

NOT_KNOWN = "n/a"
PROCESSES_SHOWN = 3
COMMAND_SHOWN = 40  # characters
HOT_SHARE = 0.95  # of the memory: shown in red


@dataclass(frozen=True)
class Glyphs:
    """Characters of bars and sparklines."""

    full: str
    empty: str
    mark: str
    steps: str


UNICODE = Glyphs("█", "░", "┃", "▁▂▃▄▅▆▇█")
ASCII = Glyphs("#", ".", "|", "_.-=+*#@")


def glyphs_for(encoding: str | None) -> Glyphs:
    """Return block characters where the stream can carry them, else ASCII."""
    try:
        "".join(vars(UNICODE).values()).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


# ---- values ----------------------------------------------------------------------------------------------


def gib(size_bytes: float | None, digits: int = 1) -> str:
    """Return a size in GiB without its unit."""
    return NOT_KNOWN if size_bytes is None else f"{size_bytes / GIB:.{digits}f}"


def with_unit(value: float | None, unit: str, digits: int = 0) -> str:
    """Return a value with its unit, or n/a."""
    return NOT_KNOWN if value is None else f"{value:.{digits}f} {unit}"


def power(gpu: GpuReading) -> str:
    """Return the power drawn and the power allowed."""
    if gpu.power_w is None:
        return f"{NOT_KNOWN} W" if gpu.power_limit_w else NOT_KNOWN
    return f"{gpu.power_w:.0f} of {gpu.power_limit_w:.0f} W" if gpu.power_limit_w else f"{gpu.power_w:.0f} W"


def process_text(process: Process) -> str:
    """Return a process in words: what runs, its id, what it holds."""
    return f"{(process.command or 'process')[:COMMAND_SHOWN]} ({process.pid}) {_size(process.used_bytes)}"


def _size(size_bytes: float | None) -> str:
    return NOT_KNOWN if size_bytes is None else f"{gib(size_bytes)} GiB"


def _memory(gpu: GpuReading) -> str:
    share = f" ({gpu.used_bytes / gpu.total_bytes:.0%})" if gpu.used_bytes is not None and gpu.total_bytes else ""
    return f"{gib(gpu.used_bytes)} of {gib(gpu.total_bytes)} GiB{share}"


# ---- lines for pipes -------------------------------------------------------------------------------------


def plain_lines(sample: Sample) -> Iterator[str]:
    """Yield one line per GPU, then one for the training run: for pipes and logs."""
    clock = sample.at.strftime("%H:%M:%S")
    for gpu in sample.gpus:
        if gpu.problem:
            yield f"{clock}  GPU {gpu.index}  {gpu.problem}"
            continue
        parts = [
            f"memory {_memory(gpu)}",
            f"use {with_unit(gpu.utilization_percent, '%')}",
            with_unit(gpu.temperature_c, "C"),
            power(gpu),
            with_unit(gpu.sm_clock_mhz, "MHz"),
        ]
        if gpu.throttled_by:
            parts.append(f"throttled: {gpu.throttled_by}")
        yield "  ".join([clock, f"GPU {gpu.index}", *parts])
    if sample.training:
        yield f"{clock}  {training_text(sample.training)}"


def training_text(training: TrainingProgress) -> str:
    """Return the run beside the monitor in one line."""
    of = f"/{training.total_steps}" if training.total_steps else ""
    parts = [f"training step {training.step}{of}"]
    if training.loss is not None:
        parts.append(f"loss {training.loss:.4f}")
    if training.eta_s:
        parts.append(f"{duration(training.eta_s)} left")
    return "  ".join(parts)


# ---- blocks for terminals --------------------------------------------------------------------------------


def memory_bar(gpu: GpuReading, width: int, mark_bytes: float | None, glyphs: Glyphs) -> str:
    """Draw used of total memory in `width` characters, with the estimate's mark."""
    if gpu.used_bytes is None or not gpu.total_bytes:
        return glyphs.empty * width
    filled = round(width * gpu.used_bytes / gpu.total_bytes)
    bar = [glyphs.full] * filled + [glyphs.empty] * (width - filled)
    if mark_bytes is not None and mark_bytes <= gpu.total_bytes:
        bar[min(width - 1, round(width * mark_bytes / gpu.total_bytes))] = glyphs.mark
    return "".join(bar)


def sparkline(values: Sequence[float | None], width: int, highest: float, glyphs: Glyphs) -> str:
    """Draw the last `width` values from 0 to `highest`; a gap where nothing is known."""
    last = list(values)[-width:]
    levels = len(glyphs.steps) - 1
    return "".join(
        " " if value is None else glyphs.steps[min(levels, round(levels * value / highest))] for value in last
    )


def gpu_block(
    gpu: GpuReading,
    width: int,
    glyphs: Glyphs,
    *,
    mark_bytes: float | None = None,
    history: Sequence[float | None] = (),
) -> Iterator[tuple[str, str]]:
    """Yield (text, style) lines of one GPU, none wider than `width`."""
    title = f"GPU {gpu.index}  {gpu.name}"
    if gpu.problem:
        yield title[:width], "bold"
        yield f"  {gpu.problem}"[:width], "red"
        return
    figures = "  ".join([with_unit(gpu.temperature_c, "C"), power(gpu), with_unit(gpu.sm_clock_mhz, "MHz")])
    yield f"{title[: max(0, width - len(figures) - 2)]:<{max(0, width - len(figures))}}{figures}"[:width], "bold"
    memory = f"  {_memory(gpu)}"
    is_full = gpu.used_bytes is not None and gpu.total_bytes and gpu.used_bytes >= HOT_SHARE * gpu.total_bytes
    bar = memory_bar(gpu, max(1, width - len("  memory ") - len(memory)), mark_bytes, glyphs)
    yield f"  memory {bar}{memory}"[:width], "red" if is_full else "green"
    use = f"  {with_unit(gpu.utilization_percent, '%')}"
    use += f"  throttled: {gpu.throttled_by}" if gpu.throttled_by else ""
    room = max(1, width - len("  use    ") - len(use))
    yield f"  use    {sparkline(history, room, 100, glyphs):<{room}}{use}"[:width], "cyan"
    for process in gpu.processes[:PROCESSES_SHOWN]:
        yield f"  {process_text(process)}"[:width], ""
    if len(gpu.processes) > PROCESSES_SHOWN:
        yield f"  and {len(gpu.processes) - PROCESSES_SHOWN} more"[:width], "dim"
    for instance in gpu.instances:
        used = f"{gib(instance.used_bytes)} of {gib(instance.total_bytes)} GiB"
        yield f"  slice {instance.uuid or '?'}  {used}"[:width], ""


def screen(
    sample: Sample,
    width: int,
    glyphs: Glyphs,
    *,
    mark_bytes: float | None = None,
    histories: Mapping[int, Sequence[float | None]] | None = None,
) -> Iterator[tuple[str, str]]:
    """Yield (text, style) lines of the whole live view."""
    for gpu in sample.gpus:
        history = (histories or {}).get(gpu.index, ())
        yield from gpu_block(gpu, width, glyphs, mark_bytes=mark_bytes, history=history)
    if sample.training:
        yield training_text(sample.training)[:width], "bold"
    watched = f"watched for {duration(sample.seconds)}; Ctrl-C ends with a summary"
    mark = f"; {glyphs.mark} is the estimate, {gib(mark_bytes)} GiB" if mark_bytes is not None else ""
    yield f"{watched}{mark}"[:width], "dim"


# ---- the end ---------------------------------------------------------------------------------------------


def summary(statistics: Statistics) -> str:
    """Return the table that ends a monitor: peak, mean and 95th percentile per GPU, energy, seconds at the peak."""
    rows = [_summary_row(index, gpu) for index, gpu in sorted(statistics.gpus.items())]
    headers = ["GPU", "", "peak GiB", "mean", "p95", "s at peak", "use %", "max C", "mean W", "energy Wh"]
    watched = f"{statistics.samples} samples in {duration(statistics.seconds)}"
    lines = [watched, table(headers, rows, "<<" + ">" * (len(headers) - 2))]
    lines += [
        f"GPU {index} gave no answer for {duration(gpu.seconds_lost)}"
        for index, gpu in sorted(statistics.gpus.items())
        if gpu.seconds_lost
    ]
    return "\n".join(lines)


def _summary_row(index: int, gpu: GpuStatistics) -> list[str]:
    def shown(value: float | None, digits: int = 0) -> str:
        return NOT_KNOWN if value is None else f"{value:.{digits}f}"

    knows_memory = gpu.peak("used_bytes") is not None
    return [
        str(index),
        gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ")[:20],
        gib(gpu.peak_bytes if knows_memory else None, 2),
        gib(gpu.mean("used_bytes"), 2),
        gib(gpu.memory_percentile(0.95), 2),
        shown(gpu.seconds_at_peak if knows_memory else None),
        shown(gpu.mean("utilization_percent")),
        shown(gpu.peak("temperature_c")),
        shown(gpu.mean("power_w")),
        shown(gpu.energy_wh if gpu.peak("power_w") is not None else None, 2),
    ]
