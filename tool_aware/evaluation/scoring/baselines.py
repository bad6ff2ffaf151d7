"""Cheap baselines on the same rows, which a language model must beat to be worth its cost. They only choose a tool,
and see the query alone, without the earlier turns of its conversation.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tool_aware.config.data_sections import KeywordRouterSection
from tool_aware.evaluation.scoring.equal_columns import merging_equal_columns
from tool_aware.evaluation.scoring.judgement import Prediction
from tool_aware.evaluation.scoring.ngram_vectors import NgramVectors
from tool_aware.evaluation.scoring.one_thread import on_one_thread
from tool_aware.keyword_rules import keyword_rules
from tool_aware.rows import Row
from tool_aware.text import spread_evenly

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.base import ClassifierMixin

NEIGHBOURS = 5
NEIGHBOURS_NAME = "char n-gram k-NN"
MOST_PAIRS = 400_000_000  # of a training and a test query that are compared; 10 s of a core for every 200 million
QUERIES_AT_ONCE = 5_000
WORKING_MEMORY_MIB = 16  # of distances held at once; with 64, whose pages are new each time, it takes longer
FEWEST_TRAINING_ROWS = 2 * NEIGHBOURS

Chooser = Callable[[Sequence[str]], list[str]]  # of a tool for each query


@on_one_thread("sklearn")
def baseline_predictions(
    train: Sequence[Row], test: Mapping[int, Row], router: KeywordRouterSection, tools: Sequence[str]
) -> dict[str, list[Prediction]]:
    """Return the tool that each baseline chooses for each test row: see `baseline_choices`."""
    learnt = [(row.query, row.tool) for row in train]
    return predictions_of(baseline_choices(learnt, [row.query for row in test.values()], router, tools), test)


def predictions_of(choices: Mapping[str, Sequence[str]], test: Mapping[int, Row]) -> dict[str, list[Prediction]]:
    """Return the tools that baselines choose for test rows as their predictions."""
    return {
        name: [Prediction(index, tool=tool) for index, tool in zip(test, chosen, strict=True)]
        for name, chosen in choices.items()
    }


@on_one_thread("sklearn")
def baseline_choices(
    learnt: Sequence[tuple[str, str]], queries: Sequence[str], router: KeywordRouterSection, tools: Sequence[str]
) -> dict[str, list[str]]:
    """Return the tool that each baseline chooses for each query; those that learn do so from queries with their tools.

    Baselines without rules, or with too few rows or only one class to learn from, are left out.
    """
    choosers: dict[str, Chooser] = {}
    if any(rule.tool in tools for rule in router.rules):
        choosers["keyword router"] = keyword_router(router, tools)
    labels = [tool for _, tool in learnt]
    if labels:
        choosers["majority"] = majority(labels)
    if len(set(labels)) > 1 and len(labels) >= FEWEST_TRAINING_ROWS:
        choosers["TF-IDF + logistic regression"] = tfidf_regression([query for query, _ in learnt], labels)
        compared = spread_evenly(learnt, rows_compared(len(learnt), len(queries)))
        choosers[NEIGHBOURS_NAME] = nearest_neighbours([query for query, _ in compared], [tool for _, tool in compared])
    return {name: choose(queries) for name, choose in choosers.items()}


def rows_compared(train: int, test: int) -> int:
    """Return how many training rows the neighbours are looked for among: all, unless the pairs are too many."""
    return min(train, max(FEWEST_TRAINING_ROWS, MOST_PAIRS // max(1, test)))


def note_of_sample(train: int, test: int) -> list[str]:
    """Return what a reader has to know where a baseline learns from a part of the training rows, in words."""
    compared = rows_compared(train, test)
    rows = f"{compared:,} of the {train:,} training rows, spread evenly over the file"
    return [f"The baseline {NEIGHBOURS_NAME} compares with {rows}."] if compared < train else []


def majority(labels: Sequence[str]) -> Chooser:
    """Return a chooser of the tool that occurs most often."""
    (tool, _), *_ = Counter(labels).most_common(1)
    return lambda queries: [tool] * len(queries)


def keyword_router(router: KeywordRouterSection, tools: Sequence[str]) -> Chooser:
    """Return a chooser by the agent's present rules."""
    choose = keyword_rules(router, tools)
    return lambda queries: [choose(query) for query in queries]


def tfidf_regression(queries: Sequence[str], labels: Sequence[str]) -> Chooser:
    """Fit logistic regression on TF-IDF of words and word pairs, the strongest of the usual cheap text classifiers."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    vectors = words.fit_transform(queries)
    merging = merging_equal_columns(vectors)  # a third of the columns is left: less than half of the time
    model = LogisticRegression(C=10, max_iter=1000).fit(vectors @ merging, labels)

    def batches(queries: Sequence[str], at_once: int) -> Iterator[csr_matrix]:
        for start in range(0, len(queries), at_once):
            yield words.transform(queries[start : start + at_once]) @ merging

    return _classifier(batches, model)


def nearest_neighbours(queries: Sequence[str], labels: Sequence[str]) -> Chooser:
    """Fit a vote of the NEIGHBOURS training queries nearest in character 2- to 5-grams."""
    from sklearn.neighbors import KNeighborsClassifier

    ngrams = NgramVectors((2, 5), queries)
    model = KNeighborsClassifier(NEIGHBOURS, metric="cosine", weights="distance").fit(ngrams.learnt, labels)
    return _classifier(ngrams.batches, model)


def _classifier(batches: Callable[[Sequence[str], int], Iterator[csr_matrix]], model: ClassifierMixin) -> Chooser:
    """Return a chooser by a model that takes vectors of queries, a batch at a time."""
    from sklearn import config_context

    classes = model.classes_.tolist()

    def choose(queries: Sequence[str]) -> list[str]:
        chosen: list[str] = []
        for vectors in batches(queries, QUERIES_AT_ONCE):
            with config_context(working_memory=WORKING_MEMORY_MIB):
                chosen += [classes[column] for column in model.predict_proba(vectors).argmax(axis=1).tolist()]
        return chosen

    return choose
