"""The schedule that training and fine-tuning share."""

import jax.numpy as jnp
import pytest

from jaxprune.training import loop

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_the_learning_rate_warms_up_and_decays():
    for steps, warmup in [(10, 3), (4, 4), (5, 0)]:
        optimizer = loop.adam(1.0, steps, warmup)
        parameter = {"w": jnp.zeros(())}
        state, moves = optimizer.init(parameter), []
        for _ in range(steps):
            update, state = optimizer.update({"w": jnp.ones(())}, state)
            moves.append(-float(update["w"]))  # Adam's first moves have size rate
        assert max(moves) == pytest.approx(moves[min(warmup, steps - 1)], abs=1e-4)
        if warmup:
            assert moves[0] == 0
