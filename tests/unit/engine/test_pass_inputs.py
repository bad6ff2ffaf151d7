"""Packs that are brought to the few sizes of recorded passes."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from tool_aware.chat_format import EncodedExample
from tool_aware.engine.packed_attention import Segments
from tool_aware.engine.packing import Packing, pack
from tool_aware.engine.pass_inputs import NearestSizes, PackSizes, padded, padded_segments


def drawn_pack(seed: int, packing: Packing = "prefix", multiple_of: int = 1):
    draw = random.Random(seed)
    prefixes = [[10 * number + 1] * draw.randint(0, 300) for number in range(draw.randint(1, 3))]
    examples = [
        EncodedExample(draw.choice(prefixes) + [1000 + n] * draw.randint(1, 40), [5] * draw.randint(1, 90))
        for n in range(draw.randint(1, 20))
    ]
    return pack(examples, packing, multiple_of=multiple_of)


def sizes_for(packed, *, more):
    """Return the sizes around a pack, or larger ones that hold it by as much more as there may be."""
    around, tokens = PackSizes.around(packed, Segments.of(packed)), packed.input_ids.shape[1]
    larger = around._replace(
        tokens=around.tokens + more,
        labels=around.labels + more,
        own_segments=around.own_segments + more // 16,
        prefix_segments=around.prefix_segments + more // 16,
        prefix_tokens=around.prefix_tokens + more,
        longest_own=around.longest_own + more,
    )
    assert larger.hold(around, tokens)
    return larger


@pytest.mark.parametrize("more", [0, 256])
@pytest.mark.parametrize("seed", range(30))
def test_padding_is_seen_by_no_token_of_the_pack_and_counts_nothing(seed, more):
    packed = drawn_pack(seed, "block" if seed % 3 == 0 else "prefix", multiple_of=(1, 32)[seed % 2])
    sizes = sizes_for(packed, more=more)
    longer = padded(packed, sizes)
    tokens, labels = packed.input_ids.shape[1], len(packed.labels)
    assert (longer.input_ids.shape[1], len(longer.labels)) == (sizes.tokens, sizes.labels)
    assert torch.equal(longer.visible()[..., :tokens, :tokens], packed.visible())
    own = longer.group_ids[0, :tokens] >= 0
    assert not longer.visible()[0, 0, :tokens, tokens:].any()
    assert not longer.visible()[0, 0, tokens:, :tokens][:, own].any()
    assert not longer.label_weights[labels:].any()
    assert torch.equal(longer.label_weights[:labels], packed.label_weights)


@pytest.mark.parametrize("more", [0, 256])
@pytest.mark.parametrize("seed", range(30))
def test_segments_of_fixed_sizes_let_each_token_see_what_it_should(seed, more):
    packed = drawn_pack(seed, multiple_of=(1, 32)[seed % 2])
    sizes = sizes_for(packed, more=more)
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


def test_packs_that_end_in_a_few_tokens_of_padding_have_room_for_all_its_parts():
    examples = [EncodedExample([1] * 260 + [1000 + n] * 24, [5] * 60) for n in range(60)]
    for longer_by in range(32):
        packed = pack([*examples, EncodedExample([7], [8] * (longer_by + 1))], "prefix", multiple_of=32)
        sizes = PackSizes.around(packed, Segments.of(packed))
        segments = padded_segments(Segments.of(padded(packed, sizes)), sizes)
        assert sizes.copies > 1
        assert len(segments.queries) == sizes.prefix_segments
        assert segments.queries.diff().max() <= segments.longest_query


@pytest.mark.parametrize("most", [2, 3, 8])
@pytest.mark.parametrize("seed", range(10))
def test_copies_of_a_prefix_are_seen_by_a_part_of_its_queries_each_and_add_up_to_it(seed, most):
    packed = drawn_pack(seed)
    whole = Segments.of(packed)
    parts = whole.copied(most)
    tokens, count = packed.input_ids.shape[1], len(parts.prefix_columns)
    sees, seen = torch.zeros(2, tokens, tokens, dtype=torch.int64)
    for segments, counted in ((whole, sees), (parts, seen)):
        spans = (itertools.pairwise(starts) for starts in (segments.queries, segments.keys))
        for (first, end), (first_key, end_key) in zip(*spans, strict=True):
            assert 0 < end - first <= segments.longest_query
            counted[first:end, segments.prefix_columns[first_key:end_key]] += 1
    assert torch.equal(sees, seen)
    assert torch.equal(whole.copied(1).prefix_columns, whole.prefix_columns)

    gradient = torch.arange(count)  # of each copy, summed as triton_attention.add_copies does
    expected = torch.zeros(tokens, dtype=torch.int64).index_add_(0, parts.prefix_columns, gradient)
    found = torch.zeros(tokens, dtype=torch.int64)
    for first in range(count):
        copies, distance = (int(part[first]) for part in parts.copies)
        found[parts.prefix_columns[first]] += sum(int(gradient[first + number * distance]) for number in range(copies))
    assert torch.equal(found, expected)


def test_sizes_are_few_and_little_larger():
    packs = [drawn_pack(seed) for seed in range(200)]
    tokens = [packed.input_ids.shape[1] for packed in packs]
    sizes = [PackSizes.around(packed, Segments.of(packed)) for packed in packs]
    assert all(before < size.tokens <= 9 / 8 * before + 32 for before, size in zip(tokens, sizes, strict=True))
    assert len({size.tokens for size in sizes}) < 0.4 * len(set(tokens))


AROUND = PackSizes(1024, 512, 16, 12, 512, 256, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 1280},  # the padding is one segment
        {"tokens": 1280, "longest_own": 512},  # an eighth more work is the most
        {"labels": 256},
        {"own_segments": 8},
        {"prefix_segments": 8},
        {"prefix_tokens": 256},
        {"longest_own": 128},
        {"copies": 3},
    ],
)
def test_sizes_that_do_not_hold_a_pack_or_are_much_larger_are_not_taken(change):
    assert NearestSizes()(AROUND, 1000, [AROUND._replace(**change)]) == AROUND


def test_the_nearest_of_the_sizes_that_hold_a_pack_is_taken():
    near, far = AROUND._replace(labels=576), AROUND._replace(tokens=1088, labels=576)
    roomy = AROUND._replace(longest_own=512, prefix_segments=20)
    assert NearestSizes()(AROUND, 1000, [far, near]) == near
    assert NearestSizes()(AROUND, 1000, [far, near, roomy]) == roomy
    assert NearestSizes()(AROUND, 1000, [near, AROUND]) == AROUND
    assert NearestSizes()(AROUND, 1000, []) == AROUND


def test_what_is_often_a_little_too_large_gives_way_to_a_pass_of_its_own():
    nearest, larger = NearestSizes(), AROUND._replace(tokens=1120)
    taken = [nearest(AROUND, 1000, [larger]) for _ in range(100)]
    lost = (larger.work - AROUND.work) / AROUND.work
    assert taken == [larger] * int(4 / lost) + [AROUND] * (100 - int(4 / lost))
