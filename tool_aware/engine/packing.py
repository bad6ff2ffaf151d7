"""Lay the examples of a micro-batch out as one sequence in which their common prefix stands once.

All rows of a tool-routing dataset begin with the same few hundred tokens of tool descriptions. A padded batch computes
them once per row; a pack computes them once:

    [ prefix | rest of example 1 | rest of example 2 | ... ]

Position ids restart at len(prefix) for every example, and a token attends to the prefix and to earlier tokens of its
own example only. So every token has the same context as in a row of its own, and loss and gradients are the same.
Examples that share nothing are packed block-diagonally, without padding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tool_aware.chat_format import EncodedExample
from tool_aware.text import common_prefix_length

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    IntArray = NDArray[np.int64]
    FloatArray = NDArray[np.float32]

Packing = Literal["prefix", "block", "none"]

PREFIX = -1  # in `Pack.example_ids`: a token that every example of its group sees
MIN_SHARED_TOKENS = 16  # below this a prefix of its own saves less than the bookkeeping costs


@dataclass(frozen=True)
class Pack:
    """One micro-batch, ready for the model. B rows of T tokens; L labels (B = 1 except with packing "none").

    Tokens of different groups never see each other. Within a group, prefix tokens (`example_ids` = PREFIX) are seen by
    all and the others by their own example only; order gives causality. Padding is a group of its own.
    """

    input_ids: torch.Tensor  # (B, T) int64
    position_ids: torch.Tensor  # (B, T) int64
    group_ids: torch.Tensor  # (B, T) int64
    example_ids: torch.Tensor  # (B, T) int64
    label_rows: torch.Tensor  # (L,) int64: row of the hidden state that predicts the label
    label_columns: torch.Tensor  # (L,) int64: its column
    labels: torch.Tensor  # (L,) int64: token ids
    label_weights: torch.Tensor  # (L,) float32: how much each counts in the loss
    order: tuple[int, ...]  # which of the given examples stands first, second, ...; labels are in this order

    @property
    def examples(self) -> int:
        """Return the number of examples in the pack."""
        return len(self.order)

    def to(self, device: torch.device) -> Pack:
        """Copy all tensors to `device`."""
        tensors = {name: value for name, value in vars(self).items() if name != "order"}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return Pack(**moved, order=self.order)

    def row(self, number: int) -> Pack:
        """Return one row of tokens as a pack of its own, without labels."""
        only = slice(number, number + 1)
        no_labels = self.labels[:0]
        return Pack(
            *(self.input_ids[only], self.position_ids[only], self.group_ids[only], self.example_ids[only]),
            *(no_labels, no_labels, no_labels, self.label_weights[:0]),
            order=(),
        )

    def visible(self, window: int | None = None) -> torch.Tensor:
        """Return which token (dim 2) sees which (dim 3): shape (B, 1, T, T) bool, the mask that SDPA takes.

        With a sliding `window` (Mistral v0.1) a token sees that many of its own example, itself included.
        """
        import torch

        group, example = self.group_ids, self.example_ids
        order = torch.arange(group.shape[1], device=group.device)
        is_causal = order[:, None] >= order[None, :]
        same_group = group[:, :, None] == group[:, None, :]
        same_example = example[:, :, None] == example[:, None, :]
        shared = (example == PREFIX)[:, None, :]
        sees = is_causal & same_group & (same_example | shared)
        if window is not None:
            sees &= self.position_ids[:, :, None] - self.position_ids[:, None, :] < window
        return sees[:, None]


@dataclass(frozen=True)
class _Group:
    """Examples that share their first `shared` tokens, and where each stood in the micro-batch."""

    examples: list[EncodedExample]
    order: list[int]
    shared: int = 0


def pack(examples: Sequence[EncodedExample], packing: Packing = "prefix", *, multiple_of: int = 1) -> Pack:
    """Lay out one micro-batch. T is padded to a multiple of `multiple_of`, so that few distinct lengths occur."""
    singles = [_Group([example], [index]) for index, example in enumerate(examples)]
    if packing == "none":
        rows = [[single] for single in singles]
    elif packing == "block":
        rows = [singles]
    else:
        rows = [_group_by_prefix(examples)]
    return _lay_out(rows, multiple_of)


def pack_rows(examples: Sequence[EncodedExample], size: int) -> Pack:
    """Lay `examples` out as rows of `size` examples, each row a prefix-shared pack of its own."""
    rows = []
    for start in range(0, len(examples), size):
        groups = _group_by_prefix(examples[start : start + size])
        rows.append([replace(group, order=[start + index for index in group.order]) for group in groups])
    return _lay_out(rows, multiple_of=1)


def packed_tokens(examples: Sequence[EncodedExample]) -> int:
    """Count the tokens a prefix-shared pack of `examples` takes, without building it."""
    return sum(_tokens(group) for group in _group_by_prefix(examples))


def _group_by_prefix(examples: Sequence[EncodedExample]) -> list[_Group]:
    """Split examples into groups with a common prefix so that the total number of tokens is least.

    In lexicographic order, examples with long common prefixes are neighbours, and the common prefix of a run is the
    least of its neighbours' common prefixes. The best cut into runs then follows by dynamic programming: O(n^2).
    """
    order = sorted(range(len(examples)), key=lambda index: examples[index].prompt)
    ordered = [examples[index] for index in order]
    common = [common_prefix_length([a.prompt, b.prompt]) for a, b in itertools.pairwise(ordered)]
    cut = _best_cuts(list(map(len, ordered)), common)
    groups, end = [], len(ordered)
    while end:
        start = cut[end]
        groups.append(_Group(ordered[start:end], order[start:end], min(common[start : end - 1], default=0)))
        end = start
    return groups[::-1]


def _best_cuts(lengths: Sequence[int], common: Sequence[int]) -> list[int]:
    """Return, for each number of first examples, where the last run of their best cut begins.

    `lengths` of the n examples in tokens, `common` prefixes of the n - 1 pairs of neighbours. A run is one example, or
    shares a worthwhile prefix.
    """
    import numpy as np

    count = len(lengths)
    before = np.cumsum([0, *lengths])  # tokens of all examples before each
    best = np.zeros(count + 1, dtype=np.int64)  # tokens of the best cut of the first so many examples
    least = np.empty(count, dtype=np.int64)  # common prefix of the run from each example up to the last one so far
    saving_copies = np.arange(count, -1, -1)
    cut = [0]
    for end in range(1, count + 1):
        if end > 1:
            np.minimum(least[: end - 1], common[end - 2], out=least[: end - 1])
        least[end - 1] = lengths[end - 1]
        first = int(np.searchsorted(least[: end - 1], MIN_SHARED_TOKENS))  # from there on a run shares enough
        copies = saving_copies[count - end + 1 + first : count + 1]  # end - 1 - start, for each start
        tokens = best[first:end] + before[end] - before[first:end] - copies * least[first:end]
        start = int(tokens.argmin())
        best[end] = tokens[start]
        cut.append(first + start)
    return cut


def _tokens(group: _Group) -> int:
    return group.shared + sum(len(example) - group.shared for example in group.examples)


def _lay_out(rows: Sequence[Sequence[_Group]], multiple_of: int) -> Pack:
    import numpy as np
    import torch

    laid_out = [_lay_out_row(groups) for groups in rows]
    length = max(len(row.input_ids) for row in laid_out)
    length += -length % multiple_of
    columns = {"input_ids": 0, "position_ids": 0, "group_ids": -1, "example_ids": 0}
    padded = {name: np.full((len(rows), length), fill) for name, fill in columns.items()}
    for name, tokens in padded.items():
        for row, filled in zip(laid_out, tokens, strict=True):
            values = getattr(row, name)
            filled[: len(values)] = values
    return Pack(
        **{name: torch.from_numpy(tokens) for name, tokens in padded.items()},
        label_rows=torch.from_numpy(np.repeat(np.arange(len(rows)), [len(row.labels) for row in laid_out])),
        label_columns=torch.from_numpy(np.concatenate([row.label_columns for row in laid_out])),
        labels=torch.from_numpy(np.concatenate([row.labels for row in laid_out])),
        label_weights=torch.from_numpy(np.concatenate([row.weights for row in laid_out])),
        order=tuple(index for groups in rows for group in groups for index in group.order),
    )


@dataclass(frozen=True)
class _Row:
    """One row of a pack, before padding: T tokens and L labels."""

    input_ids: IntArray  # (T,)
    position_ids: IntArray  # (T,)
    group_ids: IntArray  # (T,)
    example_ids: IntArray  # (T,)
    label_columns: IntArray  # (L,)
    labels: IntArray  # (L,)
    weights: FloatArray  # (L,)


def _lay_out_row(groups: Sequence[_Group]) -> _Row:
    import numpy as np

    ids: list[int] = []
    segments: list[tuple[int, int, int, int]] = []  # first column, first position, group, example
    columns: list[range] = []
    labels: list[int] = []
    weights: list[float] = []
    number = 0
    for group_number, group in enumerate(groups):
        shared = group.shared
        segments.append((len(ids), 0, group_number, PREFIX))
        ids += group.examples[0].prompt[:shared]
        end_of_prefix = len(ids)
        for example in group.examples:
            segments.append((len(ids), shared, group_number, number))
            number += 1
            ids += example.prompt[shared:]
            first, end = len(ids) - 1, len(ids) - 1 + len(example.completion)  # the token before a label predicts it
            ids += example.completion
            skipped = 0
            if len(example.prompt) == shared:  # then the prefix's last token predicts the first label, if there is one
                columns += [range(end_of_prefix - 1, end_of_prefix)] if shared else []
                first, skipped = first + 1, int(not shared)
            columns.append(range(first, end))
            labels += example.completion[skipped:]
            weights += example.label_weights[skipped:]
    starts, positions, group_ids, example_ids = np.array(segments, dtype=np.int64).reshape(-1, 4).T
    lengths = np.diff(starts, append=len(ids))
    return _Row(
        np.array(ids, dtype=np.int64),
        np.arange(len(ids)) + np.repeat(positions - starts, lengths),
        np.repeat(group_ids, lengths),
        np.repeat(example_ids, lengths),
        np.fromiter(itertools.chain.from_iterable(columns), dtype=np.int64, count=len(labels)),
        np.array(labels, dtype=np.int64),
        np.array(weights, dtype=np.float32),
    )
