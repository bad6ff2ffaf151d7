"""The memory of this machine, as far as Linux tells."""

from __future__ import annotations

from pathlib import Path

# Half is left to other programs, and the formulas count numbers of 16 bits where a CPU's have 32.
SHARE_OF_FREE = 0.25


def free_host_bytes() -> int | None:
    """Return how much of this machine's memory is free; None where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None
