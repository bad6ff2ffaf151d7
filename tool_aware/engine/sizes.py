"""Sizes that the engine rounds and cuts by, and that the memory formulas count with. No torch."""

from __future__ import annotations

# Tokens: packs are padded to it on a GPU, which looks for the best kernels anew for every length.
LENGTHS_MULTIPLE = 32
# Ranks: rows of a group's matrix begin at multiples of 16 bytes, which the matrix products of the GPU want.
RANKS_MULTIPLE = 8
# Elements: rows of buffers that products read begin at multiples of 128 bytes. On an H100 the products of a 7B with
# rank 8 take 5 to 10 % longer otherwise.
ROWS_MULTIPLE = 64
# Labels whose logits exist at once: 1,024 x 32,000 float32 logits are 125 MiB.
CHUNK_LABELS = 1024
# Queries: FlashAttention's backward pass rounds each segment up to this (torch's kernel, not ours).
FLASH_ROUNDING = 128
# Bounds of `prefix_copies`: four blocks of queries for each copy of a prefix's keys, so that it is worth its sum. One
# setting was measured (7 copies of 260 tokens on an H100); they were not tuned.
_QUERY_TOKENS_PER_COPY = 512
_MOST_COPIES, _MOST_COPIED_TOKENS = 8, 4096


def rounded_up(size: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def row_width(elements: int, ranks: int) -> int:
    """Return the elements from one row of a buffer to the next; it holds `elements` and `ranks` spare columns."""
    return rounded_up(elements + ranks, ROWS_MULTIPLE) if ranks else elements


def size_step(size: int, *, parts: int, least: int) -> int:
    """Return the distance between the sizes around `size`: `parts` of them between two powers of two."""
    return max(least, (1 << (size.bit_length() - 1)) // parts)


def prefix_copies(tokens: int, prefix_tokens: int) -> int:
    """Return how many copies of the prefixes' keys a pack of `tokens` has for its backward pass.

    FlashAttention runs a block of 128 keys through all queries that see it, one after the other: of one prefix of 260
    tokens that is 3 blocks a head, which fill no GPU. Copies that are seen by a part of the queries each run at once.
    Together they are at most as many as the tokens, so that they need no more memory than the examples' own keys.
    """
    if not prefix_tokens:
        return 1
    most = min(tokens // _QUERY_TOKENS_PER_COPY, min(tokens, _MOST_COPIED_TOKENS) // prefix_tokens, _MOST_COPIES)
    return max(1, most)


def recorded_tokens(tokens: int, *, is_full: bool) -> int:
    """Return the tokens to which a pack is padded for a recorded pass; a full one has no token of padding yet."""
    return rounded_up(tokens + is_full, size_step(tokens, parts=8, least=LENGTHS_MULTIPLE))
