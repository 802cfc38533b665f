"""Whole networks that return no logits, or take several inputs, to a budget."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import make_mesh
from jaxprune.shrinking.halves import halves
from random_data import random_variables

RNG = np.random.default_rng(1)
N = 32
BATCH = {
    "image": RNG.normal(size=(N, 8, 8, 3)).astype(np.float32),
    "time": RNG.uniform(0, 1, (N, 1)).astype(np.float32),
}


class TwoInputs(nn.Module):
    """An image and a time; returns an image, and a class that the time decides."""

    @nn.compact
    def __call__(self, batch):
        h = nn.relu(nn.Conv(12, (3, 3), name="first")(batch["image"]))
        h += nn.Dense(12, name="time")(batch["time"])[:, None, None]
        h = nn.relu(nn.Conv(10, (3, 3), name="second")(h))
        t = nn.relu(nn.Dense(8, name="alone")(batch["time"]))
        return nn.Conv(2, (3, 3), name="image")(h), nn.Dense(3, name="class")(t)


VARIABLES = random_variables(TwoInputs(), BATCH)
NETWORK = jaxprune.Network(TwoInputs().apply, VARIABLES, BATCH)


def relative(found, whole):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True)
    errors = [
        ((a - b).reshape(len(a), -1) ** 2).sum(1) / (b.reshape(len(b), -1) ** 2).sum(1)
        for a, b in (map(np.asarray, pair) for pair in pairs)
    ]
    return np.mean(errors)


def test_what_stays_is_said_with_the_line_of_the_networks_code():
    class Mixed(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.relu(nn.Conv(8, (3, 3), name="first")(x))
            h = nn.relu(nn.Conv(8, (3, 3), name="second")(jnp.sort(h, axis=-1)))
            return nn.Dense(3, name="class")(h.mean((1, 2)))

    images = BATCH["image"]
    found = jaxprune.analyse(Mixed(), random_variables(Mixed(), images), images)
    assert re.fullmatch(
        r"'sort' in .* \(test_any_output.py:\d+\).*", found.groups.whole["first"]
    )


class Masked(nn.Module):
    """An image, and which of its pixels count."""

    @nn.compact
    def __call__(self, batch):
        h = nn.relu(nn.Conv(12, (3, 3), name="first")(batch["image"]))
        h = jnp.where(batch["mask"][..., None], h, 0)
        return nn.Dense(3, name="class")(h.mean((1, 2)))


def test_an_input_of_booleans(tmp_path):
    batch = {"image": BATCH["image"], "mask": RNG.random((N, 8, 8)) < 0.5}
    network = jaxprune.from_linen(Masked(), random_variables(Masked(), batch), batch)
    small = jaxprune.shrink(network, batch, speedup=1.5)
    assert small.proof.bound_used < 1
    small.save(tmp_path / "net")
    loaded = jaxprune.load_compact(tmp_path / "net")
    np.testing.assert_array_equal(loaded(batch), small(batch))
    other = {**batch, "mask": ~batch["mask"]}
    assert np.abs(small(other) - small(batch)).max() > 0.01


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            lambda made: made[0].mean(),
            "must have the images on its first axis",
        ),
        (lambda made: made[1].argmax(-1), "no floating-point array"),
    ],
)
def test_outputs_that_cannot_be_compared(output, message):
    network = jaxprune.Network(
        lambda params, x: output(TwoInputs().apply(params, x)), VARIABLES, BATCH
    )
    with pytest.raises(InputError, match=message):
        jaxprune.shrink(network, BATCH, speedup=1.5)


def test_several_inputs_and_outputs_to_a_budget():
    """As `imitation` counts; the widths are those that lose least of both outputs."""
    analysis = jaxprune.analyse(NETWORK, BATCH)
    assert set(analysis.curves) == {"first", "second", "alone"}
    small = analysis.shrink(jaxprune.Budget(speedup=1.5))
    costs = [jaxprune.cost(n, BATCH) for n in (NETWORK, small.network)]
    assert costs[0].multiply_adds / costs[1].multiply_adds >= 1.5
    assert small.proof.relative_difference < 1e-4
    whole = NETWORK(BATCH)
    assert relative(small(BATCH), whole) < 0.2
    assert jax.tree.map(jnp.shape, small(BATCH)) == jax.tree.map(jnp.shape, whole)


def test_a_curve_is_the_mean_relative_error_of_masked_networks():
    """With all units of a group but one gone, by the linear fill written out."""
    analysis = jaxprune.analyse(NETWORK, BATCH, curves="measured")
    curve = analysis.curves["alone"]
    _, fitted = halves(NETWORK, BATCH, [NETWORK.groups.find("alone")], make_mesh())
    params = VARIABLES["params"]
    dense = params["alone"]
    expected = 0
    for half in fitted:
        keep = np.arange(len(curve.order)) == half.orders["alone"][-1]
        regression = half.fills["alone"].regressions(keep)["class"]
        time = half.images["time"]
        t = np.maximum(time @ dense["kernel"] + dense["bias"], 0)
        t = np.asarray(regression(jnp.asarray(t), keep))
        whole = NETWORK(half.images)
        logits = t @ params["class"]["kernel"] + params["class"]["bias"]
        share = len(time) / len(BATCH["time"])
        expected += share * relative((whole[0], logits), whole)
    assert curve.losses[-1] == pytest.approx(expected, rel=1e-3)


def test_a_part_of_the_output_leaves_the_rest_to_go():
    """Of the class alone, what makes the image costs nothing."""
    task = jaxprune.classification(output=1)
    analysis = jaxprune.analyse(NETWORK, BATCH, task=task)
    assert max(analysis.curves["first"].losses) == 0
    assert max(analysis.curves["alone"].losses) > 0


@pytest.mark.parametrize(
    ("batch", "task", "message"),
    [
        (
            {**BATCH, "time": BATCH["time"][:5]},
            None,
            r"N at least 16, got .*\[5, 1\]",
        ),
        (jax.tree.map(lambda a: a[:5], BATCH), None, "N at least 16, got"),
        (BATCH, jaxprune.regression(output="no"), "has no part 'no'; it has 0 .*, 1"),
    ],
)
def test_bad_input(batch, task, message):
    with pytest.raises(InputError, match=message):
        jaxprune.analyse(NETWORK, batch, task=task)


def test_an_output_without_floating_point_numbers():
    def function(params, x):
        return NETWORK.function(params, x)[1].argmax(-1)

    network = jaxprune.Network(function, VARIABLES, BATCH)
    with pytest.raises(InputError, match="no floating-point array"):
        jaxprune.analyse(network, BATCH)
