"""Similarity of queries and conversations, and the pairs of a large set that are nearly the same.

The measure is the cosine of two queries' sets of character trigrams: |A and B| / sqrt(|A| |B|), between 0 and 1, taken
over normalised text with a space at both ends. Up to `EXACT_PAIRS` comparisons everything is compared with everything;
above that, MinHash signatures in bands (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3) propose
candidates and the exact measure decides, which grows nearly linearly with the number of rows.

Two queries with earlier turns are as similar as their conversations, or as the queries alone, whichever is less: "and
in Germany?" after two different questions is not the same, nor are two different queries after the same long question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tool_aware.rows import Row
from tool_aware.text import normalised

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

GRAM_CHARACTERS = 3
BANDS, ROWS_PER_BAND = 25, 5  # finds a pair of Jaccard 0.7225 (the least that cosine 0.85 allows) with p = 0.996
BUCKET_NEIGHBOURS = 48  # members of one bucket that each row is compared with, which bounds the cost of a huge bucket
EXACT_PAIRS = 40_000_000
CHUNK_ROWS = 512
CHUNK_PAIRS = 50_000
_SEED = 0x5EED


@dataclass(frozen=True)
class Pair:
    """Two rows by index, `first` < `second`, and their similarity."""

    first: int
    second: int
    similarity: float


class Compared(NamedTuple):
    """A query with its earlier turns: all of it, and the query alone."""

    conversation: str
    query: str


def compared(row: Row) -> str | Compared:
    """Return what of a row is compared: its query, with its conversation if it shows earlier turns."""
    return Compared(row.conversation, row.query) if row.history else row.query


class GramIndex:
    """The trigram sets of many texts, as one sorted array of (row, gram hash)."""

    def __init__(self, texts: Sequence[str | Compared]) -> None:
        whole = [text if isinstance(text, str) else text.conversation for text in texts]
        has_history = any(isinstance(text, Compared) for text in texts)
        self._queries = GramIndex([t if isinstance(t, str) else t.query for t in texts]) if has_history else None
        self._has_history = [isinstance(text, Compared) for text in texts]
        self._rows, self._hashes = _grams([f" {normalised(text)} " for text in whole])
        self.size = len(texts)
        self._kept: tuple[int, csr_matrix] | None = None
        self._starts = np.searchsorted(self._rows, np.arange(self.size + 1))  # (size + 1,)

    @cached_property
    def _matrix(self) -> csr_matrix:
        """Return the binary row-by-gram matrix, each row of Euclidean length 1, so that products are cosines."""
        from scipy.sparse import csr_matrix

        _, columns = np.unique(self._hashes, return_inverse=True)
        lengths = np.diff(self._starts)
        weights = np.repeat(1 / np.sqrt(lengths), lengths).astype(np.float32)
        shape = (self.size, int(columns.max()) + 1)
        return csr_matrix((weights, columns.astype(np.int32), self._starts), shape=shape)

    @cached_property
    def _signatures(self) -> np.ndarray:
        """Return the MinHash signatures, (BANDS * ROWS_PER_BAND, size) uint32."""
        generator = np.random.default_rng(_SEED)
        count = BANDS * ROWS_PER_BAND
        factors = generator.integers(1, 2**32, count, dtype=np.uint64).astype(np.uint32) | np.uint32(1)
        offsets = generator.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
        hashes, starts = self._hashes, self._starts[:-1]
        return np.stack(
            [np.minimum.reduceat(_mixed(hashes * a + b), starts) for a, b in zip(factors, offsets, strict=True)]
        )

    @cached_property
    def _sets(self) -> csr_matrix:
        """Return the binary row-by-gram matrix whose columns are the hashes themselves: nothing has to be sorted."""
        from scipy.sparse import csr_matrix

        ones = np.ones(len(self._hashes), np.int16)
        return csr_matrix((ones, self._hashes.astype(np.int64), self._starts), shape=(self.size, 2**32))

    def similarities(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the cosines of pairs of rows' trigram sets; with history the lesser of conversations' and queries'.

        Rows are given by index, (P,) each; so are the cosines, in float64.
        """
        values = np.empty(len(first))
        lengths = np.diff(self._starts)
        for start in range(0, len(first), CHUNK_PAIRS):
            a, b = first[start : start + CHUNK_PAIRS], second[start : start + CHUNK_PAIRS]
            common = np.asarray(self._sets[a].multiply(self._sets[b]).sum(axis=1)).ravel()
            values[start : start + CHUNK_PAIRS] = common / np.sqrt(lengths[a] * lengths[b])
        if self._queries:
            has_history = np.asarray(self._has_history)
            several = np.flatnonzero(has_history[first] | has_history[second])
            of_queries = self._queries.similarities(first[several], second[several])
            values[several] = np.minimum(values[several], of_queries)
        return values

    def _of_queries(self, first: int, second: int) -> float:
        """Return the similarity of the queries alone where a row has history, else the highest that there is."""
        if self._queries and (self._has_history[first] or self._has_history[second]):
            return float(self._queries.similarities(np.array([first]), np.array([second]))[0])
        return 1.0

    def _with_others(self, start: int, end: int, first_other: int) -> np.ndarray:
        """Return the similarities of the rows from `start` to `end` to those from `first_other` on."""
        block = (self._matrix[start:end] @ self._transposed(first_other)).toarray()
        return np.minimum(block, self._queries._with_others(start, end, first_other)) if self._queries else block

    def _transposed(self, first: int) -> csr_matrix:
        """Return the columns of the matrix's transpose from `first` on; kept, as they are wanted chunk by chunk."""
        if self._kept is None or self._kept[0] != first:
            self._kept = first, self._matrix[first:].T.tocsc()
        return self._kept[1]

    def pairs(self, threshold: float, groups: Sequence[object] | None = None) -> list[Pair]:
        """Return all pairs at or above `threshold`, without those within one group; sorted by (second, first)."""
        codes = np.arange(self.size) if groups is None else np.unique(np.asarray(groups, str), return_inverse=True)[1]
        if self.size**2 / 2 <= EXACT_PAIRS:
            return sorted(self._exact_pairs(threshold, codes), key=lambda pair: (pair.second, pair.first))
        first, second, values = self._banded_pairs(threshold, codes)
        order = np.lexsort((first, second))
        return list(map(Pair, first[order].tolist(), second[order].tolist(), values[order].tolist()))

    def _exact_pairs(self, threshold: float, codes: np.ndarray) -> Iterator[Pair]:
        transposed = self._matrix.T.tocsc()
        for start in range(0, self.size, CHUNK_ROWS):
            block = (self._matrix[start : start + CHUNK_ROWS] @ transposed).tocoo()
            first, second = block.row + start, block.col
            keep = (first < second) & (block.data >= threshold - 1e-6) & (codes[first] != codes[second])
            for a, b, value in zip(first[keep], second[keep], block.data[keep], strict=True):
                of_queries = self._of_queries(int(a), int(b))
                if of_queries >= threshold - 1e-6:
                    yield Pair(int(a), int(b), min(float(value), of_queries))

    def _banded_pairs(self, threshold: float, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return first rows, second rows and similarities, (P,) each, of the candidates that are similar enough."""
        candidates = _distinct(np.concatenate([self._bucket_pairs(band, codes) for band in range(BANDS)]))
        found = [np.zeros((0, 3))]
        for start in range(0, len(candidates), CHUNK_PAIRS):
            first, second = np.divmod(candidates[start : start + CHUNK_PAIRS], self.size)
            estimate = (self._signatures[:, first] == self._signatures[:, second]).mean(axis=0)  # of Jaccard
            likely = estimate >= threshold / 2  # far below the 0.72 that a true pair has: 4 standard errors
            first, second = first[likely], second[likely]
            values = self.similarities(first, second)
            found.append(np.stack([first, second, values], axis=1)[values >= threshold])
        first, second, values = np.concatenate(found).T
        return first.astype(np.int64), second.astype(np.int64), values

    def _bucket_pairs(self, band: int, codes: np.ndarray) -> np.ndarray:
        """Return the pairs that agree in one band, coded as first * size + second."""
        rows = self._signatures[band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND].astype(np.uint64)
        key = np.zeros(self.size, np.uint64)
        for values in rows:
            key = key * np.uint64(0x9E3779B97F4A7C15) + values
        order = np.argsort(key, kind="stable")
        sorted_key, coded = key[order], []
        for distance in range(1, BUCKET_NEIGHBOURS + 1):
            same = np.flatnonzero(sorted_key[distance:] == sorted_key[:-distance])
            if not len(same):
                break
            first, second = order[same], order[same + distance]  # stable sort: first < second
            apart = codes[first] != codes[second]
            coded.append(first[apart] * self.size + second[apart])
        return np.concatenate(coded) if coded else np.zeros(0, np.int64)


def nearest(texts: Sequence[str | Compared], others: Sequence[str | Compared]) -> tuple[np.ndarray, np.ndarray, bool]:
    """Find for each text the most similar of `others`.

    Returns similarities (len(texts),), indices into `others` (len(texts),), and whether the search was exhaustive.
    Above EXACT_PAIRS comparisons only banded candidates are looked at; a text without any gets 0.0 and index -1.
    """
    values, indices = np.zeros(len(texts)), np.full(len(texts), -1)
    if not texts or not others:
        return values, indices, True
    index = GramIndex([*texts, *others])
    if len(texts) * len(others) <= EXACT_PAIRS:
        for start in range(0, len(texts), CHUNK_ROWS):
            end = min(start + CHUNK_ROWS, len(texts))
            block = index._with_others(start, end, len(texts))
            indices[start : start + len(block)] = block.argmax(axis=1)
            values[start : start + len(block)] = block.max(axis=1)
        return values, indices, True
    sides = np.repeat([0, 1], [len(texts), len(others)])
    first, second, similar = index._banded_pairs(0.3, sides)
    order = np.lexsort((second, -similar, first))  # of a text the most similar comes first
    first, second, similar = first[order], second[order], similar[order]
    found, at = np.unique(first, return_index=True)
    values[found], indices[found] = similar[at], second[at] - len(texts)
    return values, indices, False


def _grams(padded: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and hashes of the distinct trigrams of each text, sorted by row; every text yields at least one."""
    lengths = np.fromiter((max(len(text), GRAM_CHARACTERS) for text in padded), np.int64, len(padded))
    joined = "".join(text.ljust(GRAM_CHARACTERS) for text in padded)
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    windows = points[:-2] * np.uint64(0x1F123BB5) + points[1:-1] * np.uint64(0x5A8B0D1F3) + points[2:]
    rows = np.repeat(np.arange(len(padded)), lengths)[:-2]
    within = np.ones(len(windows), bool)
    ends = np.cumsum(lengths)[:-1]
    within[ends - 1] = within[ends - 2] = False  # windows that would straddle two texts
    mixed = _mixed((windows ^ (windows >> np.uint64(29))).astype(np.uint32))
    coded = _distinct((rows[within].astype(np.uint64) << np.uint64(32)) | mixed[within])
    return (coded >> np.uint64(32)).astype(np.int64), coded.astype(np.uint32)


def _distinct(values: np.ndarray) -> np.ndarray:
    """Return the distinct values in order; on millions of integers several times as fast as np.unique of NumPy 2.3."""
    ordered = np.sort(values)
    is_new = np.ones(len(ordered), bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_new]


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return uint32 values scattered over the whole range (the finaliser of MurmurHash3)."""
    values = values ^ (values >> np.uint32(16))
    values = values * np.uint32(0x85EBCA6B)
    values = values ^ (values >> np.uint32(13))
    values = values * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))
