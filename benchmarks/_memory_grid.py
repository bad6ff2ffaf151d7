"""The configurations that train_memory.py measures, the most important ones first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from tool_aware.memory.architectures import PRESETS
from tool_aware.memory.budget import Budget
from tool_aware.memory.knobs import CHOICES
from tool_aware.memory.plan import make_plan
from tool_aware.memory.spec import TrainingSpec
from tool_aware.units import GIB

# The shapes of benchmarks/_random_mistral.py and the presets of tool_aware.memory.architectures that equal them.
ARCHITECTURES = {"7b": "mistral-7b-v0.2", "1b": "tinyllama-1.1b", "tiny": "tiny"}
ATTENTION_ONLY = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Case:
    """One configuration; the names are those of tool_aware.memory.estimate.TrainingSpec. Lengths in tokens."""

    preset: str = "7b"
    quantization: str = "4bit"
    seq_length: int = 2048
    batch_size: int = 1
    lora_r: int = 8
    targets: str | tuple[str, ...] = "all-linear"
    checkpointing: bool = True
    offload: bool = False
    kept_layers: int = 0
    cached_layers: int = 0
    packing: str = "prefix"
    prefix_tokens: int = 0
    answer_tokens: int = 128
    accumulation: int = 1
    optimizer: str = "adamw_torch_fused"
    attention: str = "sdpa"
    decoder: str = "auto"
    cap_gib: float | None = None  # of weights, activations and context; out of memory beyond it
    goal_gib: float | None = None  # allocated, that one wants to stay below
    is_alone: bool = False  # in a process of its own, as a user's run is

    @property
    def process(self) -> str:
        """Return the name of the process that measures the case; cases of one name share it and its base model.

        What NVML shows beyond torch's reserve grows with the libraries that a process has used. So cases that use other
        libraries than most have a process of their own.
        """
        name = f"{self.preset}-{self.quantization}" + "-offload" * self.offload
        name += "-transformers" * (self.running_decoder == "transformers") + "-bnb" * ("8bit" in self.optimizer)
        return name + (f"-alone-{self.seq_length}x{self.batch_size}-{self.cap_gib or ''}" if self.is_alone else "")

    @property
    def running_decoder(self) -> str:
        """Return "own", or "transformers" if the case asks for the library's pass or needs it."""
        is_covered = self.packing != "none" and self.quantization != "8bit"
        return self.decoder if self.decoder != "auto" else "own" if is_covered else "transformers"


ROW = Case()
PACK = Case(seq_length=364, batch_size=8, prefix_tokens=260, answer_tokens=80)  # the tool task
PADDED = replace(PACK, packing="none", prefix_tokens=0)
SHORT_OF_MEMORY = replace(PACK, batch_size=32, checkpointing=False, cap_gib=12.0)
LONG_ROWS = replace(ROW, accumulation=8)
SMALL = Case(preset="1b")


def goals() -> Iterator[Case]:
    """Yield the cases with goals for small cards."""
    yield replace(ROW, offload=True, goal_gib=4.5)
    yield replace(ROW, seq_length=4096, offload=True, goal_gib=5.0)
    yield replace(ROW, offload=True, cap_gib=6.0, is_alone=True)
    yield replace(PACK, cap_gib=11.6, is_alone=True)


def grid() -> Iterator[Case]:
    """Yield all cases, those first that the calibration needs."""
    yield from _seven_billion_in_4_bit()
    yield from goals()
    yield from _one_billion()
    yield from _sixteen_and_eight_bits()


def _seven_billion_in_4_bit() -> Iterator[Case]:
    yield ROW
    yield from (replace(PACK, batch_size=size) for size in (8, 32))
    yield from (replace(ROW, seq_length=length) for length in (256, 1024, 4096))
    yield from (replace(PACK, batch_size=size, checkpointing=False) for size in (8, 16))
    yield from (replace(ROW, seq_length=length, offload=True) for length in (1024, 8192))
    yield replace(PACK, batch_size=32, offload=True)
    yield from (replace(PACK, kept_layers=layers) for layers in (8, 24))
    yield from (replace(PACK, cached_layers=layers) for layers in (8, 32))
    yield from (replace(ROW, lora_r=rank) for rank in (4, 16, 64))
    yield replace(ROW, lora_r=64, seq_length=256)
    yield replace(ROW, targets=ATTENTION_ONLY)
    yield replace(ROW, targets=ATTENTION_ONLY, seq_length=1024, checkpointing=False)
    yield replace(ROW, seq_length=8192)
    yield from (replace(ROW, batch_size=size) for size in (2, 4, 8))
    yield replace(PACK, packing="block", prefix_tokens=0)
    yield replace(PACK, batch_size=64)
    yield replace(ROW, accumulation=4)
    yield replace(ROW, answer_tokens=2000)
    yield replace(ROW, seq_length=512, checkpointing=False)
    yield from _transformers_forward_pass()
    yield from (planned(PACK, gib) for gib in (5.5, 7.5, 11.5, 15.5))
    yield from (planned(LONG_ROWS, gib) for gib in (5.5, 11.5, 23.5))
    yield SHORT_OF_MEMORY
    yield replace(ROW, seq_length=8192, checkpointing=False, cap_gib=10.0)
    yield replace(ROW, batch_size=4, seq_length=4096, kept_layers=16, cap_gib=16.0)
    yield from (replace(ROW, optimizer=name) for name in ("adamw_torch", "adamw_bnb_8bit", "paged_adamw_8bit"))


def _transformers_forward_pass() -> Iterator[Case]:
    """Yield padded rows, and cases that transformers' forward pass has to compute or is asked to."""
    yield PADDED
    yield replace(PADDED, batch_size=16)
    yield replace(PADDED, batch_size=4, seq_length=2048)
    yield from (replace(ROW, decoder="transformers", seq_length=length) for length in (512, 2048))
    yield replace(PACK, decoder="transformers", batch_size=32)
    yield replace(PACK, decoder="transformers", checkpointing=False)
    yield replace(ROW, decoder="transformers", seq_length=1024, attention="eager")


def _sixteen_and_eight_bits() -> Iterator[Case]:
    # 16-bit weights move into matrices of the decoder's own, which cannot be undone without gaps: a process for each.
    yield replace(ROW, quantization="none", is_alone=True)
    yield replace(PACK, quantization="none", batch_size=16, checkpointing=False, is_alone=True)
    eight = replace(ROW, quantization="8bit")
    yield from (replace(eight, seq_length=length) for length in (512, 2048))
    yield replace(PACK, quantization="8bit")
    yield replace(PACK, quantization="8bit", batch_size=16, checkpointing=False)


def _one_billion() -> Iterator[Case]:
    yield SMALL
    yield replace(SMALL, seq_length=8192)
    yield replace(SMALL, seq_length=8192, offload=True)
    yield replace(SMALL, batch_size=8, seq_length=1024)
    yield replace(SMALL, batch_size=8, seq_length=1024, packing="none")
    yield replace(SMALL, seq_length=1024, answer_tokens=1000)
    yield replace(SMALL, lora_r=64, seq_length=512)
    yield replace(SMALL, targets=ATTENTION_ONLY)
    yield replace(PACK, preset="1b", batch_size=32)
    yield replace(PACK, preset="1b", batch_size=16, checkpointing=False)
    yield replace(SMALL, quantization="none", is_alone=True)


def planned(case: Case, gib: float) -> Case:
    """Return the case with the memory plan of a run for a budget, under a cap of that size."""
    shared = {name: getattr(case, name) for name in TrainingSpec.__dataclass_fields__.keys() & asdict(case).keys()}
    spec = TrainingSpec(PRESETS[ARCHITECTURES[case.preset]], **{**shared, "decoder": "own"})
    plan = make_plan(spec, Budget(gib * GIB, "the grid"), CHOICES).spec
    return replace(case, cap_gib=gib, accumulation=plan.accumulation, **{name: getattr(plan, name) for name in CHOICES})


TINY_LAYERS = 2


def tiny(case: Case) -> Case:
    """Return the case with a tiny model and short examples, for a smoke test on a CPU; it measures no memory."""
    return replace(
        case, preset="tiny", seq_length=min(case.seq_length, 96), prefix_tokens=min(case.prefix_tokens, 48),
        batch_size=min(case.batch_size, 4), answer_tokens=min(case.answer_tokens, 24),
        kept_layers=min(case.kept_layers, TINY_LAYERS), cached_layers=min(case.cached_layers, TINY_LAYERS),
        cap_gib=None, goal_gib=None, is_alone=False,
    )  # fmt: skip
