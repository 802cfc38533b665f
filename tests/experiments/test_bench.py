import csv
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import random_variables
from keras_files import LAYERS, write_keras
from run_directories import plant_cifar10

from experiments import bench
from jaxprune.networks.models import CifarVGG
from jaxprune.report.bench import bars

NETWORK = (
    "--cache_dir=planted", "--init_from=model.h5", "--dense=6,5,4",
    f"--widths={','.join(map(str, range(2, 15)))}",
)  # fmt: skip


@pytest.fixture
def planted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vgg = CifarVGG(widths=range(2, 15), dense=(6, 5, 4, 10))
    variables = random_variables(vgg, jax.numpy.zeros((1, 32, 32, 3)))
    write_keras(tmp_path / "model.h5", variables, LAYERS)
    plant_cifar10(tmp_path)


def run(*arguments):
    command = [sys.executable, "-m", "experiments.bench", *NETWORK, *arguments]
    environment = {**os.environ, "JAX_NUMPY_DTYPE_PROMOTION": "standard"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300
    )


def test_everything_is_measured_and_written(planted):
    done = run("--images=30", "--some_images=20", "--runs=1", "--loop_ks=0,3",
               "--noscaling")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "sweep / floor" in done.stdout and "pairs evaluated" in done.stdout
    with open("runs/cifar_vgg/bench.csv") as file:
        rows = {row["what"]: row for row in csv.DictReader(file)
                if row["by"] == "jaxprune"}  # fmt: skip
    assert set(rows) == set(bench.bench_ours.MEASURES)
    assert float(rows["dense"]["measured_share"]) == pytest.approx(20 / 30)
    assert float(rows["one_pass"]["measured_share"]) == pytest.approx(2 / 14 * 20 / 30)
    assert all(float(row["seconds"]) > 0 for row in rows.values())
    assert Path("runs/cifar_vgg/bench.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model=mnist_pair", "measures --model=cifar_vgg only"),
        ("--loop_ks=0,14", "--loop_ks=14: the layer has 14"),
        ("--loop_ks=a", "--loop_ks takes a,b,c"),
        ("--images=99999", "--images: there are"),
    ],
)
def test_bad_input(planted, script, flag, message):
    arguments = () if "model" in flag else (*NETWORK, "--loop_ks=0,3")
    code, _, err = script(bench, *arguments, flag)
    assert code == 2 and message in err
    assert not Path("runs").exists()


def test_ratios_by_hand():
    """10 images of 3 + 1 multiply-adds, half of 20 pairs: a floor of 4 s at 10 / s."""

    def row(by, what, seconds, **more):
        return {"by": by, "what": what, "seconds": seconds, **more}

    rows = [
        row("jaxprune", "matmul", 1.0, rate=10.0),
        row("jaxprune", "evaluation", 2.0),
        row("jaxprune", "training", 3.0),
        row("jaxprune", "sweep", 8.0, multiply_adds=(3, 1), images=10, pairs=20,
            pairs_evaluated=10),
        row("jaxprune", "dense", 16.0),
        row("jaxprune", "one_pass", 80.0),
        row("jaxprune", "cached_trunk", 24.0),
        row("PyTorch", "evaluation", 1.0),
        row("PyTorch", "training", 6.0),
        row("PyTorch", "one_pass", 40.0),
        row("PyTorch", "cached_trunk", 32.0),
    ]  # fmt: skip
    ratios = bench.ratios(rows)
    assert ratios["sweep / floor"] == 2
    assert ratios["sweep / one PyTorch evaluation"] == 8
    assert ratios["PyTorch: the report's loop / sweep"] == 10
    assert ratios["PyTorch: loop with the trunk kept / sweep"] == 4
    assert ratios["every pair / sweep"] == 2
    assert ratios["evaluation, images/s over PyTorch's"] == 0.5
    assert ratios["training, images/s over PyTorch's"] == 2
    assert "sweep / one PyTorch evaluation" not in bench.ratios(rows[:7])


def test_bars_say_what_is_extrapolated():
    figure = bars([("slow", 7300.0, True), ("fast", 1.5, False)], "title")
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["fast", "slow"]
    assert [bar.get_hatch() for bar in axes.patches] == [None, "///"]
    assert {"1.5 s", "2.03 h"} <= {t.get_text() for t in axes.texts}
