"""--task: a network whose outputs are no classes, by the same scripts."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.metrics import jaccard_score

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


pytestmark = pytest.mark.usefixtures("standard_promotion")


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


SMALLER = """
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Conv(8, (3, 3), name="first")(x))
        h = nn.relu(nn.Conv(6, (3, 3), name="second")(h))
        up = nn.ConvTranspose(6, (2, 2), (2, 2), name="up")(h[:, ::2, ::2])
        h = jnp.concatenate([h, nn.relu(up)], -1)
        return {"map": nn.Conv(3, (1, 1), name="map")(h),
                "mean": nn.Dense(2, name="mean")(h.mean((1, 2)))}


def build():
    x = np.zeros((1, 8, 8, 1), np.float32)
    shapes = jax.eval_shape(Net().init, jax.random.key(0), x)
    rng = np.random.default_rng(0)
    return Net(), jax.tree.map(
        lambda s: rng.normal(0, 0.5, s.shape).astype(s.dtype), shapes
    ), x, {}
"""
OF_MAPS = ("--data=maps.npz", "--task=segmentation", "--output=map")
QUICK = ("--latency_batches=1", "--repeats=2", "--eval_split=test")


@pytest.fixture
def maps(module):
    """A network of two convolutions, and maps that it is mostly right about."""
    Path("own_map.py").write_text(SMALLER)
    made: dict = {}
    exec(SMALLER, made)
    built = made["build"]()
    images = RNG.normal(size=(90, 8, 8, 1)).astype(np.float32)
    true = np.asarray(built[0].apply(built[1], images)["map"].argmax(-1))
    noise = RNG.random(true.shape) < 0.1
    true = np.where(noise, RNG.integers(0, 3, true.shape), true)
    np.savez("maps.npz", images=images[:40], targets=true[:40],
             train_images=images[40:], train_targets=true[40:])  # fmt: skip
    return built, images[:40], true[:40]


def zeroed(built, images, pruned):
    """The network's maps where channels of its second convolution are 0."""
    model, variables, *_ = built
    params = jax.tree.map(np.array, variables["params"])
    for array in params["second"].values():
        array[..., pruned] = 0
    return np.asarray(model.apply({"params": params}, images)["map"])


def mean_iou(logits, true):
    return jaccard_score(true.ravel(), logits.argmax(-1).ravel(), average="macro")


def test_a_smaller_network_of_maps(script, maps):
    built, images, true = maps
    flags = ("--model=own_map:build", *OF_MAPS, "--layer=second")
    code, out, err = script(sweep, *flags, "--fill=zero", "--noreport")
    assert code == 0, err
    code, out, err = script(
        compact, *flags, *QUICK, "--fill=zero", "--k=2", "--finetune_epochs=4",
        "--finetune_learning_rate=0.01", "--distill", "--distill_weight=0.5",
        "--export=stablehlo",
    )  # fmt: skip
    assert code == 0, err
    run = Path("runs/own_map.build")
    swept = jaxprune.TaskResult.load(run / "sweep-second-abs_mean-zero")
    folder = run / "compact-second-abs_mean-zero-k2"
    about = json.loads((folder / "spec.json").read_text())["about"]
    row = about["measured"]
    expected = mean_iou(zeroed(built, images, swept.order[:2]), true)
    assert about["measure"] == "mean_IoU"
    assert row["mean_IoU"] == pytest.approx(expected, abs=1e-6)
    assert row["mean_IoU"] == pytest.approx(swept.at(2)["mean_IoU"], abs=1e-6)
    whole = mean_iou(zeroed(built, images, []), true)
    assert row["baseline_mean_IoU"] == pytest.approx(whole, abs=1e-6)
    assert row["different_predictions"] == 0
    limit = swept.limits[2]
    assert row["largest_drop"] == pytest.approx(limit, rel=1e-6)
    small = jaxprune.load_compact(folder)
    trained = mean_iou(np.asarray(small(images)["map"]), true)
    assert row["mean_IoU_finetuned"] == pytest.approx(trained, abs=1e-6)
    assert trained != expected
    assert row["epochs"][-1]["test_mean_IoU"] == row["mean_IoU_finetuned"]
    assert folder.with_suffix(".png").exists()
    assert "40 images: 0 predictions differ" in out
    lost = f"mean IoU   {whole:.4f} whole, {expected:.4f} compact: "
    assert lost in out
    code, out, err = script(compact, *flags, *QUICK, "--fill=zero", "--ks=0,1,2")
    assert code == 0, err
    assert "| K | mean IoU | predictions that differ |" in out
    code, out, err = script(compact, *flags, *QUICK, "--fill=zero", "--max_drop=0.9")
    assert code == 0 and "K = 5: the largest safe one for 0.9" in out, err


@pytest.mark.slow
def test_a_whole_network_of_maps_is_shrunk(script, maps):
    _, images, true = maps
    flags = ("--model=own_map:build", *OF_MAPS, *QUICK, "--multiple_of=1")
    code, out, err = script(
        shrink, *flags, "--speedup=1.5", "--ladder=1.25", "--batch=1"
    )
    assert code == 0, err
    folder = Path("runs/own_map.build/shrink-speedup1.5")
    small = jaxprune.load_compact(folder)
    about = json.loads((folder / "spec.json").read_text())["about"]
    found = mean_iou(np.asarray(small(images)["map"]), true)
    assert about["measured"]["mean_IoU"] == pytest.approx(found, abs=1e-6)
    assert about["measured"]["proof"]["different_predictions"] == 0
    assert out.count("40 images: 0 predictions differ") == 1
    assert "speedup 1.25: mean IoU" in out
    code, out, err = script(shrink, *flags, "--max_drop=0.5", "--ladder=", "--batch=1")
    assert code == 0, err
    code, _, err = script(sweep, *flags[:4], "--layer=second", "--fill=zero")
    assert code == 0, err
    text = Path("runs/own_map.build/report.html").read_text()
    assert '<th scope="col">budget</th><th scope="col">mean IoU</th>' in text
    assert "shrink-max_drop0.5" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "output", "measure"),
    [("regression", "mean", "R2"), ("imitation", None, "relative_error")],
)
def test_smaller_networks_of_numbers(script, maps, task, output, measure):
    built, images, _ = maps
    means = np.asarray(built[0].apply(built[1], images)["mean"])
    noise = RNG.normal(0, 0.05, means.shape).astype(np.float32)
    arrays = {} if task == "imitation" else {"targets": means + noise}
    train = {f"train_{name}": array[:20] for name, array in arrays.items()}
    np.savez(
        "numbers.npz", images=images, train_images=images[:20] + 0.1, **arrays, **train
    )
    flags = ["--model=own_map:build", "--data=numbers.npz", f"--task={task}", *QUICK]
    flags += [f"--output={output}"] if output else []
    code, out, err = script(compact, *flags, "--layer=second", "--k=2")
    assert code == 0, err
    code, more, err = script(
        shrink, *flags, "--speedup=1.3", "--ladder=", "--batch=1",
        "--finetune_epochs=1", "--finetune_batch_size=8", "--distill",
    )  # fmt: skip
    assert code == 0, err
    run = Path("runs/own_map.build")
    for name, said in (("compact-second-abs_mean-linear-k2", out),
                       ("shrink-speedup1.3", more)):  # fmt: skip
        small = jaxprune.load_compact(run / name)
        row = json.loads((run / name / "spec.json").read_text())["about"]["measured"]
        found = small(images)
        if output:
            left = np.square(np.asarray(found["mean"]) - arrays["targets"]).sum()
            middle = arrays["targets"].mean(0)
            expected = 1 - left / np.square(arrays["targets"] - middle).sum()
        else:
            whole = built[0].apply(built[1], images)
            errors = [
                np.square(found[key] - whole[key]).reshape(40, -1).sum(1)
                / np.square(whole[key]).reshape(40, -1).sum(1)
                for key in found
            ]
            expected = np.sqrt(np.mean(errors, 0)).mean()
        last = row.get(f"{measure}_finetuned", row[measure])
        assert last == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert "predictions differ" not in said
        assert f"  {measure.replace('_', ' '):<10} " in said


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
        (("--task=regression", "--ignore=2"), "--ignore=2 is for --task=segmentation"),
    ],
)
def test_bad_input(script, flags, message):
    code, _, err = script(sweep, *FLAGS, "--data=data.npz", *flags)
    line = err.strip().split("\r")[-1]  # behind the bars
    assert code == 2 and line.startswith("error: ") and "\n" not in line
    assert message in line


def test_pixels_that_do_not_count(script):
    """The layer and the fill are those of the output that the task goes by."""
    targets = ARRAYS["targets"].copy()
    targets[:, :3] = 255
    np.savez("some.npz", images=IMAGES, targets=targets, train_images=IMAGES[:20])
    flags = ("--model=own_map:build", "--data=some.npz", "--task=segmentation")
    flags = (*flags, "--output=map", "--ks=0,2", "--noreport")
    code, _, err = script(sweep, *flags)
    line = err.strip().split("\r")[-1]
    assert code == 2 and "got 255; ignore=255 leaves such pixels out" in line
    code, out, err = script(sweep, *flags, "--ignore=255")
    assert code == 0 and "layer inner, 5 channels" in out, err
    (folder,) = Path("runs/own_map.build").glob("sweep-inner-*-linear")
    found = json.loads((folder / "summary.json").read_text())["baseline"]["mean_IoU"]
    whole = np.asarray(own_map_outputs(IMAGES)["map"]).argmax(-1)
    there = targets != 255
    expected = jaccard_score(targets[there], whole[there], average="macro")
    assert found == pytest.approx(expected, rel=1e-5)
    code, _, err = script(sweep, "--workdir=runs/own_map.build", "--ks=0,1")
    assert code == 2 and "give --data" in err


def own_map_outputs(images):
    import own_map  # the test's module, written where the test runs

    model, variables, _, _ = own_map.build()
    return model.apply(variables, images)


def test_a_task_is_for_a_network_of_one_s_own(script):
    code, _, err = script(sweep, "--model=digits_pair", "--task=regression")
    assert code == 2 and "--task is for a network of your own" in err
