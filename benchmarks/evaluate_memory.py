"""Measure how much GPU memory evaluation takes.

    python benchmarks/evaluate_memory.py                  # needs a GPU with 24 GB; two minutes on an H200
    python benchmarks/evaluate_memory.py --preset 1b      # one shape only
    python benchmarks/evaluate_memory.py --preset tiny    # a smoke test without a GPU

Answers are generated, and tools scored, as evaluate.py does it, for prompts of random ids on random weights with an
adapter. One process loads a base model once for all its cases. `allocated` and `reserved` are torch's peaks, `NVML` is
what nvidia-smi shows at the end of a case, when what is reserved is at its peak.

Reads   nothing
Writes  benchmarks/results/evaluate_memory_<device>.json
Exit    0 done; 2 something to fix
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _memory_grid import ARCHITECTURES
from _random_mistral import REPOSITORY, SHAPES, VOCABULARY, environment, make_model, peaks, results_file
from _reuse import allocated_bytes, free_memory

from tool_aware.config.settings import load_config
from tool_aware.console import UserError, run, say, table
from tool_aware.files import write_json
from tool_aware.memory.measured import compare_evaluation, mean_and_worst

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

EOS_ID = 2
ANSWERED_TOKENS = 12  # every answer ends after so many; the buffers are as large as `new_tokens` asks all the same
SHORTER_TOKENS = 8  # by so much the second batch's prompts are shorter than the first one's: lengths differ in a run
NAMES = {"rag_retrieval": 5, "web_search": 4, "code_execution": 4, "direct_chat": 4}  # tokens of the tools' names
LEFT_BEHIND_BYTES = 2**20  # may stay allocated after a case: tables of a few KiB that libraries keep


@dataclass(frozen=True)
class Case:
    """What decides the memory of evaluation, named as in tool_aware.memory.evaluation_estimate. Lengths in tokens."""

    preset: str = "7b"
    quantization: str = "4bit"
    work: str = "answers"  # or "choices"
    batch_size: int = 16  # rows at once
    prompt_tokens: int = 320
    prefix_tokens: int = 260
    new_tokens: int = 256


def all_cases() -> Iterator[Case]:
    """Yield the shipped settings, and each of them varied."""
    shipped = Case()
    yield from (replace(shipped, batch_size=size) for size in (1, 4, 16, 64, 128))
    yield from (replace(shipped, batch_size=64, new_tokens=tokens) for tokens in (64, 1024))
    yield from (replace(shipped, prompt_tokens=tokens, prefix_tokens=1) for tokens in (320, 1500))
    yield replace(shipped, prompt_tokens=4000)
    yield replace(shipped, batch_size=64, prompt_tokens=1500, prefix_tokens=1200, new_tokens=64)
    choices = replace(shipped, work="choices", new_tokens=0)
    yield from (replace(choices, batch_size=size) for size in (16, 64, 256))
    yield replace(choices, batch_size=64, prompt_tokens=1000)
    yield replace(shipped, quantization="none")
    yield replace(choices, quantization="none", batch_size=64)
    small = replace(shipped, preset="1b")
    yield from (small, replace(small, batch_size=128), replace(small, batch_size=64, prompt_tokens=2000))
    yield replace(choices, preset="1b", batch_size=256)


def tiny(case: Case) -> Case:
    """Return the case with a tiny model and short prompts, for a smoke test on a CPU; it measures no memory."""
    return replace(
        case, preset="tiny", batch_size=min(case.batch_size, 4), prompt_tokens=min(case.prompt_tokens, 80),
        prefix_tokens=min(case.prefix_tokens, 40), new_tokens=min(case.new_tokens, 24),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the cases, one process for each base model, and print the table."""
    arguments = parse_arguments(argv)
    if arguments.child:
        return measure_all([Case(**case) for case in json.loads(arguments.child)], arguments.model_dir)
    cases = [case for case in all_cases() if arguments.preset in (None, case.preset)]
    if arguments.preset == "tiny":
        cases = list(dict.fromkeys(tiny(case) for case in all_cases() if case.quantization == "4bit"))
    models = arguments.model_dir or Path(tempfile.mkdtemp(prefix="random-mistral-"))
    rows = []
    for preset, quantization in dict.fromkeys((case.preset, case.quantization) for case in cases):
        if not (models / preset / "config.json").is_file():
            say(f"making {preset} in {models}")
            make_model(models / preset, preset)
            free_memory()
        group = [asdict(case) for case in cases if (case.preset, case.quantization) == (preset, quantization)]
        command = [sys.executable, __file__, "--model-dir", str(models), "--child", json.dumps(group)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in filter(lambda line: line.startswith("{"), process.stdout):
                rows.append(json.loads(line))
                say(line.rstrip())
        if process.returncode:
            raise UserError(f"a process left with {process.returncode}; its message is above", where=group[0])
    origin = environment()
    write_json(arguments.output or results_file("evaluate_memory", origin["device"]), {**origin, "rows": rows})
    print(report(rows))
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=SHAPES, help="cases of this shape only")
    parser.add_argument("--model-dir", type=Path, metavar="DIR", help="keep the random weights here and use them again")
    parser.add_argument("--output", type=Path, metavar="FILE", help="instead of benchmarks/results/...")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# ---- in a process: one base model, many cases ------------------------------------------------------------


def measure_all(cases: Sequence[Case], models: Path) -> int:
    """Load the base model of `cases` and print a line of JSON for each; returns the exit code."""
    from peft import LoraConfig, get_peft_model

    from tool_aware.model.base import load_base_model

    settings = {
        "model.name": models / cases[0].preset,
        "quantization.load_in_4bit": str(cases[0].quantization == "4bit").lower(),
    }
    config = load_config(REPOSITORY / "config.yaml", [f"{key}={value}" for key, value in settings.items()])
    adapter = LoraConfig(r=config.lora.r, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(load_base_model(config.model, config.quantization), adapter).eval()
    for parameter in model.parameters():  # as trained adapters are stored
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    free_memory()
    at_rest = allocated_bytes()
    for case in cases:
        print(json.dumps(measure(case, model)), flush=True)
        free_memory()
        if (left_behind := allocated_bytes() - at_rest) > LEFT_BEHIND_BYTES:
            raise RuntimeError(f"{left_behind / 2**20:.1f} MiB stay behind after {case}")
    return 0


def measure(case: Case, model: PeftModel) -> dict[str, Any]:
    """Run two batches and return the record of the case."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    work_off(case, model)
    fed = sum(NAMES.values()) - len(NAMES) if case.work == "choices" else 0
    return {**asdict(case), "preset": ARCHITECTURES[case.preset], "name_tokens": fed, **peaks()}


def work_off(case: Case, model: PeftModel) -> None:
    """Answer, or score tools for, two batches of prompts."""
    from tool_aware.inference.generation import generate
    from tool_aware.inference.name_scores import score_names

    generator = random.Random(0)
    prefix = random_tokens(generator, case.prefix_tokens)
    lengths = [case.prompt_tokens] * case.batch_size + [case.prompt_tokens - SHORTER_TOKENS] * case.batch_size
    prompts = [prefix + random_tokens(generator, length - case.prefix_tokens) for length in lengths]
    if case.work == "choices":
        names = {name: random_tokens(generator, count) for name, count in NAMES.items()}
        done = sum(len(batch) for batch in score_names(model, prompts, names, batch_size=case.batch_size))
    else:
        batches = generate(
            model, prompts, eos_id=EOS_ID, max_new_tokens=case.new_tokens, batch_size=case.batch_size,
            make_processor=lambda _: end_early,
        )  # fmt: skip
        done = sum(len(batch) for batch in batches)
    assert done == len(prompts)


def random_tokens(generator: random.Random, count: int) -> list[int]:
    """Draw token ids, none of them special."""
    return [generator.randrange(3, VOCABULARY) for _ in range(count)]


def end_early(written: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Make every answer end early, as a logits processor; in place, so that it takes no memory."""
    scores[:, EOS_ID] = float("inf") if written.shape[1] >= ANSWERED_TOKENS else -float("inf")
    return scores


# ---- what comes out --------------------------------------------------------------------------------------


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Lay out the table of docs/benchmarks/gpu.md."""
    keys = ("preset", "quantization", "work", "batch_size", "prompt_tokens", "prefix_tokens", "new_tokens")
    peak_keys = ("allocated_gib", "reserved_gib", "nvml_gib")
    headers = (
        "model",
        "weights",
        "work",
        "rows",
        "prompt",
        "prefix",
        "new",
        "allocated",
        "reserved",
        "NVML",
        "formula",
    )
    lines, compared = [], [compare_evaluation(row) for row in rows if row["allocated_gib"]]
    for row, one in itertools.zip_longest(rows, compared):
        error = f"{one.allocated_error:+.1%} / {one.total_error:+.1%}" if one else "-"
        lines.append([row[key] for key in keys] + [row[key] or "-" for key in peak_keys] + [error])
    errors = {"allocated": [one.allocated_error for one in compared], "in all": [one.total_error for one in compared]}
    told = [
        f"formula, {name}: mean error {mean_and_worst(found)[0]:.2%}, worst {mean_and_worst(found)[1]:.2%}"
        for name, found in errors.items()
        if found
    ]
    return "\n".join([table(headers, lines), *told])


if __name__ == "__main__":
    run(main)
