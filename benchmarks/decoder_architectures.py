"""Measure the toolkit's own decoder against transformers' pass on the families that it covers.

    python benchmarks/decoder_architectures.py            # needs a GPU with 24 GB and 8 GB of disk; about 3 minutes
    python benchmarks/decoder_architectures.py --shapes qwen3-8b --layers 12
    python benchmarks/decoder_architectures.py --tiny     # a smoke test without a GPU

Models have the published widths and random weights in NF4, LoRA r=8 on all linear layers. A step is 16 examples of the
tool task: 260 shared tokens, a query of 24, an answer of 80. To fit the time, a model has `--layers` layers. Its step
is timed with all of them and with the first quarter; the difference gives the time of one layer, which is extended to
the published depth. Both passes train the same weights on the same ids, and must agree on the untrained loss.

Reads   nothing
Writes  benchmarks/results/decoder_architectures_<device>.json
Exit    0 done; 2 something to fix; 3 the losses differ
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _random_mistral import (
    REPOSITORY,
    environment,
    measured,
    random_examples,
    results_file,
    steps_to_take,
    train_timed,
)
from train_throughput import ANSWER_TOKENS, PREFIX_TOKENS, QUERY_TOKENS, SAME_ROWS, demand_equal_losses

from tool_aware.config.settings import Config, load_config
from tool_aware.console import run, say, table
from tool_aware.files import write_json

EXAMPLES = 16
PASSES = {"own": "auto", "transformers": "transformers"}  # name -> optimization.decoder
# name -> model_type, published layers, widths; from each model's config.json on huggingface.co
SHAPES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mistral-7b": ("mistral", 32, {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 32000, "sliding_window": None, "rope_theta": 1e6,
    }),
    "qwen2.5-7b": ("qwen2", 28, {
        "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
        "vocab_size": 152064, "use_sliding_window": False, "rope_theta": 1e6,
    }),
    "qwen3-8b": ("qwen3", 36, {
        "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "use_sliding_window": False, "rope_theta": 1e6,
    }),
    "ministral-3-8b": ("ministral3", 34, {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 131072,
    }),
}  # fmt: skip
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32000,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every shape with both passes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES), metavar="A,B", help=f"which: {', '.join(SHAPES)}")
    parser.add_argument("--layers", type=int, default=8, help="layers of each model (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="measured steps (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="tiny widths, to try the script without a GPU")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of benchmarks/results/...")
    arguments = parser.parse_args(argv)
    origin = environment()
    output = arguments.output or results_file("decoder_architectures", origin["device"])
    rows: list[dict[str, Any]] = []
    for name in arguments.shapes.split(","):
        rows += measure(name, arguments.layers, arguments.steps, is_tiny=arguments.tiny)
        settings = {"examples": EXAMPLES, "layers": arguments.layers, "is_tiny": arguments.tiny}
        write_json(output, {**settings, **origin, "rows": rows})
    print(report(rows))
    for name in arguments.shapes.split(","):
        demand_equal_losses([row for row in rows if row["shape"] == name])
    return 0


def measure(name: str, layers: int, steps: int, *, is_tiny: bool) -> list[dict[str, Any]]:
    """Write a model of random weights, load it in NF4 and time both passes on it; return a row for each."""
    from tool_aware.model.base import load_base_model

    folder = Path(tempfile.mkdtemp(prefix="random-model-"))
    try:
        make_model(folder, name, layers, is_tiny=is_tiny)
        config = load_config(REPOSITORY / "config.yaml", [f"model.name={folder}", f"training.output_dir={folder}/out"])
        base: Any = load_base_model(config.model, config.quantization)
        few = max(1, layers // 4)
        timed: dict[tuple[str, int], dict[str, Any]] = {}
        rows = []
        for depth in (layers, few):
            base.model.layers = base.model.layers[:depth]
            base.config.num_hidden_layers = depth
            for own, decoder in PASSES.items():
                timed[own, depth] = time_steps(base, config, decoder, steps)
        for own in PASSES:
            rows.append(row_of(name, own, {depth: timed[own, depth] for depth in (layers, few)}))
            say(json.dumps(rows[-1]))
        return rows
    finally:
        base = None
        release()
        shutil.rmtree(folder, ignore_errors=True)


def make_model(folder: Path, name: str, layers: int, *, is_tiny: bool) -> None:
    """Write the model of a shape with random weights in 16 bit."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, _, widths = SHAPES[name]
    own = {**widths, **TINY} if is_tiny else widths
    settings = AutoConfig.for_model(family, **own, num_hidden_layers=layers, pad_token_id=0)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16).save_pretrained(folder)
    release()


def time_steps(base: Any, config: Config, decoder: str, steps: int) -> dict[str, Any]:
    """Train a new adapter on `base` for some steps; return the median of their times, the spread and the losses."""
    import torch

    from tool_aware.model.adapter import new_adapter, prepare_for_training

    count = steps_to_take(steps)
    settings = {
        "optimization.decoder": decoder,
        "training.per_device_train_batch_size": EXAMPLES,
        "training.gradient_accumulation_steps": 1,
        "training.max_steps": count,
        "training.save_steps": 10 * count,
    }
    config = config.with_settings(settings)
    examples = random_examples(EXAMPLES * count, prefix=PREFIX_TOKENS, query=QUERY_TOKENS, answer=ANSWER_TOKENS)
    model = new_adapter(base, config)
    prepare_for_training(model, config)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    timed = train_timed(model, config, examples, compare=SAME_ROWS)
    peak_gib = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    model.unload()
    del model
    release()
    seconds = measured(timed.seconds)
    return {
        "median_s": statistics.median(seconds),
        "spread_percent": round(100 * (max(seconds) - min(seconds)) / statistics.median(seconds), 1),
        "ran": timed.decoder,
        "loss_before": timed.loss_before,
        "allocated_gib": peak_gib and round(peak_gib, 2),
    }


def release() -> None:
    """Give back the memory of what is gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def row_of(name: str, own: str, by_depth: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of a shape under one pass, timed at two depths; times in milliseconds."""
    published, layers, few = SHAPES[name][1], max(by_depth), min(by_depth)
    all_, some = by_depth[layers], by_depth[few]
    per_layer_s = (all_["median_s"] - some["median_s"]) / (layers - few) if layers > few else all_["median_s"]
    whole_s = all_["median_s"] + (published - layers) * per_layer_s
    return {
        "row": f"{name} {own}",
        "shape": name,
        "pass": own,
        "ran": all_["ran"],
        "layers": layers,
        "step_ms": round(1000 * all_["median_s"], 1),
        "spread_percent": all_["spread_percent"],
        "layer_ms": round(1000 * per_layer_s, 3),
        "published_layers": published,
        "whole_step_ms": round(1000 * whole_s, 1),
        "loss_before": round(all_["loss_before"], 5),
        "allocated_gib": all_["allocated_gib"],
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Lay out the table of docs/BENCHMARKS.md."""
    by_pass = {(row["shape"], row["pass"]): row for row in rows}
    lines = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        own, other = by_pass[shape, "own"], by_pass[shape, "transformers"]
        times = (f"{own[key]} / {other[key]}" for key in ("step_ms", "layer_ms", "whole_step_ms", "allocated_gib"))
        gain = other["whole_step_ms"] / own["whole_step_ms"] if own["whole_step_ms"] > 0 else float("nan")
        lines.append((shape, own["ran"], str(own["layers"]), *times, f"{gain:.2f}"))
    headers = (
        *("shape", "own pass", "layers", "step ms, own / transformers'", "ms a layer", "ms at published depth", "GiB"),
        "times as fast",
    )
    return table(headers, lines)


if __name__ == "__main__":
    run(main)
