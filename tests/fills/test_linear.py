"""The linear fill's regressions, against explicit ones."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import consumers
import jaxprune
from jaxprune._base import threads
from jaxprune._base.errors import InputError
from jaxprune.fills import calibration, linear
from jaxprune.fills.linear import Moments
from jaxprune.fills.moments import Sums, press
from masked import given_to
from random_data import random_variables


def moments(rows, ridge=1e-2, kernel=None):
    """Of rows [n, P], as a dense consumer's whose channels have one position."""
    p = rows.shape[1]
    kernel = np.eye(p) if kernel is None else kernel
    covariance = np.cov(rows.T, bias=True).reshape(1, p, p)
    gram = (kernel @ kernel.T)[None]
    mean = rows.mean(0)[None]
    return Moments(np.arange(p)[None], p, mean, covariance, gram, ridge)


def drawn(n=60, p=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, p)) @ rng.normal(size=(p, p)) + rng.normal(size=p)


def test_a_regression_is_the_explicit_one():
    rows = drawn()
    keep = np.array([1, 0, 1, 1, 0, 1, 0, 1], bool)
    found = moments(rows).regress(keep)
    expected = consumers._regressed(rows, rows, keep, 1e-2)
    x = jnp.asarray(rows, jnp.float32)
    # float32 sums of eight products of numbers below 10
    np.testing.assert_allclose(found(x, keep), expected, atol=1e-4)


def test_nested_regressions_are_those_from_scratch():
    rows, rng = drawn(p=40), np.random.default_rng(1)
    order = rng.permutation(40)
    nested = moments(rows).nest(order)
    x = jnp.asarray(rows, jnp.float32)
    for k in rng.choice(40, 20, replace=False):
        keep = np.argsort(order) >= k
        scratch = moments(rows).regress(keep)
        scale = np.abs(rows).max()
        np.testing.assert_allclose(nested(x, keep), scratch(x, keep), atol=2e-5 * scale)


def test_the_rows_that_residuals_meet_give_the_consumers_output():
    rows, rng = drawn(p=12), np.random.default_rng(1)
    kernel, order = rng.normal(size=(12, 5)), rng.permutation(12)
    m = moments(rows)
    nested = m.nest(order)
    residuals = (rows - rows.mean(0)) @ nested.residual[0]
    swept = nested.kernel(kernel)[0]
    for k in (0, 1, 5, 11):
        keep = np.argsort(order) >= k
        expected = consumers._regressed(rows, rows, keep, 1e-2) @ kernel
        kept = residuals[:, keep] @ swept[keep] + rows.mean(0) @ kernel
        np.testing.assert_allclose(kept, expected, atol=1e-9)


def test_a_folded_kernel_reads_the_kept_channels_alone():
    rows, rng = drawn(), np.random.default_rng(1)
    kernel = rng.normal(size=(8, 5))
    keep = np.arange(8) % 3 > 0
    found = moments(rows).regress(keep)
    folded = found.fold(kernel)
    sent = found.constants[0] @ kernel
    expected = consumers._regressed(rows, rows, keep, 1e-2) @ kernel
    np.testing.assert_allclose(rows[:, keep] @ folded[keep] + sent, expected, atol=1e-9)


def test_an_affine_function_of_two_others_is_predicted():
    rows = drawn()
    rows[:, 3] = 2 * rows[:, 1] - 0.5 * rows[:, 6] + 7
    found = moments(rows, 1e-9).regress(np.arange(8) != 3)
    np.testing.assert_allclose(found.constants[0, 3], 7, atol=1e-5)
    expected = np.zeros(8)
    expected[[1, 6]] = 2, -0.5
    np.testing.assert_allclose(found.coefficients[0, :, 3], expected, atol=1e-6)


def test_uncorrelated_channels_become_their_mean():
    m = moments(drawn())
    diagonal = np.diag(np.diag(m.covariance[0]))[None]
    m = dataclasses.replace(m, covariance=diagonal)
    found = m.regress(np.arange(8) > 2)
    assert not found.coefficients.any()
    np.testing.assert_array_equal(found.constants[0, :3], m.mean[0, :3])


@pytest.mark.parametrize("plant", ["duplicate", "constant", "dead", "one", "all dead"])
def test_singular_covariances_are_met_by_the_ridge(plant):
    rows = drawn()
    if plant == "duplicate":
        rows[:, 1] = rows[:, 0]
    if plant == "constant":
        rows[:, 1] = 3
    if plant == "dead":
        rows[:, 1] = 0
    if plant == "one":
        rows = rows[:1]
    if plant == "all dead":
        rows[:] = 0
    m = moments(rows)
    found = m.regress(np.arange(8) != 1)
    nested = m.nest(np.arange(8))
    for array in (found.coefficients, found.constants, nested.residual, nested.back):
        assert np.isfinite(array).all()
    if plant == "duplicate":
        # The ridge is 1 % of the mean variance, so a little is left.
        assert found.coefficients[0, 0, 1] > 0.8
    elif plant in ("constant", "dead", "one", "all dead"):
        np.testing.assert_allclose(found.constants[0, 1], rows[0, 1], atol=1e-12)


def test_moments_of_channels_far_from_zero():
    """A channel near 1e6 that varies by 1 is predicted as one near 0 is."""
    rows = np.float32(drawn(n=64))
    far = rows.astype(np.float64)
    far[:, 3] += 1e6
    fits = []
    for x in (rows, far):
        level = x[:40].mean(0, keepdims=True)
        sums = Sums.about(level, np.arange(8)[None], 8)
        for part in (x[:40], x[40:]):
            sums.add(part[:, None], 1)
        fits.append(sums.over_processes().moments(np.eye(8)[None], 1e-3))
    np.testing.assert_allclose(*(fit.covariance for fit in fits), rtol=1e-6)
    np.testing.assert_allclose(fits[0].covariance[0], np.cov(rows.T, bias=True), 1e-6)
    np.testing.assert_allclose(fits[1].mean[0], far.mean(0), rtol=1e-12)


def test_press_is_leaving_each_row_out():
    rows, ridge = drawn(n=14, p=4), 0.05
    n = len(rows)
    # The penalty is that of all rows, as it is one number in the closed form.
    variance = rows.var(0).mean()
    total = 0.0
    for j in range(4):
        others = np.arange(4) != j
        for i in range(n):
            rest = np.arange(n) != i
            mean = rows[rest].mean(0)
            x = rows[rest] - mean
            gram = x[:, others].T @ x[:, others]
            gram += n * ridge * variance * np.eye(3)
            a = np.linalg.solve(gram, x[:, others].T @ x[:, j])
            error = rows[i, j] - mean[j] - (rows[i, others] - mean[others]) @ a
            total += error**2
    expected = total / (n * 4) / variance
    (found,) = press(rows[:, None], rows.shape[1], [ridge])
    assert found == pytest.approx(expected, rel=1e-9)


def test_press_leaves_out_all_features_of_a_channel():
    """Two channels of two features each: neither predicts its own."""
    rows, ridge, n = drawn(n=14, p=4), 0.05, 14
    variance = rows.var(0).mean()
    total = 0.0
    for channel in range(2):
        own = np.arange(4) % 2 == channel
        for i in range(n):
            rest = np.arange(n) != i
            mean = rows[rest].mean(0)
            x = rows[rest] - mean
            gram = x[:, ~own].T @ x[:, ~own] + n * ridge * variance * np.eye(2)
            a = np.linalg.solve(gram, x[:, ~own].T @ x[:, own])
            error = rows[i, own] - mean[own] - (rows[i, ~own] - mean[~own]) @ a
            total += np.square(error).sum()
    expected = total / (n * 4) / variance
    assert press(rows[:, None], 2, [ridge]) == pytest.approx([expected], rel=1e-9)


def test_work_of_wide_layers_is_bounded(monkeypatch):
    """Large factors by one thread, and fewer rows for the ridge the more features."""
    counts, cholesky = [], linear.linalg.cholesky

    def spied(matrix, **options):
        pools = threads.blas().select(user_api="blas").info()
        counts.append({pool["num_threads"] for pool in pools})
        return cholesky(matrix, **options)

    monkeypatch.setattr(linear.linalg, "cholesky", spied)
    monkeypatch.setattr(threads, "_LARGE", 4)
    rows = drawn(n=14, p=4)
    moments(rows).nest(np.arange(4))
    assert counts == [{1}]

    kept = []
    monkeypatch.setattr(Sums, "press", lambda own, r: kept.append(own.kept) or [0] * 6)
    monkeypatch.setattr(calibration, "_PRESS_ELEMENTS", 4 * 5)
    network = jaxprune.Network(
        lambda p, x: x @ p["a"] @ p["b"], {"a": np.eye(4, 4), "b": np.ones((4, 2))},
        np.float32(rows),
    )  # fmt: skip
    group = network.groups.groups["a"]
    jaxprune.linear_fills(network, np.float32(rows), [group])
    assert sum(map(len, kept[0])) <= 5


def test_the_ridge_follows_the_noise():
    """More rows ask for less, and what nothing predicts asks for most."""
    rng = np.random.default_rng(0)

    def best(n, noise):
        rows = rng.normal(size=(n, 3)) @ rng.normal(size=(3, 20))
        rows += noise * rng.normal(size=rows.shape)
        grid = [1e-4, 1e-2, 1.0, 100.0]
        errors = press(rows[:, None], rows.shape[1], grid)
        return grid[int(np.argmin(errors))]

    assert best(2000, 0.1) < best(12, 2.0)
    assert best(30, 1e3) == 100


class Residual(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="first")(x))
        x = x + nn.Conv(4, (3, 3), name="second")(x)
        return nn.Dense(3, name="out")(x.mean((1, 2)))


def test_bad_input_is_named():
    _, apply, variables, split = consumers.read("same")

    def fit(images=split.images, ridge=1e-2, variables=variables):
        jaxprune.linear_fill(apply, variables, images, layer="first", ridge=ridge)

    with pytest.raises(InputError, match=r"N at least 1, got \[0, 8, 8, 3\]"):
        fit(split.images[:0])
    for ridge in (-1.0, 0.0, np.nan, np.inf):
        with pytest.raises(InputError, match="ridge must be positive and finite"):
            fit(ridge=ridge)
    broken = {**variables, "batch_stats": {"bn": dict(variables["batch_stats"]["bn"])}}
    broken["batch_stats"]["bn"]["mean"] = np.full(consumers.P, -3e38, np.float32)
    broken["batch_stats"]["bn"]["var"] = np.full(consumers.P, 1e-6, np.float32)
    with pytest.raises(InputError, match="'consumer' is given is not finite"):
        fit(variables=broken)
    model = Residual()
    x = jnp.zeros((2, 6, 6, 3))
    with pytest.raises(InputError, match="they are the network's output"):
        jaxprune.linear_fill(model.apply, random_variables(model, x), x, layer="out")


def test_a_fill_for_what_meets_in_a_sum_is_fitted_on_the_sum():
    model = Residual()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 6, 6, 3)), jnp.float32)
    variables = random_variables(model, x)
    fill = jaxprune.linear_fill(model.apply, variables, x, layer="first", ridge=0.1)
    given = given_to(model.apply, variables, x, ["second", "out"])
    assert set(fill.moments) == {"second", "out"}
    for name, rows in given.items():
        rows = rows.reshape(-1, 4).astype(float)
        np.testing.assert_allclose(fill.moments[name].mean[0], rows.mean(0), rtol=1e-4)
        covariance = np.cov(rows.T, bias=True)
        np.testing.assert_allclose(
            fill.moments[name].covariance[0], covariance, rtol=1e-3, atol=1e-5
        )


def test_a_fill_of_another_layer_is_refused():
    model, apply, variables, split = consumers.read("same")
    fill = jaxprune.linear_fill(apply, variables, split.images, layer="first")
    with pytest.raises(InputError, match="made for 10 channels, 'consumer' has 7"):
        jaxprune.compact(
            model, variables, "consumer", np.ones(7, bool), fill=fill,
            example=jnp.zeros((1, 8, 8, 3)),
        )  # fmt: skip


def test_facts_say_how_it_was_made():
    _, apply, variables, split = consumers.read("dense")
    fill = jaxprune.linear_fill(apply, variables, split.images[:20], layer="first")
    assert fill.facts["images"] == 20
    chosen = min(fill.facts["press"], key=fill.facts["press"].get)
    assert fill.facts["ridge"] == float(chosen)
    fixed = jaxprune.linear_fill(
        apply, variables, split.images, layer="first", ridge=0.2
    )
    assert fixed.facts == {"images": 30, "ridge": 0.2}
