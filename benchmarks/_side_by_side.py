"""Shared by the benchmarks of quality: runs in processes of their own, several side by side on one GPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

from _real_model import Material, Outcome, Run, Score, perform, score_choices

from tool_aware.console import say


def perform_in_child(argv: Sequence[str], score: Score = score_choices) -> None:
    """Perform one run in a process that `perform_all` began, write its outcome."""
    run_file, material_file, output = map(Path, argv)
    run = Run(**json.loads(run_file.read_text(encoding="utf-8")))
    material = Material.load(material_file)
    outcome = perform(run, material, run_file.parent, score)
    output.write_text(json.dumps(asdict(outcome)), encoding="utf-8")


def perform_all(
    runs: Sequence[Run], script: Path, folder: Path, *, side_by_side: int, until_s: float = math.inf
) -> Iterator[Outcome]:
    """Yield the outcome of each run as it ends, `side_by_side` processes at once; those that need the card alone last.

    `script --child RUN MATERIAL OUTCOME` has to call `perform_in_child`. A run that fails is reported and left out, and
    none is begun after `until_s` of the monotonic clock.
    """
    for part, workers in ((False, side_by_side), (True, 1)):
        with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
            chosen = [run for run in runs if run.alone == part]
            futures = [pool.submit(_in_process, run, script, folder, until_s) for run in chosen]
            for future in as_completed(futures):
                if outcome := future.result():
                    yield outcome


def _in_process(run: Run, script: Path, folder: Path, until_s: float) -> Outcome | None:
    """Perform one run in a process; None if it failed, with the end of what it printed, or if it is too late."""
    if time.monotonic() > until_s:
        say(f"{run.name}: not begun, the time is up")
        return None
    run_file, output, log = (folder / f"{run.name}.{kind}" for kind in ("run.json", "outcome.json", "log"))
    run_file.write_text(json.dumps(asdict(run)), encoding="utf-8")
    command = [sys.executable, str(script), "--child", str(run_file), str(folder / "material"), str(output)]
    settings = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    settings |= {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "TOKENIZERS_PARALLELISM": "false"}
    began_s = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(command, stdout=stream, stderr=stream, env={**os.environ, **settings}, check=False)
    if code.returncode or not output.is_file():
        end = log.read_text(encoding="utf-8", errors="replace")[-1500:]
        say(f"{run.name}: failed with exit code {code.returncode}\n{end}")
        return None
    outcome = Outcome(**json.loads(output.read_text(encoding="utf-8")))
    shares = ", ".join(
        f"{name} {' '.join(f'{question} {share_of(found):.1%}' for question, found in questions.items())}"
        for name, questions in outcome.sets.items()
    )
    say(f"{run.name}: {shares}; {time.monotonic() - began_s:.0f} s")
    return outcome


def share_of(found: str) -> float:
    """Return the share of 1 among flags."""
    return found.count("1") / len(found) if found else 0.0
