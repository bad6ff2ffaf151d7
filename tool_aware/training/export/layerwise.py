"""A forward pass of a model that is never in memory as a whole: one transformer layer at a time.

transformers' own model runs, built without weights. All rows pass a layer while it has its weights, so each weight is
read once, however many rows there are; a 7B needs 0.5 GiB for a layer and little for the rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tool_aware.model.language_part import language_config
from tool_aware.model.libraries import quiet_libraries

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from tool_aware.engine.packing import Pack


_LAYERS = "model.layers."
_EMBEDDINGS = "model.embed_tokens.weight"


class Weights(Protocol):
    """Tensors by name, each made or read when it is asked for."""

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> torch.Tensor: ...


def empty_model(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Build the model of `folder` with its parameters on the meta device; only its small constants are real."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with quiet_libraries():
        config, _ = language_config(str(folder))
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config,
                dtype=dtype or config.dtype or torch.float32,
                attn_implementation="sdpa",
                trust_remote_code=False,
            )
    return model.eval()


def quantized_names(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of the weights that bitsandbytes quantises: all linear layers but the output head."""
    from torch import nn

    head = model.get_output_embeddings()
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head)
    return frozenset(f"{name}.weight" for name in linear)


class StreamedModel:
    """An empty model that computes with `weights`; those of a layer are on `device` only while rows pass it."""

    def __init__(self, model: PreTrainedModel, weights: Weights, device: torch.device) -> None:
        self._model, self._weights, self._device = model, weights, device
        self._pack: Pack | None = None
        for name, buffer in model.named_buffers():
            owner, _, attribute = name.rpartition(".")
            model.get_submodule(owner)._buffers[attribute] = buffer.to(device)
        self._load(model, "", but_not=_LAYERS)
        for index, layer in enumerate(model.get_submodule("model.layers").children()):
            layer.forward = self._streamed(layer, f"{_LAYERS}{index}.")

    def states(self, pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states that predict the labels of `pack`, (L, H), and the output head's weight, (V, H)."""
        import torch

        from tool_aware.engine.loss import without_head

        self._pack = pack = pack.to(self._device)
        # transformers passes a mask of four dimensions on unchanged; each layer gets the masks of single rows in turn.
        no_mask = torch.empty(len(pack.input_ids), 1, 1, 1, dtype=torch.bool, device=self._device)
        inputs = {"input_ids": pack.input_ids, "position_ids": pack.position_ids, "attention_mask": no_mask}
        with torch.no_grad(), without_head(self._model) as head:
            states = self._model(**inputs, use_cache=False).logits
        return states[pack.label_rows, pack.label_columns], head

    def _streamed(self, layer: nn.Module, prefix: str) -> Callable[..., torch.Tensor]:
        """Return a forward that loads the layer, runs the rows one by one, and drops the weights."""
        forward, window = layer.forward, getattr(self._model.config, "sliding_window", None)

        def run(hidden_states: torch.Tensor, **inputs: Any) -> torch.Tensor:
            assert self._pack is not None, "states() sets it"
            self._load(layer, prefix)
            rows = len(hidden_states)
            for row in range(rows):
                own = {name: _row_of(value, row, rows) for name, value in inputs.items()}
                own["attention_mask"] = self._pack.row(row).visible(window)
                hidden_states[row : row + 1] = forward(hidden_states[row : row + 1], **own)
            layer.to_empty(device="meta")
            return hidden_states

        return run

    def _load(self, module: nn.Module, prefix: str, but_not: str | None = None) -> None:
        from torch import nn

        for name, parameter in list(module.named_parameters()):
            full = prefix + name
            if but_not and full.startswith(but_not):
                continue
            source = full if full in self._weights else _EMBEDDINGS  # a head that is tied to them has none of its own
            value = self._weights[source].to(self._device, parameter.dtype)
            owner, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(owner), attribute, nn.Parameter(value, requires_grad=False))


def _row_of(value: Any, row: int, rows: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_row_of(part, row, rows) for part in value)
    is_batched = hasattr(value, "shape") and len(value.shape) > 0 and value.shape[0] == rows
    return value[row : row + 1] if is_batched else value
