"""Run a training step on tensors without data and count the bytes that are alive at once.

It is the trainer's own micro-step and optimizer, run on PyTorch's fake tensors, which have shapes but no storage, with
the real transformers, peft and bitsandbytes. What GPU kernels do inside is replaced by the memory they take. Neither a
GPU nor weights are needed. Decoder layers are alike, so a model of FEW_LAYERS and one of MORE_LAYERS are traced and the
peak is extended to the real depth; it is linear in the layers.

Not seen here: workspaces inside CUDA kernels, and what the caching allocator reserves beyond what is alive.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from tool_aware.chat_format import EncodedExample
from tool_aware.config.settings import Config
from tool_aware.engine.sizes import FLASH_ROUNDING, prefix_copies
from tool_aware.memory.fake_model import make_fake, meta_model
from tool_aware.memory.knobs import KNOBS, settings_of
from tool_aware.memory.spec import TrainingSpec
from tool_aware.model.adapter import new_adapter, prepare_for_training
from tool_aware.model.libraries import quiet_libraries

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch.optim import Optimizer

    from tool_aware.engine.micro_step import MicroStep

FEW_LAYERS, MORE_LAYERS = 2, 3
ALLOCATION_BYTES = 512  # the caching allocator rounds each tensor up to a multiple of this
TRACED_OPTIMIZERS = ("adamw_torch_fused", "adamw_torch")  # bitsandbytes' need a GPU


@dataclass(frozen=True)
class TracedBytes:
    """Bytes alive at once: of the model at rest, and at the peak of each phase of an optimizer step."""

    rest_bytes: float
    backward_bytes: float
    optimizer_bytes: float

    @property
    def peak_bytes(self) -> float:
        """Return what torch.cuda.max_memory_allocated() would report."""
        return max(self.backward_bytes, self.optimizer_bytes)


def trace_step(spec: TrainingSpec, config: Config) -> TracedBytes:
    """Trace the training step of `spec` and return the bytes it would allocate; what it leaves open is in `config`.

    Takes some seconds, most of them for importing torch. Not all that a step can do can be traced: see `traceable`.
    """
    with quiet_libraries():
        few, more = (dataclasses.astuple(trace_layers(spec, config, layers)) for layers in (FEW_LAYERS, MORE_LAYERS))
    beyond = (spec.architecture.layers - FEW_LAYERS) / (MORE_LAYERS - FEW_LAYERS)
    return TracedBytes(*(at_few + beyond * (at_more - at_few) for at_few, at_more in zip(few, more, strict=True)))


def traceable(spec: TrainingSpec) -> TrainingSpec:
    """Return the nearest spec that can be traced: on few layers that are alike, without a host to move data to."""
    optimizer = spec.optimizer if spec.optimizer in TRACED_OPTIMIZERS else TRACED_OPTIMIZERS[0]
    plain = spec.with_fields({knob.field: knob.without_budget for knob in KNOBS if not knob.is_traced})
    return replace(plain, optimizer=optimizer)


def trace_layers(spec: TrainingSpec, config: Config, layers: int) -> TracedBytes:
    """Trace the step on a model of so many layers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    shallow = replace(spec, architecture=replace(spec.architecture, layers=layers))
    config = config_of(shallow, config)
    # Built on "meta", as peft moves parameters around, which fake tensors do not allow.
    model = new_adapter(meta_model(shallow), config)
    prepare_for_training(model, config)
    model.train()
    with FakeTensorMode(), counting() as count:
        make_fake(model)
        rest = count.take_peak()
        step, optimizer = _step_and_optimizer(model, shallow, config)
        for _ in range(2):  # optimizer states exist from the second step on
            _add_gradients(step, shallow)
            backward = count.take_peak()
            optimizer.step()
            optimizer.zero_grad()
            update = count.take_peak()
        return TracedBytes(rest, backward, update)


def config_of(spec: TrainingSpec, base: Config) -> Config:
    """Return the config whose training step has this spec; what the spec leaves open is taken from `base`."""
    settings = {
        **settings_of(spec),
        "optimization.offload": False,  # the one exception among the knobs: there is no host to move anything to
        "optimization.decoder": "transformers" if spec.decoder == "transformers" else "auto",
        "optimization.optim": spec.optimizer,
        "training.packing": spec.packing,
        "lora.r": spec.lora_r,
        "lora.target_modules": spec.targets if isinstance(spec.targets, str) else list(spec.targets),
    }
    return base.with_settings(settings)


def _step_and_optimizer(model: PeftModel, spec: TrainingSpec, config: Config) -> tuple[MicroStep, Optimizer]:
    """Make the configured optimizer, and the micro-step over examples of the spec's lengths."""
    import torch

    from tool_aware.engine.backend import Backend
    from tool_aware.engine.decoder import PackedDecoder
    from tool_aware.engine.micro_step import MicroStep
    from tool_aware.engine.optimizer import build_optimizer
    from tool_aware.engine.side_stream import AtOnce

    attention = _AttentionBuffers(spec)
    decoder, _ = PackedDecoder.of(model, config, Backend(_NoKernels(), lambda pack: attention, AtOnce()))
    optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], config)
    step = MicroStep(
        model,
        packing=spec.packing,
        limit=spec.batch_size,
        device=torch.device("cpu"),
        decoder=decoder,
        flat_gradient=getattr(optimizer, "gradient", None),
    )
    return step, optimizer


def _add_gradients(step: MicroStep, spec: TrainingSpec) -> None:
    """Run the micro-steps of one optimizer step."""
    import torch

    labels = torch.tensor(spec.label_tokens * spec.accumulation)
    for _ in range(spec.accumulation):
        step.add_gradient(examples_of(spec), labels)


def examples_of(spec: TrainingSpec) -> list[EncodedExample]:
    """Return examples of the spec's lengths, whose ids matter only in that the prefix is shared and the rest is not."""
    answer = min(spec.answer_tokens, spec.seq_length - spec.prefix_tokens - 1)
    query = spec.seq_length - spec.prefix_tokens - answer
    return [
        EncodedExample([1] * spec.prefix_tokens + [2 + number] * query, [1] * answer)
        for number in range(spec.batch_size)
    ]


# ---- kernels that only take memory -----------------------------------------------------------------------


class _NoKernels:
    """Stands for engine/triton_ops.py, whose kernels write where they are told to and need no memory of their own."""

    @staticmethod
    def _nothing(*_: Any, **__: Any) -> Any:
        return True  # of fill_matrix: it has written the matrix

    rms_norm = rms_norm_backward = rotate = swiglu = swiglu_backward_ = fill_matrix = _nothing
    norm_and_rotate = norm_and_rotate_backward = _nothing

    @staticmethod
    def copier(_: Any) -> Callable[[], None]:
        """See Operations.copier."""
        return lambda: None


class _AttentionBuffers:
    """The memory that packed_attention.FlashAttention takes, without the attention."""

    def __init__(self, spec: TrainingSpec) -> None:
        self._prefix_tokens = spec.prefix_tokens if spec.packing == "prefix" else 0
        self._segments = spec.batch_size + (self._prefix_tokens > 0)
        self._copies = prefix_copies(spec.tokens, self._prefix_tokens)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """See PackedAttention.forward."""
        own, lse = self._forward(query)
        if self._prefix_tokens:
            shared = (*self._copied(key, value), *self._forward(query))
            del shared
        del own
        return lse

    def backward(  # noqa: PLR0917
        self,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """See PackedAttention.backward."""
        own = self._backward(query, key, self._segments)
        if not self._prefix_tokens:
            return own[0], None, own[1], own[2]
        shared = self._copied(key, value)
        through_prefix = self._backward(query, shared[0], segments=2 * self._copies)
        return own[0], through_prefix[0], own[1], own[2]

    def behind(self, key: torch.Tensor, value: torch.Tensor) -> NoReturn:
        """Refuse: training keeps no keys before a pack."""
        raise NotImplementedError

    def _copied(self, *keys_and_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[: self._prefix_tokens].repeat(self._copies, 1, 1) for tensor in keys_and_values)

    @staticmethod
    def _forward(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return query.new_empty(query.shape), query.new_empty(query.shape[:2]).float()

    @staticmethod
    def _backward(
        query: torch.Tensor, key: torch.Tensor, segments: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        import torch

        tokens, heads, size = query.shape
        rounded = tokens + FLASH_ROUNDING * segments
        in_fp32 = torch.empty(rounded, heads, size), torch.empty(heads, rounded)
        of_query = query.new_empty(query.shape)
        of_key, of_value = key.new_empty(key.shape), key.new_empty(key.shape)
        expanded = [key.new_empty(len(key), heads, size) for _ in range(2)] if key.shape[1] != heads else []
        del in_fp32, expanded
        return of_query, of_key, of_value


# ---- counting --------------------------------------------------------------------------------------------


@dataclass
class _Count:
    alive_bytes: int = 0
    peak_bytes: int = 0
    alive: dict[int, tuple[weakref.ref[Any], int]] = dataclasses.field(default_factory=dict)

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage once, until it is garbage."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        size = -(-storage.nbytes() // ALLOCATION_BYTES) * ALLOCATION_BYTES
        self.alive[key] = (weakref.ref(storage, lambda _: self._forget(key)), size)
        self.alive_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.alive_bytes)

    def take_peak(self) -> int:
        """Return the peak since the last call."""
        peak, self.peak_bytes = self.peak_bytes, self.alive_bytes
        return peak

    def _forget(self, key: int) -> None:
        self.alive_bytes -= self.alive.pop(key)[1]


@contextmanager
def counting() -> Iterator[_Count]:
    """Count the bytes of the tensors that are made while active."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    count = _Count()

    class CountResults(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            results = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.logsumexp.default:  # its copy of the input is made out of sight
                count.peak_bytes = max(count.peak_bytes, count.alive_bytes + args[0].untyped_storage().nbytes())
            for result in tree_leaves(results):
                if isinstance(result, torch.Tensor):
                    count.add(result)
            return results

    with CountResults():
        yield count
