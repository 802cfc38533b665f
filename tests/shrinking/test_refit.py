"""Least squares against NumPy's, patches against the convolution, planted answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import unflatten_dict

from jaxprune._base.mesh import make_mesh
from jaxprune.adapters.linen import from_linen
from jaxprune.compaction.compact import compact_groups
from jaxprune.compaction.network import as_compact
from jaxprune.graph import stepwise
from jaxprune.graph.network import Network
from jaxprune.shrinking import refit as refitting
from jaxprune.shrinking.least_squares import Ridge, parts_of, patches
from jaxprune.shrinking.refit import refit
from random_data import random_split, random_variables

SHAPE = (6, 6, 2)


def images(n=32):
    return random_split(n=n, shape=SHAPE).images.astype(np.float32) / 255


def test_least_squares_equals_the_augmented_system():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(50, 7)), rng.normal(size=(50, 3))
    penalty = np.sqrt(0.3 * np.square(z).sum() / 7) * np.eye(7)
    slow, *_ = np.linalg.lstsq(
        np.vstack([z, penalty]), np.vstack([y, np.zeros((7, 3))]), rcond=None
    )
    np.testing.assert_allclose(Ridge(z, 0.3).solve(y), slow, atol=1e-6)


def in_images(z_of_images, noise, seed=0):
    """Rows of 40 images, 9 of each, and targets that are a sum of them, and noise."""
    rng = np.random.default_rng(seed)
    images = np.repeat(np.arange(40), 9)
    z = rng.normal(size=(40, z_of_images))[images] + 0.1 * rng.normal(
        size=(360, z_of_images)
    )
    y = z @ rng.normal(size=(z_of_images, 2))
    y = (1 - noise) * y + noise * 10 * rng.normal(size=(40, 2))[images]
    return z - z.mean(0), y - y.mean(0), parts_of(40, 0)[images]


def left_out(z, y, parts, ridge):
    """The error in parts that are left out, fitted again and again."""
    total = 0.0
    for part in range(2):
        inside, outside = z[parts != part], z[parts == part]
        penalty = ridge * np.square(inside).sum() / z.shape[1]
        gram = inside.T @ inside + penalty * np.eye(z.shape[1])
        found = np.linalg.solve(gram, inside.T @ y[parts != part])
        total += np.square(y[parts == part] - outside @ found).sum()
    return total


def slow_ridge(z, y, first, parts):
    """The coefficients for the best of all ridges."""
    tried = first * 10.0 ** np.arange(-3, 7)
    ridge = min(tried, key=lambda ridge: left_out(z, y, parts, ridge))
    penalty = ridge * np.square(z).sum() / z.shape[1] * np.eye(z.shape[1])
    return np.linalg.solve(z.T @ z + penalty, z.T @ y)


@pytest.mark.parametrize("noise", [0.1, 0.5])
def test_the_ridge_predicts_images_best_that_are_left_out(noise):
    z, y, parts = in_images(30, noise)
    solver = Ridge(z, 1e-3, parts)
    solver.choose(y)
    tried = 1e-3 * 10.0 ** np.arange(-3, 7)
    errors = [left_out(z, y, parts, ridge) for ridge in tried]
    assert solver.ridge == pytest.approx(tried[np.argmin(errors)])
    alone = Ridge(z, solver.ridge)
    np.testing.assert_allclose(solver.solve(y), alone.solve(y), rtol=1e-4)


def test_a_ridge_grows_on_noise_and_falls_where_all_is_told():
    z, y, parts = in_images(30, 0.0)
    told = Ridge(z, 1.0, parts)
    told.choose(y)
    noisy = Ridge(z, 1.0, parts)
    noisy.choose(in_images(30, 1.0, seed=1)[1])
    assert told.ridge < 1e-2 and noisy.ridge > 1


@pytest.mark.parametrize("seed", range(3))
def test_a_ridge_that_rounding_hides_is_not_taken(seed):
    """216 features of 3 numbers: in float32 their Gram matrix is not positive."""
    rng = np.random.default_rng(seed)
    few = rng.normal(size=(200, 3)).astype(np.float32)
    z = np.maximum(few @ rng.normal(size=(3, 216)), 0).astype(np.float32)
    y = (z @ rng.normal(size=(216, 2))).astype(np.float32)
    z, y = z - z.mean(0), y - y.mean(0)
    solver = Ridge(z, 1e-3, np.arange(200) % 4)
    solver.choose(y)
    assert np.abs(z @ solver.solve(y) - y).max() < 1e-2 * np.abs(y).max()


def test_a_layer_that_images_say_little_of_stays_as_it_was():
    """More unknowns than images: by heart the layer would fit them exactly."""

    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(200, name="wide")(x.reshape(len(x), -1)))
            return nn.Dense(5, name="out")(x)

    model, x = Wide(), images(200)
    variables = random_variables(model, x[:1])
    keeps = {"wide": np.arange(200) < 180}
    fitted, small = cut(model, variables, x[:40], keeps)
    whole = np.asarray(model.apply(variables, x[40:]))
    lost = np.square(np.asarray(small(x[40:])) - whole).sum()
    dropped = fitted | {"params": variables["params"]}
    kernel = variables["params"]["out"]["kernel"] * (np.arange(200) < 180)[:, None]
    dropped["params"] = {
        **variables["params"],
        "out": {**variables["params"]["out"], "kernel": kernel},
    }
    zeroed = np.square(np.asarray(model.apply(dropped, x[40:])) - whole).sum()
    assert lost < zeroed


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2},
        {"strides": (2, 1), "padding": ((1, 0), (2, 1))},
        {"padding": "VALID"},
        {"padding": 1, "kernel_dilation": 2},
        {"padding": "CIRCULAR"},
        {"padding": "REFLECT"},
        {"kernel_size": (2, 4)},
        {"kernel_size": (1, 1), "strides": 2},
    ],
)
def test_patches_times_the_kernel_are_the_convolution(options):
    options = {"kernel_size": (3, 3), **options}
    conv = nn.Conv(5, use_bias=False, **options)
    x = images(4)
    kernel = np.random.default_rng(1).normal(size=(*options["kernel_size"], 2, 5))
    kernel = kernel.astype(np.float32)
    y = np.asarray(conv.apply({"params": {"kernel": kernel}}, x))
    pick = np.random.default_rng(2).permutation(y[..., 0].size)[:40]
    layer, operand = only_layer(conv, kernel, x)
    found = patches(layer, operand, pick) @ kernel.reshape(-1, 5)
    np.testing.assert_allclose(found, y.reshape(-1, 5)[pick], atol=1e-5)


def only_layer(conv, kernel, x):
    """The convolution of a network that is no more, and what it is given."""
    variables = {"params": {"kernel": kernel}}
    network = Network(conv.apply, variables, x)
    (layer,) = network.graph(x).layers.values()
    (operand,) = network.evaluate(x, want=[layer.input])
    return layer, np.asarray(operand)


def test_patches_of_a_causal_convolution():
    conv = nn.Conv(3, (4,), padding="CAUSAL", kernel_dilation=2, use_bias=False)
    x = np.random.default_rng(0).normal(size=(2, 9, 2)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(4, 2, 3)).astype(np.float32)
    y = np.asarray(conv.apply({"params": {"kernel": kernel}}, x))
    layer, operand = only_layer(conv, kernel, x)
    found = patches(layer, operand, np.arange(18)) @ kernel.reshape(-1, 3)
    np.testing.assert_allclose(found, y.reshape(-1, 3), atol=1e-5)


class Net(nn.Module):
    """Convolutions with and without bias, a norm, a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), name="first")(x))
        x = nn.Conv(8, (3, 3), strides=2, use_bias=False, name="second")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        x = nn.relu(nn.Dense(7, name="third")(x.reshape(len(x), -1)))
        return nn.Dense(3, name="last")(x)


def network():
    return Net(), random_variables(Net(), jnp.zeros((1, *SHAPE)))


def cut(model, variables, x, keeps):
    return cut_again(as_compact(from_linen(model, variables, x[:1])), x, keeps)


def cut_again(small, x, keeps):
    """The fitted variables of a network's shapes, and what is left of it."""
    network = small.network
    fitted = refit(network, x, network.groups, keeps)
    drops = {name: (keep, "drop") for name, keep in keeps.items()}
    cut = compact_groups(network.with_params(fitted), drops, example=x[:4])
    return unflatten_dict(fitted, sep="/"), cut


def test_copies_of_units_leave_without_a_trace():
    model, variables = network()
    params = variables["params"]
    for name in ("first", "second"):  # the last unit says what the one before it says
        params[name]["kernel"][..., -1] = params[name]["kernel"][..., -2]
    params["first"]["bias"][-1] = params["first"]["bias"][-2]
    for leaves in (params["norm"], variables["batch_stats"]["norm"]):
        for leaf in leaves.values():
            leaf[-1] = leaf[-2]
    x = images(200)
    keeps = {"first": np.arange(6) < 5, "second": np.arange(8) < 7}
    _, small = cut(model, variables, x, keeps)
    whole = np.asarray(model.apply(variables, x))
    spread = whole.std()
    # What is left is the ridge's doing.
    assert np.abs(np.asarray(small(x)) - whole).max() < 0.02 * spread


def test_pruned_rows_are_zero_and_the_rest_of_the_network_is_as_it_was():
    model, variables = network()
    keep = np.array([True, False, True, True, False, True])
    fitted, small = cut(model, variables, images(), {"first": keep})
    assert not fitted["params"]["second"]["kernel"][:, :, ~keep].any()
    np.testing.assert_array_equal(
        fitted["params"]["first"]["kernel"], variables["params"]["first"]["kernel"]
    )
    assert fitted["offsets"]["second"]["rows"].shape == (1, 8)
    assert small.variables["params"]["second"]["kernel"].shape == (3, 3, 4, 8)
    assert small.proof.different_predictions == 0


def test_a_refitted_network_is_nearer_to_the_whole_one_than_a_sliced_one():
    model, variables = network()
    x, new = images(128), images(200)[128:]
    keeps = {"first": np.arange(6) % 3 > 0, "second": np.arange(8) % 4 > 0}
    _, small = cut(model, variables, x, keeps)
    drops = {name: (keep, "drop") for name, keep in keeps.items()}
    sliced = compact_groups(model, variables, drops, example=x[:4])
    whole = np.asarray(model.apply(variables, new))

    def error(network):
        return np.square(np.asarray(network(new)) - whole).mean()

    assert error(small) < 0.5 * error(sliced)


def test_dense_layers_are_the_ridge_regression_on_kept_units():
    model, variables = network()
    x = images(64)
    keep = np.arange(7) < 4
    fitted, _ = cut(model, variables, x, {"third": keep})
    state = model.apply(variables, x, capture_intermediates=True, mutable=True)[1]
    hidden = np.asarray(nn.relu(state["intermediates"]["third"]["__call__"][0]))
    target = np.asarray(state["intermediates"]["last"]["__call__"][0])
    z, y = hidden[:, keep].astype(float), target.astype(float)
    z0, y0 = z - z.mean(0), y - y.mean(0)
    own, parts = np.eye(7)[keep], parts_of(64, 0)
    lost = hidden - hidden.mean(0) - z0 @ own
    kernel = variables["params"]["last"]["kernel"].astype(float)
    towards = (own + slow_ridge(z0, lost, 1e-3, parts)) @ kernel
    slow = towards + slow_ridge(z0, y0 - z0 @ towards, 0.4 * 4 / 64, parts)
    last = fitted["params"]["last"]
    np.testing.assert_allclose(last["kernel"][keep], slow, atol=1e-4)
    np.testing.assert_allclose(last["bias"], y.mean(0) - z.mean(0) @ slow, atol=1e-4)


class Residual(nn.Module):
    """A branch that is cut, and makes good what the other one has lost."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2, name="stem")(x))
        y = nn.relu(nn.Conv(8, (3, 3), name="inner")(x))
        y = nn.Conv(6, (3, 3), use_bias=False, name="outer")(y)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x + y))
        return nn.Dense(3, name="last")(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("batch", "in_memory", "devices"),
    [(1, 2**28, 1), (13, 0, 1), (13, 2**28, 2), (64, 0, 8)],
)
def test_batches_files_and_devices_change_nothing(
    batch, in_memory, devices, monkeypatch
):
    """61 images: the last batch is filled up. Rows are drawn of all batches."""
    model, x = Residual(), images(61)
    network = from_linen(model, random_variables(model, x[:1]), x[:1])
    keeps = {"stem": np.arange(6) % 3 > 0, "inner": np.arange(8) % 4 > 0}
    want = refit(network, x, network.groups, keeps, rows=500)
    monkeypatch.setattr(refitting, "images_at_once", lambda *_: batch)
    monkeypatch.setattr(stepwise, "_IN_MEMORY", in_memory)
    mesh = make_mesh(jax.local_devices()[:devices])
    found = refit(network, x, network.groups, keeps, rows=500, mesh=mesh)
    changed = [p for p in want if (want[p] != network.arrays.get(p)).any()]
    assert any("outer" in path for path in changed)
    for path, array in want.items():
        np.testing.assert_allclose(found[path], array, rtol=1e-3, atol=1e-4)


def test_a_network_can_be_cut_again():
    model, variables = network()
    x = images(64)
    first = {"first": np.arange(6) < 4}
    _, small = cut(model, variables, x, first)
    keeps = {"second": np.arange(8) < 5, "third": np.arange(7) < 6}
    _, again = cut_again(small, x, keeps)
    assert again.proof.different_predictions == 0
    assert set(again.layers) == {"first", "second", "third"}
    difference = np.abs(np.asarray(again(x)) - np.asarray(small(x))).mean()
    assert difference < np.asarray(small(x)).std()


def test_a_jitted_part_is_fitted_like_any_other():
    class Jitted(nn.Module):
        jit: bool

        @nn.compact
        def __call__(self, x):
            lift = nn.jit if self.jit else lambda module: module
            x = nn.relu(lift(nn.Conv)(4, (3, 3), name="first")(x))
            return lift(nn.Dense)(3, name="last")(x.mean((1, 2)))

    variables = random_variables(Jitted(False), jnp.zeros((1, *SHAPE)))
    x, keeps = images(64), {"first": np.arange(4) < 2}
    plain, jitted = (cut(Jitted(jit), variables, x, keeps)[0] for jit in (False, True))
    jax.tree.map(np.testing.assert_array_equal, plain, jitted)
    assert not plain["params"]["last"]["kernel"][2:].any()
