"""Attention over a pack, forward and backward, for the hand-written decoder.

A token of a pack sees the prefix of its group and what precedes it in its own example. FlashAttention computes both
without a mask: causal attention over each part of the pack by itself, and full attention over the prefix. The results
are merged by their log-sum-exp; given the merged log-sum-exp, the gradients of both add up.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol

import torch
from torch.nn import functional

from tool_aware.engine.packing import PREFIX, Pack


class PackedAttention(Protocol):
    """Attention over one pack. T tokens; A attention heads, K key-value heads, D elements each."""

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write the attention of query (T, A, D) to key and value (T, K, D) into `out` (T, A, D).

        Return the log-sum-exp of its scores, (A, T) float32; empty if the backward pass does not need it.
        """

    def backward(  # noqa: PLR0917
        self,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Return the gradients: two addends of the query's (the second may be None), the key's, the value's.

        `gradient` (T, A, D) is that of `out`; the others are what `forward` read, wrote and returned.
        """

    def behind(self, key: torch.Tensor, value: torch.Tensor) -> PackedAttention:
        """Return the same attention with P more keys and values, (P, K, D), before all tokens, which see all of them.

        It has no backward pass.
        """


class SegmentAttention:
    """Torch's SDPA, once per example, over its own tokens and its group's prefix; for the CPU.

    One dense (T, T) mask would compute five times as many scores for 16 examples of 70 tokens behind a prefix of 256.
    The backward pass computes the attention again.
    """

    def __init__(self, pack: Pack) -> None:
        group, example = pack.group_ids[0].cpu(), pack.example_ids[0].cpu()
        self._lengths = _run_lengths(torch.stack([group, example])).tolist()
        self._prefixes: list[int | None] = []  # of each segment: the number of the segment that is its prefix
        self._masks: list[torch.Tensor | None] = []  # (t, keys) bool; None = causal
        self._before: tuple[torch.Tensor, torch.Tensor] | None = None  # keys and values, (P, K, D) each
        prefix_of: dict[int, int] = {}
        start = 0
        for number, length in enumerate(self._lengths):
            in_group, is_prefix = int(group[start]), int(example[start]) == PREFIX
            prefix = None if is_prefix else prefix_of.get(in_group)
            if is_prefix:
                prefix_of[in_group] = number
            self._prefixes.append(prefix)
            before = 0 if prefix is None else self._lengths[prefix]
            mask = torch.ones(length, before + length, dtype=torch.bool).tril(before) if before else None
            self._masks.append(mask)
            start += length

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """See PackedAttention.forward."""
        out.copy_(self._attend(query, key, value))
        return query.new_empty(0)

    def backward(  # noqa: PLR0917
        self,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> tuple[torch.Tensor, None, torch.Tensor, torch.Tensor]:
        """See PackedAttention.backward."""
        inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        with torch.enable_grad():
            grad_query, grad_key, grad_value = torch.autograd.grad(self._attend(*inputs), inputs, gradient)
        return grad_query, None, grad_key, grad_value

    def behind(self, key: torch.Tensor, value: torch.Tensor) -> SegmentAttention:
        """See PackedAttention.behind."""
        other = copy.copy(self)
        other._before = (key, value)
        return other

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        groups = query.shape[1] // key.shape[1]
        queries = _by_head(query).split(self._lengths, dim=2)
        keys, values = (_by_head(x, groups).split(self._lengths, dim=2) for x in (key, value))
        before = [_by_head(x, groups) for x in self._before] if self._before else None  # (1, A, P, D) each
        outs = []
        for number, (prefix, own_mask) in enumerate(zip(self._prefixes, self._masks, strict=True)):
            mask, k, v = own_mask, keys[number], values[number]  # (1, A, t, D)
            if prefix is not None:
                k, v = torch.cat((keys[prefix], k), dim=2), torch.cat((values[prefix], v), dim=2)
            if before:
                mask = self._mask_behind(mask, k.shape[2], before[0].shape[2])
                k, v = torch.cat((before[0], k), dim=2), torch.cat((before[1], v), dim=2)
            attended = functional.scaled_dot_product_attention(queries[number], k, v, mask, is_causal=mask is None)
            outs.append(attended)
        return torch.cat(outs, dim=2)[0].transpose(0, 1)

    @staticmethod
    def _mask_behind(mask: torch.Tensor | None, own: int, before: int) -> torch.Tensor:
        """Return a segment's mask, (t, keys), with `before` columns that are seen to its left; None was causal."""
        own_mask = torch.ones(own, own, dtype=torch.bool).tril() if mask is None else mask
        return functional.pad(own_mask, (before, 0), value=True)


def _by_head(tokens: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Return (T, heads, D) as (1, heads x groups, T, D), each head repeated `groups` times."""
    return tokens.repeat_interleave(groups, dim=1).transpose(0, 1)[None]


# The starts of queries and keys, and the length of the longest of either.
_Lengths = tuple[torch.Tensor, torch.Tensor, int, int]


@dataclass(frozen=True)
class Segments:
    """Where the segments of a pack begin: S of the group prefixes and examples, G of what sees a prefix or nothing.

    The G segments are a group's prefix, which sees nothing of `prefix_columns`, then its examples, which see all of it;
    padding is the last. All lengths are zero-padded sums, as FlashAttention wants them.
    """

    own: torch.Tensor  # (S + 1,) int32: where each begins, and the end of the last
    queries: torch.Tensor  # (G + 1,) int32
    keys: torch.Tensor  # (G + 1,) int32, in `prefix_columns`
    prefix_columns: torch.Tensor  # (P,) int64: the columns of all prefixes; empty if no group has one
    longest_own: int
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, pack: Pack) -> Segments:
        """Find the segments of a pack with one row of tokens; the result is on the CPU."""
        group, example = pack.group_ids[0].cpu(), pack.example_ids[0].cpu()
        is_prefix = example == PREFIX
        own = _run_lengths(torch.stack([group, example]))
        lengths = _run_lengths(torch.stack([group, is_prefix]))
        ends = lengths.cumsum(0) - 1
        prefix_tokens = {int(g): int((is_prefix & (group == g)).sum()) for g in group[ends].unique()}
        keys = torch.tensor([0 if is_prefix[end] else prefix_tokens[int(group[end])] for end in ends])
        own_starts, query_starts, key_starts = (functional.pad(x.cumsum(0), (1, 0)).int() for x in (own, lengths, keys))
        longest_own, longest_query, longest_key = (int(x.max()) for x in (own, lengths, keys))
        columns = is_prefix.nonzero()[:, 0]
        return cls(own_starts, query_starts, key_starts, columns, longest_own, longest_query, longest_key)

    def to(self, device: torch.device) -> Segments:
        """Copy all tensors to `device`."""
        return replace(
            self,
            own=self.own.to(device, non_blocking=True),
            queries=self.queries.to(device, non_blocking=True),
            keys=self.keys.to(device, non_blocking=True),
            prefix_columns=self.prefix_columns.to(device, non_blocking=True),
        )


class FlashAttention:
    """FlashAttention of torch, twice, for 16-bit tensors on CUDA from compute capability 8.0 on."""

    def __init__(self, segments: Segments) -> None:
        """Take the segments of a pack, whose tensors are on the GPU."""
        own, queries, keys = segments.own, segments.queries, segments.keys
        self._own = (own, own, segments.longest_own, segments.longest_own)
        self._prefix = (queries, keys, segments.longest_query, segments.longest_key)
        self._prefix_columns = segments.prefix_columns

    @classmethod
    def of(cls, pack: Pack, device: torch.device) -> FlashAttention:
        """Prepare the attention over one pack."""
        return cls(Segments.of(pack).to(device))

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """See PackedAttention.forward."""
        from tool_aware.engine import triton_ops

        own, lse = self._attend(self._own, query, key, value, is_causal=True)
        if not len(self._prefix_columns):
            out.copy_(own)
            return lse
        shared_key, shared_value = key[self._prefix_columns], value[self._prefix_columns]
        shared, shared_lse = self._attend(self._prefix, query, shared_key, shared_value, is_causal=False)
        triton_ops.merge_attention(own, lse, shared, shared_lse, out)
        return lse

    def backward(  # noqa: PLR0917
        self,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """See PackedAttention.backward."""
        grad_query, grad_key, grad_value = self._gradients(
            self._own, gradient, query, key, value, out, lse, is_causal=True
        )
        if not len(self._prefix_columns):
            return grad_query, None, grad_key, grad_value
        columns = self._prefix_columns
        through_prefix, grad_shared_key, grad_shared_value = self._gradients(
            self._prefix, gradient, query, key[columns], value[columns], out, lse, is_causal=False
        )
        grad_key.index_add_(0, columns, grad_shared_key)
        grad_value.index_add_(0, columns, grad_shared_value)
        return grad_query, through_prefix, grad_key, grad_value

    def behind(self, key: torch.Tensor, value: torch.Tensor) -> PackedAttention:
        """See PackedAttention.behind."""
        return _BehindKept(self, key, value)

    @staticmethod
    def _attend(
        segments: _Lengths, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, is_causal: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dropout, returns_mask = 0.0, False
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query, key, value, *segments, dropout, is_causal, returns_mask
        )
        return out, lse

    @staticmethod
    def _gradients(  # noqa: PLR0917
        segments: _Lengths,
        gradient: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        lse: torch.Tensor,
        *,
        is_causal: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        dropout, no_seed = 0.0, torch.empty(2, dtype=torch.uint64, device=query.device)
        return torch.ops.aten._flash_attention_backward(
            gradient, query, key, value, out, lse, *segments, dropout, is_causal, no_seed, no_seed
        )


@dataclass(frozen=True)
class _BehindKept:
    """FlashAttention over a pack and over keys and values before it, (P, K, D)."""

    inner: FlashAttention
    key: torch.Tensor
    value: torch.Tensor

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """See PackedAttention.forward."""
        from tool_aware.engine import triton_ops

        lse = self.inner.forward(query, key, value, out)
        lengths = (None, None, len(query), len(self.key))
        before, before_lse, *_ = torch.ops.aten._flash_attention_forward(
            query[None], self.key[None], self.value[None], *lengths, 0.0, False, False
        )
        triton_ops.merge_attention(out, lse, before[0], before_lse[0], out)
        return lse

    def backward(self, *_: torch.Tensor) -> NoReturn:
        """Refuse: nothing is trained behind kept keys."""
        raise NotImplementedError

    def behind(self, key: torch.Tensor, value: torch.Tensor) -> NoReturn:
        """Refuse: one set of keys is kept before a pack."""
        raise NotImplementedError


def _run_lengths(labels: torch.Tensor) -> torch.Tensor:
    """Return the length of each run of equal columns of `labels` (n, T)."""
    changes = (labels[:, 1:] != labels[:, :-1]).any(0).nonzero()[:, 0] + 1
    edges = torch.cat([torch.tensor([0]), changes, torch.tensor([labels.shape[1]])])
    return edges.diff()
