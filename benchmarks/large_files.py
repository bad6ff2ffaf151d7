"""Measure time and peak memory of prepare_dataset.py on large files: --logs, --import and --check.

    python benchmarks/large_files.py                                     (all modes, 1 GB each, some ten minutes)
    python benchmarks/large_files.py --modes logs --endings csv parquet --gigabytes 0.1
    python benchmarks/large_files.py --json benchmarks/results/large_files.json

Reads   config.yaml
Writes  its files to a temporary folder (--folder names the place), removed at the end; --json keeps the figures
Exit    0 done; 2 something to fix

The real script runs in a process of its own. Its peak is what the kernel reports for a finished child (ru_maxrss).
That begins with the memory of the process that started it: files are therefore written by yet another one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks run from a checkout, nothing is installed

from tool_aware.config.options import add_config_arguments  # noqa: E402
from tool_aware.config.settings import Config, load_config  # noqa: E402
from tool_aware.console import UserError, run, say, table  # noqa: E402
from tool_aware.files import write_json  # noqa: E402
from tool_aware.units import MIB  # noqa: E402

GIGABYTE = 10**9
ENDINGS = {"logs": ("jsonl", "csv", "parquet"), "import": ("jsonl",), "check": ("json",)}
_SAMPLE_ROWS = 20_000  # distinct queries; a larger log repeats them, as real ones do
_ANSWER = "What the agent said about it, in as many words as such answers usually have. " * 10
_PARQUET_ROWS = 50_000  # rows of a row group
_NO_SYNTHESIS = (
    "--set",
    "dataset.synthetic_per_tool=25",
    "--set",
    "dataset.ambiguous=0",
    "--set",
    "dataset.follow_ups=0",
    "--set",
    "dataset.two_requests=0",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Write each file, run the script on it, print and save the figures."""
    arguments = parse_arguments(argv)
    config = load_config(REPOSITORY / "config.yaml", arguments.overrides)
    measured = []
    for mode in arguments.modes:
        for ending in ENDINGS[mode]:
            if arguments.endings and ending not in arguments.endings:
                continue
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                path = Path(folder) / f"large.{ending}"
                rows = written(mode, path, int(arguments.gigabytes * GIGABYTE), config)
                measured.append({"mode": mode, "ending": ending, "rows": rows, **measure(mode, path)})
    headers = ("mode", "ending", "GB", "rows", "seconds", "peak MiB", "exit")
    keys = ("mode", "ending", "gigabytes", "rows", "seconds", "peak_resident_mib", "exit_code")
    print(table(headers, [tuple(line[key] for key in keys) for line in measured], "<<>>>>>"))
    if arguments.json:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        write_json(arguments.json, {**machine, "measured": measured})
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument("--modes", nargs="+", choices=tuple(ENDINGS), default=list(ENDINGS))
    parser.add_argument("--endings", nargs="+", metavar="ENDING", help="only these kinds of file")
    parser.add_argument("--gigabytes", type=float, default=1.0, metavar="N", help="10^9 bytes of each file")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the files are written for a while")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(argv)


def measure(mode: str, path: Path) -> dict[str, Any]:
    """Run the script on a file; return its seconds, the peak of its memory, and its exit code."""
    command = [sys.executable, str(REPOSITORY / "prepare_dataset.py"), f"--{mode}", str(path)]
    if mode != "check":
        command += ["--set", f"dataset.dir={path.parent / 'data'}", *_NO_SYNTHESIS]
    started_s = time.perf_counter()
    with (path.parent / "output.txt").open("w+") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - started_s
        output.seek(0)
        last = [line.strip() for line in output.readlines()][-12:]
    if process.returncode not in (0, 2, 3):
        raise UserError("\n".join(last), where=" ".join(command))
    say("\n".join(last))
    return {
        "gigabytes": round(path.stat().st_size / GIGABYTE, 3),
        "seconds": round(seconds, 1),
        "peak_resident_mib": round(usage.ru_maxrss * 1024 / MIB, 1),
        "exit_code": process.returncode,
    }


def written(mode: str, path: Path, wanted_bytes: int, config: Config) -> int:
    """Write a file in a process of its own; return its rows."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(WRITERS[mode], path, wanted_bytes, config).result()


# ---- files ----------------------------------------------------------------------------------------------


def write_log(path: Path, wanted_bytes: int, config: Config) -> int:
    """Write an export of the query log, oldest row first; return its rows."""
    del config
    if path.suffix == ".parquet":
        return _write_parquet_log(path, wanted_bytes)
    import csv

    rows = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        for item in logged_rows():
            if path.suffix == ".jsonl":
                file.write(json.dumps(item, default=str) + "\n")
            else:
                if not rows:
                    writer.writerow(item)
                writer.writerow(item.values())
            rows += 1
            if not rows % 1000 and file.tell() >= wanted_bytes:
                return rows
    return rows


def _write_parquet_log(path: Path, wanted_bytes: int) -> int:
    """Write uncompressed Parquet without dictionaries, so that a gigabyte has about as many rows as in CSV."""
    import itertools

    import pyarrow
    import pyarrow.parquet

    rows, writer, source = 0, None, logged_rows()
    while not path.exists() or path.stat().st_size < wanted_bytes:
        batch = pyarrow.Table.from_pylist(list(itertools.islice(source, _PARQUET_ROWS)))
        if writer is None:
            writer = pyarrow.parquet.ParquetWriter(path, batch.schema, compression="none", use_dictionary=False)
        writer.write_table(batch)
        rows += batch.num_rows
    assert writer is not None
    writer.close()
    return rows


def logged_rows() -> Iterator[dict[str, Any]]:
    """Yield rows of the sample log for ever: the same queries again, each with an id and a time of its own.

    An answer of 500 to 700 characters stands beside each query, as in most agents' logs; the stage does not read it.
    """
    from tool_aware.demo.sample_log import sample_query_log

    sample = [vars(row) for row in sample_query_log(_SAMPLE_ROWS, seed=1)]
    number, clock = 0, datetime(2020, 1, 1)
    while True:
        for row in sample:
            number, clock = number + 1, clock + timedelta(seconds=7)
            answer = _ANSWER[: 500 + number % 200]
            own = {"query_id": f"q{number}", "timestamp": clock, "session_id": f"s{number // 5}", "answer": answer}
            yield {"id": number, **row, **own}


def write_messages(path: Path, wanted_bytes: int, config: Config) -> int:
    """Write conversations with one tool call each, as OpenAI's fine-tuning format has them; return their number."""
    tools = [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in config.toolbox
    ]
    random_, rows = random.Random(1), 0
    with path.open("w", encoding="utf-8") as file:
        for item in logged_rows():
            query = f"{item['query_text']} {random_.getrandbits(32):x}"
            call = {"name": "web_search", "arguments": json.dumps({"query": query})}
            answer = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]}
            messages = [{"role": "user", "content": query}, answer]
            file.write(json.dumps({"messages": messages, "tools": tools}) + "\n")
            rows += 1
            if not rows % 1000 and file.tell() >= wanted_bytes:
                return rows
    return rows


def write_data_rows(path: Path, wanted_bytes: int, config: Config) -> int:
    """Write rows as train.json has them; return their number."""
    from tool_aware.prompt import render_instruction, render_response
    from tool_aware.tools import ToolCall

    random_, rows = random.Random(1), 0
    with path.open("w", encoding="utf-8") as file:
        for item in logged_rows():
            query = f"{item['query_text']} {random_.getrandbits(32):x}"
            answer = render_response(ToolCall("web_search", {"query": query}, "It asks for public information."))
            row = {"instruction": render_instruction(query, config.toolbox), "response": answer}
            file.write(("[\n" if not rows else ",\n") + json.dumps(row))
            rows += 1
            if not rows % 1000 and file.tell() >= wanted_bytes:
                break
        file.write("\n]\n")
    return rows


WRITERS: Mapping[str, Callable[[Path, int, Config], int]] = {
    "logs": write_log,
    "import": write_messages,
    "check": write_data_rows,
}


if __name__ == "__main__":
    run(main)
