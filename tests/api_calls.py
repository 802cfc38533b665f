"""Calls of the API that make no sense, each made where no type is checked at run time.

Prints, as JSON, the class and message of what each raises; `test_api` reads it.
"""

import json
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import freeze

import jaxprune as jp
from random_data import random_split, random_variables


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
ROWS = changed(convert=lambda a: a.tolist())
SWAPPED = changed(convert=lambda a: a.astype(">f4"))
BAD_VARIABLES = {
    "none": None, "text": "params", "empty": {}, "list": [1], "complex": COMPLEX,
    "nan": NAN, "strings": TEXT, "lists": ROWS, "another byte order": SWAPPED,
    "no collection": V["params"],
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
    "targets too few": lambda: jp.image_split(IMAGES, targets=IMAGES[1:]),
    "labels and targets": lambda: jp.image_split(
        IMAGES, SPLIT.labels, NAMES, targets=IMAGES
    ),
    "a task without a loss": lambda: jp.Task("t", 3),
    "a score that is a function": lambda: jp.Task("t", abs, {"s": abs}),
    "a peak of 0": lambda: jp.reconstruction(peak=0),
    "ignored text": lambda: jp.segmentation(ignore="none"),
    "a task in text": lambda: jp.analyse(NETWORK, X, task="classes"),
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

NETWORK = jp.Network(apply, V, X)
FLOW = NETWORK.graph().channels_of("second")
GROUPS = jp.find_groups(apply, V, X)
COMPARED = jp.criteria.mean(TAPPED.mean_feature_map)
LABELS = SPLIT.labels
LINEAR = jp.linear_fill(apply, V, IMAGES)
group = next(iter(GROUPS.groups))
cut_group = partial(jp.compact_groups, MODEL, V, example=X)
FIVE = np.arange(5)
tap = partial(jp.tap_layer, apply, V, SPLIT)
fit = partial(jp.linear_fill, apply, V)
shrink = partial(jp.shrink, MODEL, V, X)
WHOLE = jp.from_linen(MODEL, V, X)

BIG_X = np.asarray(X).astype(">f4")
READ_ALONE = jax.tree.map(lambda a: np.asarray(a) * np.float32(1e-25), V)
for array in jax.tree.leaves(READ_ALONE):
    array.setflags(write=False)


def shrunk(variables):
    """What is left for each layer of a sweep, a fill and a budget of variables."""
    fill = jp.linear_fill(apply, variables, IMAGES)
    tapped = jp.tap_layer(apply, variables, SPLIT, tap="relu", criteria=["linear"])
    result = jp.sweep_layer(tapped, jp.score(tapped, "linear", fill=fill), fill=fill)
    images = np.asarray(IMAGES, np.float32)
    small = jp.shrink(MODEL, variables, images, speedup=1.3)
    return np.concatenate([result.predictions.ravel(), np.ravel(small(images))])


def tune(images, labels=None, whole=WHOLE, **options):
    options = {"epochs": 1, "batch_size": 2} | options
    return jp.finetune(SMALL, whole, images, labels, **options)


CALLS |= {
    "labels of two axes": lambda: jp.image_split(IMAGES, LABELS[:, None], NAMES),
    "labels booleans": lambda: jp.image_split(IMAGES, LABELS > 0, NAMES),
    "labels negative": lambda: jp.image_split(IMAGES, LABELS - 1, NAMES),
    "labels complex": lambda: jp.image_split(IMAGES, LABELS * 1j, NAMES),
    "class names none": lambda: jp.image_split(IMAGES, LABELS, None),
    "class names twice": lambda: jp.image_split(IMAGES, LABELS, ["a"] * 4),
    "class names a number": lambda: jp.image_split(IMAGES, LABELS, 4),
    "images none": lambda: jp.image_split(None, LABELS, NAMES),
    "images of objects": lambda: jp.image_split([[{}]], LABELS, NAMES),
    "images of two lengths": lambda: jp.image_split([[1], [1, 2]], LABELS, NAMES),
    "images infinite": lambda: jp.image_split(IMAGES / 0.0, LABELS, NAMES),
    "images of no channel": lambda: jp.image_split(IMAGES[..., :0], LABELS, NAMES),
    "no images": lambda: jp.image_split(IMAGES[:0], LABELS[:0], NAMES),
    "sources beyond": lambda: replace(SPLIT, sources=SPLIT.sources + 99),
    "sources negative": lambda: replace(SPLIT, sources=SPLIT.sources - 1),
    "sources fractions": lambda: replace(SPLIT, sources=SPLIT.sources * 1.0),
    "sources of one axis": lambda: replace(SPLIT, sources=SPLIT.sources[:, 0]),
    "sources too few": lambda: replace(SPLIT, sources=SPLIT.sources[1:]),
    "images of a split, one axis": lambda: replace(SPLIT, images=IMAGES[0, 0, 0]),
    "split none": lambda: jp.tap_layer(apply, V, None),
    "split an array": lambda: jp.tap_layer(apply, V, IMAGES),
    "split of none, predict": lambda: jp.predict(apply, V, None, batch_size=4),
    "apply none": lambda: jp.tap_layer(None, V, SPLIT),
    "apply text, predict": lambda: jp.predict("apply", V, SPLIT, batch_size=4),
    "apply that fails": lambda: jp.tap_layer(lambda v, x: 1 / 0, V, SPLIT),
    "apply without layers": lambda: jp.tap_layer(lambda v, x: x.mean((1, 2)), V, SPLIT),
    "apply of other classes": lambda: jp.tap_layer(
        apply, V, replace(SPLIT, class_names=(*NAMES, "more"))),
    "apply of one number": lambda: jp.predict(
        lambda v, x: jnp.float32(0), V, SPLIT, batch_size=4),
    "model none": lambda: jp.compact(None, V, "second", KEEP, example=X),
    "model a class": lambda: jp.compact(Tiny, V, "second", KEEP, example=X),
    "model none, shrink": lambda: jp.shrink(None, V, IMAGES, speedup=2),
    "call a list": lambda: cut(call=[1]),
    "call text": lambda: cut(call="train"),
    "compact layer unknown": lambda: jp.compact(MODEL, V, "third", KEEP, example=X),
    "compact layer none": lambda: jp.compact(MODEL, V, None, KEEP, example=X),
    "compact layer dense": lambda: jp.compact(MODEL, V, "out", KEEP, example=X),
    "compact fill unknown": lambda: cut(fill="zeros"),
    "compact fill mean": lambda: cut(fill="mean"),
    "compact fill linear": lambda: cut(fill="linear"),
    "compact fill none": lambda: cut(fill=None),
    "compact fill nan": lambda: cut(fill=SCORES * np.nan),
    "compact fill of another layer": lambda: jp.compact(
        MODEL, V, "first", KEEP[:4], fill=LINEAR, example=X),
    "mask none": lambda: jp.compact(MODEL, V, "second", None, example=X),
    "mask text": lambda: jp.compact(MODEL, V, "second", ["a"] * 5, example=X),
    "mask of two axes": lambda: jp.compact(MODEL, V, "second", KEEP[None], example=X),
    "mask a number": lambda: jp.compact(MODEL, V, "second", True, example=X),
    "mask of indices": lambda: jp.compact(MODEL, V, "second", [0, 2], example=X),
    "layers a list": lambda: jp.compact_layers(MODEL, V, ["second"], example=X),
    "layers without fill": lambda: jp.compact_layers(
        MODEL, V, {"second": KEEP}, example=X),
    "layers none": lambda: jp.compact_layers(MODEL, V, None, example=X),
    "groups unknown": lambda: cut_group({"third": (KEEP, "drop")}),
    "groups of another fill": lambda: cut_group({group: (KEEP[:4], "zero")}),
    "groups of values": lambda: cut_group({group: (KEEP[:4], SCORES[:4])}),
    "groups without fill": lambda: cut_group({group: KEEP[:4]}),
    "groups none": lambda: cut_group(None),
    "groups empty": lambda: cut_group({}),
    "groups of another length": lambda: cut_group({group: (KEEP[:3], "drop")}),
    "groups of none": lambda: cut_group({group: (KEEP[:4] & False, "drop")}),
    "groups of the output": lambda: cut_group({"out": (KEEP[:4], "drop")}),
    "example of another type": lambda: cut(example=np.asarray(X) * 1j),
    "example booleans": lambda: cut(example=X > 0),
    "no example": lambda: cut(example=X[:0]),
    "layer none, capture": lambda: jp.capture(apply, V, X, None),
    "capture variables none": lambda: jp.capture(apply, None, X, "second"),
    "last of no network": lambda: jp.last_conv(lambda v, x: x, V, X),
    "layers of nothing": lambda: jp.list_layers(apply, V, None),
    "layers of text": lambda: jp.list_layers(apply, V, "x"),
    "channels of no layer": lambda: NETWORK.graph().channels_of("third"),
    "channels of the output": lambda: NETWORK.graph().channels_of("out"),
    "network of nothing": lambda: jp.Network(apply, V).graph(),
    "network of no function": lambda: jp.Network("apply", V, X),
    "network of no arrays": lambda: jp.Network(apply, {"a": np.arange(3)}, X),
    "network of a number": lambda: jp.Network(apply, V, 3.0).graph(),
    "network with a call": lambda: jp.compact(
        NETWORK, "second", KEEP, call={"train": False}),
    "values decide": lambda: jp.Network(
        lambda p, x: x if x.sum() > 0 else -x, {"a": np.ones(2)}, X).graph(),
    "groups variables none": lambda: jp.find_groups(apply, None, X),
    "groups of text": lambda: jp.find_groups(apply, V, "x"),
    "batch size none": lambda: fit(IMAGES, batch_size=None),
    "batch size text": lambda: tap(batch_size="4"),
    "batch size true": lambda: tap(batch_size=True),
    "batch size nan": lambda: jp.predict(apply, V, SPLIT, batch_size=np.nan),
    "batch size negative": lambda: fit(IMAGES, batch_size=-1),
    "batch size text, fill": lambda: fit(IMAGES, batch_size="4"),
    "batch size zero, means": lambda: jp.mean_fills(
        apply, V, IMAGES, [FLOW], batch_size=0),
    "tap none": lambda: tap(tap=None),
    "tap list": lambda: tap(tap=["relu"]),
    "maps unknown": lambda: tap(maps="memory"),
    "maps dir nowhere": lambda: tap(maps_dir=FOLDER / "nowhere"),
    "mesh a number": lambda: tap(mesh=2),
    "mesh of nothing": lambda: jp.make_mesh([]),
    "criteria unknown": lambda: tap(criteria=["means"]),
    "criteria one text": lambda: tap(criteria="mean"),
    "criteria numbers": lambda: tap(criteria=[1]),
    "oracle images beyond": lambda: tap(criteria=["oracle"], oracle_images=[999]),
    "oracle images zero": lambda: tap(criteria=["oracle"], oracle_images=[0]),
    "oracle images fraction": lambda: tap(criteria=["oracle"], oracle_images=[1.5]),
    "oracle images a number": lambda: tap(criteria=["oracle"], oracle_images=4),
    "rank split none of images": lambda: tap(rank_split=IMAGES),
    "rank split of another size": lambda: tap(
        rank_split=replace(SPLIT, images=IMAGES[:, :4])),
    "score unknown": lambda: jp.score(TAPPED, "means"),
    "score not gathered": lambda: jp.score(TAPPED, "taylor"),
    "score without fill": lambda: jp.score(TAPPED, "linear"),
    "score none": lambda: jp.score(TAPPED, None),
    "score of text": lambda: jp.score("layer", "mean"),
    "seed negative": lambda: jp.score(TAPPED, "random", seed=-1),
    "seed text": lambda: jp.score(TAPPED, "random", seed="x"),
    "criterion of another length": lambda: jp.score(
        TAPPED, jp.Criterion(lambda m: m.mean((0, 1))[1:], ("mean_feature_map",))),
    "criterion of nan": lambda: jp.score(
        TAPPED, jp.Criterion(lambda m: m[0, 0] * np.nan, ("mean_feature_map",))),
    "criterion of an unknown need": lambda: tap(
        criteria=[jp.Criterion(lambda m: m, ("colour",))]),
    "tapped none": lambda: jp.sweep_layer(None, SCORES),
    "scores infinite": lambda: jp.sweep_layer(TAPPED, SCORES / 0),
    "scores of two axes": lambda: jp.sweep_layer(TAPPED, SCORES[None]),
    "scores of objects": lambda: jp.sweep_layer(TAPPED, [{}] * 5),
    "scores dates": lambda: jp.sweep_layer(TAPPED, np.array(["2020"] * 5, "M8")),
    "orders a list": lambda: list(jp.sweep_orders(TAPPED, [SCORES])),
    "orders of two lengths": lambda: list(
        jp.sweep_orders(TAPPED, {"a": SCORES, "b": SCORES[1:]})),
    "orders none": lambda: list(jp.sweep_orders(TAPPED, None)),
    "fill of another layer": lambda: sweep(
        fill=jp.linear_fill(apply, V, IMAGES, layer="first")),
    "fill none": lambda: sweep(fill=None),
    "fill a number": lambda: sweep(fill=0),
    "fill a dictionary": lambda: sweep(fill={}),
    "ks none in it": lambda: sweep(ks=[0, None]),
    "ks negative": lambda: sweep(ks=[-1, 0]),
    "ks of two axes": lambda: sweep(ks=np.zeros((2, 2), int)),
    "ks a set": lambda: sweep(ks={0, 1}),
    "ks nan": lambda: sweep(ks=[np.nan]),
    "mask chunk true": lambda: sweep(mask_chunk=True),
    "mask chunk text": lambda: sweep(mask_chunk="4"),
    "unfinished text": lambda: sweep(checkpoint="folder"),
    "unfinished without json": lambda: sweep(
        checkpoint=jp.SweepCheckpoint(FOLDER / "u", {"x": object()})),
    "about text": lambda: sweep(about="x"),
    "about in a circle": lambda: sweep(about=(lambda d: d.update(d=d) or d)({})),
    "about nan": lambda: sweep(about={"x": float("nan")}),
    "about max_drop text": lambda: sweep(about={"max_drop": "1 %"}),
    "about max_drop beyond": lambda: sweep(about={"max_drop": 2.0}),
    "about overlaps a number": lambda: sweep(about={"overlaps": 5}),
    "masks none": lambda: jp.prefix_masks(None),
    "masks of a matrix": lambda: jp.prefix_masks(np.zeros((2, 2), int)),
    "masks ks beyond": lambda: jp.prefix_masks(FIVE, [5]),
    "masks ks fractions": lambda: jp.prefix_masks(FIVE, [0.5]),
    "order none": lambda: jp.pruning_order(None),
    "evaluate no masks": lambda: jp.evaluate_masks(
        lambda w, x, m: x * m, None, (np.zeros((2, 5)),), KEEP[None][:0]),
    "evaluate big-endian": lambda: jp.evaluate_masks(
        lambda w, x, m: x * m, None, (np.zeros((2, 5), ">f4"),), KEEP[None]),
    "evaluate a mask of one axis": lambda: jp.evaluate_masks(
        lambda w, x, m: x * m, None, (np.zeros((2, 5)),), KEEP),
    "ks of a result": lambda: replace(RESULT, ks=(0, 2, 1, 3, 4)),
    "ks of a result fractions": lambda: replace(RESULT, ks=(0, 1, 2, 3, 3.5)),
    "labels of a result": lambda: replace(RESULT, labels=RESULT.labels + 4),
    "labels of a result too few": lambda: replace(RESULT, labels=RESULT.labels[1:]),
    "losses of a result": lambda: replace(
        RESULT, cross_entropy=RESULT.cross_entropy * np.nan),
    "spread of a result's losses": lambda: replace(
        RESULT, cross_entropy_std=RESULT.cross_entropy[1:]),
    "negative losses of a result": lambda: replace(
        RESULT, cross_entropy=-RESULT.cross_entropy - 1),
    "losses of a result too few": lambda: replace(
        RESULT, cross_entropy=RESULT.cross_entropy[1:]),
    "chosen without labels": lambda: replace(
        RESULT, select_predictions=RESULT.predictions),
    "class names of a result": lambda: replace(RESULT, class_names=("a",)),
    "drop text": lambda: RESULT.largest_safe_k("x"),
    "drop none": lambda: RESULT.largest_safe_k(None),
    "drop beyond": lambda: RESULT.largest_safe_k(1.5),
    "drop infinite": lambda: RESULT.largest_k_within(np.inf),
    "keep negative": lambda: RESULT.keep(-1),
    "keep text": lambda: RESULT.keep("1"),
    "keep none": lambda: RESULT.keep(None),
    "figures at no k": lambda: RESULT.at(99),
    "chosen on another": lambda: RESULT.chosen_on(None),
    "saved in a file": lambda: RESULT.save(Path(__file__)),
    "loaded from a file": lambda: jp.SweepResult.load(Path(__file__)),
    "saved small in a file": lambda: SMALL.save(__file__),
    "saved mean text": lambda: SMALL.save(FOLDER / "a", pixel_mean=("a",)),
    "saved mean of two": lambda: SMALL.save(FOLDER / "a", pixel_mean=(1.0, 2.0)),
    "saved std negative": lambda: SMALL.save(FOLDER / "a", pixel_std=(-1.0,)),
    "saved std none": lambda: SMALL.save(FOLDER / "a", pixel_std=None),
    "saved names numbers": lambda: SMALL.save(FOLDER / "a", class_names=[1, 2, 3, 4]),
    "saved about a list": lambda: SMALL.save(FOLDER / "a", about=[1]),
    "saved about nan": lambda: SMALL.save(FOLDER / "a", about={"x": float("nan")}),
    "load a file": lambda: jp.load_compact(Path(__file__)),
    "input none": lambda: SMALL(None),
    "input text": lambda: SMALL("x"),
    "input complex": lambda: SMALL(np.asarray(X) * 1j),
    "ridge text": lambda: fit(IMAGES, ridge="x"),
    "ridge zero": lambda: fit(IMAGES, ridge=0.0),
    "ridge infinite": lambda: fit(IMAGES, ridge=np.inf),
    "fill layer unknown": lambda: fit(IMAGES, layer="third"),
    "fill of text": lambda: fit("images"),
    "fill of complex images": lambda: fit(IMAGES * 1j),
    "fill of one image's axis": lambda: fit(IMAGES[0, 0, 0]),
    "fills of no flow": lambda: jp.linear_fills(apply, V, IMAGES, None),
    "fills of names": lambda: jp.linear_fills(apply, V, IMAGES, ["second"]),
    "means of nan images": lambda: jp.mean_fills(apply, V, IMAGES * np.nan, [FLOW]),
    "means variables none": lambda: jp.mean_fills(apply, None, IMAGES, [FLOW]),
    "cost variables none": lambda: jp.cost(apply, None, X),
    "cost of nothing": lambda: jp.cost(apply, V, None),
    "budget of two": lambda: jp.Budget(speedup=2.0, size=0.5),
    "budget of text": lambda: jp.Budget(speedup="2"),
    "budget below one": lambda: jp.Budget(speedup=0.5),
    "budget true": lambda: jp.Budget(speedup=True),
    "budget nan": lambda: jp.Budget(size=np.nan),
    "shrink two ways": lambda: jp.shrink(MODEL, V, IMAGES, speedup=2, size=0.5),
    "shrink on few": lambda: jp.shrink(MODEL, V, IMAGES[:1], speedup=2),
    "shrink on none": lambda: jp.shrink(MODEL, V, None, speedup=2),
    "shrink out of reach": lambda: jp.shrink(MODEL, V, IMAGES, speedup=1e9),
    "shrink multiple of zero": lambda: jp.shrink(
        MODEL, V, IMAGES, speedup=1.2, multiple_of=0),
    "shrink multiple of a fraction": lambda: jp.shrink(
        MODEL, V, IMAGES, speedup=1.2, multiple_of=1.5),
    "shrink batch zero": lambda: jp.shrink(MODEL, V, IMAGES, latency=1.1, batch=0),
    "shrink keeps unknown": lambda: jp.shrink(
        MODEL, V, IMAGES, speedup=1.2, keep_whole=["third"]),
    "shrink keeps one text": lambda: jp.shrink(
        MODEL, V, IMAGES, speedup=1.2, keep_whole="first"),
    "recalibrate without BatchNorm": lambda: jp.recalibrate(
        partial(apply, train=False), V, [X]),
    "recalibrate none": lambda: jp.recalibrate(apply, V, None),
    "recalibrate variables none": lambda: jp.recalibrate(apply, None, [X]),
    "recalibrate on text": lambda: jp.recalibrate(apply, V, ["x"]),
    "recalibrate on no images": lambda: jp.recalibrate(apply, V, [X[:0]]),
    "capture of no images": lambda: jp.capture(apply, V, X[:0], "second"),
    "cost of no images": lambda: jp.cost(apply, V, X[:0]),
    "cost of lists": lambda: jp.cost(apply, V, IMAGES[:2].tolist()),
    "cost of another byte order": lambda: jp.cost(apply, V, BIG_X),
    "arrays of another byte order": lambda: SMALL.with_arrays(
        jax.tree.map(lambda a: a.astype(">f4"), dict(SMALL.arrays))),
    "finetune nothing": lambda: jp.finetune(None, WHOLE, X, epochs=1),
    "finetune a model": lambda: jp.finetune(MODEL, WHOLE, X, epochs=1),
    "finetune by a model": lambda: tune(X, whole=MODEL),
    "finetune by nothing": lambda: tune(X, whole=None),
    "finetune by another": lambda: tune(X, whole=jp.Network(lambda v, x: x, V, X)),
    "finetune on none": lambda: tune(None),
    "finetune on text": lambda: tune(["a"]),
    "finetune on no images": lambda: tune(X[:0]),
    "finetune on one axis": lambda: tune(X[0, 0, 0]),
    "finetune on complex images": lambda: tune(IMAGES * 1j),
    "finetune on bytes": lambda: tune(IMAGES),
    "finetune labels too few": lambda: tune(X, [0, 1]),
    "finetune labels fractions": lambda: tune(X, np.arange(4) / 2),
    "finetune labels text": lambda: tune(X, ["a"] * 4),
    "finetune labels twice": lambda: tune(SPLIT, LABELS),
    "finetune epochs none": lambda: tune(X, epochs=None),
    "finetune epochs fraction": lambda: tune(X, epochs=1.5),
    "finetune batch size zero": lambda: tune(X, batch_size=0),
    "finetune rate text": lambda: tune(X, learning_rate="x"),
    "finetune rate negative": lambda: tune(X, learning_rate=-1.0),
    "finetune optimizer text": lambda: tune(X, optimizer="adam"),
    "finetune weight text": lambda: tune(X, weight="all"),
    "finetune temperature nan": lambda: tune(X, temperature=np.nan),
    "finetune momentum none": lambda: tune(X, momentum=None),
    "finetune seed fraction": lambda: tune(X, seed=0.5),
    "finetune augment text": lambda: tune(X, augment="flip"),
    "finetune batch_norm unknown": lambda: tune(X, batch_norm="train"),
}  # fmt: skip

# What is unusual and has a right answer, and how it would be had otherwise.
BIG = SCORES.astype(">f8")
RIGHT = {
    "inputs of another byte order": (lambda: SMALL(BIG_X), lambda: SMALL(X)),
    "an example of another byte order": (lambda: cut(example=BIG_X)(X),
                                         lambda: SMALL(X)),
    "images of another byte order": (
        lambda: jp.predict(apply, V, jp.image_split(
            IMAGES.astype(">u2"), LABELS.astype(">i8"), NAMES), batch_size=4),
        lambda: jp.predict(apply, V, SPLIT, batch_size=4)),
    "arrays that are small and read alone": (
        lambda: shrunk(READ_ALONE), lambda: shrunk(jax.tree.map(np.copy, READ_ALONE))),
    "scores of another byte order": (lambda: jp.sweep_layer(TAPPED, BIG), sweep),
    "scores of JAX": (lambda: jp.sweep_layer(TAPPED, jnp.asarray(SCORES)), sweep),
    "scores a list": (lambda: jp.sweep_layer(TAPPED, SCORES.tolist()), sweep),
    "ks of NumPy": (lambda: sweep(ks=np.arange(5)), sweep),
    "ks a range": (lambda: sweep(ks=range(0, 5, 2)), lambda: sweep(ks=[0, 2, 4])),
    "labels short": (
        lambda: jp.sweep_layer(
            jp.tap_layer(apply, V, jp.image_split(IMAGES, LABELS.astype("i1"), NAMES),
                         tap="relu"), SCORES), sweep),
    "images in another order in memory": (
        lambda: jp.sweep_layer(
            jp.tap_layer(apply, V, replace(SPLIT, images=np.asfortranarray(IMAGES)),
                         tap="relu"), SCORES), sweep),
    "images as float64": (
        lambda: jp.predict(apply, V, jp.image_split(IMAGES * 1.0, LABELS, NAMES),
                           batch_size=4),
        lambda: jp.predict(apply, V, SPLIT, batch_size=4)),
    "variables frozen": (
        lambda: jp.predict(apply, freeze(V), SPLIT, batch_size=4),
        lambda: jp.predict(apply, V, SPLIT, batch_size=4)),
    "batch size of NumPy": (
        lambda: jp.predict(apply, V, SPLIT, batch_size=np.int64(4)),
        lambda: jp.predict(apply, V, SPLIT, batch_size=4)),
    "a mask of a list": (
        lambda: jp.compact(MODEL, V, "second", KEEP.tolist(), example=X)(X),
        lambda: SMALL(X)),
    "variables of JAX": (
        lambda: jp.compact(MODEL, jax.tree.map(jnp.asarray, V), "second", KEEP,
                           example=X)(X), lambda: SMALL(X)),
    "all kept": (
        lambda: jp.compact(MODEL, V, "second", KEEP | True, example=X)(X),
        lambda: jax.jit(apply)(V, X)),
    "one image": (
        lambda: jp.predict(apply, V, SPLIT.select(np.arange(1)), batch_size=99),
        lambda: jp.predict(apply, V, SPLIT, batch_size=4)[:1]),
}  # fmt: skip


def outcome(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def is_right(one, other):
    """What two calls come to: predictions, or numbers but for rounding."""
    try:
        found, expected = one(), other()
    except Exception as error:
        return [type(error).__name__, str(error)]
    if hasattr(found, "predictions"):
        found, expected = found.predictions, expected.predictions
    same = np.shape(found) == np.shape(expected) and np.allclose(
        found, expected, rtol=1e-5, atol=1e-5
    )
    return ["right" if same else "wrong", ""]


if __name__ == "__main__":
    refused = {name: outcome(call) for name, call in CALLS.items()}
    right = {name: is_right(*calls) for name, calls in RIGHT.items()}
    print(json.dumps([refused, right]))
