"""Packs that are brought to the few sizes of recorded passes."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from tool_aware.chat_format import EncodedExample
from tool_aware.engine.packed_attention import Segments
from tool_aware.engine.packing import Packing, pack
from tool_aware.engine.pass_inputs import PackSizes, padded, padded_segments


def drawn_pack(seed: int, packing: Packing = "prefix", multiple_of: int = 1):
    draw = random.Random(seed)
    prefixes = [[10 * number + 1] * draw.randint(0, 300) for number in range(draw.randint(1, 3))]
    examples = [
        EncodedExample(draw.choice(prefixes) + [1000 + n] * draw.randint(1, 40), [5] * draw.randint(1, 90))
        for n in range(draw.randint(1, 20))
    ]
    return pack(examples, packing, multiple_of=multiple_of)


@pytest.mark.parametrize("seed", range(30))
def test_padding_is_seen_by_no_token_of_the_pack_and_counts_nothing(seed):
    packed = drawn_pack(seed, "block" if seed % 3 == 0 else "prefix", multiple_of=(1, 32)[seed % 2])
    sizes = PackSizes.around(packed, Segments.of(packed))
    longer = padded(packed, sizes)
    tokens, labels = packed.input_ids.shape[1], len(packed.labels)
    assert (longer.input_ids.shape[1], len(longer.labels)) == (sizes.tokens, sizes.labels)
    assert torch.equal(longer.visible()[..., :tokens, :tokens], packed.visible())
    own = longer.group_ids[0, :tokens] >= 0
    assert not longer.visible()[0, 0, :tokens, tokens:].any()
    assert not longer.visible()[0, 0, tokens:, :tokens][:, own].any()
    assert not longer.label_weights[labels:].any()
    assert torch.equal(longer.label_weights[:labels], packed.label_weights)


@pytest.mark.parametrize("seed", range(30))
def test_segments_of_fixed_sizes_let_each_token_see_what_it_should(seed):
    packed = drawn_pack(seed)
    sizes = PackSizes.around(packed, Segments.of(packed))
    longer = padded(packed, sizes)
    segments = padded_segments(Segments.of(longer), sizes)
    assert (len(segments.own), len(segments.queries), len(segments.keys)) == (
        sizes.own_segments,
        sizes.prefix_segments,
        sizes.prefix_segments,
    )
    assert len(segments.prefix_columns) == sizes.prefix_tokens == segments.keys[-1]  # no key is left out
    sees = torch.zeros(sizes.tokens, sizes.tokens, dtype=torch.bool)
    for first, end in zip(segments.own[:-1], segments.own[1:], strict=True):
        assert end - first <= segments.longest_own
        sees[first:end, first:end] = torch.ones(end - first, end - first).tril().bool()
    spans = (itertools.pairwise(starts) for starts in (segments.queries, segments.keys))
    for (first, end), (first_key, end_key) in zip(*spans, strict=True):
        sees[first:end, segments.prefix_columns[first_key:end_key]] = True
    real = longer.group_ids[0] >= 0
    assert torch.equal(sees[real], longer.visible()[0, 0][real])
    assert not real[-1]  # someone sees what fills up the prefixes


def test_sizes_are_few_and_little_larger():
    packs = [drawn_pack(seed) for seed in range(200)]
    tokens = [packed.input_ids.shape[1] for packed in packs]
    sizes = [PackSizes.around(packed, Segments.of(packed)) for packed in packs]
    assert all(before < size.tokens <= 9 / 8 * before + 32 for before, size in zip(tokens, sizes, strict=True))
    assert len({size.tokens for size in sizes}) < 0.4 * len(set(tokens))
