"""Measure prepare_dataset.py from a log of many rows to its files: processor seconds and memory of each phase.

    python benchmarks/log_rows.py                                          (100,000, 300,000 and 1,000,000 rows)
    python benchmarks/log_rows.py --rows 100000 300000 --json benchmarks/results/log_rows.json

Reads   config.yaml
Writes  the log and the data to a temporary folder, removed at the end; a table, and --json keeps the figures
Exit    0 done; 2 something to fix

The log is an export in JSON Lines: sentences of the sample log, two of three with words of their own, the others said
before. The real script runs in a process of its own for each size. Seconds are of its processor time, so that others
on the machine do not count (--json has those of the clock too); memory is what the kernel calls resident, its peak
within each phase.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks run from a checkout, nothing is installed

from benchmarks._growth import exponent, report  # noqa: E402
from tool_aware.console import UserError, run, say  # noqa: E402
from tool_aware.units import MIB  # noqa: E402

# phase -> the function that is it; inner ones are part of an outer one's seconds.
PHASES: Mapping[str, str] = {
    "log": "tool_aware.dataset.logged:read_log",
    "synthesis, deduplication": "tool_aware.dataset.assembly:assemble",
    "split": "tool_aware.dataset.split_check:split_and_check",
    "reports": "tool_aware.dataset.outputs:render",
    "files": "tool_aware.dataset.outputs:write",
}
INNER: Mapping[str, str] = {
    "extraction": "tool_aware.dataset.logged:read_log_file",
    "redaction, earlier turns": "tool_aware.dataset.curation:Histories.of",
    "near-duplicates": "tool_aware.dataset.curation:_one_per_cluster",
    "rows": "tool_aware.dataset.curation:_row",
}
_SENTENCES = 20_000
_OWN_SHARE = 2 / 3  # of the rows are said for the first time
_SYLLABLES = ("ba", "cor", "den", "fi", "gul", "ha", "jo", "kem", "lu", "mi", "nor", "pa", "qui", "ros", "ta", "ver")


def main(argv: Sequence[str] | None = None) -> int:
    """Write each log, run the script on it, print and save the figures."""
    arguments = parse_arguments(argv)
    if arguments.measure:  # the process that is measured
        print(json.dumps(measure(arguments.measure, arguments.sets)))
        return 0
    points = []
    for count in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path = Path(folder) / "log.jsonl"
            subprocess.run([sys.executable, __file__, "--write", str(path), "--rows", str(count)], check=True)
            points.append({"rows": count, **measured_apart(path, arguments.sets)})
            say(f"{count:,} rows: {points[-1]['processor_s']:.0f} s")
    names = list(points[0]["phases"])
    growth = {
        name: exponent(points, [point["phases"][name]["processor_s"] for point in points], 1e-3) for name in names
    }
    lines = [(name, *(_cell(point["phases"][name]) for point in points), growth[name]) for name in names]
    lines.append(("all", *(f"{p['processor_s']:.1f} s {p['peak_resident_mib']:,.0f} MiB" for p in points), ""))
    report("phase", points, lines, growth, arguments.json)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; with --write only a log is written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000], metavar="N")
    parser.add_argument("--set", dest="sets", action="append", default=[], metavar="KEY=VALUE", help="of config.yaml")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the files are written for a while")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.write:
        write_log(arguments.write, arguments.rows[0])
        raise SystemExit(0)
    return arguments


def _cell(phase: Mapping[str, Any]) -> str:
    peak = phase.get("peak_resident_mib")
    return f"{phase['processor_s']:.1f} s" + (f" {peak:,.0f} MiB" if peak else "")


# ---- the log --------------------------------------------------------------------------------------------


def write_log(path: Path, count: int) -> None:
    """Write an export of `count` rows, the oldest first."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(item, default=str) + "\n" for item in logged_rows(count))


def logged_rows(count: int) -> Iterator[dict[str, Any]]:
    """Yield logged rows; sessions have one to six, as in the sample."""
    from tool_aware.demo.sample_log import sample_query_log

    sample, random_ = sample_query_log(_SENTENCES, seed=1), random.Random(1)
    words = ["".join(random_.choices(_SYLLABLES, k=random_.randint(2, 4))) for _ in range(30_000)]
    said: list[tuple[str, str]] = []
    for number in range(count):
        row = sample[number % _SENTENCES]
        if not said or random_.random() < _OWN_SHARE:
            said.append(
                (f"{row.query_text} {' '.join(random_.choices(words, k=random_.randint(2, 5)))}", row.tool_used)
            )
            text, tool = said[-1]
        else:
            text, tool = random_.choice(said)
        own = {"query_text": text, "tool_used": tool, "session_id": f"{row.session_id}-{number // _SENTENCES}"}
        yield {**vars(row), "id": number, "query_id": f"q{number}", **own}


# ---- the measured process -------------------------------------------------------------------------------


def measured_apart(path: Path, sets: Sequence[str]) -> dict[str, Any]:
    """Measure in a process of its own; return seconds, memory and phases."""
    command = [sys.executable, __file__, "--measure", str(path), *(part for text in sets for part in ("--set", text))]
    started_s = time.monotonic()
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"exit code {done.returncode}", where=" ".join(command))
    return {"wall_s": round(time.monotonic() - started_s, 1), **json.loads(done.stdout.splitlines()[-1])}


def measure(path: Path, sets: Sequence[str]) -> dict[str, Any]:
    """Run the stage on a log in this process, each phase timed."""
    import prepare_dataset

    seconds: dict[str, float] = defaultdict(float)
    peaks: dict[str, float] = {}
    for phase, place in {**PHASES, **INNER}.items():
        timed(phase, place, seconds, None if phase in INNER else peaks)
    folder = path.parent / "data"
    chosen = [part for text in (f"dataset.dir={folder}", *sets) for part in ("--set", text)]
    prepare_dataset.main(["--logs", str(path), *chosen])
    rows = {name: sum(1 for line in (folder / f"{name}.json").open() if line == "  {\n") for name in ("train", "test")}
    phases: dict[str, dict[str, float]] = {phase: {"processor_s": round(seconds[phase], 2)} for phase in seconds}
    for phase, peak in peaks.items():
        phases[phase]["peak_resident_mib"] = round(peak, 1)
    order = [*INNER, *PHASES]
    return {
        "processor_s": round(time.process_time(), 2),
        "peak_resident_mib": max(peaks.values()),
        "written": rows,
        "phases": {name: phases[name] for name in order if name in phases},
    }


def timed(phase: str, place: str, seconds: dict[str, float], peaks: dict[str, float] | None) -> None:
    """Replace the function at `place`, module:name, by one that adds its seconds and the peak of its memory."""
    module, _, name = place.partition(":")
    holder: Any = importlib.import_module(module)
    *above, name = name.split(".")
    for part in above:
        holder = getattr(holder, part)
    function: Callable[..., Any] = getattr(holder, name)

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if peaks is not None:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        started_s = time.process_time()
        result = function(*args, **kwargs)
        seconds[phase] += time.process_time() - started_s
        if peaks is not None:
            peaks[phase] = peak_resident_mib()
        return _timed_items(result, phase, seconds) if isinstance(result, Iterator) else result

    setattr(holder, name, wrapper)


def _timed_items(items: Iterator[Any], phase: str, seconds: dict[str, float]) -> Iterator[Any]:
    while True:
        started_s = time.process_time()
        item = next(items, None)
        seconds[phase] += time.process_time() - started_s
        if item is None:
            return
        yield item


def peak_resident_mib() -> float:
    """Return the peak of resident memory since it was last cleared."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / MIB


if __name__ == "__main__":
    run(main)
