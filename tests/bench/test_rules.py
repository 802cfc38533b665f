"""The rules of other papers: what each must find in a network made for it."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import experiments.bench.__main__ as bench
from experiments.bench.rules import compare
from experiments.bench.rules.peers import Peers
from jaxprune.adapters.linen import from_linen
from jaxprune.fills.masked import run_masked
from run_directories import plant_run

IMAGES = np.random.default_rng(0).normal(size=(64, 6, 6, 3)).astype(np.float32)


class Net(nn.Module):
    """Two convolutions, BatchNorm, a flatten; the first has 8 channels."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="first")(x))
        x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        x = nn.relu(nn.Conv(6, (3, 3), strides=2, name="second")(x))
        return nn.Dense(5, name="out")(x.reshape(len(x), -1))


@pytest.fixture
def variables():
    """Drawn ones; biases and BatchNorm differ from channel to channel."""
    drawn = Net().init(jax.random.key(0), IMAGES[:1])
    rng = np.random.default_rng(1)

    def change(array):
        return np.array(array + 0.1 * np.abs(rng.normal(size=array.shape)), np.float32)

    return jax.tree.map(change, drawn)


def peers(variables):
    network = from_linen(Net(), variables, IMAGES[:1])
    return Peers.fitted(network, network.groups.groups, IMAGES)


def run(made, rule, widths):
    """Outputs of the network as a rule prunes it, and of the whole one."""
    pruned = made.rules[rule](widths)
    x = jnp.asarray(IMAGES)
    found = run_masked(made.network, pruned.arrays, x, pruned.masks)
    return np.asarray(found), np.asarray(made.network.function(made.network.params, x))


def kept(made, rule, width):
    (mask,) = made.rules[rule]({"first": width}).masks
    return np.flatnonzero(mask.keep)


def test_magnitude_keeps_the_largest_filters(variables):
    size = np.array([5, 1, 7, 2, 8, 3, 6, 4.0], np.float32)
    variables["params"]["first"]["kernel"][:] = size
    made = peers(variables)
    for rule in ("magnitude", "GRAIL, magnitude"):
        np.testing.assert_array_equal(kept(made, rule, 3), [2, 4, 6])


def test_wanda_keeps_what_is_large_where_it_is_read(variables):
    """A large filter that nobody reads goes; a small one of large weights stays."""
    params = variables["params"]
    params["first"]["kernel"][..., 0] *= 100
    params["second"]["kernel"][:, :, 0] = 0
    params["first"]["kernel"][..., 1] *= 0.1
    params["second"]["kernel"][:, :, 1] *= 1000
    made = peers(variables)
    assert 0 in kept(made, "GRAIL, magnitude", 1)
    np.testing.assert_array_equal(kept(made, "GRAIL, Wanda", 1), [1])
    score = made._wanda(made.groups["first"])
    x = nn.relu(nn.Conv(8, (3, 3)).apply({"params": params["first"]}, IMAGES))
    norm = {"params": params["norm"], "batch_stats": variables["batch_stats"]["norm"]}
    x = nn.BatchNorm(use_running_average=True).apply(norm, x)
    # SAME padding of a stride of 2 shows all positions to some tap.
    weight = np.abs(params["second"]["kernel"]).sum((0, 1, 3))
    expected = weight * np.sqrt(np.square(x).mean((0, 1, 2)))
    np.testing.assert_allclose(score, expected, rtol=2e-3)


def test_lindeps_takes_dependent_channels_and_loses_nothing(variables):
    """Of three equal channels one stays, and of a multiple of another."""
    params, stats = variables["params"], variables["batch_stats"]["norm"]
    for equal in (3, 6):
        for array in (*params["first"].values(), *params["norm"].values(),
                      *stats.values()):  # fmt: skip
            array[..., equal] = array[..., 1]
    params["norm"]["scale"][5] = 3 * params["norm"]["scale"][2]
    for array in (*params["first"].values(), *stats.values()):
        array[..., 5] = array[..., 2]
    made = peers(variables)
    left = kept(made, "LinDeps", 5)
    assert len({1, 3, 6} & {*left}) == 1 == len({2, 5} & {*left})
    found, whole = run(made, "LinDeps", {"first": 5})
    np.testing.assert_allclose(found, whole, atol=2e-3 * np.abs(whole).max())
    dropped, _ = run(made, "magnitude", {"first": 5})
    assert np.abs(dropped - whole).max() > 0.05 * np.abs(whole).max()


def test_grail_makes_up_for_what_it_prunes(variables):
    made = peers(variables)
    dropped, whole = run(made, "magnitude", {"first": 4, "second": 4})
    found, _ = run(made, "GRAIL, magnitude", {"first": 4, "second": 4})
    assert np.square(found - whole).mean() < 0.5 * np.square(dropped - whole).mean()


def test_folding_equal_filters_loses_nothing(variables):
    """In both layers; where the flatten reads six positions of a channel, too."""
    params, stats = variables["params"], variables["batch_stats"]["norm"]
    for one, other in ((0, 4), (2, 7)):
        for array in (*params["first"].values(), *params["norm"].values(),
                      *stats.values()):  # fmt: skip
            array[..., other] = array[..., one]
    for array in params["second"].values():
        array[..., 5] = array[..., 3]
    made = peers(variables)
    found, whole = run(made, "folding", {"first": 6, "second": 5})
    np.testing.assert_allclose(found, whole, atol=1e-5)


def test_folding_makes_filters_the_means_of_their_clusters(variables):
    made = peers(variables)
    pruned = made.rules["folding"]({"first": 3})
    kernel = pruned.arrays["params/first/kernel"].reshape(-1, 8).T
    scale = pruned.arrays["params/norm/scale"]
    filters, cluster = np.unique(kernel, axis=0, return_inverse=True)
    assert len(filters) == 3
    before = variables["params"]["first"]["kernel"].reshape(-1, 8).T
    for one in range(3):
        members = cluster.ravel() == one
        np.testing.assert_allclose(filters[one], before[members].mean(0), rtol=1e-5)
        own = variables["params"]["norm"]["scale"][members].mean()
        np.testing.assert_allclose(scale[members], own, rtol=1e-5)
    read = pruned.arrays["params/second/kernel"]
    np.testing.assert_array_equal(read, variables["params"]["second"]["kernel"])


def test_the_whole_network_is_what_every_rule_leaves_at_full_width(variables):
    made = peers(variables)
    for rule in made.rules:
        found, whole = run(made, rule, {"first": 8, "second": 6})
        np.testing.assert_array_equal(found, whole)


@pytest.mark.parametrize("budgets", ["", "2,a", "0.5", "nan"])
def test_budgets_are_numbers_of_at_least_1(script, budgets):
    code, out, err = script(bench, "--what=rules", f"--budgets={budgets}")
    assert (code, out) == (2, "") and err.startswith("error: --budgets takes numbers")


@pytest.mark.slow
def test_the_command_compares_all_rules(
    script, tmp_path, standard_promotion, monkeypatch
):
    workdir = tmp_path / "run"
    plant_run(workdir, model="cifar_resnet", widths=(4, 6, 8))
    arguments = (
        "--what=rules", "--model=cifar_resnet", f"--workdir={workdir}",
        "--eval_split=test[:60]", "--calibration_split=train[:64]", "--budgets=1.3,2",
    )  # fmt: skip
    code, out, err = script(bench, *arguments)
    assert code == 0, err
    folder = workdir / "bench-rules"
    with open(folder / "rules.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 6
    for row in rows:
        assert float(row["theoretical_speedup"]) >= float(row["speedup"])
        assert f"{float(row['accuracy']):.4f}" in out
    assert (folder / "rules.png").stat().st_size > 10_000
    about = json.loads((folder / "summary.json").read_text())["about"]
    assert about["calibration_split"] == "train[:64]"

    def refuse(*args):
        raise AssertionError("measured again")

    monkeypatch.setattr(compare.Comparison, "_row", refuse)
    assert script(bench, *arguments)[0] == 0
    code, _, err = script(bench, *arguments[:-1], "--budgets=0.5")
    assert code == 2 and "numbers of at least 1" in err
    code, _, err = script(bench, *arguments, "--finetune_epochs=1")
    assert code == 2 and "nothing without --what=shrink" in err
