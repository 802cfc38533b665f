"""Tests run with signatures checked: `typechecker` leaves none out."""

import jaxtyping
import numpy as np
import pytest
from beartype.roar import BeartypeCallHintParamViolation

from jaxprune.graph.layers import layer_of
from jaxprune.results import metrics


def test_a_shape_that_is_not_as_named():
    with pytest.raises(jaxtyping.TypeCheckError):
        metrics.accuracy(np.ones((2, 3, 4), np.int64))  # [K C C]


def test_a_type_that_is_not_as_named():
    with pytest.raises(BeartypeCallHintParamViolation):
        layer_of(3, None)


def test_other_uses_of_the_decorator():
    @jaxtyping.jaxtyped(typechecker=None)
    def same(x: int) -> int:
        return x

    assert same(2) == 2
    assert jaxtyping.jaxtyped(lambda x: x, typechecker=None)(3) == 3
