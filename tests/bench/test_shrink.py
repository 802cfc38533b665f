"""The contest with Torch-Pruning: what it cuts, the script, bad input."""

import csv
import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import __main__ as bench
from jaxprune.cli.finetuning import Finetuning
from jaxprune.cli.settings import EpochSettings
from jaxprune.recipes.models import CifarResNet
from jaxprune.recipes.recipe import RECIPES
from random_data import random_split, random_variables
from run_directories import plant_run

pytest.importorskip("torch_pruning")
import torch

from experiments.bench.shrink import contest, stages, torch_pruning
from experiments.bench.torch_models import Twin, multiply_adds

QUICK = (
    "--what=shrink", "--eval_split=test[:60]", "--calibration_split=train[:64]",
    "--multiple_of=1", "--batch=2", "--repeats=2", "--latency_batches=1,3",
)  # fmt: skip


@pytest.fixture
def small_run():
    """What `torch_pruning.cut` needs of a job."""
    return SimpleNamespace(
        config=SimpleNamespace(pixel_mean=(100.0,), pixel_std=(80.0,)),
        batch_size=lambda split: 10,
    )


def example(size, channels=3):
    return torch.zeros((1, channels, size, size))


def cut(run, model, variables, size, method, speedup):
    x = jnp.zeros((1, size, size, 3))
    twin = Twin(model, variables, x).eval()
    split = random_split(n=23, shape=(size, size, 3))
    before = {key: value.clone() for key, value in twin.state_dict().items()}
    whole = multiply_adds(twin, example(size))
    small = torch_pruning.cut(
        run, twin, torch_pruning.METHODS[method], example(size), whole / speedup, split
    )
    assert all(torch.equal(v, before[key]) for key, v in twin.state_dict().items())
    return small, whole / multiply_adds(small, example(size))


@pytest.mark.parametrize("method", torch_pruning.METHODS)
def test_it_reaches_the_multiply_adds_with_what_is_worth_least(small_run, method):
    """In each block, half of the inner channels have hundredfold smaller kernels."""
    model = CifarResNet(8, (16, 16, 16), 4)
    variables = random_variables(model, jnp.zeros((1, 8, 8, 3)))
    faint = np.arange(16) % 2 == 1
    for stage in (1, 2, 3):
        block = variables["params"][f"stage{stage}_block0"]
        block["conv1"]["kernel"][..., faint] *= 0.01
        block["conv2"]["kernel"][:, :, faint] *= 0.01
    small, speedup = cut(small_run, model, variables, 8, method, 1.3)
    # A step removes a channel or two of some ninety in each form of group.
    assert 1.3 <= speedup < 1.6
    assert small(example(8)).shape == (1, 4)
    widths = torch_pruning._widths(small)
    assert widths["dense"] == 4
    # The block's two convolutions meet in a sum.
    assert widths["conv"] == widths["stage1_block0/conv2"]
    norms = torch.cat(
        [
            small.layers[f"stage{stage}_block0/conv1"].weight.flatten(1).norm(dim=1)
            for stage in (1, 2, 3)
        ]
    )
    assert int((norms > 0.2).sum()) == 24 and len(norms) <= 43


def test_isomorphic_groups_are_compared_among_themselves(small_run):
    """Inner convolutions that are worth little stay out of the others' way."""
    model = CifarResNet(8, (16, 16, 16), 4)
    variables = random_variables(model, jnp.zeros((1, 8, 8, 3)))
    for stage in (1, 2, 3):
        variables["params"][f"stage{stage}_block0"]["conv1"]["kernel"][..., 8:] *= 0.01
    whole, isomorphic = (
        torch_pruning._widths(
            cut(small_run, model, variables, 8, f"group L2, {name}", 1.15)[0]
        )
        for name in ("global", "isomorphic")
    )
    assert whole["conv"] > isomorphic["conv"]
    assert whole["stage1_block0/conv1"] < isomorphic["stage1_block0/conv1"]


def test_gradients_are_those_of_the_summed_cross_entropy(small_run):
    model = CifarResNet(8, (3, 4, 5), 4)
    variables = random_variables(model, jnp.zeros((1, 8, 8, 3)))
    twin = Twin(model, variables, jnp.zeros((1, 8, 8, 3))).eval()
    split = random_split(n=23)
    torch_pruning._accumulate(small_run, twin, split)
    torch_pruning._accumulate(small_run, twin, split)  # begins anew

    def loss(params):
        x = (jnp.asarray(split.images, jnp.float32) - 100) / 80
        logits = model.apply({**variables, "params": params}, x, train=False)
        chosen = jax.nn.log_softmax(logits)[jnp.arange(23), jnp.asarray(split.labels)]
        return -chosen.sum()

    expected = jax.grad(loss)(jax.tree.map(jnp.asarray, variables["params"]))
    for name, kernel in (
        ("conv", np.asarray(expected["conv"]["kernel"]).transpose(3, 2, 0, 1)),
        ("dense", np.asarray(expected["dense"]["kernel"]).T),
    ):
        found = twin.layers[name].weight.grad.numpy()
        # Float32 sums over 23 images of 64 positions.
        np.testing.assert_allclose(found, kernel, atol=1e-4 * np.abs(kernel).max())


def test_stages_and_the_better_of_two_ways():
    """A network is a list of what was done to it; its accuracy is known for each."""
    accuracies = {(): 0.1, ("r",): 0.4, ("r", 0.02, 0.02): 0.8}
    losses = {0.002: 0.5, 0.02: 0.3, 0.3: 0.4}
    competitor = stages.Competitor(
        by="b", method="m", labels=True, facts={"multiply_adds": 7}, state=(),
        accuracy=lambda state: accuracies[state],
        recalibrated=lambda state: (*state, "r"),
        finetuned=lambda state, way: (*state, way.learning_rate, way.learning_rate),
        loss=lambda state: losses[state[-1]], save=None,
    )  # fmt: skip
    config = replace(RECIPES["digits_pair"].config, learning_rate=0.02)
    run = SimpleNamespace(config=config, training=config)
    row = {"by": "b", "method": "m", "labels": True, "multiply_adds": 7,
           "accuracy": 0.1, "accuracy_recalibrated": 0.4}  # fmt: skip
    assert stages.figures(Finetuning(run, EpochSettings()), competitor) == row
    tuning = Finetuning(run, EpochSettings(finetune_epochs=2))
    tuned = {"accuracy_finetuned": 0.8, "learning_rate": 0.02,
             "batch_norm": "training"}  # fmt: skip
    tuned["finetuning_loss"] = 0.3
    assert stages.ways(tuning) == [(0.002, "training"), (0.02, "training")]
    assert stages.figures(tuning, competitor) == row | tuned
    tuning = Finetuning(run, replace(tuning.settings, finetune_learning_rate=0.3))
    accuracies["r", 0.3, 0.3] = 0.7
    assert stages.ways(tuning) == [(0.3, "training")]
    assert stages.figures(tuning, competitor)["accuracy_finetuned"] == 0.7


@pytest.fixture
def run(script, tmp_path, monkeypatch, standard_promotion, layers_untimed):
    """Runs the benchmark in a run directory that holds a network."""
    workdir = tmp_path / "run"
    plant_run(workdir, model="cifar_resnet", widths=(8, 12, 16))

    def call(*arguments):
        arguments = (f"--workdir={workdir}", *QUICK, *arguments)
        monkeypatch.setattr(sys, "argv", ["bench", *arguments])  # its children's
        return script(bench, *arguments), workdir

    return call


@pytest.mark.slow
def test_the_table(run, monkeypatch):
    """And an interruption before, which keeps what is finished."""
    two = ("group L2, global", "group Taylor, isomorphic")
    monkeypatch.setattr(
        torch_pruning, "METHODS", {n: torch_pruning.METHODS[n] for n in two}
    )
    figures = contest.figures

    def interrupted(tuning, competitor):
        if "Taylor" in competitor.method:
            raise KeyboardInterrupt
        return figures(tuning, competitor)

    monkeypatch.setenv("JAX_NUMPY_DTYPE_PROMOTION", "standard")
    given = ("--model=cifar_resnet", "--speedup=1.5", "--finetune_epochs=1",
             "--distill", "--finetune_images=64",
             "--finetune_learning_rate=0.001")  # fmt: skip
    monkeypatch.setattr(contest, "figures", interrupted)
    (code, _, err), workdir = run(*given)
    folder = workdir / "bench-speedup1.5"
    assert code == 130 and "keeps 2 finished networks" in err
    assert not (folder / "summary.json").exists()
    kept = json.loads((folder / "finished.json").read_text())["entries"]
    monkeypatch.setattr(contest, "figures", figures)
    (code, out, err), _ = run(*given)
    assert code == 0, err
    assert (folder / "networks.png").stat().st_size > 10_000
    summary = json.loads((folder / "summary.json").read_text())
    rows = summary["rows"]
    assert [(row["by"], row["method"]) for row in rows] == [
        ("jaxprune", "whole network"), ("PyTorch", "whole network"),
        ("jaxprune", "refitted"),
        *(("Torch-Pruning", name) for name in torch_pruning.METHODS),
    ]  # fmt: skip
    assert rows[0]["accuracy"] == rows[1]["accuracy"]
    about = summary["about"]
    assert out.count("refitted: 0.") == 0
    assert out.count("Taylor, isomorphic: 0.") == 1
    for name, row in kept.items():
        after = next(r for r in rows if r["method"] == name)
        assert after["accuracy_finetuned"] == row["accuracy_finetuned"]
    assert about["largest_logit_difference_of_the_twin"] < 1e-4
    assert about["versions"]["torch_pruning"] and about["speedup"] == 1.5
    assert about["ways"] == [{"learning_rate": 0.001, "batch_norm": "evaluation"}]
    for row in rows:
        latency = row["latency"]
        assert set(latency) == {"1", "3"}
        for times in latency.values():
            assert 0 < times["lower_quartile"] <= times["median"]
    for row in rows[2:]:
        assert 1.5 <= row["theoretical_speedup"] < 1.9
        assert row["learning_rate"] == 0.001
        assert row["accuracy_finetuned"] * 60 == pytest.approx(
            round(row["accuracy_finetuned"] * 60)
        )
        assert row["labels"] == ("Taylor" in row["method"])
        assert f"{row['by']}, {row['method']}" in out
    with open(folder / "networks.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 5 and float(table[2]["latency_3_median"]) > 0
    assert table[0]["accuracy_recalibrated"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--speedup=0.5",), "speedup is at least 1"),
        (("--speedup=1000",), "least possible"),
        (("--distill",), "--distill does nothing without"),
        (("--calibration_split=train[:20]",), "fewer than one batch of 32"),
        (("--calibration_split=test[:64]",), "holds 60 images"),
        (("--latency_batches=0",), "positive numbers"),
        (("--finetune_epochs=1", "--finetune_images=5"), "5 images do not fill"),
        (("--images=5",), "--images does nothing without --what=sweep"),
    ],
)
def test_bad_input_is_one_line(run, arguments, message):
    (code, _, err), workdir = run("--model=cifar_resnet", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert not [*workdir.glob("bench*")]


def test_other_networks_have_no_twin(script):
    code, _, err = script(bench, "--what=shrink", "--model=digits_pair")
    assert code == 2 and "cifar_vgg or cifar_resnet in float32" in err
