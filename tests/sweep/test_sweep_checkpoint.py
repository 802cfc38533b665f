from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxprune._base.mesh import make_mesh
from jaxprune.data.splits import image_split
from jaxprune.fills.calibration import linear_fill
from jaxprune.graph import sizes
from jaxprune.recipes.models import PairCNN
from jaxprune.sweep import checkpoint
from jaxprune.sweep.activations import tap_layer
from jaxprune.sweep.checkpoint import SweepCheckpoint, exact_sums
from jaxprune.sweep.layer import sweep_layer, sweep_orders
from random_data import random_split
from toys import network

SHAPE = (8, 8, 2)
APPLY, VARIABLES = network(PairCNN(widths=(3, 5, 9), dense=(10, 4)), SHAPE)
SPLIT = random_split(40, shape=SHAPE)
SCORES = np.linspace(1, 0, 9) ** 2


def tapped(split=SPLIT, variables=VARIABLES, **options):
    return tap_layer(APPLY, variables, split, batch_size=8, **options)


@pytest.fixture(scope="module")
def layer():
    return tapped()


@pytest.fixture(scope="module")
def fill():
    return fitted(SPLIT)


def fitted(split):
    return linear_fill(APPLY, VARIABLES, split.read(np.arange(40)))


@pytest.fixture(autouse=True)
def batches_of_eight(monkeypatch):
    monkeypatch.setattr(sizes, "_CPU_ELEMENTS", 80)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(checkpoint, "_SECONDS", 0.0)


def interrupted(layer, kept, batches=3, **options):
    """Keeps some batches."""
    done = []

    def stop(pairs):
        done.append(pairs)
        if len(done) == batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep_layer(layer, SCORES, checkpoint=kept, on_pairs=stop, **options)


def assert_equal(one, other):
    np.testing.assert_array_equal(one.predictions, other.predictions)
    np.testing.assert_array_equal(one.cross_entropy, other.cross_entropy)
    np.testing.assert_array_equal(one.cross_entropy_std, other.cross_entropy_std)


@pytest.mark.parametrize("fills", ["zero", "linear"])
def test_it_goes_on_where_it_stopped(layer, fill, fills, tmp_path, at_once):
    fills = fill if fills == "linear" else fills
    kept = SweepCheckpoint(tmp_path / "kept", {"commit": "abc"})
    whole = sweep_layer(layer, SCORES, fill=fills)
    interrupted(layer, kept, fill=fills)
    files = sorted(kept.folder.iterdir())
    assert len(files) == 3
    times = [path.stat().st_mtime_ns for path in files]
    again = sweep_layer(layer, SCORES, fill=fills, checkpoint=kept)
    assert_equal(again, whole)
    assert again.about["pairs_evaluated"] == whole.about["pairs_evaluated"]
    assert [path.stat().st_mtime_ns for path in files] == times
    assert len([*kept.folder.iterdir()]) == 5


def test_on_other_devices(layer, tmp_path, at_once):
    kept = SweepCheckpoint(tmp_path)
    interrupted(layer, kept)
    poison(tmp_path)
    alone = tapped(mesh=make_mesh(jax.devices()[:1]))
    again = sweep_layer(alone, SCORES, checkpoint=kept)
    # The poison shows that nothing kept was computed again.
    assert (again.predictions[:, :24] == 3).all()
    rest = sweep_layer(layer, SCORES).predictions[:, 24:]
    np.testing.assert_array_equal(again.predictions[:, 24:], rest)


def poison(folder):
    """Predictions that no network gives."""
    for path in folder.iterdir():
        with np.load(path) as arrays:
            found = dict(arrays)
        found["value class"] = np.full_like(found["value class"], 3)
        np.savez_compressed(path, **found)


def other_images():
    images = SPLIT.read(np.arange(40)).copy()
    images[:, 0, 0] += 1
    return image_split(images, SPLIT.labels, SPLIT.class_names)


def other_labels():
    labels = (SPLIT.labels + 1) % len(SPLIT.class_names)
    return image_split(SPLIT.read(np.arange(40)), labels, SPLIT.class_names)


def other_weights():
    return jax.tree.map(lambda a: a * np.float32(1.01), VARIABLES)


@pytest.mark.parametrize(
    "change",
    ["images", "labels", "weights", "facts", "order", "ks", "values", "fill", "drop"],
)
def test_what_was_of_another_sweep_is_not_taken(layer, change, tmp_path, at_once, fill):
    kept = SweepCheckpoint(tmp_path)
    values = np.ones(9, np.float32)
    options = {"fill": values, "ks": [*range(8)]}
    interrupted(layer, kept, **options)
    poison(tmp_path)
    other, scores = layer, SCORES
    match change:
        case "images":
            other = tapped(other_images())
        case "labels":
            other = tapped(other_labels())
        case "weights":
            other = tapped(variables=other_weights())
        case "facts":
            kept = replace(kept, facts={"dtype": "bfloat16"})
        case "order":
            scores = SCORES[::-1].copy()
        case "ks":
            options["ks"] = [*range(7), 8]
        case "values":
            options["fill"] = values * np.float32(1.1)
        case "fill":
            options["fill"] = fill
        case "drop":  # which has no numbers
            options["fill"] = "drop"
    found = sweep_layer(other, scores, checkpoint=kept, **options)
    assert_equal(found, sweep_layer(other, scores, **options))


def test_another_layer_of_as_many_channels(tmp_path, at_once):
    apply, variables = network(PairCNN(widths=(3, 9, 9), dense=(10, 4)), SHAPE)
    one, other = (
        tap_layer(apply, variables, SPLIT, batch_size=8, layer=name)
        for name in ("conv2", "conv3")
    )
    kept = SweepCheckpoint(tmp_path)
    sweep_layer(one, SCORES, checkpoint=kept)
    poison(tmp_path)
    found = sweep_layer(other, SCORES, checkpoint=kept)
    assert_equal(found, sweep_layer(other, SCORES))


def test_a_fill_of_other_images_is_another(layer, fill, tmp_path, at_once):
    interrupted(layer, SweepCheckpoint(tmp_path), fill=fill)
    poison(tmp_path)
    other = fitted(random_split(40, shape=SHAPE, seed=5))
    found = sweep_layer(layer, SCORES, fill=other, checkpoint=SweepCheckpoint(tmp_path))
    assert_equal(found, sweep_layer(layer, SCORES, fill=other))


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "renamed", "foreign", "beyond", "older"]
)
def test_what_is_damaged_is_computed_again(layer, damage, tmp_path, at_once):
    kept = SweepCheckpoint(tmp_path)
    interrupted(layer, kept)
    first, second, _ = sorted(tmp_path.iterdir())
    data = bytearray(first.read_bytes())
    match damage:
        case "truncated":
            first.write_bytes(data[:50])
        case "flipped":
            data[len(data) // 2] ^= 4
            first.write_bytes(data)
        case "renamed":
            first.rename(second)
        case "foreign":
            (tmp_path / "sweep-0-a-b.npz").write_bytes(b"")
        case "beyond":
            first.rename(tmp_path / "sweep-0-400-408.npz")
        case "older":  # with a digest for a key
            with np.load(first) as arrays:
                found = dict(arrays)
            np.savez_compressed(first, **{**found, "key": "0a1b", "images": "2c3d"})
    again = sweep_layer(layer, SCORES, checkpoint=kept)
    assert_equal(again, sweep_layer(layer, SCORES))
    assert not (tmp_path / "sweep-0-400-408.npz").exists()


def test_orders_and_splits_have_files_of_their_own(layer, tmp_path, at_once):
    orders = {"one": SCORES, "other": SCORES[::-1].copy()}
    found = dict(sweep_orders(layer, orders, checkpoint=SweepCheckpoint(tmp_path)))
    poison(tmp_path)
    again = dict(sweep_orders(layer, orders, checkpoint=SweepCheckpoint(tmp_path)))
    assert (again["one"].predictions == 3).all()
    assert (again["other"].predictions[1:-1] == 3).all()
    kept = SweepCheckpoint(tmp_path, name="select")
    for name, result in sweep_orders(layer, orders, checkpoint=kept):
        assert_equal(result, found[name])


def test_a_short_sweep_writes_once(layer, tmp_path):
    kept = SweepCheckpoint(tmp_path / "kept")
    sweep_layer(layer, SCORES, checkpoint=kept)
    assert [path.name for path in kept.folder.iterdir()] == ["sweep-0-0-40.npz"]


def test_an_interrupt_keeps_what_is_finished(layer, tmp_path):
    """However short a time it was since the last file."""
    interrupted(layer, SweepCheckpoint(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["sweep-0-0-24.npz"]


def test_sums_do_not_depend_on_the_order():
    losses = np.random.default_rng(0).exponential(3, (2, 1000)).astype(np.float32)
    whole = exact_sums(losses)
    for end in (1, 17, 999):
        np.testing.assert_array_equal(
            exact_sums(losses[:, end:]) + exact_sums(losses[:, :end]), whole
        )
    wide = losses.astype(float)
    np.testing.assert_allclose(whole, [wide.sum(1), (wide**2).sum(1)], rtol=1e-7)
