"""A forward pass of a model that is never in memory as a whole: one decoder layer at a time.

transformers' own model runs, built without weights. All rows go through a layer while that has its weights, so each
weight is read once, however many rows there are; a 7B needs 0.5 GiB for a layer and little for the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tool_aware.base_model import quiet_libraries

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from tool_aware.training.packing import Pack


class Weights(Protocol):
    """Tensors by name, each made or read when it is asked for."""

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> torch.Tensor: ...


def empty_model(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Build the model of `folder` with its parameters on the meta device; only its small constants are real."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_libraries():
        config = AutoConfig.from_pretrained(folder)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, dtype=dtype or config.dtype or torch.float32, attn_implementation="sdpa"
            )
    return model.eval()


def quantized_names(model: PreTrainedModel) -> frozenset[str]:
    """Name the weights that bitsandbytes quantises: those of all linear layers but the output head."""
    from torch import nn

    head = model.get_output_embeddings()
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head)
    return frozenset(f"{name}.weight" for name in linear)


def streamed_states(
    model: PreTrainedModel, weights: Weights, pack: Pack, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run an empty model over `pack`, all of whose rows pass a layer before the next one is loaded.

    Returns the states that predict the labels, (L, H), and the output head's weight, (V, H), on `device`.
    """
    import torch

    from tool_aware.training.loss import without_head

    layers = model.model.layers
    for name, buffer in model.named_buffers():
        model.get_submodule(name.rpartition(".")[0])._buffers[name.rpartition(".")[2]] = buffer.to(device)
    _load(model, "", weights, device, but_not="model.layers.")
    for index, layer in enumerate(layers):
        layer.forward = _with_weights(layer, f"model.layers.{index}.", weights, device)
    pack = pack.to(device)
    with torch.no_grad(), without_head(model) as head:
        states = model(
            input_ids=pack.input_ids, position_ids=pack.position_ids, attention_mask=pack.visible(), use_cache=False
        ).logits
    return states[pack.label_rows, pack.label_columns], head


def _with_weights(layer: nn.Module, prefix: str, weights: Weights, device: torch.device) -> Callable[..., Any]:
    """Wrap a layer's forward: load it, send the rows through one by one, drop it."""
    forward = layer.forward

    def run(hidden_states: torch.Tensor, **inputs: Any) -> torch.Tensor:
        _load(layer, prefix, weights, device)
        rows = len(hidden_states)
        for row in range(rows):
            one = {name: _row_of(value, row, rows) for name, value in inputs.items()}
            hidden_states[row : row + 1] = forward(hidden_states[row : row + 1], **one)
        layer.to_empty(device="meta")
        return hidden_states

    return run


def _row_of(value: Any, row: int, rows: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_row_of(part, row, rows) for part in value)
    is_batched = hasattr(value, "shape") and len(value.shape) > 0 and value.shape[0] == rows
    return value[row : row + 1] if is_batched else value


def _load(module: nn.Module, prefix: str, weights: Weights, device: torch.device, but_not: str | None = None) -> None:
    from torch import nn

    for name, parameter in list(module.named_parameters()):
        full = prefix + name
        if but_not and full.startswith(but_not):
            continue
        source = full if full in weights else "model.embed_tokens.weight"  # a head tied to the embeddings has no own
        value = nn.Parameter(weights[source].to(device, parameter.dtype), requires_grad=False)
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, value)
