"""Shared by the training benchmarks: a Mistral of random weights, rows of random ids, the timed loop, peaks.

Speed and memory do not depend on what the weights are, so any card can be measured without a download.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tool_aware.chat_format import EncodedExample
from tool_aware.config.environment import Environment
from tool_aware.config.settings import Config
from tool_aware.training.distributed import ALONE, Processes

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from tool_aware.training.loop import TrainingLoop
    from tool_aware.training.step_outcome import StepOutcome

REPOSITORY = Path(__file__).resolve().parent.parent
VOCABULARY = 32000
WARM_UP_STEPS = 10  # CUDA graphs are recorded by then

T = TypeVar("T")
SHAPES = {  # hidden, intermediate, layers, heads, key-value heads
    "7b": (4096, 14336, 32, 32, 8),
    "1b": (2048, 5632, 22, 32, 4),
    "135m": (576, 1536, 30, 9, 3),
    "tiny": (128, 256, 2, 4, 2),
}


def make_model(folder: Path, preset: str, layers: int | None = None, *, spread: float = 0.02) -> None:
    """Write a Mistral of random weights, of standard deviation `spread`, in 16 bit."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    hidden, intermediate, all_layers, heads, key_value_heads = SHAPES[preset]
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=intermediate,
        num_hidden_layers=layers or all_layers, num_attention_heads=heads, num_key_value_heads=key_value_heads,
        max_position_embeddings=32768, rope_theta=1e6, sliding_window=None, initializer_range=spread,
    )  # fmt: skip
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            MistralForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(usual)


def random_examples(count: int, *, prefix: int, query: int, answer: int) -> list[EncodedExample]:
    """Draw `count` examples that share their first `prefix` tokens; lengths in tokens, the last label is EOS."""
    generator = random.Random(0)

    def tokens(n: int) -> list[int]:
        return [generator.randrange(3, VOCABULARY) for _ in range(n)]

    shared = [1, *tokens(prefix - 1)] if prefix else []
    return [EncodedExample(shared + tokens(query), [*tokens(answer - 1), 2]) for _ in range(count)]


@dataclass(frozen=True)
class TimedSteps:
    """Seconds and loss of every optimizer step, and how they were computed."""

    seconds: list[float]
    losses: list[float]
    has_given_way: bool  # memory did not suffice for the step as it was configured
    decoder: str  # "own" or "transformers": whose forward and backward pass ran
    is_recorded: bool  # its passes, as CUDA graphs, in the end
    tokens: list[int]  # computed in every step, padding included
    loss_before: float | None  # mean over the labels of the first examples, before any step


def steps_to_take(measured: int) -> int:
    """Return the steps of a run of which so many are to be `measured`."""
    return WARM_UP_STEPS + measured + 1


def measured(steps: Sequence[T]) -> Sequence[T]:
    """Return those of a run's steps that count: without the warm-up, and the last, which waits for the run's end."""
    return steps[WARM_UP_STEPS:-1]


def train_timed(
    model: PeftModel,
    config: Config,
    examples: Sequence[EncodedExample],
    processes: Processes = ALONE,
    *,
    compare: int = 0,
) -> TimedSteps:
    """Train a prepared model as train_tool_aware.py does, without checkpoints, and time each optimizer step.

    A step takes from the moment the one before is done, on the device, to its own end. With `compare`, the loss of that
    many examples is taken first.
    """
    from tool_aware.training.choice import ToolNames
    from tool_aware.training.loop import TrainingLoop
    from tool_aware.training.run.tracking import Tracker

    ends: list[float | torch.cuda.Event] = []
    losses: list[float] = []
    tokens: list[int] = []

    class Timed(TrainingLoop):
        def _take_step(self) -> None:
            if not ends:
                ends.append(moment())
            super()._take_step()
            ends.append(moment())

        def _log(self, outcome: StepOutcome) -> None:
            losses.append(sum(self.processes.gather(outcome.loss)))
            self._loss_since_log.zero_()
            tokens.append(self.throughput.lap(outcome.step, self.schedule.steps)["tokens"])

        def save(self) -> None:
            """Write no checkpoint: its time and memory are not measured here."""

    config = config.model_copy(
        update={"logging": config.logging.model_copy(update={"logging_steps": 1, "tensorboard": False})}
    )
    with Tracker(config, Environment(), config.training.output_dir) as tracker:
        names = ToolNames(0, [[1]])
        loop = Timed(
            model, config, train=examples, val=[], tool_names=names, tracker=tracker, run={}, processes=processes
        )
        loss_before = mean_loss(loop, examples[:compare]) if compare else None
        loop.run()
    decoder = loop.micro_step.decoder
    synchronised()
    return TimedSteps(
        [seconds_between(begin, end) for begin, end in pairwise(ends)],
        losses,
        has_given_way=any("out of GPU memory" in message for message in loop.fallbacks),
        decoder="own" if decoder else "transformers",
        is_recorded=decoder is not None and decoder.is_recording,
        tokens=tokens,
        loss_before=loss_before,
    )


def mean_loss(loop: TrainingLoop, examples: Sequence[EncodedExample]) -> float:
    """Score `examples` as validation does: the mean loss over their labels."""
    import torch

    from tool_aware.engine.loss import label_losses

    with torch.no_grad():
        pack, states, head = loop.micro_step.answer_states(examples)
        return label_losses(states, head, pack.labels).mean().item()


def moment() -> float | torch.cuda.Event:
    """Return the moment at which the device is done with all that is launched, for `seconds_between`."""
    import torch

    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(begin: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    """Return the seconds between two moments that have passed."""
    if isinstance(begin, float):
        assert isinstance(end, float)
        return end - begin
    return float(begin.elapsed_time(end)) / 1e3


def synchronised() -> float:
    """Return the time once the GPU is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peaks() -> dict[str, float | None]:
    """Read the peaks of this process in GiB since they were reset; None without a GPU.

    NVML has no peak of its own, but what torch has reserved stays so until its cache is emptied.
    """
    import torch

    if not torch.cuda.is_available():
        return {"allocated_gib": None, "reserved_gib": None, "nvml_gib": None}
    return {
        "allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
        "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3),
        "nvml_gib": round(nvml_used_bytes() / 2**30, 3),
    }


def nvml_used_bytes() -> int:
    """Return what nvidia-smi shows as used on the card that torch sees; nothing else may run on it."""
    import pynvml
    import torch

    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    return int(pynvml.nvmlDeviceGetMemoryInfo(card).used)


def environment() -> dict[str, Any]:
    """Return device, versions and commit, for the results."""
    from importlib import metadata

    import torch

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    versions = {
        name: metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    }
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    given = os.environ.get("BENCHMARK_COMMIT")  # where the copy that is measured has no history
    return {"device": device, "versions": versions, "commit": given or commit.stdout.strip() or None}


def results_file(benchmark: str, device: str) -> Path:
    """Return the path of the results, named after benchmark and device."""
    short = device.lower().replace("nvidia ", "").replace(" ", "_")
    return REPOSITORY / "benchmarks" / "results" / f"{benchmark}_{short}.json"
