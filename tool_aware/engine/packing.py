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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tool_aware.chat_format import EncodedExample
from tool_aware.text import common_prefix_length

if TYPE_CHECKING:
    import torch

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
    best_tokens, cut = [0.0], [0]
    for end in range(1, len(ordered) + 1):
        candidates = _runs_ending_at(end, ordered, common)
        tokens, start = min((best_tokens[start] + tokens, start) for start, tokens in candidates)
        best_tokens.append(tokens)
        cut.append(start)
    groups, end = [], len(ordered)
    while end:
        start = cut[end]
        groups.append(_Group(ordered[start:end], order[start:end], min(common[start : end - 1], default=0)))
        end = start
    return groups[::-1]


def _runs_ending_at(end: int, ordered: Sequence[EncodedExample], common: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (start, tokens) for each run ordered[start:end]; a run is one example or shares a worthwhile prefix."""
    total, least = 0, None
    for start in range(end - 1, -1, -1):
        if start < end - 1:
            least = common[start] if least is None else min(least, common[start])
            if least < MIN_SHARED_TOKENS:
                return
        total += len(ordered[start])
        yield start, total - (end - start - 1) * (least or 0)


def _tokens(group: _Group) -> int:
    return group.shared + sum(len(example) - group.shared for example in group.examples)


def _lay_out(rows: Sequence[Sequence[_Group]], multiple_of: int) -> Pack:
    import torch

    laid_out = [_lay_out_row(groups) for groups in rows]
    length = max(len(row.input_ids) for row in laid_out)
    length += -length % multiple_of
    columns = {"input_ids": 0, "position_ids": 0, "group_ids": -1, "example_ids": 0}
    padded = {
        name: torch.tensor([getattr(row, name) + [fill] * (length - len(row.input_ids)) for row in laid_out])
        for name, fill in columns.items()
    }
    return Pack(
        **padded,
        label_rows=torch.tensor([r for r, row in enumerate(laid_out) for _ in row.labels], dtype=torch.long),
        label_columns=torch.tensor([column for row in laid_out for column in row.label_columns], dtype=torch.long),
        labels=torch.tensor([label for row in laid_out for label in row.labels], dtype=torch.long),
        label_weights=torch.tensor([weight for row in laid_out for weight in row.weights], dtype=torch.float32),
        order=tuple(index for groups in rows for group in groups for index in group.order),
    )


class _Row:
    """One row of a pack while it is filled."""

    def __init__(self) -> None:
        self.input_ids: list[int] = []
        self.position_ids: list[int] = []
        self.group_ids: list[int] = []
        self.example_ids: list[int] = []
        self.label_columns: list[int] = []
        self.labels: list[int] = []
        self.weights: list[float] = []

    def append(self, ids: Sequence[int], *, first_position: int, group: int, example: int) -> None:
        self.input_ids += ids
        self.position_ids += range(first_position, first_position + len(ids))
        self.group_ids += [group] * len(ids)
        self.example_ids += [example] * len(ids)


def _lay_out_row(groups: Sequence[_Group]) -> _Row:
    row = _Row()
    number = 0
    for group_number, group in enumerate(groups):
        prefix = group.examples[0].prompt[: group.shared]
        row.append(prefix, first_position=0, group=group_number, example=PREFIX)
        last_prefix_column = len(row.input_ids) - 1
        for example in group.examples:
            first_column = len(row.input_ids)
            rest = example.input_ids[group.shared :]
            row.append(rest, first_position=group.shared, group=group_number, example=number)
            number, weights = number + 1, example.label_weights
            for offset in range(len(example.prompt) - group.shared, len(rest)):
                # The token before this one predicts it; before the first of `rest` that is the prefix's last, if any.
                column = first_column + offset - 1 if offset else last_prefix_column
                if offset or group.shared:
                    row.label_columns.append(column)
                    row.labels.append(rest[offset])
                    row.weights.append(weights[offset - len(rest)])
    return row
