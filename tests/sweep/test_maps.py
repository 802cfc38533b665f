from collections import namedtuple
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxprune._base.errors import InputError
from jaxprune._base.mesh import make_mesh
from jaxprune.recipes.models import PairCNN
from jaxprune.sweep import maps, score
from jaxprune.sweep.activations import tap_layer
from jaxprune.sweep.layer import sweep_layer
from random_data import random_split
from toys import network

SHAPE = (8, 8, 2)
APPLY, VARIABLES = network(PairCNN(widths=(3, 5, 9), dense=(10, 4)), SHAPE)
SPLIT = random_split(41, shape=SHAPE)
SCORES = np.linspace(1, 0, 9)


def every_map(layer, *where):
    found = [m[: b.size] for b, m in layer.batches(16, *where)]
    return np.concatenate(found)


def tapped(**options):
    return tap_layer(APPLY, VARIABLES, SPLIT, batch_size=8, **options)


@pytest.mark.parametrize(
    ("kind", "devices"), [("recompute", 1), ("device", 1), ("device", 2), ("device", 8)]
)
def test_maps_are_those_on_disk(kind, devices, tmp_path):
    mesh = make_mesh(jax.local_devices()[:devices])
    disk, other = tapped(maps_dir=tmp_path), tapped(maps=kind, mesh=mesh)
    np.testing.assert_array_equal(every_map(other), every_map(disk))
    # A second time, and from the middle of a batch.
    for where in ((0,), (13,), (13, 30)):
        found, want = every_map(other, *where), every_map(disk, *where)
        np.testing.assert_array_equal(found, want)
    assert (other.mean_feature_map == disk.mean_feature_map).all()
    one, two = sweep_layer(disk, SCORES), sweep_layer(other, SCORES)
    assert (one.about["maps"], two.about["maps"]) == ("disk", kind)
    np.testing.assert_array_equal(one.predictions, two.predictions)


def test_what_lies_on_the_device_goes_to_the_sweep_as_it_is(monkeypatch):
    layer = tapped(maps="device")
    monkeypatch.setattr(maps.OnDevice, "read", None)
    assert sweep_layer(layer, SCORES).about["maps"] == "device"
    assert all(isinstance(found, jax.Array) for _, found in layer.batches(8))


def test_maps_that_do_not_fit_on_the_device_go_to_a_file(monkeypatch, tmp_path):
    needed = every_map(tapped()).nbytes // len(jax.local_devices())
    for free, kind in ((2 * needed - 1, maps.OnDisk), (2 * needed, maps.OnDevice)):
        monkeypatch.setattr(maps, "free_memory", lambda _, free=free: free)
        assert type(tapped(maps="device", maps_dir=tmp_path).maps) is kind
    monkeypatch.setattr(maps, "free_memory", lambda _: None)  # that is not known
    assert type(tapped(maps="device").maps) is maps.OnDevice


def test_losses_wherever_maps_are():
    disk, *others = (
        score.score(tapped(maps=kind, criteria=["oracle"], oracle_images=[20]),
                    "oracle")
        for kind in ("disk", "device", "recompute")
    )  # fmt: skip
    for other in others:
        np.testing.assert_allclose(other, disk, rtol=1e-5, atol=1e-6)


def test_a_disk_that_is_too_small(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    needed = every_map(tapped()).nbytes
    for free in (needed - 1, needed):
        monkeypatch.setattr(
            maps.shutil, "disk_usage", lambda _, free=free: usage(0, 0, free)
        )
        if free == needed:
            tapped(maps_dir=tmp_path)
            continue
        with pytest.raises(InputError, match=r"maps take .*kiB, .* give another"):
            tapped(maps_dir=tmp_path)
    monkeypatch.setattr(maps.shutil, "disk_usage", lambda _: usage(0, 0, 0))
    tapped(maps="recompute")


def test_where_they_are(maps_places, tmp_path):
    """In the folder that is named, or nowhere."""
    tapped(maps_dir=tmp_path)
    assert maps_places == [tmp_path]
    tapped(maps="recompute")
    assert maps_places == [tmp_path]


def test_bad_input():
    with pytest.raises(InputError, match="no folder"):
        tapped(maps_dir=Path("nowhere"))
    with pytest.raises(InputError, match="device, disk, recompute"):
        tapped(maps="memory")


@pytest.mark.parametrize(
    ("count", "words"), [(99, "99.0B"), (2**20, "1.00MiB"), (20 * 2**30, "20.0GiB")]
)
def test_sizes(count, words):
    assert maps.size(count) == words
