"""The script: one network for one K, a table for several, one line for bad input."""

import csv
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

import jaxprune
from jaxprune.cli.commands import compact, sweep
from jaxprune.report import compact as plots_compact
from jaxprune.results.result import SweepResult
from run_directories import plant_run, reseal

NETWORK = {
    "widths": (4, 5, 8), "dense": (6,), "train_pairs": 256, "test_pairs": 100,
    "train_batch_size": 64,
}  # fmt: skip
QUICK = ("--repeats=2", "--latency_batches=1,4")


@pytest.fixture
def run(script, tmp_path, trained):
    """Runs experiments.compact in a run directory with a network and a sweep."""
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)

    def call(*arguments, module=compact):
        return script(module, f"--workdir={workdir}", *arguments), workdir

    return call


pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def trained(standard_promotion, made_once, script):
    def make(workdir):
        plant_run(workdir, **NETWORK)
        code, _, err = script(sweep, f"--workdir={workdir}", "--model=digits_pair")
        assert code == 0, err

    return made_once("swept", make)


def written(workdir):
    return sorted(path.name for path in workdir.glob("*compact*"))


def test_one_k(run):
    (code, out, err), workdir = run("--k=3", *QUICK, "--export=stablehlo")
    assert code == 0, err
    assert "100 images: 0 predictions differ" in out
    assert written(workdir) == ["compact-conv3-abs_mean-bias-k3"]
    folder = workdir / "compact-conv3-abs_mean-bias-k3"
    names = [
        "example.safetensors", "function.stablehlo", "model.stablehlo", "spec.json",
        "weights.safetensors",
    ]  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == names
    weights = load_file(folder / "weights.safetensors")
    assert weights["params/conv3/kernel"].shape == (3, 3, 5, 5)
    spec = json.loads((folder / "spec.json").read_text())
    assert len(spec["layers"]["conv3"]["kept"]) == 5
    proof = spec["about"]["test_proof"]
    assert proof["images"] == 100 and proof["different_predictions"] == 0
    assert proof["accuracy_masked"] == proof["accuracy_compact"]
    small = jaxprune.load_compact(folder)
    order = np.load(workdir / "sweep-conv3-abs_mean-bias" / "sweep.npz")["order"]
    assert sorted(small.layers["conv3"].kept) == sorted(order[3:])


def test_an_onnx_model_is_run_on_all_images(run):
    pytest.importorskip("jax2onnx", reason="pip install -e '.[onnx]'")
    (code, out, err), workdir = run("--k=3", *QUICK, "--recalibrate", "--export=onnx")
    assert code == 0, err
    folder = workdir / "compact-conv3-abs_mean-bias-k3"
    measured = json.loads((folder / "spec.json").read_text())["about"]["measured"]
    found = measured["exports"]["onnx"]
    assert found["different_predictions"] == 0
    assert found["accuracy"] == measured["accuracy_recalibrated"]
    assert set(found["latency"]) == {"1", "4"}
    assert "  onnx       100 images: 0 predictions differ from the compact" in out
    times = [line.split()[:2] for line in out.splitlines() if "by onnxruntime" in line]
    assert times == [["batch", "1"], ["batch", "4"]]
    assert (folder / "model.onnx").is_file()


def test_a_trained_network_has_no_proof(run):
    (code, _, err), workdir = run("--k=3", *QUICK, "--recalibrate")
    assert code == 0, err
    folder = workdir / "compact-conv3-abs_mean-bias-k3"
    spec = json.loads((folder / "spec.json").read_text())
    assert spec["proof"] is None
    assert spec["about"]["test_proof"]["images"] == 100
    assert spec["about"]["after_the_proof"]["recalibrated"]
    assert jaxprune.load_compact(folder).proof is None


def test_a_folder_of_something_else_is_refused_before_any_work(run):
    _, workdir = run()
    (workdir / "compact-conv3-abs_mean-bias-k3").mkdir()
    (code, out, err), _ = run("--k=3", *QUICK)
    assert code == 2 and "no compact network" in err
    assert "proof" not in out


@pytest.mark.parametrize("finished", [0, 1])
def test_an_interrupted_table_keeps_what_is_finished(run, monkeypatch, finished):
    one = compact._one

    def interrupt(run, settings, plan, whole, exported, k):
        if plan.ks.index(k) == finished:
            raise KeyboardInterrupt
        return one(run, settings, plan, whole, exported, k)

    monkeypatch.setattr(compact, "_one", interrupt)
    (code, _, err), workdir = run("--ks=1,4", *QUICK)
    assert code == 130
    assert ("the table has 1 of 2 K" in err) == bool(finished)
    assert len(written(workdir)) == (3 if finished else 0)


def test_the_table_shows_the_saved_sweep(run, monkeypatch):
    draw, curves = plots_compact.against_k, []

    def record(rows, title, curve, measure):
        curves.append(curve)
        return draw(rows, title, curve, measure)

    monkeypatch.setattr(plots_compact, "against_k", record)
    (code, _, err), _ = run("--ks=2", *QUICK)
    assert code == 0, err
    ((ks, accuracy),) = curves
    assert ks == [*range(8)] and len(accuracy) == 8


def test_largest_safe_k_of_the_sweep(run):
    (code, out, err), workdir = run("--max_drop=1", *QUICK)
    assert code == 0, err
    assert "K = 7: the largest safe one for 1.0" in out
    assert written(workdir) == ["compact-conv3-abs_mean-bias-k7"]


def test_where_no_k_is_safe_the_naive_one_is_named(run):
    """Of 100 images not even an unchanged network is known to lose less than 1 %."""
    (code, _, err), workdir = run("--max_drop=0.01", *QUICK)
    assert code == 2 and written(workdir) == []
    result = SweepResult.load(workdir / "sweep-conv3-abs_mean-bias")
    k = result.largest_k_within(0.01)
    assert "no K of" in err and f"--naive takes K = {k}" in err
    (code, out, err), _ = run("--max_drop=0.01", "--naive", *QUICK)
    assert code == 0, err
    assert f"K = {k}: the largest within 0.01" in out and "as measured" in out
    assert written(workdir) == [f"compact-conv3-abs_mean-bias-k{k}"]


SPLITS = (
    "--layer=conv2", "--fill=mean", "--rank_split=train[:56]",
    "--select_split=train[56:]",
)  # fmt: skip


@pytest.mark.slow
def test_ranked_chosen_and_reported_on_different_images(run):
    (code, out, err), workdir = run(*SPLITS, module=sweep)
    assert code == 0, err
    told = "trained on the images that K is chosen on"
    assert told in out and "images reported" not in out
    folder = workdir / "sweep-conv2-abs_mean-mean"
    result = SweepResult.load(folder)
    assert result.about["overlaps"] == [told]
    assert result.predictions.shape == (5, 100)
    # The same masks and the same fill on the images K is chosen on, as a sweep's own.
    folder.rename(workdir / "elsewhere")
    others = [f for f in SPLITS if "select" not in f] + ["--eval_split=train[56:]"]
    (code, _, err), _ = run(*others, module=sweep)
    assert code == 0, err
    other = SweepResult.load(folder)
    assert other.about["overlaps"] == ["trained and chosen on the images reported"]
    np.testing.assert_array_equal(result.select_predictions, other.predictions)
    np.testing.assert_array_equal(result.select_labels, other.labels)
    assert result.largest_safe_k(0.2) == other.largest_safe_k(0.2)
    # A compact network is that of the sweep, or none.
    shutil.rmtree(folder)
    (workdir / "elsewhere").rename(folder)
    (code, _, err), _ = run("--max_drop=1", *others[:-1], *QUICK)
    assert code == 2 and "select_split is train[56:], not test" in err
    (code, out, err), _ = run("--max_drop=1", *SPLITS, *QUICK)
    assert code == 0, err
    assert "K = 4: the largest safe one" in out


def test_a_calibration_split_has_no_images_that_k_is_chosen_on(run):
    (code, _, err), _ = run(*SPLITS[2:], "--fill=linear",
                            "--calibration_split=train[:60]", module=sweep)  # fmt: skip
    assert code == 2 and "holds 4 images of --select_split=train[56:]" in err


@pytest.mark.slow
def test_table_with_training(run):
    (code, out, err), workdir = run(
        "--ks=1,4", "--layer=conv2", "--fill=mean", *QUICK, "--recalibrate",
        "--finetune_epochs=1",
    )  # fmt: skip
    assert code == 0, err
    base = "compact-conv2-abs_mean-mean"
    assert written(workdir) == [f"{base}{end}" for end in (".csv", ".json", ".png")]
    with open(workdir / f"{base}.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["k"] for row in rows] == ["1", "4"]
    for row in rows:
        assert row["different_predictions"] == "0"
        assert 0 <= float(row["accuracy_finetuned"]) <= 1
        assert 0 <= float(row["accuracy_recalibrated"]) <= 1
        assert int(row["multiply_adds"]) < int(row["multiply_adds_before"])
        assert int(row["parameters"]) < int(row["parameters_before"])
    assert "| 4 |" in out
    rows = json.loads((workdir / f"{base}.json").read_text())["rows"]
    assert [line["epoch"] for line in rows[0]["epochs"]] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --k, --max_drop, --ks"),
        (["--k=1", "--ks=1,2"], "one of --k, --max_drop, --ks"),
        (["--k=8"], "must lie in 0 .. 7"),
        (["--k=1", "--naive"], "--naive does nothing without --max_drop"),
        (["--k=1", "--select_split=train[:0]"], "empty"),
        (["--max_drop=0.1", "--layer=conv2"], "needs a sweep in"),
        (["--max_drop=0.1", "--fill=drop"], "needs a sweep in"),
        (["--k=1", "--fill=all"], "takes one of zero, bias, mean, drop"),
        (["--k=1", "--fill=nil"], "unknown fill 'nil'"),
        (["--k=1", "--export=tflite"], "unknown export 'tflite'"),
        (["--k=1", "--export=stablehlo,keras"], "digits_pair is no Keras model"),
        (["--k=1", "--layer=conv4"], "unknown layer 'conv4'"),
        (["--k=1", "--latency_batches=0"], "positive numbers"),
        (["--k=1", "--tap=relu"], "tap is conv, not relu"),
        (["--k=one"], "--k"),
    ],
)
def test_bad_input(run, arguments, message):
    (code, _, err), workdir = run(*arguments)
    assert code == 2
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert written(workdir) == []


def test_sweep_of_other_weights(run):
    _, workdir = run()
    folder = workdir / "sweep-conv3-abs_mean-bias"
    reseal(folder, lambda facts: facts.update(weights="0" * 64))
    for arguments in (["--max_drop=0.1"], ["--k=2"]):
        (code, _, err), _ = run(*arguments)
        assert code == 2 and "weights is 000000000000" in err
        assert written(workdir) == []


@pytest.mark.slow
def test_sweep_has_the_fill_drop(run):
    (code, _, err), workdir = run("--fill=drop", "--ks=0,3,7", module=sweep)
    assert code == 0, err
    assert (workdir / "sweep-conv3-abs_mean-drop" / "accuracy_vs_k.png").exists()
    (code, out, err), _ = run("--max_drop=1", "--fill=drop", *QUICK)
    assert code == 0, err
    assert "K = 7" in out
