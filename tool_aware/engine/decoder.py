"""Forward and backward pass of a Mistral or Llama decoder with LoRA over a pack, written out by hand.

Autograd over a library's modules keeps what it might need and launches what each module asks for. Here everything is
in view: of a layer only its input is kept and the rest computed again, but for the down projection, whose output no
gradient needs; LoRA updates ride along in the layers' own products (projections.py); weights are dequantised where they
are used; activations are overwritten by their gradients. coverage.py says what it does not cover; that takes
transformers' own forward pass.

T tokens of the pack, H hidden size, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn

from tool_aware.config.settings import Config
from tool_aware.engine import torch_ops as pointwise
from tool_aware.engine.layer_inputs import InputsOnDevice, InputsOnHost, LayerInputs
from tool_aware.engine.loss import losses_and_gradient
from tool_aware.engine.packed_attention import DenseAttention, FlashAttention, PackedAttention
from tool_aware.engine.packing import Pack
from tool_aware.engine.projections import Projections
from tool_aware.engine.supported import broken_kernels, unsupported

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass
class _Activations:
    """What a layer's backward pass reads. Buffers have R spare columns, which the projections fill."""

    query_key_value: torch.Tensor  # (T, (heads + 2 key-value heads) D), rotated
    attention: torch.Tensor  # (T, heads D + R)
    lse: torch.Tensor | None  # (heads, T) float32, log-sum-exp of the attention's scores
    residual: torch.Tensor  # (T, H), after attention
    gate: torch.Tensor  # (T, I + R)
    up: torch.Tensor  # (T, I + R)


@dataclass(frozen=True)
class _Pass:
    """What all layers share on one pack."""

    attention: PackedAttention
    cos: torch.Tensor  # (T, D / 2)
    sin: torch.Tensor


class _Layer:
    def __init__(self, layer: nn.Module, operations: ModuleType, *, is_cached: bool) -> None:
        attention, mlp = layer.self_attn, layer.mlp

        def projections(*modules: nn.Module) -> Projections:
            return Projections(modules, operations, cached=is_cached)

        self._query_key_value = projections(attention.q_proj, attention.k_proj, attention.v_proj)
        self._attention_out = projections(attention.o_proj)
        # Gate and up read the same input; apart, half as many dequantised weights are held at once.
        self._gate = projections(mlp.gate_proj)
        self._up = projections(mlp.up_proj)
        self._down = projections(mlp.down_proj)
        self._attention_norm, self._mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._head_size = attention.head_dim
        self._queries = attention.q_proj.out_features
        self._rotated = self._queries + attention.k_proj.out_features
        self._intermediate, self._hidden = self._gate.outputs, self._down.outputs
        self._operations = operations

    def forward(self, x: torch.Tensor, on: _Pass, *, keep: bool = False) -> tuple[torch.Tensor, _Activations | None]:
        """Return the layer's output (T, H), and what its backward pass reads if that is to be kept."""
        query_key_value, attention, lse = self._attend(x, on)
        residual = self._attention_out.forward(attention, residual=x)
        if not keep:
            del query_key_value, attention
        gate, up = self._gate_and_up(residual)
        hidden = self._swiglu(gate, up)
        if keep:
            kept = _Activations(query_key_value, attention, lse, residual, gate, up)
            return self._down.forward(hidden, residual=residual), kept
        del gate, up
        return self._down.forward(hidden, residual=residual, out=residual), None

    def activations(self, x: torch.Tensor, on: _Pass) -> _Activations:
        """Run the layer up to its down projection, whose output no gradient needs."""
        query_key_value, attention, lse = self._attend(x, on)
        residual = self._attention_out.forward(attention, residual=x)
        return _Activations(query_key_value, attention, lse, residual, *self._gate_and_up(residual))

    def backward(
        self, gradient: torch.Tensor, x: torch.Tensor, kept: _Activations, on: _Pass, *, is_first: bool
    ) -> torch.Tensor | None:
        """Add the updates' gradients; return that of `x` in a buffer (T, H + R), given that of the output, likewise.

        `kept` is used up. Nothing is returned for the first layer: the embedding is frozen.
        """
        gradient = self._through_mlp(gradient, kept)
        return self._through_attention(gradient, x, kept, on, is_first=is_first)

    def drop_cached_weights(self) -> None:
        """Dequantise weights where they are used from here on."""
        for group in (self._query_key_value, self._attention_out, self._gate, self._up, self._down):
            group.drop_cached()

    def gradient_buffer(self, tokens: int) -> torch.Tensor:
        """Make room for the gradient of the layer's output: (T, H + R)."""
        return self._down.output_buffer(tokens)

    def _attend(self, x: torch.Tensor, on: _Pass) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        query_key_value = self._query_key_value.forward(self._attention_input(x))
        rotated = self._heads(query_key_value[:, : self._rotated])
        self._operations.rotate(rotated, on.cos, on.sin, rotated)
        attention = self._attention_out.input_buffer(len(x))
        lse = on.attention.forward(*self._split(query_key_value), self._heads(attention[:, : self._queries]))
        return query_key_value, attention, lse

    def _gate_and_up(self, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = self._mlp_input(residual)
        gate, up = self._gate.output_buffer(len(residual)), self._up.output_buffer(len(residual))
        self._gate.forward(inputs, out=gate[:, : self._intermediate])
        self._up.forward(inputs, out=up[:, : self._intermediate])
        return gate, up

    def _swiglu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        hidden = self._down.input_buffer(len(gate))
        width = self._intermediate
        self._operations.swiglu(gate[:, :width], up[:, :width], hidden[:, :width])
        return hidden

    def _through_mlp(self, gradient: torch.Tensor, kept: _Activations) -> torch.Tensor:
        gate, up, width = kept.gate, kept.up, self._intermediate
        of_hidden = self._down.backward(gradient, lambda: self._swiglu(gate, up))
        self._operations.swiglu_backward_(gate[:, :width], up[:, :width], of_hidden)
        del of_hidden
        inputs = self._mlp_input(kept.residual)
        of_input = self._up.backward(up, lambda: inputs)
        of_input = self._gate.backward(gate, lambda: inputs, add=of_input)
        kept.gate = kept.up = None
        of_residual = self._attention_out.output_buffer(len(gradient))
        self._norm_backward(kept.residual, self._mlp_norm, of_input, gradient, of_residual)
        return of_residual

    def _through_attention(
        self, gradient: torch.Tensor, x: torch.Tensor, kept: _Activations, on: _Pass, *, is_first: bool
    ) -> torch.Tensor | None:
        of_attention = self._attention_out.backward(gradient, lambda: kept.attention)
        of_query, addend, of_key, of_value = on.attention.backward(
            self._heads(of_attention),
            *self._split(kept.query_key_value),
            self._heads(kept.attention[:, : self._queries]),
            kept.lse,
        )
        del of_attention
        of_all = self._query_key_value.output_buffer(len(x))
        to_query, to_key, to_value = self._split(of_all[:, : self._query_key_value.outputs])
        self._operations.rotate(of_query, on.cos, -on.sin, to_query, add=addend)
        self._operations.rotate(of_key, on.cos, -on.sin, to_key)
        to_value.copy_(of_value)
        del of_query, addend, of_key, of_value
        of_input = self._query_key_value.backward(of_all, lambda: self._attention_input(x), wants_input=not is_first)
        if is_first:
            return None
        of_x = self._down.output_buffer(len(x))
        self._norm_backward(x, self._attention_norm, of_input, gradient, of_x)
        return of_x

    def _attention_input(self, x: torch.Tensor) -> torch.Tensor:
        return self._normalised(x, self._attention_norm, self._query_key_value)

    def _mlp_input(self, residual: torch.Tensor) -> torch.Tensor:
        return self._normalised(residual, self._mlp_norm, self._gate if self._gate.ranks else self._up)

    def _normalised(self, x: torch.Tensor, norm: nn.Module, reader: Projections) -> torch.Tensor:
        out = reader.input_buffer(len(x))
        self._operations.rms_norm(x, norm.weight, norm.variance_epsilon, out[:, : reader.inputs])
        return out

    def _norm_backward(
        self, x: torch.Tensor, norm: nn.Module, of_output: torch.Tensor, residual: torch.Tensor, out: torch.Tensor
    ) -> None:
        width = self._hidden
        self._operations.rms_norm_backward(
            x, norm.weight, norm.variance_epsilon, of_output, residual[:, :width], out[:, :width]
        )

    def _heads(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.unflatten(1, (-1, self._head_size))

    def _split(self, flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = (
            flat[:, : self._queries],
            flat[:, self._queries : self._rotated],
            flat[:, self._rotated : self._query_key_value.outputs],
        )
        return self._heads(query), self._heads(key), self._heads(value)


@dataclass(frozen=True)
class Backend:
    """What a device computes with: the element-wise operations (those of pointwise.py), and attention over a pack."""

    operations: ModuleType
    attention: Callable[[Pack], PackedAttention]

    @classmethod
    def of(cls, device: torch.device) -> Backend:
        """Triton and FlashAttention on a GPU, else plain torch."""
        if device.type != "cuda":
            return cls(pointwise, DenseAttention)
        from tool_aware.engine import triton_ops as kernels

        return cls(kernels, partial(FlashAttention, device=device))


@dataclass(frozen=True)
class _Prepared:
    """A pack, ready to be computed."""

    of: Pack  # as it was given
    pack: Pack  # on the device
    attention: PackedAttention
    embedded: torch.Tensor | None  # (T, H) in pinned host memory, where the embedding is there


class PackedDecoder:
    """A model with its adapter, as two functions of a pack.

    `kept_layers` of the last layers keep their activations instead of computing them again; `cached_layers` of the
    first keep their weights dequantised. With `offload`, layer inputs wait in host memory, and so does the embedding.
    """

    def __init__(
        self,
        model: PeftModel,
        *,
        kept_layers: int = 0,
        cached_layers: int = 0,
        offload: bool = False,
        backend: Backend | None = None,
    ) -> None:
        base = model.get_base_model()
        self._model, self._head = base.model, base.get_output_embeddings()
        self._device = self._head.weight.device
        self._backend = backend or Backend.of(self._device)
        self._operations = self._backend.operations
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._layers = [
            _Layer(layer, self._operations, is_cached=number < cached_layers)
            for number, layer in enumerate(self._model.layers)
        ]
        self._first_kept = len(self._layers) - kept_layers
        self._cached_layers = cached_layers
        self._inputs: LayerInputs = InputsOnDevice()
        self._prepared: _Prepared | None = None
        if offload and self._device.type == "cuda":
            self._move_to_host()

    @classmethod
    def of(
        cls, model: PeftModel, config: Config, backend: Backend | None = None
    ) -> tuple[PackedDecoder | None, str | None]:
        """Make one as config.yaml wishes; else None, for transformers' forward pass, and the reason if not wished."""
        optimization = config.settled().optimization
        if optimization.decoder == "transformers" or config.training.packing == "none":
            return None, None
        reason = unsupported(model, config.model.max_seq_length)
        if not (reason or backend):
            reason = broken_kernels(model.get_base_model().device)
        if reason:
            return None, f"the toolkit's own decoder does not cover {reason}; transformers' is used, which takes longer"
        layers = model.get_base_model().config.num_hidden_layers
        decoder = cls(
            model,
            kept_layers=optimization.kept_layers if optimization.gradient_checkpointing else layers,
            cached_layers=optimization.cached_layers,
            offload=optimization.offload,
            backend=backend,
        )
        return decoder, None

    @torch.no_grad()
    def hidden(self, pack: Pack) -> torch.Tensor:
        """Return the states that predict the labels: (L, H)."""
        x, pack, on = self._start(pack)
        for layer in self._layers:
            x, _ = layer.forward(x, on)
        return self._normalised(x[pack.label_columns])

    @torch.no_grad()
    def add_gradient(self, pack: Pack, weight: torch.Tensor | float) -> torch.Tensor:
        """Add the gradient of `weight` times the sum of the labels' losses to the adapter; return that, a scalar."""
        for parameter in self.trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        x, pack, on = self._start(pack)  # x (T, H)
        self._inputs.clear()
        kept: list[_Activations] = []
        for number, layer in enumerate(self._layers):
            self._inputs.put(x)
            x, activations = layer.forward(x, on, keep=number >= self._first_kept)
            if activations:
                kept.append(activations)
        del activations
        loss, gradient = self._loss_and_gradient(x, pack, weight)
        for number, layer in reversed(list(enumerate(self._layers))):
            x = self._inputs.pop()
            activations = kept.pop() if kept else layer.activations(x, on)
            gradient = layer.backward(gradient, x, activations, on, is_first=number == 0)
            del x, activations  # before those of the next layer are there
        return loss

    @torch.no_grad()
    def prepare(self, pack: Pack) -> None:
        """Do ahead what `add_gradient` of the same pack needs before its first layer, while the GPU is still busy."""
        self._prepared = self._prepare(pack)

    def reduce_memory(self) -> str | None:
        """Trade time for memory from here on; return how, in words, or None if nothing is left to trade."""
        self._inputs.clear()  # of the step that was broken off
        if self._first_kept < len(self._layers):
            self._first_kept = len(self._layers)
            return "all activations are computed again"
        if self._cached_layers:
            for layer in self._layers[: self._cached_layers]:
                layer.drop_cached_weights()
            self._cached_layers = 0
            return "no weights are kept dequantised"
        if self._device.type == "cuda" and isinstance(self._inputs, InputsOnDevice):
            self._move_to_host()
            return "the inputs of layers wait in host memory"
        return None

    def _move_to_host(self) -> None:
        self._inputs = InputsOnHost(len(self._layers), self._device)
        embedding = self._model.embed_tokens.weight
        if embedding is not self._head.weight:
            embedding.data = embedding.data.cpu()

    def _prepare(self, pack: Pack) -> _Prepared:
        attention, embedding = self._backend.attention(pack), self._model.embed_tokens
        is_on_host = embedding.weight.device != self._device
        embedded = embedding(pack.input_ids[0].cpu()).pin_memory() if is_on_host else None
        return _Prepared(pack, pack.to(self._device), attention, embedded)

    def _start(self, pack: Pack) -> tuple[torch.Tensor, Pack, _Pass]:
        """Embed the pack's tokens, (T, H), and prepare what all layers share."""
        ready = self._prepared
        if ready and ready.of is pack:
            self._prepared = None
        else:  # what was prepared is for a later one
            ready = self._prepare(pack)
        pack = ready.pack
        if ready.embedded is None:
            x = self._model.embed_tokens(pack.input_ids[0])
        else:
            x = ready.embedded.to(self._device, non_blocking=True)
        cos, sin = self._model.rotary_emb(x, pack.position_ids)  # (1, T, D), whose halves are alike
        half = cos.shape[-1] // 2
        return x, pack, _Pass(ready.attention, cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())

    def _loss_and_gradient(
        self, x: torch.Tensor, pack: Pack, weight: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, a scalar, and its gradient with respect to the last layer's output (T, H) in a buffer."""
        states = x[pack.label_columns]  # (L, H)
        losses, of_hidden = losses_and_gradient(self._normalised(states), self._head.weight, pack.labels)
        of_hidden *= weight
        norm = self._model.norm
        self._operations.rms_norm_backward(states, norm.weight, norm.variance_epsilon, of_hidden, None, of_hidden)
        gradient = self._layers[-1].gradient_buffer(len(x)).zero_()
        gradient[:, : x.shape[1]].index_add_(0, pack.label_columns, of_hidden)
        return losses.sum() * weight, gradient

    def _normalised(self, states: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(states)
        self._operations.rms_norm(states, self._model.norm.weight, self._model.norm.variance_epsilon, out)
        return out
