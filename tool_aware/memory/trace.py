"""Run a training step on tensors without data and count the bytes that are alive at once.

The step is the caller's own code: it is run on PyTorch's fake tensors, which have shapes but no storage, with the real
transformers, peft and bitsandbytes. Neither a GPU nor weights are needed. Decoder layers are alike, so a model of
FEW_LAYERS and one of MORE_LAYERS are traced and the peak is extended to the real depth; it is linear in the layers.

Not seen here: workspaces inside CUDA kernels, and what the caching allocator reserves beyond what is alive.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tool_aware.memory.architectures import Architecture
from tool_aware.memory.spec import TrainingSpec

if TYPE_CHECKING:
    import torch
    from bitsandbytes.nn import Int8Params, Params4bit
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

FEW_LAYERS, MORE_LAYERS = 2, 3
NF4_BLOCK, SCALE_BLOCK = 64, 256  # weights per scale, scales per second-level scale (bitsandbytes' defaults)
ALLOCATION_BYTES = 512  # the caching allocator rounds each tensor up to a multiple of this


class TrainingCode(Protocol):
    """The code whose memory is asked for."""

    def prepare(self, base: PreTrainedModel, spec: TrainingSpec) -> PreTrainedModel:
        """Put the adapter on a frozen, quantised base model. Parameters have shapes only (device "meta")."""

    def optimizer(self, model: PreTrainedModel, spec: TrainingSpec) -> Optimizer:
        """Make the optimizer of the adapter's parameters."""

    def backward(self, model: PreTrainedModel, spec: TrainingSpec) -> None:
        """Run forward and backward over the micro-batches of one optimizer step."""


@dataclass(frozen=True)
class DryRun:
    """Bytes alive at once: of the model at rest, and at the peak of each phase of an optimizer step."""

    rest_bytes: float
    backward_bytes: float
    optimizer_bytes: float

    @property
    def peak_bytes(self) -> float:
        """What torch.cuda.max_memory_allocated() would report."""
        return max(self.backward_bytes, self.optimizer_bytes)


def dry_run(spec: TrainingSpec, code: TrainingCode) -> DryRun:
    """Trace `code` on a model of `spec` and return the bytes it would allocate."""
    few, more = (dataclasses.astuple(_trace(spec, code, layers)) for layers in (FEW_LAYERS, MORE_LAYERS))
    beyond = (spec.architecture.layers - FEW_LAYERS) / (MORE_LAYERS - FEW_LAYERS)
    return DryRun(*(at_few + beyond * (at_more - at_few) for at_few, at_more in zip(few, more, strict=True)))


def _trace(spec: TrainingSpec, code: TrainingCode, layers: int) -> DryRun:
    from torch._subclasses.fake_tensor import FakeTensorMode

    shallow = dataclasses.replace(spec, architecture=dataclasses.replace(spec.architecture, layers=layers))
    # Built on "meta", as peft moves parameters around, which fake tensors do not allow.
    model = code.prepare(_meta_model(shallow), shallow)
    with FakeTensorMode(), _counting() as count:
        _make_fake(model)
        rest = count.take_peak()
        optimizer = code.optimizer(model, shallow)
        for _ in range(2):  # optimizer states exist from the second step on
            code.backward(model, shallow)
            backward = count.take_peak()
            optimizer.step()
            optimizer.zero_grad()
            update = count.take_peak()
        return DryRun(rest, backward, update)


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
def _counting() -> Iterator[_Count]:
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


# ---- a model without data --------------------------------------------------------------------------------


def _meta_model(spec: TrainingSpec) -> PreTrainedModel:
    """Build the frozen base model as `load_base_model` leaves it: bf16, its decoder's linear layers quantised."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            _transformers_config(spec.architecture), attn_implementation=spec.attention, dtype=torch.bfloat16
        )
        if spec.quantization != "none":
            _quantize(model, spec)
    model.requires_grad_(False)
    return model


def _transformers_config(architecture: Architecture) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        "qwen2" if architecture.has_qkv_bias else "mistral",
        num_hidden_layers=architecture.layers,
        hidden_size=architecture.hidden,
        intermediate_size=architecture.intermediate,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads,
        head_dim=architecture.head_dim,
        vocab_size=architecture.vocabulary,
        tie_word_embeddings=architecture.ties_embeddings,
        max_position_embeddings=32768,
        sliding_window=None,
    )


def _quantize(model: PreTrainedModel, spec: TrainingSpec) -> None:
    """Put bitsandbytes' layers in the place of the decoder's linear layers, and tell peft that they are there."""
    import torch

    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(parent, name, _quantized_linear(linear, spec))
    setattr(model, f"is_loaded_in_{spec.quantization}", True)


def _quantized_linear(linear: torch.nn.Linear, spec: TrainingSpec) -> torch.nn.Module:
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    shape = linear.in_features, linear.out_features, linear.bias is not None
    if spec.quantization == "8bit":
        return Linear8bitLt(*shape, has_fp16_weights=False)
    quantized = Linear4bit(
        *shape, compute_dtype=torch.bfloat16, compress_statistics=spec.double_quantization, quant_type="nf4"
    )
    quantized.support_avx512bf16_for_cpu = False
    return quantized


def _make_fake(model: torch.nn.Module) -> None:
    """Replace every parameter and buffer by a fake one on the CPU; "cuda" is no choice in a torch without CUDA."""
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    fakes: dict[int, torch.nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in fakes:
                if isinstance(module, Linear4bit) and name == "weight":
                    fakes[id(parameter)] = _weight_in_4bit(parameter)
                elif isinstance(module, Linear8bitLt) and name == "weight":
                    fakes[id(parameter)] = _weight_in_8bit(parameter)
                else:
                    tensor = torch.empty(parameter.shape, dtype=parameter.dtype)
                    fakes[id(parameter)] = torch.nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            module._parameters[name] = fakes[id(parameter)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)


def _weight_in_8bit(weight: Int8Params) -> torch.nn.Parameter:
    """What LLM.int8 makes of a weight: int8 values and one fp32 scale per row."""
    import torch

    fake = torch.nn.Parameter(torch.empty(weight.shape, dtype=torch.int8), requires_grad=False)
    fake.CB, fake.SCB = fake.data, torch.empty(weight.shape[0])
    return fake


def _weight_in_4bit(weight: Params4bit) -> torch.nn.Parameter:
    """What bitsandbytes.functional.quantize_4bit makes of a weight. Not a Params4bit: that would quantise itself."""
    import torch
    from bitsandbytes.functional import QuantState

    elements = weight.numel()
    blocks = -(-elements // NF4_BLOCK)
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8 if weight.compress_statistics else torch.float32),
        shape=weight.shape, code=torch.empty(16), blocksize=NF4_BLOCK, quant_type="nf4", dtype=torch.bfloat16,
    )  # fmt: skip
    if weight.compress_statistics:
        state.nested, state.offset = True, torch.empty(())
        state.state2 = QuantState(
            absmax=torch.empty(-(-blocks // SCALE_BLOCK)), code=torch.empty(256), blocksize=SCALE_BLOCK,
            dtype=torch.float32,
        )  # fmt: skip
    fake = torch.nn.Parameter(torch.empty(((elements + 1) // 2, 1), dtype=torch.uint8), requires_grad=False)
    fake.quant_state = state
    return fake
