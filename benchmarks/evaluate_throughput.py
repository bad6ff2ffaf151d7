#!/usr/bin/env python3
"""Measure the time to evaluate 500 rows: one by one with two loads, in batches with one load, and by choice only.

    python benchmarks/evaluate_throughput.py                          # needs a GPU with 40 GB free, and 15 GB of disk
    python benchmarks/evaluate_throughput.py --size tiny --rows 24    # a smoke test without a GPU

A 7B of random weights is written to a scratch folder, loaded from there as NF4 and given a random LoRA adapter. Random
weights never generate EOS, so every answer has exactly NEW_TOKENS tokens with every method. The one-by-one figure is
measured on a few rows and multiplied. Totals include loading.

Reads:  nothing. Writes: benchmarks/results/evaluate_throughput.json (--output). Exit codes: 0 done, 2 no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tool_aware.config.sections import ModelSection, QuantizationSection
from tool_aware.console import UserError, run, say, table
from tool_aware.inference.generation import Generation, generate
from tool_aware.inference.name_scores import score_names
from tool_aware.model.base import load_base_model

PREFIX_TOKENS, TAIL_TOKENS, NEW_TOKENS = 260, (8, 48), 80  # the tool task: tools, query, answer
NAME_TOKENS = {"rag_retrieval": 5, "web_search": 4, "code_execution": 4, "direct_chat": 4}
NEVER = -1  # an EOS id that no model generates
SIZES = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def main() -> int:
    """Measure, print a table, write JSON."""
    import torch

    args = parse_arguments()
    if args.size == "7b" and not torch.cuda.is_available():
        raise UserError("no GPU", fix="--size tiny --rows 24 runs everywhere")
    prompts, names = make_prompts(args.rows), make_names()
    with tempfile.TemporaryDirectory() as folder:
        say(f"writing random {args.size} weights")
        write_random_model(Path(folder), args.size)
        base, load_s = timed(lambda: load_base_model(ModelSection(name=folder), QuantizationSection()))
        say(f"loaded in {load_s:.1f} s")
    model = add_random_adapter(base)
    result: dict[str, Any] = {"rows": args.rows, "new_tokens": NEW_TOKENS, "load_s": load_s, **describe_machine()}
    result["one_by_one"] = measure_one_by_one(model, prompts, args.reference_rows)
    variants = [(128, True)] if args.quick else [(128, True), (128, False), (64, True), (16, True)]
    if not torch.cuda.is_available():
        variants = [(size, graph) for size, graph in variants if graph]  # there is nothing to leave out
    result["generate"] = [measure_generate(model, prompts, size, graph) for size, graph in variants]
    result["choice"] = [measure_choice(model, prompts, names, size) for size in (64, 128)]
    result["agreement"] = measure_agreement(model, prompts[: args.reference_rows], result["one_by_one"].pop("answers"))
    result["float32_equal"] = answers_equal_in_float32(prompts[:16])
    add_speedups(result)
    print(report(result))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="7b")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--reference-rows", type=int, default=4, help="rows actually generated one by one, per system")
    parser.add_argument("--quick", action="store_true", help="batches of 128 with CUDA graphs only")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "evaluate_throughput.json")
    args = parser.parse_args()
    return args


# ---- material ---------------------------------------------------------------------------------------------


def make_prompts(rows: int) -> list[list[int]]:
    """Return prompts of random ids that share their first PREFIX_TOKENS."""
    rng = random.Random(0)
    prefix = [rng.randrange(3, 32000) for _ in range(PREFIX_TOKENS)]
    return [prefix + [rng.randrange(3, 32000) for _ in range(rng.randint(*TAIL_TOKENS))] for _ in range(rows)]


def make_names() -> dict[str, list[int]]:
    """Return random ids for the tokens of the tool names."""
    rng = random.Random(1)
    return {name: [rng.randrange(3, 32000) for _ in range(count)] for name, count in NAME_TOKENS.items()}


def random_model(size: str, dtype: Any) -> Any:
    """Return a model of the Mistral-7B-v0.2 architecture, or a tiny one, with random weights."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=32000, max_position_embeddings=32768, sliding_window=None, rope_theta=1e6, **SIZES[size]
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return MistralForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def write_random_model(folder: Path, size: str) -> None:
    """Save random bf16 weights, so that loading is part of the measurement."""
    import torch

    random_model(size, torch.bfloat16).save_pretrained(folder)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def add_random_adapter(base: Any) -> Any:
    """Add LoRA of rank 8 on all linear layers, with both matrices random."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    return get_peft_model(base, settings).eval()


# ---- measurements -----------------------------------------------------------------------------------------


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """Run something and time it, to the end of its last kernel."""
    import torch

    started_s = time.perf_counter()
    value = action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return value, time.perf_counter() - started_s


@contextlib.contextmanager
def system(model: Any, name: str) -> Iterator[Any]:
    """Run the block with the model as base (adapter off) or tuned (adapter on)."""
    with model.disable_adapter() if name == "base" else contextlib.nullcontext():
        yield model


def measure_one_by_one(model: Any, prompts: list[list[int]], reference_rows: int) -> dict[str, Any]:
    """Time greedy `model.generate`, one row at a time, as a plain evaluation loop does."""
    import torch

    def answer(model: Any, prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt], device=model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            pad_token_id=0,
            eos_token_id=2,
        )
        return output[0, len(prompt) :].tolist()

    seconds, answers = {}, {}
    for name in ("base", "tuned"):
        with system(model, name), torch.no_grad():
            answer(model, prompts[0])  # warm-up
            answers[name], total_s = timed(lambda: [answer(model, prompt) for prompt in prompts[:reference_rows]])
        seconds[name] = total_s / reference_rows
        say(f"one by one, {name}: {seconds[name]:.2f} s per row")
    return {"seconds_per_row": seconds, "answers": answers}


def collect(model: Any, prompts: list[list[int]], batch_size: int, *, graph: bool = True) -> list[Generation]:
    """Return the answers of the toolkit's generation, in order."""
    answers = {}
    for batch in generate(
        model, prompts, eos_id=NEVER, max_new_tokens=NEW_TOKENS, batch_size=batch_size, uses_cuda_graph=graph
    ):
        answers |= dict(batch)
    return [answers[index] for index in range(len(prompts))]


def measure_generate(model: Any, prompts: list[list[int]], batch_size: int, graph: bool) -> dict[str, Any]:
    """Time all rows for base and tuned, capture of the CUDA graphs included."""
    import torch

    row: dict[str, Any] = {"batch_size": batch_size, "cuda_graph": graph, "seconds": {}}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for name in ("base", "tuned"):
        with system(model, name):
            _, row["seconds"][name] = timed(lambda: collect(model, prompts, batch_size, graph=graph))
    if torch.cuda.is_available():
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    say(f"batches of {batch_size}, graph {graph}: {row['seconds']}")
    return row


def measure_choice(
    model: Any, prompts: list[list[int]], names: dict[str, list[int]], batch_size: int
) -> dict[str, Any]:
    """Time choice-only scoring of all rows for base and tuned."""
    row: dict[str, Any] = {"batch_size": batch_size, "seconds": {}}
    for name in ("base", "tuned"):
        with system(model, name):
            _, row["seconds"][name] = timed(lambda: list(score_names(model, prompts, names, batch_size=batch_size)))
    say(f"choice only, batches of {batch_size}: {row['seconds']}")
    return row


def measure_agreement(model: Any, prompts: list[list[int]], reference: dict[str, list[list[int]]]) -> dict[str, float]:
    """Return the share of tokens before the first that differs from one-by-one generation.

    Below 1 in 16-bit: kernels for other batch sizes round differently, and random weights have near-ties everywhere.
    """
    shares = {}
    for name, expected in reference.items():
        with system(model, name):
            ours = [answer.ids for answer in collect(model, prompts, 128)]
        same = [
            next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), len(x))
            for x, y in zip(ours, expected, strict=True)
        ]
        shares[name] = sum(same) / (len(same) * NEW_TOKENS)
    return shares


def answers_equal_in_float32(prompts: list[list[int]]) -> bool:
    """Compare with one-by-one generation where rounding does not decide: a small float32 model, TF32 off."""
    import torch

    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    model = add_random_adapter(random_model("tiny", torch.float32))
    ours = [answer.ids for answer in collect(model, prompts, 8)]
    reference = measure_one_by_one(model, prompts, len(prompts))["answers"]["tuned"]
    torch.set_float32_matmul_precision(precision)
    return ours == reference


# ---- report -----------------------------------------------------------------------------------------------


def describe_machine() -> dict[str, str]:
    """Return device and versions."""
    import bitsandbytes
    import peft
    import torch
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    versions = {module.__name__: module.__version__ for module in (torch, transformers, peft, bitsandbytes)}
    return {"device": device, "versions": versions}


def add_speedups(result: dict[str, Any]) -> None:
    """Fill in totals (loads included) and how many times faster than one by one each is."""
    rows, load_s = result["rows"], result["load_s"]
    slow = result["one_by_one"]
    slow["total_s"] = 2 * load_s + rows * sum(slow["seconds_per_row"].values())
    for row in [*result["generate"], *result["choice"]]:
        row["total_s"] = load_s + sum(row["seconds"].values())
        row["speedup"] = slow["total_s"] / row["total_s"]


def report(result: dict[str, Any]) -> str:
    """Return the table."""
    slow = result["one_by_one"]
    lines = [["one by one, two loads", "", "", "", f"{slow['total_s']:,.0f}", "1", ""]]
    for kind in ("generate", "choice"):
        for row in result[kind]:
            name = f"{kind}, batches of {row['batch_size']}" + (", no graph" if row.get("cuda_graph") is False else "")
            seconds = row["seconds"]
            peak = f"{row['peak_gib']:.1f}" if "peak_gib" in row else ""
            lines.append(
                [
                    name,
                    f"{result['load_s']:.1f}",
                    f"{seconds['base']:.1f}",
                    f"{seconds['tuned']:.1f}",
                    f"{row['total_s']:.1f}",
                    f"{row['speedup']:.0f}",
                    peak,
                ]
            )
    headers = ["method", "load s", "base s", "tuned s", "total s", "times faster", "peak GiB"]
    agreement = ", ".join(f"{name} {share:.2f}" for name, share in result["agreement"].items())
    return "\n".join(
        [
            f"{result['rows']} rows, {NEW_TOKENS} new tokens each, base and tuned, on {result['device']}",
            table(headers, lines),
            f"tokens before the first that differs from one-by-one generation (random weights): {agreement}",
            f"float32 answers equal one-by-one generation token for token: {result['float32_equal']}",
        ]
    )


if __name__ == "__main__":
    run(main)
