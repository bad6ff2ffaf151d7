"""Equal columns of a matrix of texts merged into one, for a linear model that is fitted to fewer of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def merging_equal_columns(vectors: csr_matrix) -> csr_matrix:
    """Return the matrix behind which `vectors` have each of their columns once: (columns, different columns).

    Words and pairs of words that occur in the same texts alone, as most do, have equal columns. The matrix is
    orthonormal, so that a linear model with an L2 penalty is the same behind it: the weights of equal columns are
    equal. L-BFGS takes the same steps, to rounding, and perhaps more of them: it ends by the largest gradient, which
    is that of several columns.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    columns = vectors.tocsc()
    numbers: dict[tuple[bytes, bytes], int] = {}  # of what different columns hold
    held = (slice(*ends) for ends in zip(columns.indptr[:-1].tolist(), columns.indptr[1:].tolist(), strict=True))
    merged = [
        numbers.setdefault((columns.indices[part].tobytes(), columns.data[part].tobytes()), len(numbers))
        for part in held
    ]
    weights = 1 / np.sqrt(np.bincount(merged))[merged]
    return csr_matrix((weights, (np.arange(len(merged)), merged)), shape=(len(merged), len(numbers)))
