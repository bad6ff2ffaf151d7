"""Forward and backward pass of one transformer layer with LoRA over a pack, written out by hand.

    n = rms_norm(x)                   q, k, v = rotate(n Wq, n Wk), n Wv        a = attention(q, k, v)
    r = x + a Wo                      g, u = rms_norm(r) Wg, rms_norm(r) Wu     y = r + (silu(g) * u) Wd

Each W stands for a frozen weight with its LoRA update and its bias, if it has one (projections.py). Where a model norms
the heads of query and key (Qwen3), it is rotate(rms_norm(n Wq), rms_norm(n Wk)), each head by itself.

The backward pass follows the same lines from the last to the first. Only x is kept between the passes, or x and
`Activations`; what is missing is computed again, between the gradient of y's product and the rest, so that the weights
of g and u are written out once for both. Activations are overwritten by their gradients, and every buffer is dropped as
soon as nothing reads it any more.

T tokens of the pack, H hidden size, I intermediate size, D size of a head, A attention heads, K key-value heads.
R spare columns of a buffer, which a group of projections fills with its updates; they differ from group to group.
`grad_y` is the gradient of the loss with respect to y, and has its shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from tool_aware.engine.backend import Operations
from tool_aware.engine.packed_attention import PackedAttention
from tool_aware.engine.projections import Begin, Projections, nothing
from tool_aware.engine.side_stream import Beside
from tool_aware.engine.transformer_modules import AttentionModule, LayerModule, NormModule, head_norms


@dataclass
class Activations:
    """The intermediate results that a layer's backward pass reads, beside the layer's input."""

    query_key: torch.Tensor  # (T, (A + K) D), rotated; a part of `projected` unless heads are normed
    projected: torch.Tensor  # (T, (A + 2 K) D), query, key and value; query and key as projected if heads are normed
    attention: torch.Tensor  # (T, A D + R)
    lse: torch.Tensor  # (A, T) float32, log-sum-exp of the attention's scores; empty on the CPU
    residual: torch.Tensor  # (T, H), after attention
    gate: torch.Tensor  # (T, I + R)
    up: torch.Tensor  # (T, I + R)
    mlp_input: torch.Tensor | None = None  # (T, H + R), with the update of up; computed again where layers are kept


class KeysAndValues(NamedTuple):
    """The part of one layer that later tokens see of earlier ones."""

    keys: torch.Tensor  # (T, K, D), rotated
    values: torch.Tensor  # (T, K, D)


@dataclass(frozen=True)
class PackContext:
    """The attention and the rotations of one pack, shared by all layers."""

    attention: PackedAttention
    cos: torch.Tensor  # (T, D / 2)
    sin: torch.Tensor  # (T, D / 2)


@dataclass(frozen=True)
class _HeadNorms:
    """The frozen norms over each head of query and key."""

    weight: torch.Tensor  # (A + K, D)
    query_heads: int  # A
    eps: float

    @classmethod
    def of(cls, attention: AttentionModule, query_heads: int, key_heads: int) -> _HeadNorms | None:
        """Read the norms of an attention; None if it has none."""
        norms = head_norms(attention)
        if norms is None:
            return None
        query, key = norms
        weight = torch.cat([query.weight.expand(query_heads, -1), key.weight.expand(key_heads, -1)])
        return cls(weight.detach(), query_heads, query.variance_epsilon)

    @property
    def of_query(self) -> torch.Tensor:
        """Return the weights for the heads of the query, (A, D)."""
        return self.weight[: self.query_heads]

    @property
    def of_key(self) -> torch.Tensor:
        """Return the weights for the heads of the key, (K, D)."""
        return self.weight[self.query_heads :]


class DecoderLayer:
    """One transformer layer as a forward and a backward pass; its weights stay where transformers put them."""

    def __init__(
        self, layer: LayerModule, operations: Operations, *, is_cached: bool, beside: Beside | None = None
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp

        def projections(*modules: nn.Module) -> Projections:
            return Projections(modules, operations, is_cached=is_cached, beside=beside)

        self._query_key_value = projections(attention.q_proj, attention.k_proj, attention.v_proj)
        self._attention_out = projections(attention.o_proj)
        # Gate and up read the same input; apart, half as many dequantised weights are held at once.
        self._gate = projections(mlp.gate_proj)
        self._up = projections(mlp.up_proj)
        self._down = projections(mlp.down_proj)
        self._attention_norm, self._mlp_norm = layer.input_layernorm, layer.post_attention_layernorm
        self._head_size = attention.head_dim  # D
        self._query_columns, self._key_columns, self._value_columns = self._query_key_value.columns
        query_heads, first_value_head = (
            columns.start // self._head_size for columns in (self._key_columns, self._value_columns)
        )
        self._head_norms = _HeadNorms.of(attention, query_heads, first_value_head - query_heads)
        self._intermediate, self._hidden = self._gate.outputs, self._down.outputs  # I, H
        self._groups = (self._query_key_value, self._attention_out, self._gate, self._up, self._down)
        self._shares_weights = True  # between what is computed again and the backward pass
        self._operations = operations

    # ---- the whole layer --------------------------------------------------------------------------------

    def forward(
        self, x: torch.Tensor, context: PackContext, *, keep: bool = False, then: Begin = nothing
    ) -> tuple[torch.Tensor, Activations | None]:
        """Return the layer's output for its input `x`, both (T, H), and the activations if they are to be kept.

        `then` begins what the next layer needs first.
        """
        query_key, projected, attention, lse = self._attend(x, context)
        residual = self._attention_out.forward(attention, residual=x, then=self._gate.begin)  # (T, H)
        if not keep:
            del query_key, projected, attention
        gate, up, _ = self._gate_and_up(residual, then=self._down.begin)
        swiglu = self._swiglu(gate, up)
        if keep:
            kept = Activations(query_key, projected, attention, lse, residual, gate, up)
            return self._down.forward(swiglu, residual=residual, then=then), kept
        del gate, up
        return self._down.forward(swiglu, residual=residual, out=residual, then=then), None

    def begin_forward(self) -> None:
        """Start writing the weights that `forward` needs first."""
        self._query_key_value.begin()

    def backward(
        self,
        grad_out: torch.Tensor,
        x: torch.Tensor,
        kept: Activations | None,
        context: PackContext,
        *,
        then: Begin = nothing,
    ) -> torch.Tensor:
        """Add the gradients of the layer's updates; return that of its input `x` (T, H) in a buffer (T, H + R).

        `grad_out` (T, H + R) is that of its output, in such a buffer. `kept` is used up; what was not kept is computed
        again. `then` begins what the layer before needs first.
        """
        grad_residual, grad_projected = self._backward_to_projected(grad_out, x, kept, context)
        grad_normed = self._query_key_value.backward(
            grad_projected, lambda: self._attention_input(x), then=then
        )  # (T, H)
        grad_x = self._down.output_buffer(len(x))
        self._norm_backward(x, self._attention_norm, grad_normed, grad_residual, grad_x)
        return grad_x

    def begin_backward(self) -> None:
        """Start writing the weights that `backward` needs first."""
        self._down.begin()

    def backward_to_updates(
        self, grad_out: torch.Tensor, x: torch.Tensor, kept: Activations | None, context: PackContext
    ) -> None:
        """Add the gradients of the layer's updates as `backward` does, for the first layer: the embedding is frozen."""
        _, grad_projected = self._backward_to_projected(grad_out, x, kept, context)
        self._query_key_value.backward_to_updates(grad_projected, lambda: self._attention_input(x))

    def keys_and_values(self, kept: Activations) -> KeysAndValues:
        """Return copies of what later tokens see, out of a layer's activations."""
        _, key, value = self._split(kept.query_key, kept.projected)
        return KeysAndValues(key.clone(), value.clone())

    def _backward_to_projected(
        self, grad_out: torch.Tensor, x: torch.Tensor, kept: Activations | None, context: PackContext
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients of the residual and of the projected query, key and value, in buffers."""
        kept = self._backward_down(grad_out, x, kept, context)
        grad_residual = self._backward_gate_and_up(grad_out, kept)  # (T, H + R)
        return grad_residual, self._backward_attention(grad_residual, x, kept, context)  # (T, (A + 2 K) D + R)

    def _activations(self, x: torch.Tensor, context: PackContext) -> Activations:
        """Compute the layer again from its input (T, H), up to the down projection: no gradient needs its output."""
        query_key, projected, attention, lse = self._attend(x, context)
        residual = self._attention_out.forward(attention, residual=x, then=self._gate.begin)  # (T, H)
        gate_and_up = self._gate_and_up(residual, is_held=self._shares_weights)
        return Activations(query_key, projected, attention, lse, residual, *gate_and_up)

    # ---- attention, forward and backward ----------------------------------------------------------------

    def _attend(
        self, x: torch.Tensor, context: PackContext
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the rotated query and key, all that was projected, the attention in a buffer, and its lse."""
        inputs = self._attention_input(x)
        projected = self._query_key_value.forward(inputs, then=self._attention_out.begin)  # (T, (A + 2 K) D)
        del inputs
        query_key = projected[:, : self._value_columns.start]  # (T, (A + K) D)
        heads, cos, sin = self._heads(query_key), context.cos, context.sin
        if self._head_norms:  # their gradient needs query and key as they were
            query_key = torch.empty_like(query_key, memory_format=torch.contiguous_format)
            norms = self._head_norms
            self._operations.norm_and_rotate(heads, norms.weight, norms.eps, cos, sin, self._heads(query_key))
        else:
            self._operations.rotate(heads, cos, sin, heads)
        attention = self._attention_out.input_buffer(len(x))  # (T, A D + R)
        out = self._heads(attention[:, self._query_columns])  # (T, A, D)
        lse = context.attention.forward(*self._split(query_key, projected), out)
        return query_key, projected, attention, lse

    def _backward_attention(
        self, grad_residual: torch.Tensor, x: torch.Tensor, kept: Activations, context: PackContext
    ) -> torch.Tensor:
        """Return the gradient of the projected query, key and value, in a buffer (T, (A + 2 K) D + R)."""
        begin = self._query_key_value.begin
        grad_attention = self._attention_out.backward(
            grad_residual, lambda: kept.attention, then=begin, has_update=True
        )  # (T, A D)
        grad_query, addend, grad_key, grad_value = context.attention.backward(
            self._heads(grad_attention),
            *self._split(kept.query_key, kept.projected),
            self._heads(kept.attention[:, self._query_columns]),
            kept.lse,
        )
        del grad_attention
        grad_projected = self._query_key_value.output_buffer(len(x))
        to_query, to_key, to_value = self._split(grad_projected, grad_projected)
        to_value.copy_(grad_value)
        if self._head_norms is None:
            self._operations.rotate(grad_query, context.cos, -context.sin, to_query, add=addend)
            self._operations.rotate(grad_key, context.cos, -context.sin, to_key)
            return grad_projected
        query, key, _ = self._split(kept.projected, kept.projected)
        of_query, of_key, eps = self._head_norms.of_query, self._head_norms.of_key, self._head_norms.eps
        backward, cos, sin = self._operations.norm_and_rotate_backward, context.cos, context.sin
        backward(query, of_query, eps, cos, sin, grad_query, to_query, add=addend)
        backward(key, of_key, eps, cos, sin, grad_key, to_key)
        return grad_projected

    # ---- SwiGLU block, forward and backward -------------------------------------------------------------

    def _gate_and_up(
        self, residual: torch.Tensor, *, is_held: bool = False, then: Begin = nothing
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return gate and up in buffers (T, I + R), and what they have read, (T, H + R) with the update of up."""
        inputs, width = self._mlp_input(residual), self._intermediate
        gate, up = self._gate.output_buffer(len(residual)), self._up.output_buffer(len(residual))  # (T, I + R) each
        self._gate.forward(inputs, out=gate[:, :width], then=self._up.begin, is_held=is_held)
        self._up.forward(inputs, out=up[:, :width], then=then, is_held=is_held)
        return gate, up, inputs

    def _swiglu(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        out, width = self._down.input_buffer(len(gate)), self._intermediate  # (T, I + R)
        self._operations.swiglu(gate[:, :width], up[:, :width], out[:, :width])
        return out

    def _backward_down(
        self, grad_out: torch.Tensor, x: torch.Tensor, kept: Activations | None, context: PackContext
    ) -> Activations:
        """Return the activations, computed again if they were not kept, with gradients in place of gate and up."""
        width, grad_swiglu = self._intermediate, self._down.input_buffer(len(x))  # (T, I + R)
        first = self._query_key_value if kept is None else self._up
        self._down.backward_to_input(grad_out, grad_swiglu[:, :width], then=first.begin)
        if kept is None:
            kept = self._activations(x, context)
        self._operations.swiglu_backward_(kept.gate[:, :width], kept.up[:, :width], grad_swiglu[:, :width])
        self._down.backward_of_update(grad_out, grad_swiglu)  # which is what the down projection has read, by now
        return kept

    def _backward_gate_and_up(self, grad_out: torch.Tensor, kept: Activations) -> torch.Tensor:
        """Return the gradient of the residual after attention, in a buffer (T, H + R); gate and up are used up."""
        has_update = kept.mlp_input is not None
        inputs = self._mlp_input(kept.residual) if kept.mlp_input is None else kept.mlp_input  # (T, H + R)
        grad_normed = self._up.backward(kept.up, lambda: inputs, then=self._gate.begin, has_update=has_update)
        begin = self._attention_out.begin
        grad_normed = self._gate.backward(kept.gate, lambda: inputs, add=grad_normed, then=begin)
        del kept.gate, kept.up, kept.mlp_input  # not held while the gradients of attention are computed
        grad_residual = self._attention_out.output_buffer(len(grad_out))
        self._norm_backward(kept.residual, self._mlp_norm, grad_normed, grad_out, grad_residual)
        return grad_residual

    # ---- norms ------------------------------------------------------------------------------------------

    def _attention_input(self, x: torch.Tensor) -> torch.Tensor:
        return self._normed(x, self._attention_norm, self._query_key_value)

    def _mlp_input(self, residual: torch.Tensor) -> torch.Tensor:
        # A buffer with spare columns serves both gate and up, of which only one may have an update.
        return self._normed(residual, self._mlp_norm, self._gate if self._gate.ranks else self._up)

    def _normed(self, x: torch.Tensor, norm: NormModule, reader: Projections) -> torch.Tensor:
        out = reader.input_buffer(len(x))  # (T, H + R)
        self._operations.rms_norm(x, norm.weight, norm.variance_epsilon, out[:, : self._hidden])
        return out

    def _norm_backward(
        self, x: torch.Tensor, norm: NormModule, grad_normed: torch.Tensor, residual: torch.Tensor, out: torch.Tensor
    ) -> None:
        """Write the gradient of `x` (T, H), given that of the norm's output, plus `residual`, into `out`."""
        width, eps = self._hidden, norm.variance_epsilon
        self._operations.rms_norm_backward(x, norm.weight, eps, grad_normed, residual[:, :width], out[:, :width])

    # ---- views and buffers ------------------------------------------------------------------------------

    def grad_buffer(self, tokens: int) -> torch.Tensor:
        """Return an empty buffer for the gradient of the layer's output: (T, H + R)."""
        return self._down.output_buffer(tokens)

    @property
    def updates_to_copy(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the places in matrices that are kept, and what is to be copied there before each pass."""
        return [copy for group in self._groups for copy in group.updates_to_copy]

    def drop_cached_weights(self) -> None:
        """Dequantise the weights at each use from here on."""
        for group in self._groups:
            group.drop_cached()

    def drop_begun(self, *, is_running: bool = True) -> None:
        """Drop what an interrupted pass has begun; of one that was only recorded, nothing is running."""
        for group in self._groups:
            group.drop_ahead(is_running=is_running)

    def write_one_at_a_time(self) -> None:
        """Write each matrix of weights where it is used, and drop it after that use, from here on."""
        self._shares_weights = False
        for group in self._groups:
            group.write_where_used()

    def _heads(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.unflatten(1, (-1, self._head_size))  # (T, heads D) -> (T, heads, D)

    def _split(
        self, query_key: torch.Tensor, projected: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return views of query (T, A, D) and key (T, K, D) of the one, value (T, K, D) of the other."""
        query, key, value = (
            query_key[:, self._query_columns],
            query_key[:, self._key_columns],
            projected[:, self._value_columns],
        )
        return self._heads(query), self._heads(key), self._heads(value)
