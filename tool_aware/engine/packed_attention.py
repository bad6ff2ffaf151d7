"""Attention over a pack, forward and backward, for the hand-written decoder.

A token of a pack sees the prefix of its group and what precedes it in its own example. FlashAttention computes both
without a mask: causal attention over each part of the pack by itself, and full attention over the prefix. The results
are merged by their log-sum-exp; given the merged log-sum-exp, the gradients of both add up.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NoReturn, Protocol

import torch
from torch.nn import functional

from tool_aware.engine.packing import PREFIX, Pack
from tool_aware.engine.sizes import prefix_copies
from tool_aware.engine.torch_ops import wide_of

BLOCK_QUERIES = 128  # a block's scores stay in the cache, and half of those of a long segment are never made


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
    """Attention as plain products, a block of queries at a time: for the CPU, where torch's own kernel takes half as
    long again for examples of 100 tokens behind a prefix of 290.

    Each token sees its own segment up to itself, and before that the prefix of its group. The products are made per
    key-value head, of all query heads that share it. The backward pass computes the attention again. Scores are
    float32 at least: bfloat16 would round one of 50 by up to an eighth, and its probability by as much.
    """

    def __init__(self, pack: Pack) -> None:
        group, example = pack.group_ids[0].cpu(), pack.example_ids[0].cpu()
        self._blocks: list[_Block] = []
        self._before: tuple[torch.Tensor, torch.Tensor] | None = None  # keys and values, (P, K, D) each
        prefix_of: dict[int, slice] = {}
        start = 0
        for length in _run_lengths(torch.stack([group, example])).tolist():
            in_group, is_prefix = int(group[start]), int(example[start]) == PREFIX
            shared = [] if is_prefix or in_group not in prefix_of else [prefix_of[in_group]]
            if is_prefix:
                prefix_of[in_group] = slice(start, start + length)
            for first in range(start, start + length, BLOCK_QUERIES):
                last = min(first + BLOCK_QUERIES, start + length)
                self._blocks.append(_Block(slice(first, last), (*shared, slice(start, last))))
            start += length

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """See PackedAttention.forward."""
        heads = key.shape[1]
        for block in self._blocks:
            k, v = (block.seen(x, first) for x, first in zip((key, value), self._before or (None, None), strict=True))
            p = _probabilities(_by_head(query[block.queries], heads), k, block.length)
            attended = torch.bmm(p, v)
            out[block.queries] = _by_token(attended, block.length)
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
        heads, scale = key.shape[1], query.shape[-1] ** -0.5
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros(x.shape, dtype=wide_of(x).dtype) for x in (key, value))
        for block in self._blocks:
            q, grad_out = (_by_head(x[block.queries], heads) for x in (query, gradient))  # (K, G t, D)
            k, v = block.seen(key), block.seen(value)  # (K, n, D)
            p = _probabilities(q, k, block.length)  # (K, G t, n)
            block.add_to(grad_value, torch.bmm(p.mT, grad_out))
            grad_p = torch.bmm(grad_out, v.mT)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype).mul_(scale)
            grad_query[block.queries] = _by_token(torch.bmm(grad_scores, k), block.length)
            block.add_to(grad_key, torch.bmm(grad_scores.mT, q))
        return grad_query, None, grad_key.to(key.dtype), grad_value.to(value.dtype)

    def behind(self, key: torch.Tensor, value: torch.Tensor) -> SegmentAttention:
        """See PackedAttention.behind."""
        other = copy.copy(self)
        other._before = (key, value)
        return other


@dataclass(frozen=True)
class _Block:
    """Queries of one segment, t of them, and the keys that they see, n: the last t of these, each up to itself."""

    queries: slice
    keys: tuple[slice, ...]

    @property
    def length(self) -> int:
        """Return t."""
        return self.queries.stop - self.queries.start

    def seen(self, tokens: torch.Tensor, before: torch.Tensor | None = None) -> torch.Tensor:
        """Return the keys or values (T, K, D) that the queries see, behind those `before` (P, K, D): (K, n, D)."""
        first = [] if before is None else [before]
        return torch.cat([*first, *(tokens[columns] for columns in self.keys)]).transpose(0, 1)

    def add_to(self, gradient: torch.Tensor, addend: torch.Tensor) -> None:
        """Add what belongs to the keys that are seen, (K, n, D), to the gradient of all, (T, K, D)."""
        start = 0
        for columns in self.keys:
            stop = start + columns.stop - columns.start
            gradient[columns] += addend[:, start:stop].transpose(0, 1)
            start = stop


def _probabilities(query: torch.Tensor, key: torch.Tensor, length: int) -> torch.Tensor:
    """Return what each query (K, G t, D) takes of each key (K, n, D), (K, G t, n), where t is `length`."""
    scores = torch.bmm(wide_of(query), wide_of(key).mT).mul_(query.shape[-1] ** -0.5)
    own = scores.unflatten(1, (-1, length))[..., -length:]  # (K, G, t, t)
    own.masked_fill_(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(-1).to(query.dtype)


def _by_head(tokens: torch.Tensor, key_heads: int) -> torch.Tensor:
    """Return (t, A, D) as (K, G t, D), the G query heads of a key-value head behind one another."""
    return tokens.unflatten(1, (key_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)


def _by_token(heads: torch.Tensor, length: int) -> torch.Tensor:
    """Return (K, G t, D) as (t, A, D), where t is `length`."""
    return heads.unflatten(1, (-1, length)).permute(2, 0, 1, 3).flatten(1, 2)


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
    prefix_columns: torch.Tensor  # (P,) int64: the columns of all prefixes, or of copies; empty if no group has one
    # (2, P) int32: of the first copy of each column how many there are and how far apart; 0 and 0 of the others.
    copies: torch.Tensor
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
        copies = torch.tensor([[1], [0]], dtype=torch.int32).expand(2, len(columns))
        return cls(own_starts, query_starts, key_starts, columns, copies, longest_own, longest_query, longest_key)

    def copied(self, most: int) -> Segments:
        """Cut the queries of each segment into `most` parts, as far as it has so many, with keys of their own each.

        What a query sees stays the same; a key's gradient is the sum over its copies (see `sizes.prefix_copies`).
        """
        if most == 1:
            return self
        queries, keys, columns, copies = [0], [0], [], []
        spans = (pairwise(starts.tolist()) for starts in (self.queries, self.keys))
        for (first, end), (first_key, end_key) in zip(*spans, strict=True):
            parts, length = min(most, end - first), end_key - first_key
            queries += [first + (end - first) * part // parts for part in range(1, parts + 1)]
            keys += [keys[-1] + length * part for part in range(1, parts + 1)]
            columns.append(self.prefix_columns[first_key:end_key].repeat(parts))
            of_first = torch.tensor([[parts], [length]]).expand(2, length)
            copies.append(functional.pad(of_first, (0, length * (parts - 1))))
        return replace(
            self,
            queries=torch.tensor(queries, dtype=torch.int32),
            keys=torch.tensor(keys, dtype=torch.int32),
            prefix_columns=torch.cat(columns),
            copies=torch.cat(copies, dim=1).int(),
            longest_query=-(-self.longest_query // most),
        )

    def to(self, device: torch.device) -> Segments:
        """Copy all tensors to `device`."""
        return replace(
            self,
            own=self.own.to(device, non_blocking=True),
            queries=self.queries.to(device, non_blocking=True),
            keys=self.keys.to(device, non_blocking=True),
            prefix_columns=self.prefix_columns.to(device, non_blocking=True),
            copies=self.copies.to(device, non_blocking=True),
        )


class FlashAttention:
    """FlashAttention of torch, twice, for 16-bit tensors on CUDA from compute capability 8.0 on."""

    def __init__(self, segments: Segments) -> None:
        """Take the segments of a pack, whose tensors are on the GPU."""
        own, queries, keys = segments.own, segments.queries, segments.keys
        self._own = (own, own, segments.longest_own, segments.longest_own)
        self._prefix = (queries, keys, segments.longest_query, segments.longest_key)
        self._prefix_columns, self._copies = segments.prefix_columns, segments.copies

    @classmethod
    def of(cls, pack: Pack, device: torch.device) -> FlashAttention:
        """Prepare the attention over one pack."""
        segments = Segments.of(pack)
        copies = prefix_copies(pack.input_ids.shape[1], len(segments.prefix_columns))
        return cls(segments.copied(copies).to(device))

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """See PackedAttention.forward."""
        from tool_aware.engine import triton_attention

        own, lse = self._attend(self._own, query, key, value, is_causal=True)
        if not len(self._prefix_columns):
            out.copy_(own)
            return lse
        shared_key, shared_value = key[self._prefix_columns], value[self._prefix_columns]
        shared, shared_lse = self._attend(self._prefix, query, shared_key, shared_value, is_causal=False)
        triton_attention.merge_attention(own, lse, shared, shared_lse, out)
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
        from tool_aware.engine import triton_attention

        grad_query, grad_key, grad_value = self._gradients(
            self._own, gradient, query, key, value, out, lse, is_causal=True
        )
        if not len(self._prefix_columns):
            return grad_query, None, grad_key, grad_value
        columns = self._prefix_columns
        through_prefix, grad_shared_key, grad_shared_value = self._gradients(
            self._prefix, gradient, query, key[columns], value[columns], out, lse, is_causal=False
        )
        triton_attention.add_copies(grad_shared_key, grad_shared_value, columns, self._copies, grad_key, grad_value)
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
        from tool_aware.engine import triton_attention

        lse = self.inner.forward(query, key, value, out)
        lengths = (None, None, len(query), len(self.key))
        before, before_lse, *_ = torch.ops.aten._flash_attention_forward(
            query[None], self.key[None], self.value[None], *lengths, 0.0, False, False
        )
        triton_attention.merge_attention(out, lse, before[0], before_lse[0], out)
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
