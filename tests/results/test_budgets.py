"""The file of what becomes of each image: kept budget by budget, read or refused."""

import numpy as np
import pytest

from jaxprune._base.errors import InputError
from jaxprune.data.splits import image_split
from jaxprune.results import budgets
from jaxprune.results.budgets import WHOLE, ImagesFile, Outcome

KEY = {"weights": "some"}
NAMES = (WHOLE, "speedup=1.5", "speedup=2")


def split(images=12, classes=3):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, 5, 5, 3), np.uint8)
    labels = np.arange(images) % classes
    return image_split(pixels, labels, [f"class {c}" for c in range(classes)])


def outcomes(predict=True, images=12):
    """All right at first; image 3 goes at the first budget, 5 at the second."""
    labels = np.arange(images) % 3
    found = {}
    for name, lost in zip(NAMES, ([], [3], [3, 5]), strict=True):
        predicted, losses = labels.copy(), np.full(images, 0.1, np.float32)
        predicted[lost], losses[lost] = (labels[lost] + 1) % 3, 2
        found[name] = Outcome(losses, predicted if predict else None)
    return found


def test_budgets_are_added_one_by_one(tmp_path):
    for name, outcome in outcomes().items():
        file = ImagesFile(tmp_path, KEY)
        assert name not in file
        file.keep({name: outcome})
        assert name in file and name in ImagesFile(tmp_path, KEY)
        assert name not in ImagesFile(tmp_path, {"weights": "others"})


@pytest.mark.parametrize("predict", [True, False])
def test_pictures_are_of_the_images_that_change(tmp_path, predict):
    file = ImagesFile(tmp_path, KEY)
    file.keep(outcomes(predict))
    file.keep_pictures(NAMES, split(), labelled=True)
    found = budgets.read(tmp_path)
    assert [*found.outcomes] == [*NAMES]
    np.testing.assert_array_equal(found.thumbnails.images, [3, 5])
    np.testing.assert_array_equal(found.thumbnails.pixels, split().images[[3, 5]])
    for name, (losses, predictions) in outcomes(predict).items():
        np.testing.assert_array_equal(found.outcomes[name].losses, losses)
        if predict:
            np.testing.assert_array_equal(found.outcomes[name].predictions, predictions)
    if predict:
        np.testing.assert_array_equal(found.labels, split().labels)
        assert found.class_names == split().class_names
    else:
        assert found.labels is None and found.class_names == ()


def test_without_labels_the_whole_network_has_the_right_classes(tmp_path):
    made = outcomes()
    made[WHOLE].predictions[0] = 2
    file = ImagesFile(tmp_path, KEY)
    file.keep(made)
    file.keep_pictures(NAMES, split(), labelled=False)
    found = budgets.read(tmp_path)
    np.testing.assert_array_equal(found.labels, made[WHOLE].predictions)
    np.testing.assert_array_equal(found.thumbnails.images, [0, 3, 5])


def test_where_there_is_no_file_there_are_no_images(tmp_path):
    assert budgets.read(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("whole/losses"), "networks of"),
        (lambda e: e.update({"whole/losses": np.zeros(3)}), "networks of"),
        (lambda e: e.update({"whole/predictions": np.zeros(3, int)}), "no class for"),
        (lambda e: e.update({"whole/predictions": np.full(12, 9)}), "0 .. 2"),
        (lambda e: e.pop("speedup=2/predictions"), "no class for"),
        (lambda e: e.update(labels=np.full(12, -1)), "classes"),
        (lambda e: e.update(thumbnail_images=np.array([3, 50])), "thumbnail_images"),
        (lambda e: e.pop("thumbnail_images"), "thumbnail_images"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, message):
    file = ImagesFile(tmp_path, KEY)
    file.keep(outcomes())
    file.keep_pictures(NAMES, split(), labelled=True)
    path = tmp_path / "images.npz"
    with np.load(path) as arrays:
        entries = dict(arrays)
    change(entries)
    np.savez_compressed(path, **entries)
    with pytest.raises(InputError, match=message) as error:
        budgets.read(tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("damage", ["cut", "folder"])
def test_a_damaged_file_is_named_and_made_anew(tmp_path, damage):
    file = ImagesFile(tmp_path, KEY)
    file.keep(outcomes())
    path = tmp_path / "images.npz"
    data = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.mkdir()
    with pytest.raises(InputError, match=r"images\.npz is damaged"):
        budgets.read(tmp_path)
    again = ImagesFile(tmp_path, KEY)
    assert WHOLE not in again
    if damage == "cut":
        again.keep(outcomes())
        assert [*ImagesFile(tmp_path, KEY)._entries] == [*file._entries]
