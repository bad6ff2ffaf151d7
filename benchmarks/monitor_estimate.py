"""Compare the memory formula with the training step traced on tensors without data; no GPU needed.

    python benchmarks/monitor_estimate.py             # 72 configurations, about 3 minutes
    python benchmarks/monitor_estimate.py --every 5

Sequences of 256 to 8,192 tokens, batches of 1 to 64, r of 4 to 64, all or some linear layers, with and without
checkpointing, packing and accumulation, 4-, 8- and 16-bit weights, shapes from 1 to 12 billion weights.

Reads   config.yaml
Writes  benchmarks/results/monitor_estimate.json
Exit    0 all within 3 %; 3 not
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_REPOSITORY))

from tool_aware.config.settings import load_config  # noqa: E402
from tool_aware.console import GateFailed, Progress, run, say  # noqa: E402
from tool_aware.files import write_json  # noqa: E402
from tool_aware.memory.architectures import PRESETS  # noqa: E402
from tool_aware.memory.estimate import estimate_training  # noqa: E402
from tool_aware.memory.spec import TrainingSpec  # noqa: E402
from tool_aware.memory.trace import trace_step  # noqa: E402
from tool_aware.units import GIB  # noqa: E402

RESULT = _REPOSITORY / "benchmarks" / "results" / "monitor_estimate.json"
LIMIT = 0.03
SEVEN, ONE = "mistral-7b-v0.2", "tinyllama-1.1b"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TOOL_TASK = {"seq_length": 364, "packing": "prefix", "prefix_tokens": 260, "answer_tokens": 80}


PADDED = {"packing": "none", "decoder": "transformers"}


def grid() -> Iterator[TrainingSpec]:
    """Yield the configurations: packs through the toolkit's own decoder, and the rest through transformers'."""

    def spec(preset: str = SEVEN, **values: Any) -> TrainingSpec:
        return TrainingSpec(PRESETS[preset], **values)

    for preset in (SEVEN, ONE, "llama-3-8b", "qwen-2.5-7b", "mistral-nemo"):
        yield from (spec(preset, seq_length=tokens) for tokens in (256, 1024, 2048, 8192))
    for rank in (4, 16, 64):
        yield from (spec(lora_r=rank, seq_length=tokens) for tokens in (256, 2048))
    for targets in (ATTENTION, ("q_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")):
        yield spec(targets=targets)
        yield spec(ONE, targets=targets, checkpointing=False)
        yield spec(ONE, targets=targets, checkpointing=False, **PADDED)
    for preset in (SEVEN, ONE):
        yield from (spec(preset, seq_length=tokens, checkpointing=False) for tokens in (512, 2048))
        yield from (spec(preset, batch_size=rows, **TOOL_TASK) for rows in (8, 32, 64))
        yield spec(preset, batch_size=16, accumulation=4, **TOOL_TASK)
        yield spec(preset, batch_size=16, kept_layers=1, **TOOL_TASK)
        yield spec(preset, batch_size=16, cached_layers=PRESETS[preset].layers, **TOOL_TASK)
        yield spec(preset, batch_size=8, seq_length=512, packing="block")
        yield spec(preset, quantization="none", seq_length=1024)
        yield spec(preset, quantization="8bit", seq_length=1024)
        yield spec(preset, batch_size=2, seq_length=512, **PADDED)
        yield spec(preset, batch_size=4, seq_length=2048, **PADDED)
        yield spec(preset, seq_length=512, checkpointing=False, **PADDED)
        yield spec(preset, batch_size=32, decoder="transformers", **TOOL_TASK)
        yield spec(preset, attention="eager", **PADDED)
    yield spec(quantization="8bit", targets=ATTENTION)
    yield spec(double_quantization=False)
    yield from (spec("llama-3-8b", answer_tokens=labels) for labels in (512, 1024, 2000))


def main(argv: Sequence[str] | None = None) -> int:
    """Trace and estimate each configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th configuration only")
    arguments = parser.parse_args(argv)
    specs = list(grid())[:: arguments.every]
    config = load_config(_REPOSITORY / "config.yaml")
    progress, rows = Progress("configurations", len(specs)), []
    for number, spec in enumerate(specs, start=1):
        traced = trace_step(spec, config).peak_bytes
        estimate = estimate_training(spec)
        rows.append({
            **asdict(spec), "architecture": spec.architecture.name, "peaks_in": estimate.peaks_in,
            "traced_gib": round(traced / GIB, 4), "formula_gib": round(estimate.tensor_bytes / GIB, 4),
            "error": round(estimate.tensor_bytes / traced - 1, 5),
        })  # fmt: skip
        progress.update(number)
    progress.close()
    errors = [abs(row["error"]) for row in rows]
    mean, worst = sum(errors) / len(errors), max(errors)
    write_json(RESULT, {"configurations": len(rows), "mean_error": mean, "worst_error": worst, "rows": rows})
    print(f"{len(rows)} configurations: mean error {mean:.2%}, worst {worst:.2%}")
    say(f"wrote {RESULT.relative_to(_REPOSITORY)}")
    if worst > LIMIT:
        raise GateFailed(f"formula and traced step differ by more than {LIMIT:.0%}")
    return 0


if __name__ == "__main__":
    run(main)
