"""Calls of the API that make no sense, each made where no type is checked at run time.

Prints, as JSON, the class and message of what each raises; `test_api` reads it.
"""

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from conftest import random_split, random_variables
from flax import linen as nn

import jaxprune as jp


class Tiny(nn.Module):
    """Two convolutions and a dense layer; dropout where `train`."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), name="first")(x / 255.0)
        x = nn.relu(nn.Conv(5, (3, 3), strides=4, name="second")(nn.relu(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(4, name="out")(x.reshape(x.shape[0], -1))


SPLIT = random_split(n=20)
X = jnp.asarray(SPLIT.images[:4], jnp.float32)
MODEL = Tiny()
V = random_variables(MODEL, X)
NAMES = SPLIT.class_names
FOLDER = Path(tempfile.mkdtemp())


def apply(variables, x, **kwargs):
    return MODEL.apply(variables, jnp.asarray(x, jnp.float32), **kwargs)


def changed(value=None, *, convert=lambda a: a):
    """The variables with another kernel."""
    kernel = convert(V["params"]["first"]["kernel"]) if value is None else value
    first = {**V["params"]["first"], "kernel": kernel}
    return {"params": {**V["params"], "first": first}}


COMPLEX = changed(convert=lambda a: a.astype(np.complex64))
NAN = changed(convert=lambda a: np.where(a == a.max(), np.nan, a))
TEXT = changed("kernel")
BAD_VARIABLES = {
    "none": None, "text": "params", "empty": {}, "list": [1], "complex": COMPLEX,
    "nan": NAN, "strings": TEXT, "no collection": V["params"],
    "another shape": changed(np.zeros((3, 3, 3, 7), np.float32)),
}  # fmt: skip
IMAGES = SPLIT.images
TAPPED = jp.tap_layer(apply, V, SPLIT, tap="relu")
SCORES = TAPPED.mean_feature_map.mean((0, 1))
RESULT = jp.sweep_layer(TAPPED, SCORES)
KEEP = np.array([True, False, True, True, True])
cut = partial(jp.compact, MODEL, V, "second", KEEP, example=X)
SMALL = cut()
sweep = partial(jp.sweep_layer, TAPPED, SCORES)


def fractions(a):
    return np.where(a == a.max(), 0.5, a)


CALLS = {
    "labels as text": lambda: jp.image_split(IMAGES, ["a"] * 20, NAMES),
    "labels as fractions": lambda: jp.image_split(IMAGES, SPLIT.labels + 0.5, NAMES),
    "labels nan": lambda: jp.image_split(IMAGES, SPLIT.labels * np.nan, NAMES),
    "labels too large": lambda: jp.image_split(IMAGES, SPLIT.labels + 9, NAMES),
    "labels too few": lambda: jp.image_split(IMAGES, SPLIT.labels[1:], NAMES),
    "labels none": lambda: jp.image_split(IMAGES, None, NAMES),
    "labels of a split": lambda: replace(SPLIT, labels=SPLIT.labels - 1),
    "class names one text": lambda: jp.image_split(IMAGES, SPLIT.labels, "abcd"),
    "class names numbers": lambda: jp.image_split(IMAGES, SPLIT.labels, range(4)),
    "images as text": lambda: jp.image_split(np.full((20, 1, 1, 1), "a"), SPLIT.labels,
                                             NAMES),
    "images nan": lambda: jp.image_split(IMAGES * np.nan, SPLIT.labels, NAMES),
    "images complex": lambda: jp.image_split(IMAGES * 1j, SPLIT.labels, NAMES),
    "images of another size": lambda: jp.tap_layer(
        apply, V, replace(SPLIT, images=IMAGES[:, :4])),
    "images of three axes": lambda: jp.image_split(IMAGES[0], SPLIT.labels, NAMES),
    "dropout without rng, tap": lambda: jp.tap_layer(
        partial(apply, train=True), V, SPLIT),
    "dropout without rng, predict": lambda: jp.predict(
        partial(apply, train=True), V, SPLIT, batch_size=4),
    "dropout without rng, compact": lambda: cut(call={"train": True}),
    "call unknown": lambda: cut(call={"training": False}),
    "layer unknown": lambda: jp.tap_layer(apply, V, SPLIT, layer="third"),
    "layer number": lambda: jp.tap_layer(apply, V, SPLIT, layer=3),
    "layer empty": lambda: jp.tap_layer(apply, V, SPLIT, layer=""),
    "tap unknown": lambda: jp.tap_layer(apply, V, SPLIT, tap="gelu"),
    "batch size zero": lambda: jp.tap_layer(apply, V, SPLIT, batch_size=0),
    "batch size fraction": lambda: jp.tap_layer(apply, V, SPLIT, batch_size=2.5),
    "batch size fraction, predict": lambda: jp.predict(apply, V, SPLIT, batch_size=2.5),
    "ks fractions": lambda: sweep(ks=[0, 1.7]),
    "ks whole fractions": lambda: sweep(ks=[0.0, 1.0]),
    "ks booleans": lambda: sweep(ks=[False, True]),
    "ks text": lambda: sweep(ks="01"),
    "ks number": lambda: sweep(ks=3),
    "ks twice": lambda: sweep(ks=[1, 1]),
    "ks without end": lambda: sweep(ks=range(10**15)),
    "ks beyond": lambda: sweep(ks=[0, 5]),
    "ks empty": lambda: sweep(ks=[]),
    "ks dictionary": lambda: sweep(ks={0: 1}),
    "scores too few": lambda: jp.sweep_layer(TAPPED, SCORES[1:]),
    "scores nan": lambda: jp.sweep_layer(TAPPED, SCORES * np.nan),
    "scores complex": lambda: jp.sweep_layer(TAPPED, SCORES * 1j),
    "scores text": lambda: jp.sweep_layer(TAPPED, ["a"] * 5),
    "scores none": lambda: jp.sweep_layer(TAPPED, None),
    "scores booleans": lambda: jp.sweep_layer(TAPPED, KEEP),
    "fill unknown": lambda: sweep(fill="zeros"),
    "fill nan": lambda: sweep(fill=SCORES * np.nan),
    "fill too short": lambda: sweep(fill=SCORES[1:]),
    "fill text array": lambda: sweep(fill=["a"] * 5),
    "fill complex": lambda: sweep(fill=SCORES * 1j),
    "mask chunk zero": lambda: sweep(mask_chunk=0),
    "mask chunk fraction": lambda: sweep(mask_chunk=1.5),
    "about no json": lambda: sweep(about={"x": object()}),
    "about numbers as keys": lambda: sweep(about={1: 2}),
    "about taken": lambda: sweep(about={"n_images": 2}),
    "about a path": lambda: sweep(about={"criterion": "../x"}),
    "about a list": lambda: sweep(about=[1]),
    "order twice": lambda: jp.prefix_masks(np.array([0, 0, 1])),
    "order fractions": lambda: jp.prefix_masks(np.array([0.0, 1.5, 2.0])),
    "order of a result": lambda: replace(RESULT, order=np.zeros(5, int)),
    "scores of a result": lambda: replace(RESULT, scores=SCORES[1:]),
    "predictions of a result": lambda: replace(
        RESULT, predictions=RESULT.predictions[:, 1:]),
    "map of a result": lambda: replace(
        RESULT, mean_feature_map=RESULT.mean_feature_map * np.nan),
    "map of fewer channels": lambda: replace(
        RESULT, mean_feature_map=RESULT.mean_feature_map[..., 1:]),
    "order of nan": lambda: jp.pruning_order(np.array([0.0, np.nan])),
    "order of complex": lambda: jp.pruning_order(np.array([0, 1j])),
    "order of text": lambda: jp.pruning_order(["a", "b"]),
    "order of a matrix": lambda: jp.pruning_order(np.zeros((2, 2))),
    "drop nan": lambda: RESULT.largest_k_within(np.nan),
    "drop negative": lambda: RESULT.largest_k_within(-0.1),
    "keep beyond": lambda: RESULT.keep(5),
    "keep fraction": lambda: RESULT.keep(1.5),
    "mask of halves": lambda: jp.compact(MODEL, V, "second", KEEP * 0.5, example=X),
    "mask of ones": lambda: jp.compact(MODEL, V, "second", KEEP * 1, example=X),
    "mask empty": lambda: jp.compact(MODEL, V, "second", KEEP & False, example=X),
    "mask too long": lambda: jp.compact(
        MODEL, V, "second", np.ones(6, bool), example=X),
    "masks of halves": lambda: jp.evaluate_masks(
        lambda w, x, m: x * m, None, (np.zeros((2, 5)),), KEEP[None] * 0.5),
    "example of one axis": lambda: cut(example=X[0, 0, 0]),
    "example nan": lambda: cut(example=X * jnp.nan),
    "example of another size": lambda: cut(example=X[:, :4]),
    "example text": lambda: cut(example=["a"]),
    "example none": lambda: cut(example=None),
    "no layers": lambda: jp.compact_layers(MODEL, V, {}, example=X),
    "saved about no json": lambda: SMALL.save(FOLDER / "a", about={"x": object()}),
    "saved std zero": lambda: SMALL.save(FOLDER / "a", pixel_std=(0.0,)),
    "saved std nan": lambda: SMALL.save(FOLDER / "a", pixel_std=(np.nan,)),
    "saved std text": lambda: SMALL.save(FOLDER / "a", pixel_std=("a",)),
    "input of another size": lambda: SMALL(X[:, :4]),
    "input a list": lambda: SMALL([1, 2]),
    "load nothing": lambda: jp.load_compact(FOLDER / "nothing"),
    "load no sweep": lambda: jp.SweepResult.load(FOLDER / "nothing"),
    "ridge nan": lambda: jp.linear_fill(apply, V, IMAGES, ridge=np.nan),
    "ridge negative": lambda: jp.linear_fill(apply, V, IMAGES, ridge=-1.0),
    "fill of nan images": lambda: jp.linear_fill(apply, V, IMAGES * np.nan),
    "fill of no images": lambda: jp.linear_fill(apply, V, IMAGES[:0]),
    "shrink without budget": lambda: jp.shrink(MODEL, V, X),
    "shrink to nan": lambda: jp.shrink(MODEL, V, IMAGES, speedup=np.nan),
    "recalibrate nothing": lambda: jp.recalibrate(apply, V, []),
    "capture unknown": lambda: jp.capture(apply, V, X, "third"),
    "run from unknown": lambda: jp.run_from(apply, V, X, "third", X),
    "groups of nothing": lambda: jp.find_groups(apply, V, X[:, :0]),
    "keras of nothing": lambda: jp.import_keras(FOLDER / "no.h5", apply, V, X),
    **{
        f"variables {what}, {where}": partial(call, bad)
        for what, bad in BAD_VARIABLES.items()
        for where, call in {
            "tap": lambda v: jp.tap_layer(apply, v, SPLIT),
            "predict": lambda v: jp.predict(apply, v, SPLIT, batch_size=4),
            "compact": lambda v: jp.compact(MODEL, v, "second", KEEP, example=X),
            "fill": lambda v: jp.linear_fill(apply, v, IMAGES),
            "shrink": lambda v: jp.shrink(MODEL, v, IMAGES, speedup=2),
        }.items()
    },
}  # fmt: skip


def outcome(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


if __name__ == "__main__":
    print(json.dumps({name: outcome(call) for name, call in CALLS.items()}))
