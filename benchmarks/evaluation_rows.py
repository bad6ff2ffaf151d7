"""Measure evaluate.py on test files of many rows where all answers are known: judging, baselines, figures, report.

    python benchmarks/evaluation_rows.py                                        (25,000 and 100,000 test rows)
    python benchmarks/evaluation_rows.py --rows 100000 --json benchmarks/results/evaluation_rows.json

Reads   config.yaml
Writes  data, answers and results to a temporary folder, removed at the end; a table, and --json keeps the figures
Exit    0 done; 2 something to fix

prepare_dataset.py makes the rows of the log of log_rows.py. The answers of six systems are made of the references,
each system with its own share of other tools, other parameters and texts that are no call; some are in files of an
earlier run, as evaluate.py finds them. Then evaluate.py runs in a process of its own with its stages timed: wall
seconds, processor seconds of it and of the programs that it starts, and the most memory that was resident, of one
process and of all in sum.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks run from a checkout, nothing is installed

import evaluate  # noqa: E402
from benchmarks._growth import exponent, report  # noqa: E402
from benchmarks._memory_in_sum import MemoryInSum  # noqa: E402
from tool_aware.config.settings import Config, load_config  # noqa: E402
from tool_aware.console import UserError, run, say  # noqa: E402
from tool_aware.evaluation.answering.tasks import Task  # noqa: E402
from tool_aware.evaluation.evaluation_job import Job, prepare  # noqa: E402
from tool_aware.evaluation.scoring.judgement import Prediction  # noqa: E402
from tool_aware.files import write_json  # noqa: E402
from tool_aware.paths import ADAPTER_CONFIG_NAME, ADAPTER_FOLDER, ADAPTER_WEIGHTS_NAME  # noqa: E402
from tool_aware.prompt import render_response  # noqa: E402
from tool_aware.rows import Row  # noqa: E402
from tool_aware.tools import ToolCall  # noqa: E402
from tool_aware.units import MIB  # noqa: E402

SPLIT = (0.2, 0.05, 0.75)  # of the rows: most are test rows here
_KEPT_OF_LOGGED, _SYNTHESISED = 0.475, 14_800  # about what the log of log_rows.py and config.yaml give
_WRONG_PROGRAMS = 50  # different ones that answers name, so that running them is not what is measured


@dataclass(frozen=True)
class Habits:
    """How often a system answers with another tool, with other parameters, and with a text that is no call."""

    other_tool: float
    other_parameters: float
    no_call: float


HABITS: Mapping[str, Habits] = {"base": Habits(0.3, 0.2, 0.1), "finetuned": Habits(0.05, 0.06, 0.005)}


def main(argv: Sequence[str] | None = None) -> int:
    """Make rows and answers, run the script on them, print and save the figures."""
    arguments = parse_arguments(argv)
    points = []
    for count in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            folder = Path(name)
            sets = [*arguments.overrides, *prepared(folder, count, arguments.overrides)]
            facts = {"rows": count, "arguments_of_evaluate": arguments.evaluate}
            points.append({**facts, **measured(folder, sets, arguments.evaluate)})
        whole = points[-1]["whole"]
        say(f"{count:,} rows: {_whole(whole)} of processor time and memory, {whole['wall_s']:.0f} s by the clock")
    stages = list(dict.fromkeys(stage for point in points for stage in point["stages"]))
    growth = {stage: exponent(points, [point["stages"].get(stage, 0.0) for point in points], 1e-2) for stage in stages}
    lines = [(stage, *(f"{p['stages'].get(stage, 0.0):.1f} s" for p in points), growth[stage]) for stage in stages]
    lines.append(("the whole", *(_whole(point["whole"]) for point in points), ""))
    report("processor time", points, lines, growth, arguments.json)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what stands behind `--` is for evaluate.py."""
    given = list(sys.argv[1:] if argv is None else argv)
    at = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[25_000, 100_000], metavar="N", help="of the test file")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the files are written for a while")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(given[:at])
    arguments.evaluate = given[at + 1 :]
    return arguments


def _whole(figures: Mapping[str, float]) -> str:
    return f"{figures['processor_s']:.0f} s, {figures['peak_in_sum_mib']:,.0f} MiB"


# ---- rows and answers -----------------------------------------------------------------------------------


def prepared(folder: Path, count: int, overrides: Sequence[str]) -> list[str]:
    """Write data with `count` test rows, an adapter and all answers; return the settings that name them."""
    log, data, output = folder / "log.jsonl", folder / "data", folder / "output"
    rows = max(2_000, round((1.03 * count / SPLIT[2] - _SYNTHESISED) / _KEPT_OF_LOGGED))
    log_rows = [sys.executable, str(REPOSITORY / "benchmarks" / "log_rows.py")]
    _done([*log_rows, "--write", str(log), "--rows", str(rows)])
    stage = [sys.executable, "prepare_dataset.py", "--logs", str(log)]
    of_data = [f"dataset.dir={data}", f"dataset.splits=[{', '.join(map(str, SPLIT))}]"]
    _done([*stage, *_as_options([*overrides, *of_data])])
    log.unlink()
    _done([sys.executable, __file__, "--keep", str(count), str(data / "test.json")])
    (data / "manifest.json").unlink()  # the rows are no longer the stage's
    adapter = output / ADAPTER_FOLDER
    adapter.mkdir(parents=True)
    config = load_config(REPOSITORY / "config.yaml", [*overrides, *of_data])
    write_json(adapter / ADAPTER_CONFIG_NAME, {"base_model_name_or_path": config.model.name})
    (adapter / ADAPTER_WEIGHTS_NAME).write_bytes(b"no weights: all answers are known")
    sets = [*of_data, f"training.output_dir={output}", f"evaluation.results_dir={folder / 'results'}"]
    _done([sys.executable, __file__, "--answers", *_as_options([*overrides, *sets])])
    return sets


def _as_options(sets: Sequence[str]) -> list[str]:
    return [part for text in sets for part in ("--set", text)]


def _done(command: Sequence[str]) -> None:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"exit code {done.returncode}: {done.stderr[-2000:]}", where=" ".join(command[:4]))


def keep_rows(count: int, path: Path) -> None:
    """Leave the first rows of a file, in a process of its own: a program is said to have what its parent held, too."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    if len(rows) < count:
        raise UserError(f"only {len(rows)} test rows", where=str(path), fix="a smaller --rows")
    write_json(path, rows[:count])


def write_answers(arguments: Sequence[str]) -> None:
    """Write the answers to all tasks of an evaluation to where evaluate.py looks for those of an earlier run."""
    Job.is_due = lambda self, task: False  # type: ignore[method-assign]  # so that no model is looked for
    job = prepare(evaluate.parse_arguments(arguments))
    references = [row for row in job.test.rows.values() if not row.is_choice_only]
    for task in job.tasks:
        log, random_ = job.log(task), random.Random(task.name)
        with log.appending() as append:
            append(list(answers_of(task, references, job.config, random_)))


def answers_of(task: Task, references: Sequence[Row], config: Config, random_: random.Random) -> Iterator[Prediction]:
    """Yield the answers of a task's system to its rows."""
    habits, names = HABITS[task.system], list(task.tools.names)
    programs = [row for row in references if "code" in (row.answer.call.parameters if row.answer.call else {})]
    others = references, programs[:_WRONG_PROGRAMS]
    shown = {real: name for name, real in task.real_names.items()}
    for index, row in task.rows.items():
        is_other = random_.random() < habits.other_tool
        if task.kind == "choice":
            right = shown.get(row.tool, names[0])
            chosen = random_.choice(names) if is_other else right
            scores = {name: -0.1 if name == chosen else -3 - random_.random() for name in names}
            real = {task.real_names[name]: score for name, score in scores.items()}
            yield Prediction(index, tool=task.real_names[chosen], scores=real, seconds=0.01)
        else:
            text = _text(row, habits, others, random_, is_other=is_other)
            text = row.response if task.kind == "constrained" and not text.startswith("Tool:") else text
            yield Prediction(index, text, new_tokens=len(text) // 4, seconds=0.1)


def _text(
    row: Row, habits: Habits, others: tuple[Sequence[Row], Sequence[Row]], random_: random.Random, *, is_other: bool
) -> str:
    """Return an answer to a row: its reference, or what a model that errs would write instead.

    `others` are the rows whose answers are given instead, and those of them that answer with a program.
    """
    (references, programs), draw = others, random_.random()
    if draw < habits.no_call:
        return f"I think that {row.tool} is the one to use for this."
    if is_other:
        return random_.choice(references).response
    call = row.answer.call
    if draw > habits.no_call + habits.other_parameters or call is None:
        return row.response
    if "code" in call.parameters:
        return random_.choice(programs).response
    other = {name: _said_otherwise(value, random_) for name, value in call.parameters.items()}
    return render_response(ToolCall(call.tool, other, call.reasoning))


def _said_otherwise(value: Any, random_: random.Random) -> Any:
    """Return a text with a word less, a word more or its words in another order; other values as they are."""
    if not isinstance(value, str):
        return value
    words = value.split()
    if len(words) > 2 and random_.random() < 0.5:
        words.pop(random_.randrange(len(words)))
    elif random_.random() < 0.5:
        words.append(random_.choice(("please", "now", "in detail", "2026", "Berlin")))
    else:
        random_.shuffle(words)
    return " ".join(words) or value


# ---- the measured processes -----------------------------------------------------------------------------


def measured(folder: Path, sets: Sequence[str], more: Sequence[str]) -> dict[str, Any]:
    """Run evaluate.py with its stages timed."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".json") as file:
        stages = [sys.executable, "benchmarks/evaluation_stages.py", *_as_options(sets), *more]
        whole = by_itself([*stages, "--stages-json", file.name])
        found = json.loads(Path(file.name).read_text(encoding="utf-8"))
    seconds = {stage: round(spent, 2) for stage, spent in found["seconds"].items()}
    return {"whole": whole, "stages": seconds, "peak_resident_mib_until_the_end_of": found["peaks"]}


def by_itself(command: Sequence[str]) -> dict[str, float]:
    """Run a command; return its wall seconds, its processor seconds with its children's, and its peaks of memory."""
    started_s = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as messages:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=messages)
        memory = MemoryInSum(process.pid)
        _, status, used = os.wait4(process.pid, 0)
        in_sum_mib = memory.stop()
        process.returncode = os.waitstatus_to_exitcode(status)
        messages.seek(0)
        if process.returncode:
            raise UserError(f"exit code {process.returncode}: {messages.read()[-2000:]}", where=" ".join(command[:3]))
    return {
        "wall_s": round(time.monotonic() - started_s, 1),
        "processor_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_resident_mib": round(used.ru_maxrss * 1024 / MIB, 1),  # of one process
        "peak_in_sum_mib": in_sum_mib,  # of all at one time, as far as was seen
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answers"]:
        run(lambda _=None: write_answers(sys.argv[2:]) or 0)
    elif sys.argv[1:2] == ["--keep"]:
        run(lambda _=None: keep_rows(int(sys.argv[2]), Path(sys.argv[3])) or 0)
    else:
        run(main)
