"""Over random small networks: compact equals masked, whatever the network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxprune
from masked import masked_logits, pruning_of
from random_data import random_variables


@dataclasses.dataclass(frozen=True)
class Block:
    width: int
    size: int
    stride: int
    padding: str
    bias: bool
    order: str  # of r(elu), n(orm) behind the convolution
    pool: str
    concat: bool


class Network(nn.Module):
    blocks: tuple[Block, ...]
    flatten: bool

    @nn.compact
    def __call__(self, x):
        for i, b in enumerate(self.blocks):
            padding = b.padding if min(x.shape[1:3]) >= b.size else "SAME"
            y = nn.Conv(
                b.width, (b.size, b.size), b.stride, padding, use_bias=b.bias,
                name=f"conv{i}",
            )(x)  # fmt: skip
            for step in b.order:
                if step == "r":
                    y = nn.relu(y)
                elif step == "t":
                    y = jnp.tanh(y)
                else:
                    y = nn.BatchNorm(use_running_average=True, name=f"norm{i}")(y)
            if b.concat and y.shape[:3] == x.shape[:3]:
                y = jnp.concatenate([y, x], axis=-1)
            if b.pool == "max" and min(y.shape[1:3]) > 1:
                y = nn.max_pool(y, (2, 2), (2, 2), padding="SAME")
            if b.pool == "avg" and min(y.shape[1:3]) > 1:
                y = nn.avg_pool(y, (2, 2), (1, 1), padding="SAME")
            x = y
        x = x.reshape(x.shape[0], -1) if self.flatten else x.mean((1, 2))
        x = nn.relu(nn.Dense(5, name="dense0")(x))
        return nn.Dense(3, name="dense1")(x)


blocks = st.builds(
    Block,
    width=st.integers(1, 5),
    size=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.sampled_from(["SAME", "VALID", "CIRCULAR"]),
    bias=st.booleans(),
    order=st.sampled_from(["", "r", "n", "rn", "nr", "nt"]),
    pool=st.sampled_from(["", "max", "avg"]),
    concat=st.booleans(),
)
networks = st.builds(
    Network, blocks=st.lists(blocks, min_size=1, max_size=3).map(tuple),
    flatten=st.booleans(),
)  # fmt: skip


@pytest.mark.parametrize("examples", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_compact_equals_masked(examples):
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(model=networks, data=st.data())
    def check(model, data):
        # nn.avg_pool divides by an integer.
        with jax.numpy_dtype_promotion("standard"):
            _check(model, data)

    check()


def _check(model, data):
    seed = data.draw(st.integers(0, 99), label="seed")
    i = data.draw(st.integers(0, len(model.blocks) - 1), label="layer")
    layer, p = f"conv{i}", model.blocks[i].width
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=p, max_size=p)))
    keep[data.draw(st.integers(0, p - 1))] = True
    rng = np.random.default_rng(seed)
    fill = data.draw(st.sampled_from(["zero", "bias", "drop", "values"]), label="fill")
    if fill == "values":
        fill = rng.normal(size=p).astype(np.float32)
    x = jnp.asarray(rng.normal(size=(3, 9, 8, 2)), jnp.float32)
    variables = random_variables(model, x, seed)
    small = jaxprune.compact(model, variables, layer, keep, fill=fill, example=x)
    pruning = pruning_of(model.apply, variables, x, layer, keep, fill)
    # Other inputs than those that were traced and compared.
    other = jnp.asarray(rng.normal(size=(2, 9, 8, 2)), jnp.float32)
    masked = masked_logits(model.apply, variables, other, [pruning])
    # Sums of at most a few hundred float32 products of numbers near 1.
    scale = max(1.0, float(np.abs(masked).max()))
    np.testing.assert_allclose(small(other), masked, atol=5e-5 * scale, rtol=0)
    kernel = small.variables["params"][layer]["kernel"]
    assert kernel.shape[-1] == keep.sum()
    assert small.proof.bound_used < 1
