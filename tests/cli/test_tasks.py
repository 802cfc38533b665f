"""--task: a network whose outputs are no classes, by the same scripts."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

import jaxprune
from jaxprune.cli.commands import compact, plot, report, shrink, sweep
from jaxprune.results.comparison import Comparison

SOURCE = """
import jax, numpy as np
from flax import linen as nn


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Conv(5, (3, 3), name="inner")(x))
        return {"map": nn.Conv(3, (1, 1), name="map")(h), "mean": h.mean((1, 2, 3))}


def build():
    x = np.zeros((1, 8, 8, 1), np.float32)
    shapes = jax.eval_shape(Net().init, jax.random.key(0), x)
    rng = np.random.default_rng(0)
    return Net(), jax.tree.map(
        lambda s: rng.normal(0, 0.5, s.shape).astype(s.dtype), shapes
    ), x, {}
"""
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(40, 8, 8, 1)).astype(np.float32)
ARRAYS = {"images": IMAGES, "targets": RNG.integers(0, 3, (40, 8, 8))}
FLAGS = ("--model=own_map:build", "--layer=inner")


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own_map.py").write_text(SOURCE)
    np.savez("data.npz", **ARRAYS)
    yield
    sys.modules.pop("own_map", None)


def test_a_segmentation_from_sweep_to_page(script):
    flags = (*FLAGS, "--data=data.npz", "--task=segmentation", "--output=map")
    code, out, err = script(sweep, *flags, "--fill=zero", "--max_drop=0.05")
    assert code == 0, err
    assert "mean IoU" in out and "less than 0.05 of mean IoU is lost" in out
    folder = Path("runs/own_map.build/sweep-inner-abs_mean-zero")
    assert {path.name for path in folder.iterdir()} == {
        "sweep.csv", "sweep.npz", "summary.json", "score_vs_k.png",
        "feature_maps.png", "scores.png", "examples.png",
    }  # fmt: skip
    result = jaxprune.TaskResult.load(folder)
    assert result.task == "segmentation" and result.images == 32
    assert result.ks == (0, 1, 2, 3, 4)
    # The task is the run directory's from then on.
    code, _, err = script(
        sweep, *FLAGS, "--data=data.npz", "--criterion=abs_mean,oracle",
        "--random_orders=2", "--fill=zero", "--noreport",
    )  # fmt: skip
    assert code == 0, err
    compared = Comparison.load(folder.with_name("criteria-inner-zero"))
    assert compared.measure == "mean_IoU"
    np.testing.assert_array_equal(compared.accuracy[0], result.curve)
    assert not (folder / "score_vs_k.png").exists()
    code, _, err = script(plot, "--workdir=runs/own_map.build")
    assert code == 0 and (folder / "score_vs_k.png").exists(), err
    code, _, err = script(report, "--workdir=runs/own_map.build")
    assert code == 0, err
    text = Path("runs/own_map.build/report.html").read_text()
    assert "Images that get worse and better" in text and "Confusion" not in text
    for other, how in ((compact, "--k=1"), (shrink, "--speedup=2")):
        code, _, err = script(other, *FLAGS[:1], "--data=data.npz", how)
        assert code == 2 and "in Python, jaxprune." in err


def test_nothing_but_images(script):
    np.savez("alone.npz", images=IMAGES)
    code, _, err = script(
        sweep, *FLAGS, "--data=alone.npz", "--task=imitation", "--noreport",
        "--fill=zero",
    )  # fmt: skip
    assert code == 0, err
    (summary,) = Path("runs/own_map.build").glob("sweep-*/summary.json")
    found = json.loads(summary.read_text())
    assert found["score_names"] == ["relative_error"]
    assert found["baseline"] == {"relative_error": pytest.approx(0, abs=1e-5)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--task=segmentation",), "does not fit outputs"),
        (("--task=segmentation", "--output=no"), "has no part 'no'; it has map"),
        ((), r"must return logits"),
        (("--task=regression", "--output=mean"), "must be of one shape"),
        (("--task=imitation", "--criterion=taylor", "--output=map"), "need gradients"),
    ],
)
def test_bad_input(script, flags, message):
    code, _, err = script(sweep, *FLAGS, "--data=data.npz", *flags)
    line = err.strip().split("\r")[-1]  # behind the bars
    assert code == 2 and line.startswith("error: ") and "\n" not in line
    assert message in line


def test_a_task_is_for_a_network_of_one_s_own(script):
    code, _, err = script(sweep, "--model=digits_pair", "--task=regression")
    assert code == 2 and "--task is for a network of your own" in err
