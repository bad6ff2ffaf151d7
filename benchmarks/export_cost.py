"""Measure the cost of the merged model: choosing how to merge, merging, and reading the result back.

    python benchmarks/export_cost.py                             # a 7B of random weights; 30 GB of disk, a few minutes
    python benchmarks/export_cost.py --preset 1b
    python benchmarks/export_cost.py --preset tiny               # a smoke test without a GPU

These are the phases of train_tool_aware.py after its last step, with a 4-bit base and a random adapter, on rows of the
tool task. Peaks are of resident memory, beyond what the process held before, and of torch on the GPU, the 4-bit model
included. The agreement of the merged models is printed too, but means little with random weights, whose tokens are
nearly equally probable.

Reads   nothing
Writes  benchmarks/results/export_cost_<device>.json
Exit    0 done; 2 something to fix
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _random_mistral import REPOSITORY, SHAPES, environment, make_model, results_file

from tool_aware.chat_format import EncodedExample
from tool_aware.config.settings import Config, load_config
from tool_aware.console import run, say, table
from tool_aware.files import write_json
from tool_aware.paths import split_file
from tool_aware.prompt import render_instruction, render_response
from tool_aware.rows import Row, load_rows, write_rows
from tool_aware.tools import ToolCall

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from tool_aware.engine.packing import Pack

T = TypeVar("T")
ROWS = 200
UPDATE = 0.02  # standard deviation of B; that of A is about 1 / sqrt(inputs)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every phase and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int, help="fewer layers than the preset has")
    parser.add_argument("--folder", type=Path, help="where the models go (default: a temporary folder)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        config = prepare(folder, arguments.preset, arguments.layers)
        found = measure(config, folder)
    result = {**environment(), "preset": arguments.preset, "layers": arguments.layers, **found}
    file = results_file("export_cost", result["device"])
    write_json(file, result)
    print(table(("phase", "seconds", "resident, of the largest shard", "GPU peak, GiB"), lines(found["phases"])))
    print(table(("merged into", "stored as", "same tool", "divergence"), methods(found["merged"]), align="<<>>"))
    say(f"{file}")
    return 0


def lines(phases: dict[str, dict[str, float]]) -> list[tuple[str, ...]]:
    """Format the phases."""
    return [
        (name, f"{p['seconds']:.1f}", f"{p['resident_of_shard']:.2f}", f"{p['gpu_peak_gib']:.2f}")
        for name, p in phases.items()
    ]


def methods(merged: dict[str, Any]) -> list[tuple[str, ...]]:
    """Format the merge methods."""
    return [(w["into"], w["dtype"], f"{w['equal']} of {w['rows']}", f"{w['divergence']}") for w in merged["measured"]]


def prepare(folder: Path, preset: str, layers: int | None) -> Config:
    """Write a base model, its tokenizer and rows."""
    from tool_aware.demo.toy_model import save_tokenizer

    base, data = folder / "base", folder / "data"
    config = load_config(REPOSITORY / "config.yaml", [f"model.name={base}", f"dataset.dir={data}"])
    if not (base / "config.json").is_file():
        say(f"writing a {preset} of random weights to {base}")
        make_model(base, preset, layers)
        save_tokenizer(base)
    names = config.toolbox.names
    rows = []
    for number in range(ROWS):
        query = f"question {number} about subject {number * 7 % 100}, as short as most of them are"
        tool = names[number % len(names)]
        parameters = dict.fromkeys(config.toolbox[tool].required, query)
        call = ToolCall(tool, parameters, "The words of the query ask for it, and nothing else does.")
        details = {"source": "custom", "tool": call.tool}
        rows.append(Row(render_instruction(query, config.toolbox), render_response(call), details))
    for split in ("val", "test"):
        write_rows(data / f"{split}.json", rows)
    return config


def measure(config: Config, folder: Path) -> dict[str, Any]:
    """Run the phases of the export and record seconds and peaks of each."""
    from tool_aware.model.adapter import new_adapter
    from tool_aware.model.base import load_base_model
    from tool_aware.tokenizer import load_tokenizer
    from tool_aware.training.choice import ToolNames
    from tool_aware.training.export.agreement import references
    from tool_aware.training.export.export import Merged, Merger, save_adapter

    tokenizer = load_tokenizer(config.model.name)
    names = ToolNames.of(tokenizer, config.toolbox)
    model = with_update(new_adapter(load_base_model(config.model, config.quantization), config))
    adapter, final = folder / "lora_adapters", folder / "final_model"
    save_adapter(model, adapter, tokenizer, config)
    merger = Merger(config, adapter)
    largest = max(path.stat().st_size for path in Path(config.model.name).glob("*.safetensors"))
    clock = Clock(largest)
    rows = {split: load_rows(split_file(config.dataset.dir, split), config.toolbox) for split in ("val", "test")}
    known = clock.time(
        "base + adapter on the rows", lambda: references(answers_of(model), config, tokenizer, names, **rows)
    )
    measured = clock.time("ways to merge", lambda: merger.measure(known.val, names))
    method = min(measured, key=lambda method: measured[method].divergence)
    clock.time("merging and writing", lambda: merger.save(method, final))
    checked = clock.time("reading back", lambda: merger.check(final, known.test, names))
    merged = Merged(method, measured, checked, known.test)
    return {"largest_shard_gib": round(largest / 2**30, 3), "phases": clock.phases, "merged": merged.as_dict()}


def with_update(model: PeftModel) -> PeftModel:
    """Set the update of a new adapter, which is zero, to random values."""
    import torch

    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * UPDATE
    return model.eval()


def answers_of(model: PeftModel) -> Callable[[Sequence[EncodedExample]], tuple[Pack, torch.Tensor, torch.Tensor]]:
    """Return the states of answers from a plain forward pass."""
    from tool_aware.engine.loss import without_head
    from tool_aware.engine.packing import pack
    from tool_aware.model.adapter import base_of

    def answer_states(examples: Sequence[EncodedExample]) -> tuple[Pack, torch.Tensor, torch.Tensor]:
        packed = pack(examples, "prefix").to(model.device)
        inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids}
        with without_head(base_of(model)) as head:
            states = model(**inputs, attention_mask=packed.visible(), use_cache=False).logits
        return packed, states[packed.label_rows, packed.label_columns], head

    return answer_states


class Clock:
    """Seconds and peaks of phases, by name."""

    def __init__(self, shard_bytes: int) -> None:
        self.phases: dict[str, dict[str, float]] = {}
        self._shard_bytes = shard_bytes

    def time(self, name: str, work: Callable[[], T]) -> T:
        """Run `work` and record its seconds and peaks."""
        import torch

        Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory begins anew
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        before, started_s = resident_bytes("VmRSS"), time.perf_counter()
        result = work()
        seconds = time.perf_counter() - started_s
        gpu = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        grown = (resident_bytes("VmHWM") - before) / self._shard_bytes
        figures = {"seconds": round(seconds, 2), "resident_of_shard": round(grown, 3), "gpu_peak_gib": round(gpu, 3)}
        self.phases[name] = figures
        say(f"{name}: {seconds:.1f} s")
        return result


def resident_bytes(field: str) -> int:
    """Read VmRSS (resident now) or VmHWM (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


if __name__ == "__main__":
    run(main)
