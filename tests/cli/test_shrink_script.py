"""The script: a network for a budget, a ladder, what is kept, bad input."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import pytest

import jaxprune
from jaxprune._base.mesh import Sharded
from jaxprune.cli import baseline
from jaxprune.cli.commands import shrink
from jaxprune.cli.shrink import forecast, ladder, measured
from jaxprune.cli.shrink.forecast import Work
from jaxprune.cli.shrink.report import print_budget, print_network
from jaxprune.results import budgets
from jaxprune.shrinking.budget import Budget
from jaxprune.tasks.classes import classification
from jaxprune.tasks.values import regression
from run_directories import plant_run

NETWORK = (
    "--model=cifar_resnet", "--depth=8", "--widths=4,6,8", "--dataset=digits",
    "--pixel_mean=0", "--pixel_std=255", "--epochs=1", "--train_batch_size=32",
    "--train_split=train[:96]",
)  # fmt: skip
QUICK = (
    "--eval_split=test[:60]", "--calibration_split=train[:64]", "--repeats=1",
    "--latency_batches=1", "--batch=2", "--multiple_of=1",
)  # fmt: skip


@pytest.fixture
def run(script, tmp_path, made_once, standard_promotion, layers_untimed):
    """Runs experiments.shrink in a run directory that holds an analysis."""

    def make(workdir):
        plant_run(workdir, model="cifar_resnet", widths=(4, 6, 8))
        arguments = (f"--workdir={workdir}", *QUICK, "--speedup=1.5")
        arguments += ("--ladder=1.2,1.5",)
        code, out, err = script(shrink, *arguments)
        assert code == 0, err
        (workdir / "out.txt").write_text(out)

    workdir = tmp_path / "run"
    shutil.copytree(made_once("shrunk", make), workdir)

    def call(*arguments):
        return script(shrink, f"--workdir={workdir}", *QUICK, *arguments), workdir

    call.workdir = workdir
    return call


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("accuracy", "median", "lost", "time"),
    [
        (0.8916, 0.001, "0.84 points lost", "4.0 -> 1.0 ms: 4.00 times faster"),
        (0.9012, 0.0156, "0.12 points gained", "4.0 -> 15.6 ms: 3.90 times slower"),
    ],
)
def test_losses_and_times_in_words(capsys, accuracy, median, lost, time):
    row = {
        "baseline_accuracy": 0.9, "accuracy": accuracy, "largest_drop": 0.02,
        "theoretical_speedup": 2.0, "parameters_before": 9, "parameters": 3,
        "file_bytes": 5, "predicted_seconds": 0.008, "predicted_speedup": 0.5,
        "agreement": 0.95, "least_agreement": 0.9,
        "proof": {"images": 60, "different_predictions": 0, "equations": 16,
                  "largest_difference": 1e-7},
        "latency": {"1": {"before": {"median": 0.004}, "after": {"median": median},
                          "speedup": 0.004 / median}},
    }  # fmt: skip
    rung = ladder.Rung(Budget(speedup=2), {"a": 3}, row)
    print_budget(rung, classification(), 1)
    out = capsys.readouterr().out
    assert out == (
        f"speedup 2: accuracy {accuracy:.4f}, at most 2.00 lost (95 % sure); "
        "agreement 0.9500, at least 0.9000; multiply-adds / 2.00, parameters / 3.00; "
        f"{time.split(': ')[1]} at batch 1\n"
    )
    print_network(rung, classification(), 1)
    out = capsys.readouterr().out
    assert out.startswith("asked for: speedup 2: widths 3\n")
    assert f"compact: {lost}, at most 2.00 lost with 95 % confidence" in out
    assert f"{time}; predicted 8.0 ms, 2.00 times slower" in out
    del row["predicted_seconds"], row["predicted_speedup"]
    print_network(rung, classification(), 1)
    assert f"{time}\n" in capsys.readouterr().out
    assert "0.9500 of the predictions are the whole network's, at least 0.9000" in out


@pytest.mark.parametrize(
    ("method", "version", "same"),
    [
        ("estimated, on the other half", jax.__version__, True),
        ("measured, on the other half", jax.__version__, False),
        ("estimated, on the other half", "0.0", False),
        ("estimated", jax.__version__, False),  # as they were judged before
    ],
)
def test_curves_that_were_found_otherwise_are_left_out(method, version, same):
    kept = {"curves": {"a": "its curve"}, "method": method, "jax": version}
    journal = SimpleNamespace(read=lambda schema: kept)
    assert bool(measured.read(journal, "estimated")["curves"]) == same


WORK = {
    "image": 0.01, "compilation": 5.0, "calibration": 100, "evaluated": 1000,
    "layers": 10, "batches": (1, 200), "repeats": 10, "timed": True,
    "bytes": 2_340_000_000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        (
            1,
            "some 3 min: 75 s of analysis, then 95 s for the network; up to some",
        ),
        (9, "some 16 min: 75 s of analysis, then 95 s for each of 9 networks; "),
        (None, "some 75 s of analysis, then 95 s for each network; "),
    ],
)
def test_what_it_will_take_in_words(networks, words):
    assert str(Work(**WORK, networks=networks)).startswith(words)


def test_more_images_and_longer_calls_take_more_time():
    less = Work(**WORK, networks=2)
    for change in (
        {"calibration": 200}, {"evaluated": 2000}, {"layers": 20}, {"image": 0.02},
        {"batches": (1, 400)}, {"compilation": 6.0},
    ):  # fmt: skip
        assert Work(**{**WORK, **change}, networks=2).network > less.network
    assert Work(**{**WORK, "timed": False}, networks=2).analysis < less.analysis
    # 200 images take 3.2 s by both networks: seven calls are 20 s and a little.
    many = Work(**{**WORK, "repeats": 1000}, networks=2)
    assert many.network - less.network < 0.16 * 1000 + 20


def test_the_whole_network_is_timed_as_it_is_compared():
    """A program is compiled once: what is timed is what all images go through."""
    seen = []

    def outputs(program, weights):
        seen.append(jax.config.jax_default_matmul_precision)
        yield None, np.zeros(4)

    whole = mock.create_autospec(
        baseline.Baseline, instance=True, own=range(9), batch_size=4,
        network=SimpleNamespace(params={}, layers={}),
        cost=SimpleNamespace(working_bytes=320, batch=32),
    )  # fmt: skip
    whole.outputs.side_effect = outputs
    program = mock.create_autospec(Sharded)
    found = forecast.work(whole, program, 100, [1, 64], 3, None, timed=True)
    assert seen == [baseline.PRECISION] * 2
    assert (found.evaluated, found.layers, found.calibration) == (9, 0, 100)
    assert found.image > 0 and found.bytes > 24 * 100


def test_a_finished_budget_is_remembered():
    class Stand(ladder.Ladder):
        def __init__(self):
            self.rungs = {"speedup=2": ladder.Rung(Budget(speedup=2), {"a": 3}, {})}

    stand = Stand()
    assert stand.rung(Budget(speedup=2.0)) is stand.rungs["speedup=2"]


def test_agreement_is_the_share_of_predictions_that_stay():
    """At positions, the mean over images of the shares of an image's that stay."""
    before = np.array([0, 1, 2, 3, 0, 1, 2])
    after = before.copy()
    after[[1, 6]] = 4
    figures = ladder._agreement(before, after)
    assert figures["agreement"] == pytest.approx(5 / 7)
    assert 0.2 < figures["least_agreement"] < 5 / 7
    dense = np.array([[[0, 1], [2, 2]]])
    figures = ladder._agreement(dense, np.array([[[0, 2], [2, 2]]]))
    assert figures["agreement"] == 0.75
    assert ladder._agreement(None, None) == {}


def batches(outputs):
    """Outputs of 7 images in batches of 4, the last one filled up."""
    filled = np.concatenate([outputs, outputs[-1:]])
    for start, size in ((0, 4), (4, 3)):
        rows = slice(start, start + 4)
        targets = np.arange(start, start + 4) % 5
        batch = SimpleNamespace(size=size, targets=targets, images=filled[rows])
        yield batch, filled[rows]


@pytest.mark.parametrize("keeps", [True, False])
def test_what_is_known_of_outputs_is_of_every_image(keeps):
    class Stand(baseline.Baseline):
        def __init__(self):
            self.task, self.keeps_predictions = classification(), keeps
            self.own = range(7)

    logits = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    found = Stand().judged(batches(logits), "test")
    labels = np.arange(7) % 5
    right = logits.argmax(1) == labels
    np.testing.assert_array_equal(found.terms["accuracy"], right)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = -np.log(shares[np.arange(7), labels])
    np.testing.assert_allclose(found.losses, losses, rtol=1e-5)
    if keeps:
        np.testing.assert_array_equal(found.predictions, logits.argmax(1))
        assert found.predictions.dtype == np.uint8
    else:
        assert found.predictions is None


def test_of_other_outputs_there_are_no_predictions():
    class Stand(baseline.Baseline):
        def __init__(self):
            self.task, self.keeps_predictions = regression(), True
            self.own = range(7)

    outputs = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    made = [*batches(outputs)]
    for batch, found in made:
        batch.targets = 0 * found
    judged = Stand().judged(iter(made), "test")
    assert judged.predictions is None and judged.losses.shape == (7,)


@pytest.mark.slow
def test_it_writes_the_network_the_ladder_and_the_layers(run):
    out = (run.workdir / "out.txt").read_text()
    assert out.count("60 images: 0 predictions differ") == 1
    forecast = r"this takes some \d+ (s|min): \d+ (s|min) of analysis, then \d+ s for "
    assert len(re.findall(forecast + r"each of 2 networks; up to some", out)) == 1
    assert out.count("asked for: speedup 1.5: widths") == 1 == out.count("speedup 1.5:")
    assert len(re.findall("^speedup 1.2: accuracy .* at batch 2$", out, re.M)) == 1
    small = jaxprune.load_compact(run.workdir / "shrink-speedup1.5")
    folder = run.workdir / "shrink"
    pareto = rows(folder / "pareto.csv")
    assert [row["value"] for row in pareto] == ["1.2", "1.5"]
    for row in pareto:
        before, after = (int(row[k]) for k in ("multiply_adds_before", "multiply_adds"))
        assert before / after >= float(row["value"])
    widths = {
        row["group"]: int(row["width_after"]) for row in rows(folder / "layers.csv")
    }
    for name, layer in small.layers.items():
        assert len(layer.kept) == widths[name]
    assert (
        sum(int(row["multiply_adds_after"]) for row in rows(folder / "layers.csv")) > 0
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["about"]["calibration_split"] == "train[:64]"
    assert [(r["budget"], r["value"]) for r in summary["rungs"]] == [
        ("speedup", 1.5), ("speedup", 1.2)
    ]  # fmt: skip
    for rung in summary["rungs"]:
        assert 0 < rung["least_agreement"] <= rung["agreement"] <= 1
    assert (folder / "pareto.png").stat().st_size > 10_000
    images = budgets.read(folder)
    assert [*images.outcomes] == [budgets.WHOLE, "speedup=1.2", "speedup=1.5"]
    whole = images.outcomes[budgets.WHOLE].predictions
    for rung in summary["rungs"]:
        key = f"{rung['budget']}={rung['value']:g}"
        predicted = images.outcomes[key].predictions
        assert (predicted == images.labels).mean() == rung["accuracy"]
        assert (predicted == whole).mean() == pytest.approx(rung["agreement"])
    assert '"speedup 1.2"' in (run.workdir / "report.html").read_text()
    image = np.zeros((1, *small.input_shape), np.float32)
    assert small(image).shape == (1, 10)


@pytest.mark.slow
def test_what_is_measured_is_not_measured_again(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr("jaxprune.shrinking.shrink.halves", lambda *a, **k: ({}, []))
    monkeypatch.setattr(ladder.Ladder, "_measured", refuse)
    (code, out, err), _ = run("--speedup=1.5", "--ladder=1.2")
    assert code == 0, err
    assert out.count("speedup 1.2:") == 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"PK")])
def test_without_their_images_budgets_are_measured_again(run, damage):
    damage(run.workdir / "shrink" / "images.npz")
    assert run("--speedup=1.5", "--ladder=1.2")[0][0] == 0
    assert len(budgets.read(run.workdir / "shrink").outcomes) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["versions", "commit"])
def test_figures_of_another_version_are_measured_again(run, monkeypatch, name):
    """It may fit otherwise, and the network would not have them."""
    measured, network = [], ladder.provenance.network

    def other(*args):
        found = network(*args)
        return {**found, name: {"jax": "0.0"} if name == "versions" else "f00"}

    def row(self, rung):
        measured.append(rung.budget.value)
        return original(self, rung)

    original = ladder.Ladder._measured
    monkeypatch.setattr(ladder.Ladder, "_measured", row)
    assert run("--speedup=1.2", "--ladder=")[0][0] == 0 and measured == []
    monkeypatch.setattr(ladder.provenance, "network", other)
    for _ in range(2):
        assert run("--speedup=1.2", "--ladder=")[0][0] == 0
    assert measured == [1.2]


@pytest.fixture
def known(monkeypatch):
    """Names of the curves that each analysis is given, as the test goes on."""
    found = []

    def analyse(*args, **options):
        found.append(sorted(options["known"]))
        return original(*args, **options)

    original = ladder.analyse
    monkeypatch.setattr(ladder, "analyse", analyse)
    return found


@pytest.mark.slow
def test_curves_of_another_version_of_jax_are_made_again(run, known, monkeypatch):
    version = jax.__version__
    for now in (version, "0.1.2", "0.1.2", version):
        monkeypatch.setattr(jax, "__version__", now)
        assert run("--speedup=1.2", "--ladder=")[0][0] == 0
    assert known[0] == known[2] != [] and known[1] == known[3] == []


@pytest.mark.slow
def test_curves_that_were_estimated_are_no_measured_ones(run, known):
    for how in ("estimated", "measured", "measured", "estimated"):
        assert run("--speedup=1.2", "--ladder=", f"--curves={how}")[0][0] == 0
    assert known[0] == known[2] != [] and known[1] == known[3] == []


@pytest.mark.slow
def test_an_interruption_keeps_finished_budgets(run, monkeypatch):
    cut = ladder.Ladder.cut

    def interrupted(self, rung):
        if rung.budget.value == 2:
            raise KeyboardInterrupt
        return cut(self, rung)

    monkeypatch.setattr(ladder.Ladder, "cut", interrupted)
    (code, _, err), workdir = run("--speedup=2", "--ladder=1.2,1.5")
    assert code == 130 and "2 finished budgets" in err
    assert len(rows(workdir / "shrink" / "pareto.csv")) == 2
    assert not (workdir / "shrink-speedup2").exists()


@pytest.mark.slow
def test_size_latency_and_fine_tuning(run):
    (code, out, err), workdir = run(
        "--size=0.6", "--ladder=", "--finetune_epochs=1", "--distill",
        "--finetune_images=64",
    )  # fmt: skip
    assert code == 0, err
    assert "fine-tuned, epoch 1/1" in out
    assert (workdir / "shrink-size0.6.png").exists()
    row = rows(workdir / "shrink" / "pareto.csv")[0]
    spec = json.loads((workdir / "shrink-size0.6" / "spec.json").read_text())
    assert "accuracy_finetuned" in spec["about"]["measured"]
    assert int(row["parameters"]) <= 0.65 * int(row["parameters_before"])
    (code, out, err), workdir = run("--latency=1.2", "--ladder=")
    assert code == 0, err
    assert (workdir / "shrink-latency1.2-batch2" / "spec.json").exists()
    assert "; predicted " in out
    assert float(rows(workdir / "shrink" / "layers.csv")[0]["seconds_after"]) > 0
    summary = json.loads((workdir / "shrink" / "summary.json").read_text())
    (rung,) = (r for r in summary["rungs"] if r["budget"] == "latency")
    assert rung["value"] == 1.2 and set(rung["latency"]) == {"1", "2"}


@pytest.mark.slow
def test_max_drop_takes_the_last_before_the_first_failure(run, monkeypatch):
    drops = {1.1: 0.0, 1.21: 0.01, 1.331: 0.3, 1.464: 0.0}

    def measured(self, rung):
        row, judged = original(self, rung)
        return {**row, "largest_drop": drops[rung.budget.value]}, judged

    original = ladder.Ladder._measured
    monkeypatch.setattr(ladder.Ladder, "_measured", measured)
    (code, _, err), workdir = run("--max_drop=0.05", "--ladder=")
    assert code == 0, err
    spec = json.loads((workdir / "shrink-max_drop0.05" / "spec.json").read_text())
    assert spec["about"]["budget"] == {"speedup": 1.21}
    drops[1.1] = 0.2
    shutil.rmtree(workdir / "shrink")
    (code, _, err), _ = run("--max_drop=0.05", "--ladder=")
    assert code == 2 and "may already cost 0.2000" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "say how far to go"),
        (("--speedup=2", "--size=0.5"), "say how far to go"),
        (("--speedup=0.5",), "speedup is at least 1"),
        (("--size=2",), "share of the parameters"),
        (("--speedup=2", "--ladder=2,x"), "--ladder takes numbers"),
        (("--speedup=2", "--ladder=0.5"), "--ladder takes numbers"),
        (("--speedup=2", "--latency_batches=0"), "positive numbers"),
        (("--speedup=2", "--export=stablehlo,tflite"), "unknown export"),
        (("--speedup=2", "--export=keras"), "is no Keras model"),
        (("--speedup=2", "--distill"), "--distill does nothing without"),
        (("--speedup=2", "--calibration_split=test[:64]"), "holds 60 images"),
    ],
)
def test_bad_input_is_one_line_before_there_is_a_network(script, arguments, message):
    code, _, err = script(shrink, "--workdir=run", *NETWORK, *QUICK, *arguments)
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert not Path("run/checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--speedup=2", "--keep_whole=conv9"), "unknown group 'conv9'"),
        (("--speedup=1000",), "least possible"),
        (("--speedup=2", "--calibration_split=train[8:72]"), "other images"),
    ],
)
def test_bad_input_is_one_line(run, arguments, message):
    (code, _, err), workdir = run(*arguments)
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert not (workdir / "shrink-speedup2").exists()


@pytest.mark.slow
def test_too_few_images(run):
    shutil.rmtree(run.workdir / "shrink")
    (code, _, err), _ = run("--speedup=2", "--calibration_split=train[:8]")
    assert code == 2 and "N at least 16" in err


@pytest.mark.slow
def test_a_damaged_state_is_named(run):
    (run.workdir / "shrink" / "state.json").write_text("{")
    (code, _, err), _ = run("--speedup=1.5")
    assert code == 2 and "state.json is damaged" in err
