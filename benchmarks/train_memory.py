"""Measure how much GPU memory a training step takes.

    python benchmarks/train_memory.py                                   # the goals for small cards; a minute
    python benchmarks/train_memory.py --grid                            # 76 configurations; 9 minutes on an H200
    python benchmarks/train_memory.py --grid --continue RESULTS.json    # those that it does not have yet
    python benchmarks/train_memory.py --grid --memory-fraction 0.15     # on part of the card, as on a smaller one
    python benchmarks/train_memory.py --grid --preset tiny              # a smoke test without a GPU

Every configuration is two optimizer steps of this toolkit's own trainer on random weights and ids. One process loads a
base model once and adds a new adapter for each configuration; it checks that no memory stays allocated. `allocated` and
`reserved` are torch's peaks, `NVML` is what nvidia-smi shows at the end, when reserved memory is at its peak. A cap
limits what a configuration may take of the card, the CUDA context included.

Reads   nothing
Writes  benchmarks/results/train_memory_<device>.json, after every process
Exit    0 done; 2 something to fix
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _memory_grid import ARCHITECTURES, Case, goals, grid, tiny
from _memory_report import report, short
from _random_mistral import (
    REPOSITORY,
    TimedSteps,
    environment,
    nvml_used_bytes,
    peaks,
    random_examples,
    results_file,
    train_timed,
)
from _reuse import Snapshot, allocated_bytes, free_memory

from tool_aware.config.settings import Config, load_config
from tool_aware.console import UserError, run, say, warn
from tool_aware.files import read_json, write_json
from tool_aware.units import GIB, MIB

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STEPS = 2  # optimizer states exist from the second step on
LEFT_BEHIND_BYTES = MIB  # may stay allocated after a configuration: tables of a few KiB that libraries keep
EXIT_NOT_CLEAN = 75
# Of the random weights: with activations as large as 0.02 makes them, bitsandbytes' 8-bit layers would take nearly all
# columns for outliers and keep them apart, which they do with few of a trained model's.
SPREAD = 0.005


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the cases process by process, save the results after each, and print the table."""
    arguments = parse_arguments(argv)
    cases = chosen_cases(arguments)
    if arguments.child is not None:
        return measure_all([cases[int(index)] for index in arguments.child.split(",")], arguments)
    models = Path(arguments.model_dir or tempfile.mkdtemp(prefix="random-mistral-"))
    arguments.model_dir = str(models)
    make_models(models, sorted({case.preset for case in cases}))
    result = earlier_result(arguments.go_on, cases) if arguments.go_on else Result()
    done = {case_of(row, cases) for row in result.rows if not (row.get("excluded") or row.get("stale"))}
    arguments.deadline = time.time() + 60 * arguments.minutes
    for indices in by_process(cases):
        run_process([index for index in indices if cases[index] not in done], cases, arguments, result)
        if result.origin:
            output = arguments.output or results_file("train_memory", result.origin["device"])
            write_json(output, {**result.origin, "command": command(), "rows": result.rows, "skipped": result.skipped})
    print(report(result.rows, result.skipped))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", action="store_true", help="all configurations instead of the goals alone")
    parser.add_argument("--preset", choices=("7b", "1b", "tiny"), help="those of one model alone; tiny needs no GPU")
    parser.add_argument("--only", metavar="A,B", help="those of some processes alone, for example 7b-4bit,1b-none")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N of each process")
    parser.add_argument("--continue", type=Path, metavar="FILE", dest="go_on", help="keep the rows of these results")
    parser.add_argument("--minutes", type=float, default=60.0, help="start none after that long (default: %(default)s)")
    parser.add_argument("--memory-fraction", type=float, default=1.0, metavar="F", help="use this part of the card")
    parser.add_argument("--model-dir", metavar="DIR", help="keep the random weights here and use them again")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of benchmarks/results/...")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--context-gib", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """Return the cases that the flags ask for, each once, in order."""
    cases = list(grid() if arguments.grid else goals())
    if arguments.preset == "tiny":
        cases = [tiny(case) for case in cases if case.preset == "7b"]
    elif arguments.preset:
        cases = [case for case in cases if case.preset == arguments.preset]
    if arguments.only:
        cases = [case for case in cases if case.process in arguments.only.split(",")]
    if not cases:
        raise UserError("no configuration is left", where=f"--only {arguments.only}")
    return list(dict.fromkeys(cases))


def by_process(cases: Sequence[Case]) -> list[list[int]]:
    """Return the numbers of the cases of each process, in the order of their first case."""
    groups: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        groups.setdefault(case.process, []).append(index)
    return list(groups.values())


def command() -> str:
    """Return the command line of this run."""
    return " ".join(["python", f"benchmarks/{Path(__file__).name}", *sys.argv[1:]])


def earlier_result(results: Path, cases: Sequence[Case]) -> Result:
    """Return the rows of an earlier run, each with its commit; they are kept until they are measured again."""
    document = read_json(results)
    if document is None:
        raise UserError("there are no earlier results", where=f"--continue {results}")
    return Result(device=document["device"], rows=[{"commit": document["commit"], **row} for row in document["rows"]])


def case_of(row: dict[str, Any], cases: Sequence[Case]) -> Case | None:
    """Return the case that a row was measured for."""
    given = {**row, "targets": row["targets"] if isinstance(row["targets"], str) else tuple(row["targets"])}
    return next((case for case in cases if all(given.get(name) == value for name, value in as_row(case).items())), None)


def as_row(case: Case) -> dict[str, Any]:
    """Return a case as a row, with the name of the architecture and the decoder that runs."""
    return {**asdict(case), "preset": ARCHITECTURES[case.preset], "decoder": case.running_decoder}


# ---- processes ------------------------------------------------------------------------------------------


@dataclass
class Result:
    """The figures measured so far."""

    origin: dict[str, Any] = field(default_factory=dict)
    device: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    def add(self, answer: dict[str, Any], cases: Sequence[Case]) -> None:
        """Add the row that a process printed for a case; it replaces an earlier one."""
        if "why" in answer:
            self.skipped.append(answer)
            return
        case = case_of(answer, cases)
        self.rows = [row for row in self.rows if case is None or case_of(row, cases) != case] + [answer]

    def context_gib(self, case: Case) -> float | None:
        """Return the least that NVML showed beyond torch's reserve in the rows most like `case`."""
        for alike in (("offload", "quantization", "preset"), ("quantization", "preset"), ()):
            seen = [
                row["nvml_gib"] - row["reserved_gib"]
                for row in self.rows
                if row["nvml_gib"] and not row["oom"] and all(row[name] == as_row(case)[name] for name in alike)
            ]
            if seen:
                return min(seen)
        return None


def make_models(folder: Path, presets: Sequence[str]) -> None:
    """Write the random weights in a process of its own, unless they are there."""
    missing = [preset for preset in presets if not (folder / preset / "config.json").is_file()]
    if missing:
        say(f"making {', '.join(missing)} in {folder}")
        program = "import sys, pathlib, _random_mistral as m; m.make_model(pathlib.Path(sys.argv[1]), sys.argv[2], "
        program += f"spread={SPREAD})"
        search = os.pathsep.join([str(REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        for preset in missing:
            subprocess.run(
                [sys.executable, "-c", program, str(folder / preset), preset],
                cwd=Path(__file__).parent, env={**os.environ, "PYTHONPATH": search}, check=True,
            )  # fmt: skip


def run_process(indices: list[int], cases: Sequence[Case], arguments: argparse.Namespace, result: Result) -> None:
    """Measure some cases in one process, or in several if one ends early; lines of it are added to `result`."""
    left = indices[: arguments.limit]
    while left:
        if time.time() > arguments.deadline:
            result.skipped += [{**asdict(cases[index]), "why": "out of time"} for index in left]
            return
        say(f"{cases[left[0]].process}: {len(left)} configurations")
        process = subprocess.Popen(
            child_command(left, cases, arguments, result), stdout=subprocess.PIPE, text=True, env=child_environment()
        )
        answered = 0
        for line in process.stdout:
            if not line.startswith("{"):
                continue
            answer = json.loads(line)
            if "device" in answer:
                if result.device not in (None, answer["device"]):
                    process.kill()
                    raise UserError(f"are of another card: {result.device}", where=f"--continue {arguments.go_on}")
                result.origin, result.device = answer, answer["device"]
                continue
            answered += 1
            result.add({"commit": result.origin["commit"], **answer}, cases)
            say(short(answer))
        code = process.wait()
        if code not in (0, EXIT_NOT_CLEAN) and answered < len(left):  # it broke at this one: the others may not
            result.skipped.append({**asdict(cases[left[answered]]), "why": f"failed with exit code {code}"})
            warn(f"failed: {short(result.skipped[-1])}")
            answered += 1
        left = left[answered:]


def child_command(
    indices: Sequence[int], cases: Sequence[Case], arguments: argparse.Namespace, result: Result
) -> list[str]:
    """Repeat this call for a child process."""
    options = ["--child", ",".join(map(str, indices)), "--model-dir", arguments.model_dir]
    options += ["--deadline", str(arguments.deadline), "--memory-fraction", str(arguments.memory_fraction)]
    options += ["--grid"] * arguments.grid
    context = result.context_gib(cases[indices[0]])
    for name, value in (("preset", arguments.preset), ("only", arguments.only), ("context-gib", context)):
        options += [f"--{name}", str(value)] if value is not None else []
    return [sys.executable, __file__, *options]


def child_environment() -> dict[str, str]:
    """Return the environment of a child, with the allocator settings of train_tool_aware.py."""
    return {**os.environ, "PYTHONWARNINGS": "ignore", "PYTORCH_ALLOC_CONF": "expandable_segments:True"}


# ---- in a process: one base model, many adapters ---------------------------------------------------------


def measure_all(cases: Sequence[Case], arguments: argparse.Namespace) -> int:
    """Load the base model of `cases` and print a line of JSON for each; returns the exit code."""
    from tool_aware.model.base import load_base_model

    print(json.dumps(environment()), flush=True)
    context_gib = bare_context_gib()
    config = config_of(cases[0], Path(arguments.model_dir))
    limit_memory(cases[0].cap_gib, arguments)
    base = load_base_model(config.model, config.quantization, attention="sdpa")
    free_memory()
    saved, at_rest = Snapshot(base), allocated_bytes()
    for case in cases:
        if time.time() > arguments.deadline:
            print(json.dumps({**asdict(case), "why": "out of time"}), flush=True)
            continue
        print(json.dumps({**measure(case, base, arguments), "bare_context_gib": context_gib}), flush=True)
        free_memory()
        limit_memory(None, arguments)  # what was offloaded may not fit back under a cap
        saved.restore()
        free_memory()
        if abs(left_behind := allocated_bytes() - at_rest) > LEFT_BEHIND_BYTES:
            warn(f"{left_behind / MIB:+.1f} MiB stay behind: the next configuration starts a new process")
            return EXIT_NOT_CLEAN
    return 0


def bare_context_gib() -> float | None:
    """Return what a process takes of the card before it has computed anything."""
    import torch

    if not torch.cuda.is_available():
        return None
    torch.zeros(1, device="cuda")
    return round((nvml_used_bytes() - torch.cuda.memory_reserved()) / GIB, 3)


def measure(case: Case, base: PreTrainedModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train two steps and return the record of the case."""
    import torch

    try:
        config = config_of(case, Path(arguments.model_dir))
    except UserError as error:
        return {**asdict(case), "why": str(error)}
    limit_memory(case.cap_gib, arguments)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if case.attention != base.config._attn_implementation:
        base.set_attn_implementation(case.attention)
    timed = None
    try:
        timed = two_steps(case, config, base)
    except (torch.OutOfMemoryError, UserError) as error:
        if isinstance(error, UserError) and "memory" not in str(error):
            raise
    return {
        **asdict(case),
        "preset": ARCHITECTURES[case.preset],
        "decoder": timed.decoder if timed else case.decoder,
        "is_recorded": timed is not None and timed.is_recorded,
        "oom": timed is None or timed.has_given_way,
        **peaks(),
        "seconds_per_step": round(timed.seconds[-1], 4) if timed else None,
    }


def two_steps(case: Case, config: Config, base: PreTrainedModel) -> TimedSteps:
    """Add an adapter and train two steps."""
    from tool_aware.model.adapter import new_adapter, prepare_for_training

    model = new_adapter(base, config)
    prepare_for_training(model, config)
    answer = min(case.answer_tokens, case.seq_length - case.prefix_tokens - 1)
    examples = random_examples(
        case.batch_size * case.accumulation * STEPS,
        prefix=case.prefix_tokens, query=case.seq_length - case.prefix_tokens - answer, answer=answer,
    )  # fmt: skip
    return train_timed(model, config, examples)


def config_of(case: Case, models: Path) -> Config:
    """Return the shipped config with the settings of a case. Raises UserError if a setting does not exist."""
    targets = case.targets if isinstance(case.targets, str) else json.dumps(list(case.targets))
    settings: dict[str, Any] = {
        "model.name": models / case.preset,
        "model.attn_implementation": case.attention,
        "quantization.load_in_4bit": case.quantization == "4bit",
        "quantization.load_in_8bit": case.quantization == "8bit",
        "lora.r": case.lora_r,
        "lora.target_modules": targets,
        "training.packing": case.packing,
        "training.per_device_train_batch_size": case.batch_size,
        "training.gradient_accumulation_steps": case.accumulation,
        "training.max_steps": STEPS,
        "training.save_steps": 10 * STEPS,
        "training.output_dir": tempfile.mkdtemp(prefix="memory-"),
        "optimization.gradient_checkpointing": case.checkpointing,
        "optimization.offload": case.offload,
        "optimization.kept_layers": case.kept_layers,
        "optimization.cached_layers": case.cached_layers,
        "optimization.micro_batch": "fixed",
        "optimization.decoder": case.decoder,
        "optimization.optim": case.optimizer,
    }
    return load_config(
        REPOSITORY / "config.yaml",
        [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()],
    )


def limit_memory(cap_gib: float | None, arguments: argparse.Namespace) -> None:
    """Limit torch to the cap less the CUDA context, or to the requested fraction of the card."""
    import torch

    if not torch.cuda.is_available():
        return
    torch.cuda.init()
    total = torch.cuda.get_device_properties(0).total_memory
    fraction = arguments.memory_fraction
    if cap_gib is not None:
        torch.zeros(1, device="cuda")  # makes the context
        here = (nvml_used_bytes() - torch.cuda.memory_reserved()) / GIB
        fraction = min(fraction, (cap_gib - max(here, arguments.context_gib or 0.0)) * GIB / total)
    torch.cuda.set_per_process_memory_fraction(fraction)


if __name__ == "__main__":
    run(main)
