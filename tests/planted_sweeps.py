"""Sweeps with known predictions, of any size, as if a network had made them."""

import json

import numpy as np

from jaxprune._base import manifest
from jaxprune.results import thumbnails
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


def plant_ladder(workdir):
    """A pareto.csv as experiments.shrink writes it."""
    (workdir / "shrink").mkdir()
    row = {
        "budget": "latency", "value": "2.0", "baseline_accuracy": "0.9",
        "accuracy": "0.85", "largest_drop": "0.07", "parameters_before": "1000",
        "parameters": "250", "multiply_adds_before": "900", "multiply_adds": "300",
        "different_predictions": "0", "latency_32_before": "0.03",
        "latency_32_after": "0.02",
    }  # fmt: skip
    (workdir / "shrink" / "pareto.csv").write_text(
        f"{','.join(row)}\n{','.join(row.values())}\n"
    )


def page_data(html):
    """What the page's script reads."""
    start = html.index('<script type="application/json" id="page-data">')
    return json.loads(html[html.index(">", start) + 1 : html.index("</script>", start)])
