"""Sweeps with known predictions, of any size, as if a network had made them."""

import json

import numpy as np

from jaxprune._base import manifest
from jaxprune.data.splits import image_split
from jaxprune.results import budgets, thumbnails
from jaxprune.results.result import SweepResult

EVIL = "<script>window.hacked = true</script>\"'&"


def planted_sweep(
    channels=12, images=60, classes=4, shape=(3, 4), ks=None, seed=0, side=6, **about
):
    """A network that loses images one after another, some of which it wins back.

    Its first class is called EVIL.
    """
    rng = np.random.default_rng(seed)
    ks = tuple(range(channels)) if ks is None else ks
    labels = np.arange(images) % classes
    baseline = np.where(rng.uniform(size=images) < 0.2, (labels + 1) % classes, labels)
    predictions = np.tile(baseline, (len(ks), 1))
    for image in range(images):
        for start in np.sort(rng.integers(1, 2 * len(ks), rng.integers(0, 3))):
            predictions[start:, image] = rng.integers(classes)
    predictions[-1] = 1
    maps = rng.normal(0.5, 1, (*shape, channels)).astype(np.float32)
    scores = rng.permutation(np.round(rng.normal(size=channels), 3))
    shown = np.sort(thumbnails.shown(predictions == labels))
    dtype = np.uint8 if classes <= 256 else np.uint16
    return SweepResult(
        ks=ks,
        order=np.argsort(scores, kind="stable"),
        scores=scores,
        predictions=predictions.astype(dtype),
        labels=labels,
        mean_feature_map=maps,
        class_names=(EVIL, *(f"class {c}" for c in range(1, classes))),
        about={
            "model": "toy", "layer": "conv", "criterion": "mean", "fill": "zero",
            "versions": {"python": "3"}, "seconds": {"trunk": 1.0}, "commit": EVIL,
            **about,
        },
        cross_entropy=np.linspace(0.1, 3, len(ks)),
        cross_entropy_std=np.linspace(0.4, 2, len(ks)),
        thumbnail_images=shown,
        thumbnails=rng.integers(0, 256, (len(shown), side, side, 3), np.uint8),
    )  # fmt: skip


MEASURED = {
    "baseline_accuracy": 0.9, "accuracy": 0.8, "parameters": 500,
    "parameters_before": 1000, "multiply_adds": 300, "multiply_adds_before": 900,
    "file_bytes": 2_000_000, "latency": {"1": {"speedup": 1.5}, "32": {"speedup": 2.0}},
}  # fmt: skip


def plant_network(folder, **measured):
    """A folder like that of a compact network."""
    folder.mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    manifest.write(
        folder, "spec.json", {"about": {"measured": {**MEASURED, **measured}}}
    )


def plant_ladder(workdir, images=40, classes=4, side=6, labels=True):
    """The files of a ladder of two budgets, as `jaxprune shrink` writes them.

    Image 0 is lost at both, image 1 at the second, image 2 is won at the second. The
    second one is of latency.
    """
    (workdir / "shrink").mkdir()
    rung = {
        "baseline_accuracy": 0.9, "parameters_before": 1000,
        "multiply_adds_before": 900, "proof": {"different_predictions": 0},
    }  # fmt: skip
    rungs = [
        {
            **rung, "budget": "latency", "value": 2.0, "accuracy": 0.85,
            "largest_drop": 0.07, "parameters": 250, "multiply_adds": 300,
            "agreement": 0.875, "least_agreement": 0.8, "widths": {"conv": 3, EVIL: 2},
            "latency": {"32": {"speedup": 1.5}},
        },
        {
            **rung, "budget": "speedup", "value": 1.5, "accuracy": 0.875,
            "largest_drop": 0.05, "parameters": 500, "multiply_adds": 600,
            "agreement": 0.975, "least_agreement": 0.9, "widths": {"conv": 6, EVIL: 4},
            "latency": {"32": {"speedup": 1.25}},
        },
    ]  # fmt: skip
    summary = {
        "about": {"model": "toy"}, "measure": "accuracy", "higher_is_better": True,
        "widths": {"conv": 8, EVIL: 4}, "rungs": rungs,
    }  # fmt: skip
    (workdir / "shrink" / "summary.json").write_text(json.dumps(summary))
    rng = np.random.default_rng(0)
    truth = np.arange(images) % classes
    wrong = (truth + 1) % classes
    predicted = np.tile(truth, (3, 1))
    predicted[:2, 2] = wrong[2]
    predicted[1:, 0], predicted[2, 1] = wrong[0], wrong[1]
    losses = np.tile(rng.uniform(0.1, 0.2, images), (3, 1)).astype(np.float32)
    losses[1:, 0], losses[2, 1], losses[2, 2] = 5, 3, 0.01
    file = budgets.ImagesFile(workdir / "shrink", {})
    names = (budgets.WHOLE, "speedup=1.5", "latency=2")
    pairs = zip(losses, predicted if labels else [None] * 3, strict=True)
    file.keep({n: budgets.Outcome(*of) for n, of in zip(names, pairs, strict=True)})
    pixels = rng.integers(0, 256, (images, side, side, 3), np.uint8)
    named = tuple(f"class {c}" for c in range(classes))
    split = image_split(pixels, truth, class_names=named)
    file.keep_pictures(names, split, labelled=labels)


def page_data(html):
    """What the page's script reads."""
    start = html.index('<script type="application/json" id="page-data">')
    return json.loads(html[html.index(">", start) + 1 : html.index("</script>", start)])
