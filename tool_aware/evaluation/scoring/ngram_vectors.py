"""TF-IDF of the character n-grams of words, made of few words instead of many texts."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class NgramVectors:
    """Vectors of texts as scikit-learn's TfidfVectorizer(analyzer="char_wb", sublinear_tf=True) makes them.

    Its n-grams do not go beyond a word, and texts share words. So each different word is cut once, and the counts of
    texts are a product: (texts, words) @ (words, n-grams). Counts are whole numbers: the vectors are the same.
    """

    def __init__(self, lengths: tuple[int, int], texts: Sequence[str]) -> None:
        import numpy as np
        from scipy.sparse import csr_matrix
        from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

        kind: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": lengths, "dtype": np.float64}
        words, of_texts = _word_counts(texts)
        cut = CountVectorizer(**kind).build_analyzer()
        numbers: defaultdict[str, int] = defaultdict()  # of n-grams, as they first occur in the texts
        numbers.default_factory = numbers.__len__
        columns, ends = array("i"), [0]
        for word in words:
            columns.extend(map(numbers.__getitem__, cut(word)))
            ends.append(len(columns))
        found = list(numbers)
        of_words = csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(words), len(found)))
        counts = of_texts @ of_words
        counts.sort_indices()  # while n-grams are numbered so: the last digit of a vector's length depends on the order
        places = np.empty(len(found), counts.indices.dtype)
        places[sorted(range(len(found)), key=found.__getitem__)] = np.arange(len(found))
        counts.indices = places[counts.indices]
        self._weights: Any = TfidfTransformer(sublinear_tf=True)
        self.learnt = self._weights.fit_transform(counts)  # the vectors of the texts that the n-grams are taken from
        self._ngrams: Any = CountVectorizer(**kind, vocabulary=sorted(found))

    def batches(self, texts: Sequence[str], at_once: int) -> Iterator[csr_matrix]:
        """Yield the vectors of other texts, (at most at_once, n-grams), by the n-grams that were learnt."""
        words, of_texts = _word_counts(texts)
        of_words = self._ngrams.transform(words)
        for start in range(0, len(texts), at_once):
            counts = of_texts[start : start + at_once] @ of_words
            counts.sort_indices()
            yield self._weights.transform(counts, copy=False)


def _word_counts(texts: Sequence[str]) -> tuple[list[str], csr_matrix]:
    """Return the different words of texts as they first occur, and how often each text has them: (texts, words)."""
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer

    words = list(dict.fromkeys(word for text in texts for word in text.lower().split()))
    counter = CountVectorizer(tokenizer=str.split, token_pattern=None, dtype=np.float64, vocabulary=words)
    return words, counter.transform(texts)
