import numpy as np
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

from tool_aware.evaluation.scoring.equal_columns import merging_equal_columns

VECTORS = csr_matrix(
    [
        [1.0, 0.5, 1.0, 0.0, 0.0, 1.0],
        [0.0, 0.5, 0.0, 2.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 2.0, 0.0, 0.0],
        [3.0, 0.0, 3.0, 0.0, 0.0, 2.9],
    ]
)


def test_equal_columns_are_merged_and_others_stay():
    merging = merging_equal_columns(VECTORS)
    assert merging.shape == (6, 5)  # the first and the third are equal; the fifth, of no text, stays
    third = 1 / np.sqrt(2)
    assert merging.toarray()[:, 0].tolist() == [third, 0, third, 0, 0, 0]
    np.testing.assert_allclose((merging.T @ merging).toarray(), np.eye(5))
    np.testing.assert_allclose((VECTORS @ merging @ merging.T).toarray(), VECTORS.toarray())


def test_logistic_regression_is_the_same_behind_merged_columns():
    merging, labels = merging_equal_columns(VECTORS), ["a", "b", "b", "a"]
    model = LogisticRegression(C=10, tol=1e-9)
    wanted = model.fit(VECTORS, labels).predict_proba(VECTORS)
    found = model.fit(VECTORS @ merging, labels).predict_proba(VECTORS @ merging)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
