"""Criteria side by side from the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxprune.cli import scoring
from jaxprune.cli.commands import compact, plot, sweep
from jaxprune.ranking.criteria import CRITERIA
from jaxprune.results.comparison import Comparison
from jaxprune.results.result import SweepResult
from run_directories import SMALL, plant_cifar10

RUN = Path("runs/digits_pair")
FOLDER = RUN / "criteria-conv3-bias"


pytestmark = pytest.mark.usefixtures("standard_promotion")
FEW = (*SMALL, "--ks=0:8:2", "--oracle_images=60", "--greedy_images=30")


def loaded(criterion, run=RUN):
    return SweepResult.load(run / f"sweep-conv3-{criterion}-bias")


@pytest.fixture
def compared(standard_promotion, made_once, script):
    """The run directory with all criteria compared; what the script said, at first."""

    def make(folder):
        code, out, err = script(sweep, *FEW, "--criterion=all", "--random_orders=3")
        assert code == 0, err
        shutil.move(RUN, folder)
        (folder / "out.txt").write_text(out)

    shutil.copytree(made_once("compared", make), RUN)
    return (RUN / "out.txt").read_text()


@pytest.mark.slow
def test_all_criteria_beside_random_orders(compared):
    names = [name for name in CRITERIA if name != "random"]
    assert [
        line.split()[0] for line in compared.splitlines() if line.endswith("%")
    ] == names
    assert {path.name for path in FOLDER.iterdir()} == {
        "criteria.csv", "criteria.npz", "summary.json", "criteria.png", "agreement.png"
    }  # fmt: skip
    summary = json.loads((FOLDER / "summary.json").read_text())
    assert [*summary["criteria"]] == names and summary["left_out"] == {}
    for key in ("model", "weights", "device", "commit", "layer", "fill", "rank_split"):
        assert key in summary
    # K = 0 is the same for all, and only the first order evaluates it.
    assert summary["pairs"] == (len(names) + 3) * 4 * 200
    assert summary["pairs_evaluated"] < (len(names) + 3) * 4 * 200
    saved = Comparison.load(FOLDER)
    assert saved.random_accuracy.shape == (3, 4)
    assert saved.with_oracle[saved.names.index("oracle")] == 1
    for i, name in enumerate(names):
        result = loaded(name)
        np.testing.assert_array_equal(result.scores, saved.scores[i])
        np.testing.assert_array_equal(result.accuracy, saved.accuracy[i])
    assert loaded("oracle").about["loss_images"] == 60
    np.testing.assert_array_equal(
        loaded("abs_oracle").scores, np.abs(loaded("oracle").scores)
    )
    assert loaded("greedy_oracle").about["loss_images"] == 30
    assert "loss_images" not in loaded("mean").about


@pytest.mark.slow
@pytest.mark.usefixtures("compared")
def test_one_alone_is_the_same_sweep(script):
    alone = RUN / "sweep-conv3-taylor-bias"
    together = loaded("taylor")
    (alone / "summary.json").unlink()
    code, _, err = script(sweep, *FEW, "--criterion=taylor")
    assert code == 0, err
    np.testing.assert_array_equal(loaded("taylor").scores, together.scores)
    np.testing.assert_array_equal(loaded("taylor").predictions, together.predictions)
    # Other images to measure losses on are another sweep.
    code, _, err = script(
        sweep, *SMALL, "--ks=0:8:2", "--criterion=greedy_oracle", "--greedy_images=20"
    )
    assert code == 2 and "loss_images is 30, not 20" in err


@pytest.mark.slow
@pytest.mark.usefixtures("compared")
def test_a_network_without_a_sweep_is_scored_when_it_is_cut(script):
    oracle = loaded("oracle")
    for path in (RUN / "sweep-conv3-oracle-bias").iterdir():
        path.unlink()
    code, _, err = script(
        compact, *SMALL, "--criterion=oracle", "--k=3", "--oracle_images=60",
        "--latency_batches=1", "--repeats=1",
    )  # fmt: skip
    assert code == 0, err
    spec = json.loads((RUN / "compact-conv3-oracle-bias-k3/spec.json").read_text())
    assert sorted(oracle.order[3:].tolist()) in [
        layer["kept"] for layer in spec["layers"].values()
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("compared")
def test_pictures_again_from_the_saved_files_alone(script):
    for path in FOLDER.glob("*.png"):
        path.unlink()
    code, out, _ = script(plot, f"--workdir={RUN}")
    assert code == 0 and f"{FOLDER}/agreement.png" in out
    assert (FOLDER / "criteria.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("compared")
def test_what_is_too_slow_is_refused_where_it_is_named(script, monkeypatch):
    """And left out of all."""
    monkeypatch.setattr(scoring, "_GREEDY_SECONDS", 0.0)
    code, _, err = script(sweep, *FEW, "--criterion=mean,greedy_oracle")
    assert code == 2 and "greedy_oracle would take about" in err
    assert "Traceback" not in err
    (FOLDER / "summary.json").unlink()
    code, out, err = script(sweep, *FEW, "--criterion=all")
    assert code == 0, err
    assert "left out: greedy_oracle: greedy_oracle would take about" in out
    names = [*json.loads((FOLDER / "summary.json").read_text())["criteria"]]
    assert "random" in names and "greedy_oracle" not in names


@pytest.mark.slow
def test_criteria_of_several_seeds_chosen_on_other_images(script):
    flags = [*SMALL, "--ks=0:8:2", "--seeds=0,5", "--criterion=mean,taylor"]
    flags += ["--random_orders=2", "--select_split=train[56:]", "--max_drop=0.3"]
    code, out, err = script(sweep, *flags)
    assert code == 0, err
    assert "95 % sure that less than 30 points is lost" in out
    assert "note: trained on the images that K is chosen on" in out
    safe = []
    for seed in (0, 5):
        run = RUN / f"seed{seed}"
        saved = Comparison.load(run / FOLDER.name)
        results = [loaded(name, run) for name in saved.names]
        assert saved.names == ("mean", "taylor")
        assert saved.safe_k == tuple(r.largest_safe_k(0.3) for r in results)
        for result in results:
            assert len(result.labels) == 200 != len(result.select_labels)
            assert result.select_predictions.shape == (4, len(result.select_labels))
            assert result.cross_entropy.shape == (4,)
        safe.append(saved.safe_k)
    for name, each in zip(("mean", "taylor"), zip(*safe, strict=True), strict=True):
        spread = json.loads((RUN / f"seeds-conv3-{name}-bias/summary.json").read_text())
        assert spread["largest_safe_k"]["each"] == list(each)

    # What is finished is taken as it is; fewer random orders are another comparison.
    written = (RUN / "seed0" / FOLDER.name / "criteria.npz").stat().st_mtime_ns
    code, out, err = script(sweep, *flags)
    assert code == 0 and out.count("comparison: ") == 2, err
    assert (RUN / "seed0" / FOLDER.name / "criteria.npz").stat().st_mtime_ns == written
    flags[flags.index("--random_orders=2")] = "--random_orders=1"
    code, out, err = script(sweep, *flags)
    assert code == 0 and "comparison: " not in out, err
    assert len(Comparison.load(RUN / "seed5" / FOLDER.name).random_accuracy) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--criterion=mean,abs"], "unknown criterion 'abs'"),
        (["--criterion=tailor"], "did you mean 'taylor'"),
        (["--criterion=mean,l1,mean"], "names a criterion twice"),
        (["--criterion=mean,l1", "--fill=all"], "compared with one --fill"),
        (["--criterion=all", "--fill=all"], "compared with one --fill"),
        (["--criterion=oracle", "--fill=all"], "name one --fill"),
        (["--criterion=oracle", "--oracle_images=201"], "test has 200 images"),
        (
            ["--criterion=all", "--greedy_images=101", "--rank_split=train[:100]"],
            "train[:100] has 100 images",
        ),
        (["--criterion=all", "--oracle_images=0"], "oracle_images"),
        (["--criterion=mean", "--random_orders=-1"], "random_orders"),
        (["--criterion=all", "--calibration_split=test[:9]"], "holds 9 images of"),
    ],
)
def test_bad_input_before_any_work(script, flags, message):
    code, _, err = script(sweep, *SMALL, *flags)
    assert code == 2
    assert message in err and "Traceback" not in err
    assert not RUN.exists()


def test_a_compact_network_takes_one_criterion(script):
    for flag in ("all", "mean,l1"):
        code, _, err = script(compact, *SMALL, f"--criterion={flag}", "--k=1")
        assert code == 2 and f"unknown criterion '{flag}'" in err


def test_a_layer_without_batch_norm(script, tmp_path):
    plant_cifar10(tmp_path)
    flags = ["--model=cifar_vgg", "--cache_dir=planted", "--dense=6,5,4"]
    flags.append(f"--widths={','.join(map(str, range(2, 15)))}")
    code, _, err = script(sweep, *flags, "--layer=conv2d", "--criterion=bn_scale")
    assert code == 2 and err.count("\n") == 1
    assert "bn_scale needs one BatchNorm" in err and "'conv2d'" in err
    assert not Path("runs").exists()
