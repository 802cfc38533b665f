"""Where outputs go; programs run by hand; planted errors that a sum can make good."""

from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxprune.adapters.linen import from_linen
from jaxprune.compaction.compact import compact_groups
from jaxprune.compaction.network import as_compact
from jaxprune.graph import stepwise
from jaxprune.graph.network import Network
from jaxprune.graph.stepwise import Stepwise, by_batch
from jaxprune.shrinking import refit as refitting
from jaxprune.shrinking.objective import Goal, fit
from jaxprune.shrinking.refit import refit
from jaxprune.shrinking.targets import Destination, find_destinations, follow
from random_data import random_split, random_variables
from selected import quick
from zoo import EXAMPLE_SHAPE, ZOO

SHAPE = (6, 6, 2)
WIDTH = 6


class Block(nn.Module):
    """A sum of a projection and a normed branch, which read copies of one layer."""

    @nn.compact
    def __call__(self, x, train=False):
        wide = nn.relu(nn.Conv(WIDTH, (1, 1), name="wide")(x))
        copy = nn.relu(nn.Conv(WIDTH, (1, 1), name="copy")(x))
        norm = nn.BatchNorm(use_running_average=True, name="norm")
        y = norm(nn.Conv(5, (3, 3), use_bias=False, name="branch")(copy))
        y = nn.relu(y + nn.Conv(5, (1, 1), name="short")(wide))
        gate = nn.sigmoid(nn.Dense(5, name="gate")(y.mean((1, 2))))
        return nn.Dense(3, name="last")((y * gate[:, None, None]).mean((1, 2)))


def block():
    variables = random_variables(Block(), jnp.zeros((1, *SHAPE)))
    variables["params"]["copy"] = variables["params"]["wide"]
    return variables, random_split(n=96, shape=SHAPE).images.astype(np.float32) / 255


def test_the_strongest_of_a_sum_gives_the_sum_and_a_gate_ends_the_way():
    variables, x = block()
    graph = Network(Block().apply, variables, x).graph(x[:2])
    found = find_destinations(graph.program, graph.layers)
    names = [step.name for _, step in found["branch"].path]
    assert names == ["sub", "mul", "add", "add"] and found["branch"].rectified
    assert not found["short"].path and not found["short"].rectified
    assert found["wide"].rectified and not found["wide"].path
    # A sigmoid reads the one, nobody the other.
    assert not found["gate"].path and not found["gate"].rectified
    assert not found["last"].path and not found["last"].rectified


def test_factor_and_rest_are_the_norm_and_the_other_branch():
    variables, x = block()
    state = Block().apply(variables, x[:2], capture_intermediates=True, mutable=True)[1]
    seen = {k: np.asarray(v["__call__"][0]) for k, v in
            state["intermediates"].items() if isinstance(v, dict)}  # fmt: skip
    network = Network(Block().apply, variables, x)
    graph = network.graph(x[:2])
    ends = find_destinations(graph.program, graph.layers)
    run = Stepwise(
        graph, network.arrays, [jnp.asarray(x[:2])],
        {layer.output: layer for layer in graph.layers.values()},
        lambda layer, _: by_batch(lambda i: [jnp.asarray(seen[layer.name])], 1)[0],
        Counter(),
    )  # fmt: skip
    factor, (rest,) = follow(run, ends["branch"], graph.layer("branch"))
    norm, stats = variables["params"]["norm"], variables["batch_stats"]["norm"]
    slow = norm["scale"] / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(factor, slow, rtol=1e-5)
    shift = norm["bias"] - slow * stats["mean"]
    np.testing.assert_allclose(rest, seen["short"] + shift, atol=1e-5)


def cut(keeps):
    variables, x = block()
    network = as_compact(from_linen(Block(), variables, x[:1])).network
    fitted = refit(network, x, network.groups, keeps)
    drops = {name: (keep, "drop") for name, keep in keeps.items()}
    small = compact_groups(network.with_params(fitted), drops, example=x[:4])
    assert small.proof.different_predictions == 0
    whole = np.asarray(Block().apply(variables, x))
    return np.abs(np.asarray(small(x)) - whole).max() / whole.std()


def test_what_the_shortcut_has_lost_the_branch_makes_good(monkeypatch):
    """The branch reads copies of what the shortcut has lost."""
    keeps = {"wide": np.arange(WIDTH) < 2}
    repaired = cut(keeps)

    def nowhere(program, layers):
        return {name: Destination(layer.output) for name, layer in layers.items()}

    monkeypatch.setattr(refitting, "find_destinations", nowhere)
    assert repaired < 0.05 and cut(keeps) > 5 * repaired


def test_a_fit_is_the_ridge_regression_of_what_the_layer_has_to_return():
    rng = np.random.default_rng(0)
    z, towards = rng.normal(size=(60, 4)), rng.normal(size=(4, 3))
    factor = np.array([0.5, -2.0, 0.0])
    goal = Goal(rng.normal(size=(60, 3)), rng.normal(size=(60, 3)), factor)
    kernel, bias = fit(z, goal, 0.2, towards)
    z0, penalty = z - z.mean(0), 0.2 * np.square(z - z.mean(0)).sum() / 4
    for u in range(2):
        y = (goal.target - goal.rest)[:, u] / factor[u]
        left = y - y.mean() - z0 @ towards[:, u]
        gram = z0.T @ z0 + penalty * np.eye(4)
        slow = towards[:, u] + np.linalg.solve(gram, z0.T @ left)
        np.testing.assert_allclose(kernel[:, u], slow, atol=1e-5)
        np.testing.assert_allclose(bias[u], y.mean() - z.mean(0) @ slow, atol=1e-5)
    assert np.isfinite(kernel).all() and np.isfinite(bias).all()


def test_before_a_relu_only_what_comes_through_counts():
    """The targets that are positive can be met exactly, the others cannot."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(400, 3)).astype(np.float32)
    exact = z @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.3
    target = np.where(exact > 0, exact, exact * rng.uniform(0, 8, exact.shape))
    still = np.zeros_like(target), np.array([-0.7], np.float32)

    def error(rectified):
        goal = Goal(target, *still, rectified)
        kernel, bias = fit(z, goal, 1e-6, np.zeros((3, 1), np.float32))
        given = -0.7 * (z @ kernel + bias)
        return np.square(np.maximum(given, 0) - np.maximum(target, 0)).mean()

    assert error(True) < 0.3 * error(False)


ORDINARY = ("cifar_resnet", "resnet_v1")


@pytest.mark.parametrize(
    "name",
    quick(ZOO, ORDINARY),
)
def test_a_program_run_by_hand_is_the_network(name, monkeypatch):
    """Two batches; values are in memory, or in files."""
    model = ZOO[name]()
    variables = random_variables(model, jnp.zeros((1, *EXAMPLE_SHAPE)))
    images = random_split(n=16, shape=EXAMPLE_SHAPE).images[:2].astype(np.float32) / 255
    x = jnp.asarray(images)
    network = Network(model.apply, variables, x)
    graph = network.graph(x)
    layers = {
        layer.output: layer
        for layer in graph.layers.values()
        if refitting.may_be_fitted(layer)
    }

    def layer(layer, x):
        return refitting.outputs(layer, network.arrays, x)

    for most in (2**28, 0):
        monkeypatch.setattr(stepwise, "_IN_MEMORY", most)
        batches = [x, x[::-1]]
        run = Stepwise(graph, network.arrays, batches, layers, layer, Counter())
        (result,) = (run.read(value) for value in graph.program.results)
        assert (result._file is None) == (most > 0)
        for found, images in zip(result, batches, strict=True):
            want = model.apply(variables, images)
            np.testing.assert_allclose(found, want, atol=1e-4, rtol=1e-4)
        # Nothing is kept that nobody will read.
        assert len(run.values) <= 2
