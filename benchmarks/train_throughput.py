"""Measure examples a second and memory of several ways to train.

    python benchmarks/train_throughput.py                                  # needs a GPU with 80 GB; about 8 minutes
    python benchmarks/train_throughput.py --rows stock,ours-33             # some rows only
    python benchmarks/train_throughput.py --preset tiny --steps 2          # a smoke test without a GPU

Every row of the table is a process of its own on the same random weights, token ids and labels. An example has 260
shared tokens, a query of 24 and an answer of 80. The loss of the first examples is computed before any step and must be
equal in all, so that all compute the same. Figures are medians of the steps after the warm-up but the last; the
spread is from the fastest of them to the slowest. `allocated` and `reserved` are torch's peaks, `NVML` is what
nvidia-smi shows for the process.

Reads   nothing
Writes  benchmarks/results/train_throughput_<device>.json
Exit    0 done; 2 something to fix; 3 the losses differ
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    synchronised,
    train_timed,
)

from tool_aware.chat_format import EncodedExample
from tool_aware.config.settings import Config, load_config
from tool_aware.console import GateFailed, run, say, table
from tool_aware.files import write_json

PREFIX_TOKENS, QUERY_TOKENS, ANSWER_TOKENS = 260, 24, 80
SAME_ROWS, SAME_LOSS = 8, 2e-3  # rows whose untrained loss must agree between the stacks; relative, for bf16
SHORT_RUN_EXAMPLES, SHORT_RUN_EPOCHS = 96, 3  # of the rows "-short": a whole run, from its start to the saved adapter
# name -> (stack, examples per optimizer step, overrides of config.yaml)
KEEP = "optimization.kept_layers"
NO_CHECKPOINTS = {"optimization.gradient_checkpointing": "false"}
OFFLOAD = {"optimization.offload": "true"}
ROWS: dict[str, tuple[str, int, dict[str, str]]] = {
    "stock": ("stock", 8, {"training.per_device_train_batch_size": "1"}),
    "stock-padded": ("stock", 16, {"training.per_device_train_batch_size": "16"}),
    "unsloth": ("unsloth", 24, {"training.per_device_train_batch_size": "24"}),
    "transformers-8": ("ours", 8, {"optimization.decoder": "transformers"}),
    "transformers-32": ("ours", 32, {"optimization.decoder": "transformers"}),
    "stock-short": ("stock", 8, {"training.per_device_train_batch_size": "1"}),
    "ours-short": ("ours", 8, {}),
    "ours-8": ("ours", 8, {}),
    "ours-8-kept-2": ("ours", 8, {KEEP: "2"}),
    "ours-8-kept-12": ("ours", 8, {KEEP: "12"}),
    "ours-8-launched": ("ours", 8, {"optimization.cuda_graphs": "false"}),
    "ours-32-16bit": ("ours", 32, {"quantization.load_in_4bit": "false"}),
    "ours-32-16bit-launched": ("ours", 32, {"quantization.load_in_4bit": "false", "optimization.cuda_graphs": "false"}),
    "ours-16": ("ours", 16, {}),
    "ours-33": ("ours", 33, {}),
    "ours-33-offload": ("ours", 33, OFFLOAD),
    "ours-33-offload-kept-5": ("ours", 33, {**OFFLOAD, KEEP: "5"}),
    "ours-64-offload": ("ours", 64, OFFLOAD),
    "ours-64-offload-kept-2": ("ours", 64, {**OFFLOAD, KEEP: "2"}),
    "ours-64": ("ours", 64, {}),
    "ours-33-free": ("ours", 33, NO_CHECKPOINTS),
    "ours-64-free": ("ours", 64, NO_CHECKPOINTS),
    "ours-64-free-cached": ("ours", 64, {**NO_CHECKPOINTS, "optimization.cached_layers": "32"}),
    "ours-128-free-cached": ("ours", 128, {**NO_CHECKPOINTS, "optimization.cached_layers": "32"}),
    "ours-192-free-cached": ("ours", 192, {**NO_CHECKPOINTS, "optimization.cached_layers": "32"}),
    "ours-64-free-16bit": ("ours", 64, {**NO_CHECKPOINTS, "quantization.load_in_4bit": "false"}),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rows one after the other, each in a process, and print the table."""
    arguments = parse_arguments(argv)
    if arguments.child:
        print(json.dumps(measure(arguments)))
        return 0
    model_dir = Path(arguments.model_dir or tempfile.mkdtemp(prefix="random-mistral-"))
    if not (model_dir / "config.json").is_file():
        subprocess.run([*command_line(arguments, model_dir), "--child", "make-model"], check=True)
    origin = environment()
    output = arguments.output or results_file("train_throughput", origin["device"])
    rows = []
    for name in arguments.rows.split(","):
        command = [*command_line(arguments, model_dir), "--child", name, "--started", str(time.time())]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        figures = json.loads(result.stdout.splitlines()[-1]) if result.returncode == 0 else {"failed": True}
        rows.append({"row": name, **figures})
        say(json.dumps(rows[-1]))
        write_json(output, {"preset": arguments.preset, "set": arguments.set, **origin, "rows": rows})
    print(report(rows))
    demand_equal_losses(rows)
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=SHAPES, default="7b", help="shape of the model (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="fewer layers than the preset has")
    parser.add_argument("--rows", default=",".join(ROWS), metavar="A,B", help=f"which rows: {', '.join(ROWS)}")
    parser.add_argument("--steps", type=int, default=8, help="measured steps (default: %(default)s)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="another setting, for all rows that are run"
    )
    parser.add_argument("--model-dir", metavar="DIR", help="keep the random weights here and use them again")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of benchmarks/results/...")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def command_line(arguments: argparse.Namespace, model_dir: Path) -> list[str]:
    """Repeat this call for a child process."""
    options = ["--preset", arguments.preset, "--steps", str(arguments.steps), "--model-dir", str(model_dir)]
    if arguments.layers:
        options += ["--layers", str(arguments.layers)]
    options += [part for setting in arguments.set for part in ("--set", setting)]
    return [sys.executable, __file__, *options]


# ---- one row, in a process of its own -------------------------------------------------------------------


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the model, or run one row and return its figures."""
    if arguments.child == "make-model":
        make_model(Path(arguments.model_dir), arguments.preset, arguments.layers)
        return {}
    stack, batch, overrides = ROWS[arguments.child]
    settings = {"model.name": arguments.model_dir, "training.per_device_train_batch_size": str(batch), **overrides}
    is_short_run = arguments.child.endswith("-short")
    steps = SHORT_RUN_EXAMPLES * SHORT_RUN_EPOCHS // batch if is_short_run else steps_to_take(arguments.steps)
    settings |= {"training.max_steps": str(steps), "training.save_steps": str(10 * steps)}
    settings["training.output_dir"] = tempfile.mkdtemp(prefix="throughput-")
    config = load_config(
        REPOSITORY / "config.yaml", [f"{key}={value}" for key, value in settings.items()] + arguments.set
    )
    examples = make_examples(SHORT_RUN_EXAMPLES) * SHORT_RUN_EPOCHS if is_short_run else make_examples(batch * steps)
    stacks: dict[str, Callable[..., Iterator[Any]]] = {"ours": ours, "stock": stock, "unsloth": unsloth}
    loss_before, *timed = stacks[stack](config, examples, batch)
    seconds = [step.seconds for step in measured(timed)]
    median_s = statistics.median(seconds)
    return {
        "examples_per_step": batch,
        "loss_before": round(loss_before, 5),
        "first_loss": round(timed[0].loss, 5),
        "seconds_per_step": round(median_s, 4),
        "examples_per_s": round(batch / median_s, 2),
        "useful_tokens_per_s": round(batch * (QUERY_TOKENS + ANSWER_TOKENS) / median_s),
        "computed_tokens_per_s": round(timed[-1].tokens / median_s),
        "spread_percent": round(100 * (max(seconds) - min(seconds)) / median_s, 1),
        "warm_up_s": round(sum(step.seconds for step in timed[:WARM_UP_STEPS]), 1),
        "whole_process_s": round(time.time() - arguments.started, 1),
        **peaks(),
    }


def make_examples(count: int) -> list[EncodedExample]:
    """Draw the token ids that every stack trains on."""
    return random_examples(count, prefix=PREFIX_TOKENS, query=QUERY_TOKENS, answer=ANSWER_TOKENS)


# ---- the stacks: each yields the untrained loss of the first rows, then a Step for every optimizer step --


class Step(NamedTuple):
    """One optimizer step: its time and loss."""

    seconds: float
    loss: float
    tokens: int  # computed, padding and what rows share included as often as it was


def ours(config: Config, examples: list[EncodedExample], batch: int) -> Iterator[Any]:
    """Train with this toolkit, as train_tool_aware.py does."""
    from tool_aware.model.adapter import new_adapter, prepare_for_training
    from tool_aware.model.base import in_training_precision, load_base_model

    config = in_training_precision(config)
    model = new_adapter(load_base_model(config.model, config.quantization), config)
    prepare_for_training(model, config)
    timed = train_timed(model, config, examples, compare=SAME_ROWS)
    model.save_pretrained(config.training.output_dir)
    yield timed.loss_before
    yield from map(Step, timed.seconds, timed.losses, timed.tokens)


def stock(config: Config, examples: list[EncodedExample], batch: int) -> Iterator[Any]:
    """Train by the usual recipe: peft's float32 preparation, dropout, autocast, paged 8-bit AdamW, all logits."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    from tool_aware.model.base import load_base_model

    base = prepare_model_for_kbit_training(
        load_base_model(config.model, config.quantization), gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    settings = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear")
    model = get_peft_model(base, settings)
    yield from plain_loop(model, paged_adamw(model), examples, batch, config.training.per_device_train_batch_size)
    model.save_pretrained(config.training.output_dir)


def unsloth(config: Config, examples: list[EncodedExample], batch: int) -> Iterator[Any]:
    """Train with Unsloth's patched model and checkpointing in the same loop; needs the package."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(
        config.model.name, max_seq_length=2048, load_in_4bit=True, fix_tokenizer=False
    )
    model = FastLanguageModel.get_peft_model(
        model, r=8, lora_alpha=16, lora_dropout=0, use_gradient_checkpointing="unsloth",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    )  # fmt: skip
    yield from plain_loop(model, paged_adamw(model), examples, batch, config.training.per_device_train_batch_size)


def paged_adamw(model: Any) -> Any:
    """Make the optimizer that QLoRA recipes use."""
    import bitsandbytes

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return bitsandbytes.optim.PagedAdamW8bit(trained, lr=2e-4)


def plain_loop(
    model: Any, optimizer: Any, examples: list[EncodedExample], batch: int, micro_batch: int
) -> Iterator[Any]:
    """Train on padded rows with autocast and accumulation; the loss is the mean over the step's labels."""
    import torch

    from tool_aware.model.base import device

    def mean_loss(part: list[EncodedExample]) -> torch.Tensor:
        ids = torch.tensor([example.input_ids for example in part], device=device())
        labels = torch.tensor([example.labels for example in part], device=device())
        with torch.autocast(device().type, dtype=torch.bfloat16):
            return model(input_ids=ids, labels=labels, use_cache=False).loss

    model.eval()
    with torch.no_grad():
        yield statistics.mean(mean_loss([example]).item() for example in examples[:SAME_ROWS])
    model.train()
    for start in range(0, len(examples), batch):
        began_s = synchronised()
        step = examples[start : start + batch]
        total = 0.0
        for first in range(0, batch, micro_batch):
            part = step[first : first + micro_batch]
            loss = mean_loss(part) * len(part) / batch  # all answers are of one length
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield Step(synchronised() - began_s, total, sum(map(len, step)))


# ---- what comes out -------------------------------------------------------------------------------------


def report(rows: list[dict[str, Any]]) -> str:
    """Lay out the table of docs/BENCHMARKS.md."""
    keys = (
        "examples_per_step",
        "loss_before",
        "examples_per_s",
        "spread_percent",
        "allocated_gib",
        "reserved_gib",
        "nvml_gib",
    )
    headers = ("row", "examples", "loss before", "examples/s", "spread %", "allocated", "reserved", "NVML GiB")
    return table(headers, [(row["row"], *(row.get(key, "failed") for key in keys)) for row in rows])


def demand_equal_losses(rows: list[dict[str, Any]]) -> None:
    """Raise GateFailed unless all rows begin at the same loss, that is, compute the same."""
    losses = {row["row"]: row["loss_before"] for row in rows if "loss_before" in row}
    if losses and max(losses.values()) - min(losses.values()) > SAME_LOSS * min(losses.values()):
        raise GateFailed(f"the stacks do not compute the same loss of the first {SAME_ROWS} rows: {losses}")


if __name__ == "__main__":
    run(main)
