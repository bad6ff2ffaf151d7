"""Kernels for attention over packs on CUDA, beside FlashAttention itself (packed_attention.py)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


def merge_attention(
    own: torch.Tensor, own_lse: torch.Tensor, prefix: torch.Tensor, prefix_lse: torch.Tensor, out: torch.Tensor
) -> None:
    """Write the attention over both sets of keys into `out` (T, heads, D), and its log-sum-exp into `own_lse`.

    `own` and `prefix` (T, heads, D) are attentions over disjoint sets of keys, `own_lse` and `prefix_lse` (heads, T)
    the log-sum-exp of their scores, +inf where there is no key (FlashAttention's sign).
    """
    tokens, heads, size = own.shape
    strides = (own.stride(0), prefix.stride(0), out.stride(0))
    sizes = (heads, triton.next_power_of_2(heads), size, triton.next_power_of_2(size))
    _merge_attention[(tokens,)](own, own_lse, prefix, prefix_lse, out, *strides, tokens, *sizes)


@triton.jit
def _merge_attention(
    own, own_lse, prefix, prefix_lse, out, own_stride, prefix_stride, out_stride, tokens,
    heads: tl.constexpr, heads_block: tl.constexpr, size: tl.constexpr, size_block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, heads_block)
    a = tl.load(own_lse + head * tokens + row, mask=head < heads, other=0.0)
    b = tl.load(prefix_lse + head * tokens + row, mask=head < heads, other=0.0)
    b = tl.where(b == float("inf"), -float("inf"), b)
    largest = tl.maximum(a, b)
    total = largest + tl.log(tl.exp(a - largest) + tl.exp(b - largest))
    column = tl.arange(0, size_block)[None, :]
    place = head[:, None] * size + column
    inside = (head[:, None] < heads) & (column < size)
    mine = tl.load(own + row * own_stride + place, mask=inside, other=0.0).to(tl.float32)
    shared = tl.load(prefix + row * prefix_stride + place, mask=inside, other=0.0).to(tl.float32)
    merged = mine * tl.exp(a - total)[:, None] + shared * tl.exp(b - total)[:, None]
    tl.store(out + row * out_stride + place, merged.to(out.dtype.element_ty), mask=inside)
    tl.store(own_lse + head * tokens + row, total, mask=head < heads)


def add_copies(
    key: torch.Tensor,
    value: torch.Tensor,
    columns: torch.Tensor,
    copies: torch.Tensor,
    to_key: torch.Tensor,
    to_value: torch.Tensor,
) -> None:
    """Add `key` and `value` (P, K, D), summed over the copies of each column, to `to_key` and `to_value` (T, K, D).

    `columns` (P,) and `copies` (2, P) are those of packed_attention.Segments.
    """
    tokens, size = len(key), key[0].numel()
    _add_copies[(tokens,)](key, value, columns, copies, to_key, to_value, tokens, size, triton.next_power_of_2(size))


@triton.jit
def _add_copies(key, value, columns, copies, to_key, to_value, tokens, size: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(copies + row)
    distance = tl.load(copies + tokens + row)
    if count > 0:
        column = tl.arange(0, block)
        inside = column < size
        target = tl.load(columns + row) * size + column
        of_key = tl.load(to_key + target, mask=inside, other=0.0).to(tl.float32)
        of_value = tl.load(to_value + target, mask=inside, other=0.0).to(tl.float32)
        for number in range(count):
            place = (row + number * distance) * size + column
            of_key += tl.load(key + place, mask=inside, other=0.0).to(tl.float32)
            of_value += tl.load(value + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(to_key + target, of_key.to(to_key.dtype.element_ty), mask=inside)
        tl.store(to_value + target, of_value.to(to_value.dtype.element_ty), mask=inside)
