"""The models, adapters and machines that the hand-written decoder does not support, with the reason in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tool_aware.gpu.device_facts import DeviceFacts
from tool_aware.model.adapter import base_of, lora_config, lora_variant
from tool_aware.model.families import Traits

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_LINEAR_KINDS = ("Linear", "Linear4bit")  # plain and 4-bit, of torch, peft and bitsandbytes


def unsupported(model: PeftModel, longest: int) -> str | None:
    """Return why PackedDecoder cannot train `model` on examples of up to `longest` tokens; None if it can."""
    return unsupported_forward(model, longest) or _unsupported_training(model)


def unsupported_forward(model: PeftModel | PreTrainedModel, longest: int) -> str | None:
    """Return why PackedDecoder cannot run `model`, with or without an adapter, over so many tokens; None if it can."""
    base = base_of(model)
    uncovered = Traits.of(vars(base.config) | {"model_type": base.config.model_type}).uncovered(longest)
    return uncovered or _unsupported_layers(model) or _unsupported_dtype(base.device, base.dtype)


def _unsupported_training(model: PeftModel) -> str | None:
    if lora_config(model).lora_dropout:
        return "dropout"
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if any(parameter.dtype != base_of(model).dtype for parameter in trained):
        return "an adapter in another precision than its base"
    return None


def _unsupported_layers(model: PeftModel | PreTrainedModel) -> str | None:
    base = base_of(model)
    if base is not model and lora_variant(lora_config(model).to_dict()):
        return "variants of LoRA"
    linear = [
        getattr(module, "base_layer", module)
        for name, module in base.get_submodule("model.layers").named_modules()
        if name.endswith("_proj")
    ]
    if any(type(layer).__name__ not in _LINEAR_KINDS for layer in linear):
        return "8-bit weights"
    return None


def _unsupported_dtype(device: torch.device, dtype: torch.dtype) -> str | None:
    if reason := DeviceFacts.of(device).why_not_own_decoder:
        return reason
    return "float32 on a GPU" if device.type == "cuda" and dtype == torch.float32 else None


def unsupported_gpu(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why PackedDecoder can run no model in this precision on this GPU; None if no reason is known yet.

    A loaded model may be another reason (`unsupported`).
    """
    return _unsupported_dtype(device, dtype) or broken_kernels(device)


def broken_kernels(device: torch.device) -> str | None:
    """Return why Triton kernels cannot run on `device`, by running one; None if they can.

    They need a C compiler and Python's headers.
    """
    if device.type != "cuda":
        return None
    try:
        from tool_aware.engine import triton_ops

        x = torch.ones(1, 16, device=device)
        triton_ops.rms_norm(x, x[0], 1e-6, x)
        torch.cuda.synchronize(device)
    except Exception as error:  # no Triton, no compiler, no headers, a GPU that Triton does not know: each its own type
        first_line = (str(error).splitlines() or [""])[0]
        return f"this machine, as Triton does not work ({type(error).__name__}: {first_line})"
    return None
