"""Numerical libraries held to one thread while figures are computed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tool_aware.library_imports import import_libraries, left_out

_LIBRARIES = ("numpy", "scipy.linalg")  # each brings its own BLAS, and only what is loaded can be limited


@contextmanager
def on_one_thread(*libraries: str) -> Iterator[None]:
    """Hold the threads of BLAS and OpenMP, those of `libraries` too, to one; usable as a decorator.

    L-BFGS and a bootstrap make thousands of products too small to share. Threads that wait for each other in between
    take several times as long as one alone, most where other programs use the same cores.
    """
    from threadpoolctl import threadpool_limits

    if missing := [name for name in (*_LIBRARIES, *libraries) if name not in sys.modules]:
        with left_out("pandas"):  # which scikit-learn imports where it is installed; that takes a quarter of the time
            import_libraries(*missing)
    with threadpool_limits(1):
        yield
