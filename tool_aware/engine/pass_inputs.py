"""Tensors that a pass over a pack reads; and packs brought to a few sizes, so that one recorded pass fits many.

T tokens, L labels, S and G segments, P tokens of prefixes, H hidden size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.nn import functional

from tool_aware.engine.packed_attention import FlashAttention, PackedAttention, Segments
from tool_aware.engine.packing import Pack
from tool_aware.engine.sizes import (
    FLASH_ROUNDING,
    LENGTHS_MULTIPLE,
    prefix_copies,
    recorded_tokens,
    rounded_up,
    size_step,
)

PADDING = -1  # in `Pack.group_ids`
_MOST_WORK = 9 / 8  # of a recorded pass, by that of the sizes around a pack that takes it
# Passes that packs of one size may lose by larger ones. To record theirs, Python launches two while the GPU waits: on
# an H100 as long as three recorded ones of a 7B with 8 examples, or ten of a small model.
_MOST_LOST = 4.0


@dataclass(frozen=True)
class PassInputs:
    """The tensors of one pack that the forward and the backward pass read."""

    input_ids: torch.Tensor  # (T,) int64
    position_ids: torch.Tensor  # (1, T) int64
    label_columns: torch.Tensor  # (L,) int64
    labels: torch.Tensor  # (L,) int64
    label_weights: torch.Tensor  # (L,) float32
    attention: PackedAttention
    embedded: torch.Tensor | None = None  # (T, H) in pinned host memory if the embedding is there

    @classmethod
    def of(cls, pack: Pack, attention: PackedAttention, embedded: torch.Tensor | None = None) -> PassInputs:
        """Take them from a pack on the device."""
        return cls(
            *(pack.input_ids[0], pack.position_ids, pack.label_columns, pack.labels, pack.label_weights),
            *(attention, embedded),
        )


class PackSizes(NamedTuple):
    """The sizes of all that a pass reads: equal ones can share a recorded pass."""

    tokens: int  # T
    labels: int  # L
    own_segments: int  # S
    prefix_segments: int  # G
    prefix_tokens: int  # P
    longest_own: int  # an upper bound for the tokens of one segment
    copies: int = 1  # of each prefix

    @classmethod
    def around(cls, pack: Pack, segments: Segments) -> PackSizes:
        """Return sizes that a few packs of a run have in common, and that leave room for a token of padding."""
        new_segment = int(pack.group_ids[0, -1]) != PADDING
        own_tokens = pack.input_ids.shape[1]
        tokens = recorded_tokens(own_tokens, is_full=new_segment)
        copies = prefix_copies(tokens, rounded_up(len(segments.prefix_columns), FLASH_ROUNDING))
        parts = segments.copied(copies)
        longest = max(segments.longest_own, tokens - own_tokens + LENGTHS_MULTIPLE)
        return cls(
            tokens,
            rounded_up(len(pack.labels), size_step(len(pack.labels), parts=4, least=64)),
            rounded_up(len(segments.own) + new_segment, 8),
            rounded_up(len(parts.queries) + copies, 4),
            rounded_up(len(parts.prefix_columns), 2 * FLASH_ROUNDING),
            rounded_up(longest, FLASH_ROUNDING),
            copies,
        )

    @property
    def work(self) -> int:
        """Return what a pass of these sizes takes, by and large: each token, and each label with its logits."""
        return self.tokens + self.labels

    def hold(self, around: PackSizes, tokens: int) -> bool:
        """Return whether a pack of so many tokens, which has sizes `around` it, can be brought to these, too.

        Its padding, of which it may have some already, is one segment.
        """
        is_none_smaller = all(mine >= theirs for mine, theirs in zip(self, around, strict=True))
        padding = self.tokens - tokens + LENGTHS_MULTIPLE
        return self.copies == around.copies and is_none_smaller and padding <= self.longest_own


class NearestSizes:
    """Sizes for packs of a run: of a pass that is recorded, where one is little larger than needed."""

    def __init__(self) -> None:
        self._lost: defaultdict[PackSizes, float] = defaultdict(float)  # passes, by those that were larger than needed

    def __call__(self, around: PackSizes, tokens: int, recorded: Iterable[PackSizes]) -> PackSizes:
        """Return the sizes for a pack of so many tokens: those `around` it, or of a pass that is `recorded`.

        By and by that loses what recording one of its own would have taken; then its own sizes are returned.
        """
        larger = [sizes for sizes in recorded if sizes == around or sizes.hold(around, tokens)]
        nearest = min(larger, key=lambda sizes: sizes.work, default=around)
        lost = nearest.work / around.work - 1
        if nearest.work > _MOST_WORK * around.work or self._lost[around] + lost > _MOST_LOST:
            return around
        self._lost[around] += lost
        return nearest


SizesOf = Callable[[Pack, Segments], PackSizes]


def padded(pack: Pack, sizes: PackSizes) -> Pack:
    """Return the pack with padding behind its tokens, and with labels that count nothing behind its labels."""
    more_tokens, more_labels = sizes.tokens - pack.input_ids.shape[1], sizes.labels - len(pack.labels)

    def longer(tensor: torch.Tensor, by: int, value: int = 0) -> torch.Tensor:
        return functional.pad(tensor, (0, by), value=value)

    return replace(
        pack,
        input_ids=longer(pack.input_ids, more_tokens),
        position_ids=longer(pack.position_ids, more_tokens),
        group_ids=longer(pack.group_ids, more_tokens, PADDING),
        example_ids=longer(pack.example_ids, more_tokens),
        label_rows=longer(pack.label_rows, more_labels),
        label_columns=longer(pack.label_columns, more_labels),
        labels=longer(pack.labels, more_labels),
        label_weights=longer(pack.label_weights, more_labels),
    )


def padded_segments(segments: Segments, sizes: PackSizes) -> Segments:
    """Return the segments of a padded pack with empty ones behind them, and all columns of prefixes seen by someone.

    FlashAttention leaves the gradient of a key that no segment has undefined. So the padding, whose gradient is zero,
    sees the columns that fill up the prefixes', which are its own last token.
    """

    def starts(tensor: torch.Tensor, count: int) -> torch.Tensor:
        return torch.cat([tensor, tensor[-1:].expand(count - len(tensor))])

    segments = segments.copied(sizes.copies)
    keys = segments.keys.clone()
    keys[-1] = sizes.prefix_tokens
    more_columns = sizes.prefix_tokens - len(segments.prefix_columns)
    filling = torch.full((more_columns,), sizes.tokens - 1)
    return Segments(
        starts(segments.own, sizes.own_segments),
        starts(segments.queries, sizes.prefix_segments),
        starts(keys, sizes.prefix_segments),
        torch.cat([segments.prefix_columns, filling]),
        functional.pad(segments.copies, (0, more_columns)),
        sizes.longest_own,
        -(-sizes.tokens // sizes.copies),
        sizes.prefix_tokens,
    )


@dataclass(frozen=True)
class HostInputs:
    """A pack of some sizes as three flat tensors in pinned memory, each copied to the GPU at once."""

    sizes: PackSizes
    integers: torch.Tensor  # int64: ids, positions, columns of labels, labels, columns of prefixes
    starts: torch.Tensor  # int32: the starts of all segments, copies of prefixes
    weights: torch.Tensor  # (L,) float32

    @classmethod
    def of(cls, pack: Pack, sizes_of: SizesOf = PackSizes.around) -> HostInputs:
        """Lay the pack out in the sizes around it."""
        sizes = sizes_of(pack, Segments.of(pack))
        pack = padded(pack, sizes)
        segments = padded_segments(Segments.of(pack), sizes)
        ids = (pack.input_ids[0], pack.position_ids[0], pack.label_columns, pack.labels, segments.prefix_columns)
        starts = (segments.own, segments.queries, segments.keys, segments.copies.flatten())
        return cls(sizes, torch.cat(ids).pin_memory(), torch.cat(starts).pin_memory(), pack.label_weights.pin_memory())


class FixedInputs:
    """Inputs of one size that stay where they are on the GPU, for a recorded pass; each pack is copied into them."""

    def __init__(self, sizes: PackSizes, device: torch.device) -> None:
        tokens, labels, own, prefix, prefix_tokens, longest_own, copies = sizes
        lengths = (tokens, tokens, labels, labels, prefix_tokens)
        self._integers = torch.zeros(sum(lengths), dtype=torch.int64, device=device)
        self._starts = torch.zeros(own + 2 * (prefix + prefix_tokens), dtype=torch.int32, device=device)
        self._weights = torch.zeros(labels, device=device)
        self.weight = torch.zeros((), device=device)  # of the pack's loss
        input_ids, position_ids, label_columns, label_ids, prefix_columns = self._integers.split(lengths)
        own_starts, query_starts, key_starts, copied = self._starts.split((own, prefix, prefix, 2 * prefix_tokens))
        longest = (longest_own, -(-tokens // copies), prefix_tokens)
        segments = Segments(
            *(own_starts, query_starts, key_starts, prefix_columns, copied.view(2, prefix_tokens)), *longest
        )
        self.of_pass = PassInputs(
            *(input_ids, position_ids[None], label_columns, label_ids, self._weights), FlashAttention(segments)
        )

    def fill(self, inputs: HostInputs, weight: torch.Tensor | float) -> None:
        """Copy a pack of this size, and the weight of its loss."""
        self._integers.copy_(inputs.integers, non_blocking=True)
        self._starts.copy_(inputs.starts, non_blocking=True)
        self._weights.copy_(inputs.weights, non_blocking=True)
        if isinstance(weight, torch.Tensor):
            self.weight.copy_(weight)
        else:
            self.weight.fill_(weight)
