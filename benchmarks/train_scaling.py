"""Measure how much faster several GPUs of one machine train, and check that their losses are those of one GPU.

    python benchmarks/train_scaling.py                                  # 1 and 2 GPUs of 80 GB; about 3 minutes
    python benchmarks/train_scaling.py --gpus 1,2,4 --cases ours-64     # one way of training only
    python benchmarks/train_scaling.py --preset tiny --steps 3          # a smoke test without a GPU

For every number of GPUs the processes are started once and train each case in turn, on the same random weights. An
example has 260 shared tokens, a query of 24 and an answer of 80. Every GPU gets as many examples a step as a single
one, so linear scaling means N times the examples a second; `efficiency` is the fraction reached. Figures are medians
after the warm-up, of the slowest process, because a step ends when all have its gradients. Before that, a few steps of
an effective batch are shared by all GPUs and their losses compared with those of one GPU.

Reads   nothing
Writes  benchmarks/results/train_scaling_<device>.json
Exit    0 done; 2 something to fix; 3 the losses are not those of one GPU
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _random_mistral import (
    REPOSITORY,
    SHAPES,
    WARM_UP_STEPS,
    environment,
    make_model,
    measured,
    peaks,
    random_examples,
    results_file,
    steps_to_take,
    train_timed,
)
from _reuse import Snapshot, free_memory

from tool_aware.config.settings import Config, load_config
from tool_aware.console import GateFailed, UserError, run, say, table
from tool_aware.files import write_json
from tool_aware.training.distributed import Processes, joined

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PREFIX_TOKENS, QUERY_TOKENS, ANSWER_TOKENS = 260, 24, 80
SAME_BATCH, SAME_BATCH_STEPS = 32, 4  # examples of an effective batch and steps that every number of GPUs takes
SAME_LOSS = 2e-3  # relative; in 16 bit a pack of other examples rounds otherwise
CASES: dict[str, tuple[int, dict[str, str]]] = {  # examples per GPU and step, overrides of config.yaml
    "ours-32": (32, {}),
    "ours-64": (64, {}),
    "ours-64-free": (64, {"optimization.gradient_checkpointing": "false"}),
    "transformers-32": (32, {"optimization.decoder": "transformers"}),
    "sharded-32": (32, {"optimization.decoder": "transformers", "optimization.shard_base": "true"}),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Start the processes for each number of GPUs and compare what they found."""
    arguments = parse_arguments(argv)
    if arguments.child:
        with joined() as processes:
            found = measure(arguments, processes)
        if processes.is_first:
            print(json.dumps(found), flush=True)
        return 0
    model_dir = Path(arguments.model_dir or tempfile.mkdtemp(prefix="random-mistral-"))
    if not (model_dir / "config.json").is_file():
        make_model(model_dir, arguments.preset, arguments.layers)
        free_memory()
    runs = [start(arguments, model_dir, int(gpus)) for gpus in arguments.gpus.split(",")]
    rows = [{**row, "gpus": found["gpus"]} for found in runs for row in found["rows"]]
    for row in rows:
        alone = next(other for other in rows if other["case"] == row["case"])
        row["efficiency"] = round(row["examples_per_s"] / alone["examples_per_s"] / (row["gpus"] / alone["gpus"]), 3)
    difference = loss_difference([found["losses"] for found in runs])
    print(report(rows))
    print(f"losses of {SAME_BATCH_STEPS} equal steps: within {difference:.1e} of each other, relative")
    origin = environment()
    output = arguments.output or results_file("train_scaling", origin["device"])
    found = {"loss_difference": difference, "losses": {run_["gpus"]: run_["losses"] for run_ in runs}, "rows": rows}
    write_json(output, {"preset": arguments.preset, **origin, **found})
    if difference > SAME_LOSS:
        raise GateFailed(f"the losses differ by {difference:.1e}, more than {SAME_LOSS:.0e}", where=str(output))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", default="1,2", metavar="N,M", help="how many at a time (default: %(default)s)")
    parser.add_argument("--cases", default="ours-32,sharded-32", metavar="A,B", help=f"some of {', '.join(CASES)}")
    parser.add_argument("--steps", type=int, default=12, help="measured steps (default: %(default)s)")
    parser.add_argument("--preset", choices=SHAPES, default="7b", help="shape of the model (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="fewer layers than the preset has")
    parser.add_argument("--model-dir", metavar="DIR", help="keep the random weights here and use them again")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of benchmarks/results/...")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def start(arguments: argparse.Namespace, model_dir: Path, gpus: int) -> dict[str, Any]:
    """Run the cases in `gpus` processes under torchrun and return what the first one printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)] if gpus > 1 else []
    options = ["--cases", arguments.cases, "--steps", str(arguments.steps), "--model-dir", str(model_dir), "--child"]
    say(f"{gpus} GPU{'s' * (gpus > 1)}")
    command = [sys.executable, *launcher, __file__, *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"{gpus} processes left with {done.returncode}; their message is above", where=command[-1])
    return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


# ---- in every process ---------------------------------------------------------------------------------------


def measure(arguments: argparse.Namespace, processes: Processes) -> dict[str, Any]:
    """Train every case on one base model; returns the losses of the equal steps and a row for each case."""
    from tool_aware.model.base import load_base_model
    from tool_aware.training.sharding import load_sharded_base

    shared = config_of(arguments, SAME_BATCH // processes.count, SAME_BATCH_STEPS, {})
    base = load_base_model(shared.model, shared.quantization)
    saved = Snapshot(base)
    losses = train_case(base, shared, processes)["losses"]
    saved.restore()
    free_memory()
    rows = []
    for name in sorted(arguments.cases.split(","), key=lambda name: "sharded" in name):  # which reload the base model
        examples, overrides = CASES[name]
        config = config_of(arguments, examples, steps_to_take(arguments.steps), overrides)
        if config.optimization.shard_base and processes.count > 1:
            base = load_sharded_base(config.model, config.quantization, processes)
            saved = Snapshot(base)
            free_memory()  # 4-bit weights and their modules refer to each other: the old base waits for the collector
        rows.append({"case": name, **train_case(base, config, processes)})
        saved.restore()
        free_memory()
    return {"gpus": processes.count, "losses": losses, "rows": rows}


def config_of(arguments: argparse.Namespace, examples: int, steps: int, overrides: dict[str, str]) -> Config:
    """Return the shipped config for `steps` steps of `examples` examples on each GPU."""
    settings = {
        "model.name": arguments.model_dir,
        "training.per_device_train_batch_size": examples,
        "training.max_steps": steps,
        "training.save_steps": 10 * steps,
        "training.output_dir": tempfile.mkdtemp(prefix="scaling-"),
        **overrides,
    }
    return load_config(REPOSITORY / "config.yaml", [f"{key}={value}" for key, value in settings.items()])


def train_case(base: PreTrainedModel, config: Config, processes: Processes) -> dict[str, Any]:
    """Train one case and return its figures, the same on every process."""
    import torch

    from tool_aware.model.adapter import new_adapter, prepare_for_training

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    model = new_adapter(base, config)
    prepare_for_training(model, config)
    batch, steps = config.training.per_device_train_batch_size * processes.count, config.training.max_steps
    examples = random_examples(batch * steps, prefix=PREFIX_TOKENS, query=QUERY_TOKENS, answer=ANSWER_TOKENS)
    timed = train_timed(model, config, examples, processes)
    slowest = [max(step) for step in zip(*processes.gather(measured(timed.seconds)), strict=True)]
    figures = {"examples_per_step": batch, "losses": [round(loss, 6) for loss in timed.losses], **peaks()}
    if not slowest:
        return figures
    median_s = statistics.median(slowest)
    return {
        **figures,
        "seconds_per_step": round(median_s, 4),
        "examples_per_s": round(batch / median_s, 2),
        "spread_percent": round(100 * (max(slowest) - min(slowest)) / median_s, 1),
        "warm_up_s": round(sum(timed.seconds[:WARM_UP_STEPS]), 1),
    }


# ---- what comes out -----------------------------------------------------------------------------------------


def loss_difference(losses: Sequence[Sequence[float]]) -> float:
    """Return the largest relative difference to the first, step by step."""
    return max(abs(loss - first) / first for other in losses for loss, first in zip(other, losses[0], strict=True))


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the table of docs/BENCHMARKS.md."""
    headers = ("case", "GPUs", "examples a step", "s/step", "spread %", "examples/s", "efficiency", "allocated GiB")
    keys = (
        "case", "gpus", "examples_per_step", "seconds_per_step", "spread_percent", "examples_per_s", "efficiency",
        "allocated_gib",
    )  # fmt: skip
    return table(headers, [[row[key] for key in keys] for row in rows])


if __name__ == "__main__":
    run(main)
