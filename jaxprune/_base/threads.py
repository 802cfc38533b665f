"""How many threads a library of linear algebra takes."""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from threadpoolctl import ThreadpoolController

# Rows from which on a matrix is factored by one thread.
_LARGE = 1024


@functools.cache
def blas() -> ThreadpoolController:
    """The libraries that are loaded."""
    return ThreadpoolController()


def few_threads(size: int) -> AbstractContextManager[Any]:
    """One thread for the factor of a matrix of many rows.

    OpenBLAS's own wait for one another: on two busy cores, 2048 rows take 2.9 s of
    processor time with two threads and 0.1 s with one.
    """
    if size < _LARGE:
        return nullcontext()
    return blas().limit(limits=1, user_api="blas")
