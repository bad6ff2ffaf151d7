"""Measure processor time and memory of `monitor_gpu.py monitor` on this machine.

    python benchmarks/monitor_cost.py                 # 60 s at an interval of 1 s, 20 s at 0.1 s
    python benchmarks/monitor_cost.py --seconds 600

Without an NVIDIA driver, a stub of it (tests/fixtures) is compiled and watched. The result says which was used.

Reads   nothing
Writes  benchmarks/results/monitor_cost.json
Exit    0 within the limits (1 % of one core and 60 MiB at an interval of 1 s); 2 no driver and no C compiler; 3 above
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_REPOSITORY))

from tool_aware.console import GateFailed, UserError, run, say, table  # noqa: E402
from tool_aware.files import write_json  # noqa: E402
from tool_aware.gpu.nvml import DriverUnavailable, open_driver  # noqa: E402

RESULT = _REPOSITORY / "benchmarks" / "results" / "monitor_cost.json"
MAX_CPU_PERCENT, MAX_RESIDENT_MIB = 1.0, 60.0
STARTING_S = 2.0  # imports and the first reading are not part of the cost of watching
SCENARIO = "name 0 Stub\ntotal 0 12282\nused 0 6050\nuse 0 98\ncelsius 0 64\nmilliwatts 0 212345\nclock 0 2610\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the monitor at two intervals and measure its process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="time at an interval of 1 s (default: 60)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        driver, environment = find_driver(Path(folder))
        log = Path(folder) / "log.json"
        rows = [
            measure(interval_s, seconds, environment, log)
            for interval_s, seconds in ((1.0, arguments.seconds), (0.1, min(20.0, arguments.seconds)))
        ]
    write_json(RESULT, {"driver": driver, "rows": rows})
    print(table(["interval s", "CPU %", "resident MiB"], [list(row.values()) for row in rows], ">>>"))
    say(f"driver: {driver}; wrote {RESULT.relative_to(_REPOSITORY)}")
    if rows[0]["cpu_percent"] > MAX_CPU_PERCENT or rows[0]["resident_mib"] > MAX_RESIDENT_MIB:
        raise GateFailed(f"watching costs more than {MAX_CPU_PERCENT:g} % of one core or {MAX_RESIDENT_MIB:g} MiB")
    return 0


def find_driver(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the name of the driver and the environment in which the monitor finds it.

    Raises UserError if there is neither a driver nor a compiler for the stub.
    """
    try:
        driver = open_driver()
    except DriverUnavailable:
        compiler = shutil.which("cc")
        if compiler is None:
            raise UserError("no NVIDIA driver, and no C compiler for a stub", fix="apt install gcc") from None
    else:
        driver.close()
        return f"NVIDIA {driver.info.version}", dict(os.environ)
    source, library = _REPOSITORY / "tests" / "fixtures" / "stub_nvml.c", folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    (folder / "scenario.txt").write_text(SCENARIO)
    return "stub", {**os.environ, "LD_LIBRARY_PATH": str(folder), "STUB_NVML": str(folder / "scenario.txt")}


def measure(interval_s: float, seconds: float, environment: dict[str, str], log: Path) -> dict[str, float]:
    """Run the monitor and return its processor time per second, and its resident memory at the end."""
    command = [sys.executable, str(_REPOSITORY / "monitor_gpu.py"), "monitor", "--interval", str(interval_s)]
    with subprocess.Popen(
        [*command, "--output", str(log)],
        env=environment,
        cwd=_REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        time.sleep(STARTING_S)
        before_s, started_s = cpu_seconds(process.pid), time.monotonic()
        time.sleep(seconds)
        used_s, elapsed_s = cpu_seconds(process.pid) - before_s, time.monotonic() - started_s
        resident_mib = resident_kib(process.pid) / 1024
        process.terminate()
    json.loads(log.read_text(encoding="utf-8"))
    return {
        "interval_s": interval_s,
        "cpu_percent": round(100 * used_s / elapsed_s, 2),
        "resident_mib": round(resident_mib, 1),
    }


def cpu_seconds(pid: int) -> float:
    """Return user and system time of a process so far (proc(5), fields 14 and 15 of stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))


if __name__ == "__main__":
    run(main)
