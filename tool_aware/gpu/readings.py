"""A GPU at one moment. None means that the driver or the card does not say; it is never written as 0."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tool_aware.streams import without_controls

UNKNOWN_NAME = "unknown GPU"


@dataclass(frozen=True)
class Process:
    """A process that holds memory on a GPU. `used_bytes` is None where the driver does not tell (WSL, containers)."""

    pid: int
    command: str | None
    used_bytes: int | None


@dataclass(frozen=True)
class MigInstance:
    """A slice of a card in MIG mode; a program sees it as a GPU of its own."""

    uuid: str | None
    used_bytes: int | None = None
    total_bytes: int | None = None
    reserved_bytes: int | None = None

    @property
    def free_bytes(self) -> int | None:
        """Return what a program can still have; None where that is unknown."""
        return _free_bytes(self)


@dataclass(frozen=True)
class GpuReading:
    """One GPU at one moment. None means that the driver or the card does not say; `problem` that nothing is known."""

    index: int
    name: str = UNKNOWN_NAME
    uuid: str | None = None
    compute_capability: tuple[int, int] | None = None
    total_bytes: int | None = None
    used_bytes: int | None = None
    reserved_bytes: int | None = None  # by the driver itself; where it is not told apart, `used_bytes` has it
    utilization_percent: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    throttled_by: str | None = None
    processes: tuple[Process, ...] = ()
    is_mig: bool = False
    instances: tuple[MigInstance, ...] = ()
    problem: str | None = None

    @property
    def free_bytes(self) -> int | None:
        """Return what a program can still have; None where that is unknown."""
        return _free_bytes(self)

    def of_slice(self, part: MigInstance) -> GpuReading:
        """Return the card as a program in one of its slices sees it; which slice a process is in is not known."""
        memory = {name: getattr(part, name) for name in ("uuid", "total_bytes", "used_bytes", "reserved_bytes")}
        return replace(self, **memory, processes=(), instances=(part,))


@dataclass(frozen=True)
class DriverInfo:
    """The driver's own version and the newest CUDA runtime it can serve, for example ("570.86.15", "12.8")."""

    version: str | None
    cuda: str | None


def _free_bytes(memory: GpuReading | MigInstance) -> int | None:
    if memory.total_bytes is None or memory.used_bytes is None:
        return None
    return memory.total_bytes - memory.used_bytes - (memory.reserved_bytes or 0)


def command_of(pid: int, proc: Path = Path("/proc")) -> str | None:
    """Name a process: the script it runs if it is an interpreter, else its program. None if it cannot be seen."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    names = [without_controls(Path(word).name).replace("\n", " ") for word in words if word]  # any user chooses them
    if not names:
        return None
    is_interpreter = names[0].startswith(("python", "pypy", "bash", "sh", "node"))
    script = next((name for name in names[1:] if not name.startswith("-")), None)
    return script if is_interpreter and script else names[0]
