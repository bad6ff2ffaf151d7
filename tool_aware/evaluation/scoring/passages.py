"""The passages that search texts are judged by: a shipped corpus of short texts, and texts of the evaluated data."""

from __future__ import annotations

import gzip
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

from tool_aware.evaluation.scoring.key_terms import bm25s_module, index_tokens

SHIPPED = Path(__file__).with_name("passages.txt.gz")
TOP = 10  # passages of a search that are compared
DECIMALS = 4  # of scores; of those that are equal then, the passage that stands first is found first


class Passages:
    """An index over the shipped passages and `more` texts, searched by BM25 (bm25s; Lu 2024).

    A reference about something that the shipped passages lack still finds its own neighbourhood: the texts of the
    evaluated data, whose queries and references are passages as well.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._more = tuple(more)
        self._search = lru_cache(maxsize=8_192)(self._searched)
        self._weigh = lru_cache(maxsize=65_536)(self._weighed)

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """Return all passages, each once."""
        return tuple(dict.fromkeys((*shipped_passages(), *self._more)))

    @cached_property
    def _index(self) -> Any:
        index = bm25s_module().BM25(method="lucene", backend="numpy")
        index.index([index_tokens(text) for text in self.texts], show_progress=False)
        return index

    @cached_property
    def _weights(self) -> dict[str, float]:
        texts = shipped_passages()
        counts = Counter(token for text in texts for token in set(index_tokens(text)))
        return {token: math.log(len(texts) / count) for token, count in counts.items()}

    @cached_property
    def most(self) -> float:
        """Return the weight of a word that no shipped passage has."""
        return math.log(len(shipped_passages()))

    def weight(self, word: str) -> float:
        """Return how much a word tells: the logarithm of the share of shipped passages that have it, sign reversed.

        The evaluated data has no say in it, so that a call is judged alike in every set of rows.
        """
        return self._weigh(word)

    def _weighed(self, word: str) -> float:
        return max((self._weights.get(token, self.most) for token in index_tokens(word)), default=self.most)

    def top(self, text: str) -> Mapping[int, float]:
        """Return the numbers of the passages that a search for `text` finds first, at most TOP, with their scores."""
        return self._search(text)

    def _searched(self, text: str) -> Mapping[int, float]:
        import numpy as np

        ids = self._index.get_tokens_ids(index_tokens(text))
        if not ids:
            return {}
        scores = self._index.get_scores_from_ids(ids)
        found = np.flatnonzero(scores > 0)  # most passages share no word with the text
        if len(found) > TOP:
            least = np.partition(scores[found], -TOP)[-TOP]
            found = found[scores[found] >= least - 10.0**-DECIMALS]  # those that are equal to it when rounded
        candidates = zip(found.tolist(), scores[found].tolist(), strict=True)
        ordered = sorted(candidates, key=lambda candidate: (-round(candidate[1], DECIMALS), candidate[0]))
        return dict(ordered[:TOP])


@cache
def shipped_passages() -> tuple[str, ...]:
    """Return the passages that are shipped with the package."""
    return tuple(gzip.decompress(SHIPPED.read_bytes()).decode().splitlines())
