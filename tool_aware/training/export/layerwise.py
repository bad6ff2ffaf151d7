"""A forward pass of a model that is never in memory as a whole: one transformer layer at a time.

transformers' own model runs, built without weights. All rows pass a layer while it has its weights, so each weight is
read once, however many rows there are; a 7B needs 0.5 GiB for a layer and little for the rows. Models that are made of
the same files pass each layer in turn, so that these are read once for all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
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
    from transformers.initialization import no_init_weights

    with quiet_libraries():
        config, _ = language_config(str(folder))
        with init_empty_weights(include_buffers=False), no_init_weights():
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
    """An empty model that computes with `weights`; those of a part are on `device` only while rows pass it.

    `begin` embeds the rows of a pack, `pass_layer` takes them through one layer, `end` makes their states. Several
    models pass a layer in turn if they share what is read for it; `states` is for one alone.
    """

    def __init__(self, model: PreTrainedModel, weights: Weights, device: torch.device) -> None:
        self._model, self._weights, self.device = model, weights, device
        self._layers = list(model.get_submodule(_LAYERS.removesuffix(".")).children())
        self._pack: Pack | None = None
        self._hidden: torch.Tensor | None = None  # (B, T, H), behind the last layer that was passed
        self._inputs: list[dict[str, Any]] = []  # what transformers gives each layer besides
        for name, buffer in model.named_buffers():
            owner, _, attribute = name.rpartition(".")
            model.get_submodule(owner)._buffers[attribute] = buffer.to(device)

    @property
    def layers(self) -> int:
        """Return the number of layers."""
        return len(self._layers)

    def states(self, pack: Pack) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states that predict the labels of `pack`, (L, H), and the output head's weight, (V, H)."""
        self.begin(pack)
        for index in range(self.layers):
            self.pass_layer(index)
        return self.end()

    def begin(self, pack: Pack) -> None:
        """Embed the rows of `pack`."""
        self._pack, self._hidden, self._inputs = pack.to(self.device), None, []

        def record(hidden_states: torch.Tensor, **inputs: Any) -> torch.Tensor:
            if self._hidden is None:
                self._hidden = hidden_states
            self._inputs.append(inputs)
            return hidden_states

        self._around_layers(record)

    def pass_layer(self, index: int) -> None:
        """Load a layer, take the rows through it one by one, and drop its weights."""
        import torch

        assert self._pack is not None, "begin() sets it"
        assert self._hidden is not None, "begin() sets it"
        window, inputs = getattr(self._model.config, "sliding_window", None), self._inputs[index]
        layer, rows = self._layers[index], len(self._hidden)
        with self._loaded(layer, f"{_LAYERS}{index}."), torch.no_grad():
            for row in range(rows):
                own = {name: _row_of(value, row, rows) for name, value in inputs.items()}
                own["attention_mask"] = self._pack.row(row).visible(window)
                self._hidden[row : row + 1] = layer(self._hidden[row : row + 1], **own)

    def end(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `states` returns, of the rows that have passed all layers."""
        assert self._pack is not None, "begin() sets it"
        states, head = self._around_layers(lambda *_, **__: self._hidden)
        self._hidden, self._inputs = None, []
        return states[self._pack.label_rows, self._pack.label_columns], head

    def _around_layers(self, layer_forward: Callable[..., Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Run what the model has around its layers, each of which is `layer_forward` meanwhile."""
        import torch

        from tool_aware.engine.loss import without_head

        assert self._pack is not None
        pack, own = self._pack, [layer.forward for layer in self._layers]
        # transformers passes a mask of four dimensions on unchanged; each layer gets the masks of single rows in turn.
        no_mask = torch.empty(len(pack.input_ids), 1, 1, 1, dtype=torch.bool, device=self.device)
        inputs = {"input_ids": pack.input_ids, "position_ids": pack.position_ids, "attention_mask": no_mask}
        for layer in self._layers:
            layer.forward = layer_forward
        try:
            with self._loaded(self._model, "", but_not=_LAYERS), torch.no_grad(), without_head(self._model) as head:
                return self._model(**inputs, use_cache=False).logits, head
        finally:
            for layer, forward in zip(self._layers, own, strict=True):
                layer.forward = forward

    @contextlib.contextmanager
    def _loaded(self, module: nn.Module, prefix: str, but_not: str | None = None) -> Iterator[None]:
        """Load the values of the parameters of `module` while active."""
        empty = [
            (name, parameter)
            for name, parameter in module.named_parameters()
            if not (but_not and (prefix + name).startswith(but_not))
        ]
        for name, parameter in empty:
            source = prefix + name  # a head that is tied to the embeddings has none of its own
            source = source if source in self._weights else _EMBEDDINGS
            # Moved first: on the way to a GPU torch converts on the CPU.
            _put(module, name, self._weights[source].to(self.device).to(parameter.dtype))
        try:
            yield
        finally:
            for name, parameter in empty:
                _put(module, name, parameter)


def _put(module: nn.Module, name: str, value: torch.Tensor) -> None:
    from torch import nn

    owner, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(owner), attribute, nn.Parameter(value, requires_grad=False))


def _row_of(value: Any, row: int, rows: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_row_of(part, row, rows) for part in value)
    is_batched = hasattr(value, "shape") and len(value.shape) > 0 and value.shape[0] == rows
    return value[row : row + 1] if is_batched else value
