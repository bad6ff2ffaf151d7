"""Conditions such as `memory>95%` that a monitor watches for."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tool_aware.console import UserError, warn
from tool_aware.gpu.readings import GpuReading
from tool_aware.units import GIB

_CONDITION = re.compile(r"\s*(?P<what>[a-z]+)\s*(?P<sign>[<>])\s*(?P<limit>\d+(?:\.\d+)?)\s*(?P<unit>%|GiB|C|W)?\s*")
_UNITS = {"memory": ("%", "GiB"), "use": ("%",), "temperature": ("C",), "power": ("W",)}
_SIGNS = {">": operator.gt, "<": operator.lt}


@dataclass(frozen=True)
class Condition:
    """One limit. `what` is memory, use, temperature or power; `unit` the one the limit is given in."""

    what: str
    sign: str
    limit: float
    unit: str

    def __str__(self) -> str:
        return f"{self.what}{self.sign}{self.limit:g}{'' if self.unit == '%' else ' '}{self.unit}"

    def value(self, gpu: GpuReading) -> float | None:
        """Return the watched value in the condition's unit; None where the driver does not say."""
        if self.what == "memory" and gpu.used_bytes is not None:
            if self.unit == "GiB":
                return gpu.used_bytes / GIB
            return 100 * gpu.used_bytes / gpu.total_bytes if gpu.total_bytes else None
        return {"use": gpu.utilization_percent, "temperature": gpu.temperature_c, "power": gpu.power_w}.get(self.what)

    def is_met(self, gpu: GpuReading) -> bool:
        """Return whether a GPU is past the limit; False where its value is not known."""
        value = self.value(gpu)
        return value is not None and _SIGNS[self.sign](value, self.limit)


def parse_condition(text: str) -> Condition:
    """Read `memory>95%`, `memory>11 GiB`, `temperature>85`, `use<10%`, `power>250W`. Raises UserError for all else."""
    match = _CONDITION.fullmatch(text)
    units = _UNITS.get(match["what"]) if match else None
    if not match or units is None or (match["unit"] or units[0]) not in units:
        raise UserError(
            "is no condition",
            where=f"--alert {text}",
            fix="write for example memory>95%, memory>11GiB, temperature>85, use<10%, power>250W",
        )
    return Condition(match["what"], match["sign"], float(match["limit"]), match["unit"] or units[0])


def refuse_unknown(conditions: Sequence[Condition], gpus: Sequence[GpuReading]) -> None:
    """Check that the watched values are known; warn of GPUs that do not report one.

    Raises UserError for a condition that no GPU can meet, because none of them reports its value. GPUs that do not
    answer at the moment are not counted.
    """
    answering = [gpu for gpu in gpus if gpu.problem is None]
    for condition in conditions:
        silent = [gpu for gpu in answering if condition.value(gpu) is None]
        if not silent:
            continue
        names = ", ".join(f"GPU {gpu.index} ({gpu.name})" for gpu in silent)
        value = (
            "the memory in all" if silent[0].used_bytes is not None and condition.what == "memory" else condition.what
        )
        what = f"the driver does not report {value} of {names}"
        if len(silent) < len(answering):
            warn(f"--alert {condition}: {what}: no alert on it there")
            continue
        known = [name for name in _UNITS if any(_reports(gpu, name) for gpu in answering)]
        fix = f"what it reports: {', '.join(known)}" if known else "no condition can be watched here"
        raise UserError(what, where=f"--alert {condition}", fix=fix)


def _reports(gpu: GpuReading, what: str) -> bool:
    return any(Condition(what, ">", 0, unit).value(gpu) is not None for unit in _UNITS[what])


@dataclass
class Alerts:
    """Watches conditions; each is told once when it becomes true, and again only after it was false in between."""

    conditions: Sequence[Condition] = ()
    fired: int = 0
    _active: set[tuple[int, Condition]] = field(default_factory=set)

    def check(self, gpus: Sequence[GpuReading]) -> Iterator[str]:
        """Yield a line for each condition that a GPU has just met."""
        for gpu in gpus:
            for condition in self.conditions:
                key = (gpu.index, condition)
                if not condition.is_met(gpu):
                    self._active.discard(key)
                elif key not in self._active:
                    self._active.add(key)
                    self.fired += 1
                    yield f"GPU {gpu.index}: {condition} ({condition.value(gpu):.1f} {condition.unit})"
