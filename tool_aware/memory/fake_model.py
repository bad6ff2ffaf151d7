"""A model of a spec's shapes without data: built on "meta", then of fake tensors, quantised as bitsandbytes does it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tool_aware.memory.architectures import Architecture
from tool_aware.memory.spec import TrainingSpec

if TYPE_CHECKING:
    import torch
    from bitsandbytes.nn.modules import Int8Params, Params4bit
    from transformers import PreTrainedModel

NF4_BLOCK, SCALE_BLOCK = 64, 256  # weights per scale, scales per second-level scale (bitsandbytes' defaults)


def meta_model(spec: TrainingSpec) -> PreTrainedModel:
    """Build the frozen base model as `load_base_model` leaves it: bf16, its decoder's linear layers quantised."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            _transformers_config(spec.architecture),
            attn_implementation=spec.attention,
            dtype=torch.bfloat16,
            trust_remote_code=False,
        )
        if spec.quantization != "none":
            _quantize(model, spec)
    model.requires_grad_(False)
    return model


def _transformers_config(architecture: Architecture) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        architecture.traits.family,
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
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    shape = linear.in_features, linear.out_features, linear.bias is not None
    if spec.quantization == "8bit":
        return Linear8bitLt(*shape, has_fp16_weights=False)
    quantized = Linear4bit(
        *shape, compute_dtype=torch.bfloat16, compress_statistics=spec.double_quantization, quant_type="nf4"
    )
    quantized.support_avx512bf16_for_cpu = False
    return quantized


def make_fake(model: torch.nn.Module) -> None:
    """Replace every parameter and buffer by a fake one on the CPU; "cuda" is no choice in a torch without CUDA."""
    import torch
    from bitsandbytes.nn.modules import Int8Params, Params4bit

    fakes: dict[int, torch.nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in fakes:
                if isinstance(parameter, Params4bit):
                    fakes[id(parameter)] = _weight_in_4bit(parameter)
                elif isinstance(parameter, Int8Params):
                    fakes[id(parameter)] = _weight_in_8bit(parameter)
                else:
                    tensor = torch.empty(parameter.shape, dtype=parameter.dtype)
                    fakes[id(parameter)] = torch.nn.Parameter(tensor, requires_grad=parameter.requires_grad)
            module._parameters[name] = fakes[id(parameter)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else torch.empty(buffer.shape, dtype=buffer.dtype)


def _weight_in_8bit(weight: Int8Params) -> torch.nn.Parameter:
    """Return what LLM.int8 makes of a weight: int8 values and one fp32 scale per row."""
    import torch

    fake: Any = torch.nn.Parameter(torch.empty(weight.shape, dtype=torch.int8), requires_grad=False)
    fake.CB, fake.SCB = fake.data, torch.empty(weight.shape[0])
    return fake


def _weight_in_4bit(weight: Params4bit) -> torch.nn.Parameter:
    """Return what bitsandbytes makes of a weight in 4 bits. Not a Params4bit: that would quantise itself."""
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
    fake: Any = torch.nn.Parameter(torch.empty(((elements + 1) // 2, 1), dtype=torch.uint8), requires_grad=False)
    fake.quant_state = state
    return fake
