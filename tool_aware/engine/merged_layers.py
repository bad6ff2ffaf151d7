"""A model's layers for a few tokens at a time on a CPU: weights with their updates merged, laid out for such products.

A pass over one token reads every weight once, and little else takes time: several tokens cost little more than one. So
the weights of layers that read the same input are one matrix, LoRA updates are added to it (W + s B A, which rounds
once more than both products apart), and it lies as (K, N), which torch multiplies by a few rows faster than (N, K).
What all rows begin with is attended to once for all of them.

T tokens of all rows together, H hidden size, D size of a head, A attention heads, K key-value heads, G = A / K. P
tokens that all rows begin with, C columns for those of a row's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from tool_aware.engine.projections import StackedLinear
from tool_aware.engine.supported import unsupported_forward
from tool_aware.engine.torch_ops import rms_norm
from tool_aware.engine.transformer_modules import LayerModule, NormModule, head_norms, head_of, transformer_of
from tool_aware.host_memory import SHARE_OF_FREE, free_host_bytes
from tool_aware.model.adapter import ATTENTION_LINEARS, MLP_LINEARS, base_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from peft import PeftModel
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Places:
    """Where the tokens of a pass belong: each token's row, its number among the row's tokens, and its column there."""

    rows: torch.Tensor  # (T,) int64
    numbers: torch.Tensor  # (T,) int64
    columns: torch.Tensor  # (T,) int64
    widest: int  # tokens of the row that has most
    hidden: torch.Tensor  # (rows, 1, G x widest, columns in use): 0 where a token sees a column, else -inf

    @classmethod
    def of(cls, counts: Sequence[int], lengths: Sequence[int], groups: int, dtype: torch.dtype) -> Places:
        """Place `counts` tokens of each row behind the `lengths` tokens of its own that it has."""
        rows = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        numbers = torch.cat([torch.arange(count) for count in counts])
        lengths_of = torch.tensor(lengths)
        widest, used = max(counts), max(map(int.__add__, counts, lengths))
        last_seen = lengths_of[:, None] + torch.arange(widest)  # (rows, widest)
        is_hidden = torch.arange(used) > last_seen[:, :, None]
        hidden = torch.zeros(is_hidden.shape, dtype=dtype).masked_fill_(is_hidden, float("-inf"))
        return cls(rows, numbers, lengths_of[rows] + numbers, widest, hidden.repeat(1, groups, 1)[:, None])


@dataclass(frozen=True)
class LayerStore:
    """Keys and values of one layer: those that all rows begin with, (K, P, D), and each row's own, (rows, K, C, D).

    Of a single row all are its own: that takes one attention instead of two.
    """

    keys: torch.Tensor
    values: torch.Tensor
    shared: tuple[torch.Tensor, torch.Tensor] | None

    def of_rows(self, places: Sequence[int]) -> LayerStore:
        """Return what is kept of some rows."""
        return LayerStore(self.keys[places], self.values[places], self.shared)

    @classmethod
    def behind(cls, keys: torch.Tensor, values: torch.Tensor, rows: int, columns: int) -> LayerStore:
        """Return a store with room for so many tokens of each row behind keys and values (K, P, D)."""
        heads, _, size = keys.shape
        if rows > 1:
            shape = (rows, heads, columns, size)
            return cls(keys.new_zeros(shape), values.new_zeros(shape), (keys, values))
        own_keys, own_values = (functional.pad(part, (0, 0, 0, columns))[None] for part in (keys, values))
        return cls(own_keys, own_values, None)


class _Product:
    """Layers that read the same input as one product."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        parts = [StackedLinear.of(module, first_row=0, first_rank=0) for module in modules]
        self.sizes = [part.rows for part in parts]
        first = parts[0]
        self._weight = torch.empty(first.inputs, sum(self.sizes), dtype=first.dtype, device=first.weight.device)
        for module, part, place in zip(modules, parts, self._weight.split(self.sizes, dim=1), strict=True):
            place.copy_((part.weight if part.quant_state is None else part.dequantised()).T)
            if part.update and not (getattr(module, "disable_adapters", False) or getattr(module, "merged", False)):
                place.addmm_(part.update.a.T, part.update.b.T, alpha=part.update.scale)
        biases = [torch.zeros_like(self._weight[0, : part.rows]) if part.bias is None else part.bias for part in parts]
        self._bias = torch.cat(biases) if any(part.bias is not None for part in parts) else None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs side by side."""
        return torch.mm(x, self._weight) if self._bias is None else torch.addmm(self._bias, x, self._weight)


class _Layer:
    """One transformer layer."""

    def __init__(self, layer: LayerModule) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._query_key_value = _Product([attention.q_proj, attention.k_proj, attention.v_proj])
        self._out = _Product([attention.o_proj])
        self._gate_up = _Product([mlp.gate_proj, mlp.up_proj])
        self._down = _Product([mlp.down_proj])
        self._norms = layer.input_layernorm, layer.post_attention_layernorm
        self._head_norms, self._head_size = head_norms(attention), attention.head_dim

    @property
    def key_heads(self) -> int:
        """Return K."""
        return self._query_key_value.sizes[1] // self._head_size

    @property
    def groups(self) -> int:
        """Return G."""
        return self._query_key_value.sizes[0] // self._query_key_value.sizes[1]

    def __call__(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, store: LayerStore, places: Places
    ) -> torch.Tensor:
        """Return the layer's output for its input, both (T, H), and keep keys and values; cos and sin are (T, 1, D)."""
        normed = _normed(x, self._norms[0])
        parts = self._query_key_value(normed).split(self._query_key_value.sizes, dim=1)
        query, key, value = (part.unflatten(1, (-1, self._head_size)) for part in parts)  # (T, A or K, D)
        if self._head_norms:
            query, key = _normed(query, self._head_norms[0]), _normed(key, self._head_norms[1])
        store.keys[places.rows, :, places.columns] = _rotated(key, cos, sin)
        store.values[places.rows, :, places.columns] = value
        x = x + self._out(self._attention(_rotated(query, cos, sin), store, places))
        gate, up = self._gate_up(_normed(x, self._norms[1])).chunk(2, dim=1)
        return x + self._down(functional.silu(gate).mul_(up))

    def _attention(self, query: torch.Tensor, store: LayerStore, places: Places) -> torch.Tensor:
        """Return (T, A D): attention to what all rows begin with, and to a row's own, put together by their sums."""
        tokens, heads, size = query.shape
        kv, groups, used = self.key_heads, self.groups, places.hidden.shape[-1]
        by_head = query.view(tokens, kv, groups, size)
        own = query.new_zeros(len(store.keys), kv, groups, places.widest, size)
        own[places.rows, :, :, places.numbers] = by_head
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        own_out, own_lse = attend(
            own.flatten(2, 3), store.keys[:, :, :used], store.values[:, :, :used], attn_mask=places.hidden
        )  # (rows, K, G x widest, D), (rows, K, G x widest)
        own_out = own_out.view(own.shape)[places.rows, :, :, places.numbers]  # (T, K, G, D)
        if store.shared is None:
            return own_out.reshape(tokens, heads * size)
        own_lse = own_lse.view(own.shape[:-1])[places.rows, :, :, places.numbers]
        shared = by_head.permute(1, 2, 0, 3).reshape(1, kv, groups * tokens, size)
        out, lse = attend(shared, *(part[None] for part in store.shared))
        out = out.view(kv, groups, tokens, size).permute(2, 0, 1, 3)
        lse = lse.view(kv, groups, tokens).permute(2, 0, 1)
        share = torch.sigmoid(own_lse - lse).to(out.dtype)[..., None]  # of the row's own tokens
        return torch.lerp(out, own_out, share).reshape(tokens, heads * size)


class MergedLayers:
    """A whole model over `tokens` of some rows; its adapter is merged as it is switched now."""

    def __init__(self, model: PeftModel | PreTrainedModel) -> None:
        base = base_of(model)
        self._transformer, self._head = transformer_of(base), head_of(base)
        with torch.no_grad():
            self._layers = [_Layer(layer) for layer in self._transformer.layers]
        self.groups, self.dtype = self._layers[0].groups, base.dtype

    def logits(
        self, ids: torch.Tensor, positions: torch.Tensor, stores: Sequence[LayerStore], places: Places, wanted: Any
    ) -> torch.Tensor:
        """Return the scores behind the `wanted` ones of `ids` (T,) at `positions` (T,): (wanted, vocabulary)."""
        x = self._transformer.embed_tokens(ids)  # (T, H)
        cos, sin = (part[0][:, None] for part in self._transformer.rotary_emb(x, positions[None]))  # (T, 1, D)
        for layer, store in zip(self._layers, stores, strict=True):
            x = layer(x, cos, sin, store, places)
        return self._head(_normed(x[wanted], self._transformer.norm))


def merged_layers(model: PeftModel | PreTrainedModel, longest: int) -> MergedLayers | None:
    """Return the layers of a model on a CPU, for up to `longest` tokens a row; None if they cannot be merged.

    That is so for models that the toolkit's own decoder does not cover, for weights in 16 bit, which merging would
    round, and where more than a quarter of the free memory would be needed: the weights are there twice.
    """
    base = base_of(model)
    if base.device.type != "cpu" or base.dtype != torch.float32 or unsupported_forward(model, longest):
        return None
    linears = [
        StackedLinear.of(getattr(module, name), first_row=0, first_rank=0)
        for layer in transformer_of(base).layers
        for module, names in ((layer.self_attn, ATTENTION_LINEARS), (layer.mlp, MLP_LINEARS))
        for name in names
    ]
    needed_bytes = sum(linear.inputs * linear.rows * base.dtype.itemsize for linear in linears)
    free_bytes = free_host_bytes()
    has_room = free_bytes is None or needed_bytes <= SHARE_OF_FREE * free_bytes
    return MergedLayers(model) if has_room else None


def _normed(x: torch.Tensor, norm: NormModule) -> torch.Tensor:
    out = torch.empty_like(x)
    rms_norm(x, norm.weight, norm.variance_epsilon, out)
    return out


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin
