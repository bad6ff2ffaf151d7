from sklearn.feature_extraction.text import TfidfVectorizer

from tool_aware.evaluation.scoring.ngram_vectors import NgramVectors

LEARNT = ["find the leave policy", "Latest news,  please", "the the the", "Straße 5 über\tALLES", "", "a"]
TEXTS = ["find THE news", "nothing known xyzzy", "", "a a b the policy", "ΣΟΦΟΣ über Straße"]


def test_vectors_are_those_of_scikit_learn_to_the_last_digit():
    theirs = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
    ours = NgramVectors((2, 5), LEARNT)
    wanted = theirs.fit_transform(LEARNT)
    for part in ("indptr", "indices", "data"):
        assert getattr(wanted, part).tolist() == getattr(ours.learnt, part).tolist()
    batches = [*ours.batches(TEXTS, 2)]
    assert [batch.shape[0] for batch in batches] == [2, 2, 1]
    wanted = theirs.transform(TEXTS)
    for number, batch in enumerate(batches):
        part = wanted[2 * number : 2 * number + 2]
        assert (part.data.tolist(), part.indices.tolist()) == (batch.data.tolist(), batch.indices.tolist())
