"""Measure the processor seconds of each stage of evaluate.py where all answers are known: what is not answering.

    python evaluate.py --config config.real.yaml                       # once, so that the answers are there
    python benchmarks/evaluation_stages.py --config config.real.yaml

Arguments are those of evaluate.py; `--stages-json FILE` behind them writes seconds and memory to a file. Seconds are
those of this process, so that other work on the machine does not count; those of the programs that it starts (the
sandbox, the baselines of many rows) are a line of their own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
_BEGUN_S = time.process_time()

import evaluate  # noqa: E402
from tool_aware.console import run, say, table  # noqa: E402
from tool_aware.evaluation import baselines_beside, judging, results  # noqa: E402
from tool_aware.evaluation.report import output  # noqa: E402
from tool_aware.evaluation.scoring.usable import ParameterJudge  # noqa: E402
from tool_aware.units import MIB  # noqa: E402

STAGES: tuple[tuple[Any, str, str], ...] = (
    (evaluate, "prepare", "checks, data, earlier answers"),
    (evaluate, "print_plan", "plan"),
    (evaluate, "collect_answers", "earlier answers again"),
    (baselines_beside, "baseline_predictions", "cheap baselines"),
    (ParameterJudge, "run_programs", "programs, this process"),
    (judging, "judge_row_by_row", "judging"),
    (results, "reader_of_reasonings", "reader of reasonings"),
    (judging, "judge_reasonings", "reasonings"),
    (results, "summarise_system", "figures with intervals"),
    (results, "reasoning_figures", "figures of reasonings"),
    (results, "compare", "comparisons"),
    (results, "_calibration", "calibration"),
    (output, "draw_confusion", "confusion matrices (PNG)"),
    (output, "write_json", "JSON files"),
    (output, "write_json_array", "rows of results"),
    (output, "build_report", "report: chapters"),
    (output, "write_pieces", "report: HTML"),
    (evaluate, "update_adapter", "files beside the adapter"),
)


def main() -> int:
    """Run evaluate.py with its stages timed, and print the table."""
    spent: dict[str, float] = defaultdict(float)
    peaks: dict[str, float] = {}  # of resident memory since the start of the process, at the end of a stage, in MiB
    running: list[float] = []  # of each stage that runs, the seconds of stages inside it

    def timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            running.append(0.0)
            begun_s = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                took_s = time.process_time() - begun_s
                spent[name] += took_s - running.pop()
                peaks[name] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB, 1)
                if running:
                    running[-1] += took_s

        return call

    for owner, attribute, name in STAGES:
        setattr(owner, attribute, timed(getattr(owner, attribute), name))
    imports_s = time.process_time() - _BEGUN_S
    arguments, file = sys.argv[1:], None
    if arguments[-2:-1] == ["--stages-json"]:
        file = Path(arguments[-1])
        del arguments[-2:]
    timed(evaluate.main, "all else")(arguments)
    of_others = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent["other processes: programs, baselines of many rows"] = of_others.ru_utime + of_others.ru_stime
    if file:
        file.write_text(json.dumps({"seconds": {"imports": imports_s, **spent}, "peaks": peaks}), encoding="utf-8")
    rows = [["imports", f"{imports_s:.1f}"], *([name, f"{seconds:.1f}"] for name, seconds in spent.items())]
    say(table(["stage", "processor s"], [*rows, ["sum", f"{imports_s + sum(spent.values()):.1f}"]]))
    return 0


if __name__ == "__main__":
    run(lambda _=None: main())
