"""Pictures of the images that flip: which, how they look, how many."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import toys
from jaxprune._base.errors import InputError
from jaxprune.data.splits import Split, image_split
from jaxprune.ranking import criteria
from jaxprune.results import thumbnails
from jaxprune.results.result import SweepResult
from jaxprune.sweep.activations import tap_layer
from jaxprune.sweep.layer import sweep_layer


@given(arrays.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 9))))
def test_those_shown_are_the_first_to_flip_at_any_k(right):
    k, n = right.shape
    first = [
        next((row for row in range(k) if right[row, i] != right[0, i]), k)
        for i in range(n)
    ]
    np.testing.assert_array_equal(thumbnails.first_flip(right), first)
    expected = set()
    for row in range(k):
        for before in (True, False):
            kind = [
                i for i in range(n)
                if right[0, i] == before and right[row, i] != before
            ]  # fmt: skip
            expected |= {*sorted(kind, key=lambda i: (first[i], i))[:2]}
    found = thumbnails.shown(right, 2).tolist()
    assert set(found) == expected
    assert found == sorted(found, key=lambda i: (first[i], i))


def split(images, parts=1):
    """Examples of so many images each."""
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[None]
    index = np.arange(len(images)).reshape(-1, parts)
    return Split(images, index, np.zeros(len(index), np.int64), ("a",))


def one(images, parts=1):
    made = thumbnails.of_split(split(images, parts), np.arange(1))
    assert made.images.tolist() == [0]
    return made.pixels[0]


RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 5, 8), np.uint8)


def test_colour_and_grey_are_kept():
    np.testing.assert_array_equal(one(BYTES[..., :3]), BYTES[..., :3])
    np.testing.assert_array_equal(one(BYTES[..., :1]), BYTES[..., :1])
    np.testing.assert_array_equal(one(BYTES[..., :4]), BYTES[..., :3])


@pytest.mark.parametrize(("channels", "across"), [(2, 2), (5, 4), (8, 4)])
def test_other_channels_stand_side_by_side(channels, across):
    drawn = one(BYTES[..., :channels])
    expected = np.concatenate([BYTES[..., [c]] for c in range(across)], axis=1)
    np.testing.assert_array_equal(drawn, expected)


def test_the_images_of_a_pair_stand_side_by_side():
    pair = BYTES.transpose(2, 0, 1)[:2, ..., None]
    np.testing.assert_array_equal(one(pair, 2), np.concatenate([*pair], axis=1))
    colours = RNG.integers(0, 256, (2, 4, 4, 3), np.uint8)
    np.testing.assert_array_equal(one(colours, 2), np.concatenate([*colours], axis=1))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 8.0, 16.0], [0, 128, 255]),
        ([-1.0, 0.0, 3.0], [0, 64, 255]),
        ([300.0, 400.0, 500.0], [0, 128, 255]),
        ([7.0, 7.0, 7.0], [0, 0, 0]),
        ([-7.0, -7.0, -7.0], [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_of_any_kind_become_brightness(values, expected, dtype):
    drawn = one(np.array(values, dtype).reshape(1, 3, 1))
    np.testing.assert_array_equal(drawn.ravel(), expected)


def test_brightness_is_by_the_range_of_the_whole_split():
    images = np.full((5, 2, 2, 1), 4.0, np.float32)
    images[3, 0, 0] = 16  # of an image that is not drawn
    images[4, 1, 1] = 0
    made = thumbnails.of_split(split(images), np.array([0, 2]))
    np.testing.assert_array_equal(made.pixels, np.full((2, 2, 2, 1), 64))


def test_large_images_are_made_smaller():
    halves = np.zeros((200, 100, 1), np.uint8)
    halves[100:] = 200
    drawn = one(halves)
    assert drawn.shape == (64, 32, 1)
    assert (drawn[:31] == 0).all() and (drawn[33:] == 200).all()
    assert one(np.zeros((2, 500, 3), np.uint8)).shape == (1, 64, 3)


def test_pixels_are_bounded(monkeypatch):
    monkeypatch.setattr(thumbnails, "_PIXELS", 3 * 30)
    images = RNG.integers(0, 256, (9, 6, 5, 1), np.uint8)
    made = thumbnails.of_split(split(images), np.array([7, 2, 5, 1]))
    assert made.images.tolist() == [2, 5, 7]
    np.testing.assert_array_equal(made.pixels, images[[2, 5, 7]])
    none = thumbnails.of_split(split(images), np.array([], int))
    assert none.pixels.shape == (0, 6, 5, 1)


@pytest.fixture(scope="module")
def swept():
    apply, variables, data = toys.planted()
    tapped = tap_layer(apply, variables, data, layer="only", tap="relu")
    scores = criteria.mean(tapped.mean_feature_map)
    return data, sweep_layer(tapped, scores, fill="zero")


def test_a_sweep_keeps_them(swept, tmp_path):
    data, result = swept
    shown = np.sort(thumbnails.shown(result.right))
    assert len(shown)
    np.testing.assert_array_equal(result.thumbnail_images, shown)
    expected = data.read(shown)  # two channels, side by side
    np.testing.assert_array_equal(result.thumbnails[..., :3, 0], expected[..., 0])
    np.testing.assert_array_equal(result.thumbnails[..., 3:, 0], expected[..., 1])
    result.save(tmp_path)
    back = SweepResult.load(tmp_path)
    np.testing.assert_array_equal(back.thumbnails, result.thumbnails)
    np.testing.assert_array_equal(back.thumbnail_images, shown)
    assert "sweep.npz" in json.loads((tmp_path / "summary.json").read_text())["files"]


@pytest.mark.parametrize(
    ("images", "pixels", "message"),
    [
        ([2, 1], np.zeros((2, 1, 1, 1), np.uint8), "ascend"),
        ([1], np.zeros((2, 1, 1, 1), np.uint8), "got 2 for 1"),
        ([99], np.zeros((1, 1, 1, 1), np.uint8), "0 .. 9"),
        ([1], np.zeros((1, 1, 1, 2), np.uint8), "1 or 3"),
        ([1], np.zeros((1, 1, 1, 3), np.float32), "float32"),
    ],
)
def test_what_is_read_is_checked(images, pixels, message):
    with pytest.raises(InputError, match=message):
        thumbnails.check(np.array(images), pixels, 10)


def test_images_of_ones_own():
    """As `image_split` takes them: floats, any number of channels."""
    images = RNG.normal(size=(4, 3, 3, 6)).astype(np.float32)
    data = image_split(images, np.arange(4), list("abcd"))
    assert thumbnails.of_split(data, np.arange(4)).pixels.shape == (4, 3, 12, 1)
