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
SKETCH_BITS = 512  # of a text's trigrams, some fifty
CHUNK_ROWS = 512
CHUNK_PAIRS = 50_000
CHUNK_TEXTS = 20_000
CHUNK_SETS = 4_000  # pairs whose sets are compared at a time: what fits in a processor's cache
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
    """The trigram sets of many texts: the hashes of each set in order, one text behind the other.

    Of texts with earlier turns the queries alone stand behind all texts, as rows of their own.
    """

    def __init__(self, texts: Sequence[str | Compared]) -> None:
        whole = [text if isinstance(text, str) else text.conversation for text in texts]
        alone = [text.query for text in texts if isinstance(text, Compared)]
        self.size = len(texts)
        self._hashes, self._starts = _grams([*whole, *alone])
        self._lengths = np.diff(self._starts)  # (size + queries alone,)
        self._has_history = np.fromiter((isinstance(text, Compared) for text in texts), bool, self.size)
        self._of_query = np.arange(self.size)  # of each text the row that has its query alone
        self._of_query[self._has_history] = self.size + np.arange(len(alone))
        self._kept: tuple[int, csr_matrix, csr_matrix] | None = None  # transposed, from one row on

    @cached_property
    def _matrix(self) -> csr_matrix:
        """Return the binary row-by-gram matrix, each row of Euclidean length 1, so that products are cosines."""
        from scipy.sparse import csr_matrix

        _, columns = np.unique(self._hashes, return_inverse=True)
        weights = np.repeat(1 / np.sqrt(self._lengths), self._lengths).astype(np.float32)
        shape = (len(self._lengths), int(columns.max()) + 1)
        return csr_matrix((weights, columns.astype(np.int32), self._starts), shape=shape)

    @cached_property
    def _signatures(self) -> np.ndarray:
        """Return the MinHash signatures, (size, BANDS * ROWS_PER_BAND) uint32.

        A few rows at a time, whose hashes fit in the processor's cache however often they are mixed anew.
        """
        generator = np.random.default_rng(_SEED)
        count = BANDS * ROWS_PER_BAND
        factors = generator.integers(1, 2**32, count, dtype=np.uint64).astype(np.uint32) | np.uint32(1)
        offsets = generator.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32)
        signatures = np.empty((self.size, count), np.uint32)
        for start in range(0, self.size, CHUNK_ROWS):
            end = min(start + CHUNK_ROWS, self.size)
            first, last = self._starts[start], self._starts[end]
            hashes, starts = self._hashes[first:last], self._starts[start:end] - first
            mixed, spare = np.empty_like(hashes), np.empty_like(hashes)
            for column, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
                np.multiply(hashes, factor, out=mixed)
                _mix(np.add(mixed, offset, out=mixed), spare)
                signatures[start:end, column] = np.minimum.reduceat(mixed, starts)
        return signatures

    def _sets(self, rows: np.ndarray) -> csr_matrix:
        """Return the binary row-by-gram matrix of some rows; its columns are the hashes, so that nothing is sorted."""
        from scipy.sparse import csr_matrix

        lengths = self._lengths[rows]
        ends = np.cumsum(lengths)
        at = np.arange(ends[-1]) + np.repeat(self._starts[rows] - (ends - lengths), lengths)
        columns, bounds = self._hashes[at].astype(np.int64), np.concatenate([[0], ends])
        return csr_matrix((np.ones(len(at), np.int16), columns, bounds), shape=(len(rows), 2**32))

    def similarities(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the cosines of pairs of rows' trigram sets; with history the lesser of conversations' and queries'.

        Rows are given by index, (P,) each; so are the cosines, in float64.
        """
        values = self._cosines(first, second)
        several = np.flatnonzero(self._has_history[first] | self._has_history[second])
        of_queries = self._cosines(self._of_query[first[several]], self._of_query[second[several]])
        values[several] = np.minimum(values[several], of_queries)
        return values

    def _cosines(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        values = np.empty(len(first))
        for start in range(0, len(first), CHUNK_SETS):
            a, b = first[start : start + CHUNK_SETS], second[start : start + CHUNK_SETS]
            common = np.asarray(self._sets(a).multiply(self._sets(b)).sum(axis=1)).ravel()
            values[start : start + CHUNK_SETS] = common / np.sqrt(self._lengths[a] * self._lengths[b])
        return values

    def _of_queries(self, first: int, second: int) -> float:
        """Return the similarity of the queries alone where a row has history, else the highest that there is."""
        if self._has_history[first] or self._has_history[second]:
            return float(self._cosines(self._of_query[[first]], self._of_query[[second]])[0])
        return 1.0

    def _with_others(self, start: int, end: int, first_other: int) -> np.ndarray:
        """Return the similarities of the rows from `start` to `end` to those from `first_other` on."""
        if self._kept is None or self._kept[0] != first_other:  # it is wanted chunk by chunk
            others = [self._matrix[first_other : self.size], self._matrix[self._of_query[first_other:]]]
            self._kept = first_other, *(matrix.T.tocsc() for matrix in others)
        _, whole, alone = self._kept
        block = (self._matrix[start:end] @ whole).toarray()
        if not self._has_history.any():
            return block
        return np.minimum(block, (self._matrix[self._of_query[start:end]] @ alone).toarray())

    def pairs(self, threshold: float, groups: Sequence[object] | None = None) -> list[Pair]:
        """Return all pairs at or above `threshold`, without those within one group; sorted by (second, first)."""
        codes = np.arange(self.size) if groups is None else _numbers_of(groups)
        if self.size**2 / 2 <= EXACT_PAIRS:
            return sorted(self._exact_pairs(threshold, codes), key=lambda pair: (pair.second, pair.first))
        first, second, values = map(np.concatenate, zip(*self._banded_pairs(threshold, codes, self.size), strict=True))
        order = np.lexsort((first, second))
        return list(map(Pair, first[order].tolist(), second[order].tolist(), values[order].tolist()))

    def _exact_pairs(self, threshold: float, codes: np.ndarray) -> Iterator[Pair]:
        transposed = self._matrix[: self.size].T.tocsc()
        for start in range(0, self.size, CHUNK_ROWS):
            block = (self._matrix[start : min(start + CHUNK_ROWS, self.size)] @ transposed).tocoo()
            first, second = block.row + start, block.col
            keep = (first < second) & (block.data >= threshold - 1e-6) & (codes[first] != codes[second])
            for a, b, value in zip(first[keep], second[keep], block.data[keep], strict=True):
                of_queries = self._of_queries(int(a), int(b))
                if of_queries >= threshold - 1e-6:
                    yield Pair(int(a), int(b), min(float(value), of_queries))

    def _banded_pairs(
        self, threshold: float, codes: np.ndarray, until: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield first rows, second rows and similarities, (P,) each, of the candidates that are similar enough.

        All pairs of a first row come at once; first rows are those before `until`.
        """
        for candidates in self._candidates(threshold, codes, until):
            first, second = np.divmod(candidates, self.size)
            likely = self._estimates(first, second) >= threshold / 2  # far below the 0.72 of a true pair: 4 std. errors
            first, second = first[likely], second[likely]
            values = self.similarities(first, second)
            is_similar = values >= threshold
            yield first[is_similar], second[is_similar], values[is_similar]

    def _candidates(self, threshold: float, codes: np.ndarray, until: int) -> Iterator[np.ndarray]:
        """Yield the pairs that agree in a band, each once and in order, coded as first * size + second.

        A few rows at a time: of a million there are hundreds of millions of pairs.
        """
        bands = [self._buckets(band) for band in range(BANDS)]
        for start in range(0, until, CHUNK_ROWS):
            rows = np.arange(start, min(start + CHUNK_ROWS, until))
            coded = []
            for order, places, followers in bands:
                counts = followers[rows].astype(np.int64)
                first = np.repeat(rows, counts)
                distance = np.arange(1, len(first) + 1) - np.repeat(np.cumsum(counts) - counts, counts)
                second = order[places[first] + distance].astype(np.int64)
                apart = codes[first] != codes[second]
                coded.append(first[apart] * self.size + second[apart])
            pairs = _distinct(np.concatenate(coded))
            yield pairs[self._may_reach(*np.divmod(pairs, self.size), threshold)]

    def _buckets(self, band: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the rows sorted by what they have in a band, the place of each row in that, and how many rows behind
        it have the same, at most BUCKET_NEIGHBOURS; (size,) each.
        """
        columns = self._signatures[:, band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND].astype(np.uint64)
        key = np.zeros(self.size, np.uint64)
        for values in columns.T:
            key = key * np.uint64(0x9E3779B97F4A7C15) + values
        order = np.argsort(key, kind="stable")  # of equal ones the first row comes first
        key = key[order]
        ends = np.append(np.flatnonzero(key[1:] != key[:-1]) + 1, self.size)
        place = np.arange(self.size)
        behind = ends[np.searchsorted(ends, place, side="right")] - place - 1
        places, followers = np.empty(self.size, np.int32), np.empty(self.size, np.uint8)
        places[order], followers[order] = place, np.minimum(behind, BUCKET_NEIGHBOURS)
        return order.astype(np.int32), places, followers

    @cached_property
    def _bits(self) -> np.ndarray:
        """Return a set of SKETCH_BITS for each text, (size, SKETCH_BITS / 64) uint64: the last bits of its hashes."""
        words = SKETCH_BITS // 64
        bits = np.zeros(self.size * words, np.uint64)
        for start in range(0, self.size, CHUNK_TEXTS):
            rows = np.arange(start, min(start + CHUNK_TEXTS, self.size))
            hashes = self._hashes[self._starts[rows[0]] : self._starts[rows[-1] + 1]]
            places = np.repeat(rows * words, self._lengths[rows]) + (hashes >> np.uint32(6)) % np.uint32(words)
            np.bitwise_or.at(bits, places, np.uint64(1) << (hashes & np.uint32(63)).astype(np.uint64))
        return bits.reshape(self.size, words)

    def _may_reach(self, first: np.ndarray, second: np.ndarray, threshold: float) -> np.ndarray:
        """Return of pairs, (P,), whether their cosine can reach the threshold; where not, the sets need no comparison.

        A bit that one has and the other has not stands for a trigram, at least, that they do not have in common.
        """
        may_reach = np.empty(len(first), bool)
        for start in range(0, len(first), CHUNK_SETS):
            a, b = first[start : start + CHUNK_SETS], second[start : start + CHUNK_SETS]
            bits, others = self._bits[a], self._bits[b]
            common = np.minimum(self._lengths[a] - _ones(bits & ~others), self._lengths[b] - _ones(others & ~bits))
            most = common / np.sqrt(self._lengths[a] * self._lengths[b])
            may_reach[start : start + CHUNK_SETS] = most >= threshold - 1e-9
        return may_reach

    def _estimates(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return the share of equal numbers in the signatures of pairs, (P,): an estimate of Jaccard's measure."""
        same = np.empty(len(first), np.uint8)
        for start in range(0, len(first), CHUNK_ROWS):
            a, b = first[start : start + CHUNK_ROWS], second[start : start + CHUNK_ROWS]
            equal = (self._signatures[a] == self._signatures[b]).view(np.uint8)
            same[start : start + CHUNK_ROWS] = equal.sum(axis=1, dtype=np.uint8)
        return same / self._signatures.shape[1]


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
    for first, second, similar in index._banded_pairs(0.3, sides, len(texts)):
        order = np.lexsort((second, -similar, first))  # of a text the most similar comes first
        found, at = np.unique(first[order], return_index=True)
        best = order[at]
        values[found], indices[found] = similar[best], second[best] - len(texts)
    return values, indices, False


def _grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of the distinct trigrams of each text, in order, one text behind the other, and where each
    text begins, (len(texts) + 1,); every text yields at least one.
    """
    parts, counts = [np.zeros(0, np.uint32)], [np.zeros(1, np.int64)]
    for start in range(0, len(texts), CHUNK_TEXTS):
        padded = [f" {normalised(text)} ".ljust(GRAM_CHARACTERS) for text in texts[start : start + CHUNK_TEXTS]]
        coded = _coded_grams(padded)
        parts.append(coded.astype(np.uint32))
        counts.append(np.bincount((coded >> np.uint64(32)).astype(np.int64), minlength=len(padded)))
    return np.concatenate(parts), np.cumsum(np.concatenate(counts))


def _coded_grams(padded: Sequence[str]) -> np.ndarray:
    """Return the distinct trigrams of each text as row * 2^32 + hash, in order."""
    lengths = np.fromiter(map(len, padded), np.int64, len(padded))
    points = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    windows = points[:-2] * np.uint64(0x1F123BB5) + points[1:-1] * np.uint64(0x5A8B0D1F3) + points[2:]
    rows = np.repeat(np.arange(len(padded), dtype=np.uint64), lengths)[:-2]
    within = np.ones(len(windows), bool)
    ends = np.cumsum(lengths)[:-1]
    within[ends - 1] = within[ends - 2] = False  # windows that would straddle two texts
    hashes = (windows ^ (windows >> np.uint64(29))).astype(np.uint32)
    return _distinct((rows[within] << np.uint64(32)) | _mix(hashes, np.empty_like(hashes))[within])


def _numbers_of(names: Sequence[object]) -> np.ndarray:
    """Return numbers, (len(names),), that are equal where the names are."""
    numbers: dict[str, int] = {}
    return np.fromiter((numbers.setdefault(str(name), len(numbers)) for name in names), np.int64, len(names))


def _distinct(values: np.ndarray) -> np.ndarray:
    """Return the distinct values in order; on millions of integers several times as fast as np.unique of NumPy 2.3."""
    ordered = np.sort(values)
    is_new = np.ones(len(ordered), bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_new]


def _ones(bits: np.ndarray) -> np.ndarray:
    """Count the ones of each row of words, (P, words) uint64 -> (P,)."""
    return np.bitwise_count(bits).sum(axis=1, dtype=np.int64)


def _mix(values: np.ndarray, spare: np.ndarray) -> np.ndarray:
    """Scatter uint32 values over the whole range, in place (the finaliser of MurmurHash3); `spare` is overwritten."""
    values ^= np.right_shift(values, np.uint32(16), out=spare)
    values *= np.uint32(0x85EBCA6B)
    values ^= np.right_shift(values, np.uint32(13), out=spare)
    values *= np.uint32(0xC2B2AE35)
    values ^= np.right_shift(values, np.uint32(16), out=spare)
    return values
