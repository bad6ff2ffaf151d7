"""TF-IDF of the character n-grams of words, made of few words instead of many texts."""

from __future__ import annotations

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
        from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer, TfidfVectorizer

        kind: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": lengths, "dtype": np.float64}
        learnt = TfidfVectorizer(**kind, sublinear_tf=True)
        self.learnt = learnt.fit_transform(texts)  # the vectors of the texts that the n-grams are taken from
        self._ngrams: Any = CountVectorizer(**kind, vocabulary=learnt.vocabulary_)
        self._weights: Any = TfidfTransformer(sublinear_tf=True)
        self._weights.idf_ = learnt.idf_

    def batches(self, texts: Sequence[str], at_once: int) -> Iterator[csr_matrix]:
        """Yield the vectors of other texts, (at most at_once, n-grams), by the n-grams that were learnt."""
        import numpy as np
        from sklearn.feature_extraction.text import CountVectorizer

        words = CountVectorizer(tokenizer=str.split, token_pattern=None, dtype=np.float64)
        of_texts = words.fit_transform(texts)
        of_words = self._ngrams.transform(words.get_feature_names_out())
        for start in range(0, len(texts), at_once):
            counts = of_texts[start : start + at_once] @ of_words
            counts.sort_indices()  # the last digit of a vector's length depends on the order
            yield self._weights.transform(counts, copy=False)
