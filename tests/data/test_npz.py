"""Images of one's own from a file: which are drawn, and what is no such file."""

import pickle
import re
import zipfile

import numpy as np
import pytest

from jaxprune._base.errors import InputError
from jaxprune.data import datasets, npz

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (50, 3, 4, 2), np.uint8)
LABELS = np.arange(50) % 3


@pytest.fixture
def save(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "my.npz", **arrays)
        return tmp_path / "my.npz"

    return write


def rows(split):
    """Which of IMAGES a split holds."""
    images = split.read(np.arange(len(split)))
    return [np.flatnonzero((x == IMAGES).all((1, 2, 3))).item() for x in images]


def test_a_fifth_is_drawn_and_the_others_are_left(save):
    splits = npz.load(save(images=IMAGES, labels=LABELS), 3)
    train, test = rows(splits["train"]), rows(splits["test"])
    assert len(train) == 10 and sorted(train + test) == list(range(50))
    assert train == sorted(train) and test == sorted(test)
    for split, index in ((splits["train"], train), (splits["test"], test)):
        np.testing.assert_array_equal(split.labels, LABELS[index])
        assert split.class_names == ("0", "1", "2")
        assert split.images.dtype == np.uint8
    again = npz.load(save(images=IMAGES, labels=LABELS), 3)
    assert rows(again["train"]) == train
    assert (
        rows(npz.load(save(images=IMAGES, labels=LABELS), 3, seed=1)["train"]) != train
    )


def test_at_most_512_are_drawn_of_a_file_in_any_order(save):
    """Of one sorted by class, or with a class on every tenth image, some of each."""
    images = np.zeros((4000, 1, 1, 1), np.uint8)
    for labels in (np.arange(4000) // 400, np.arange(4000) % 10):
        splits = npz.load(save(images=images, labels=labels), 10)
        assert (len(splits["train"]), len(splits["test"])) == (512, 3488)
        assert (np.bincount(splits["train"].labels) > 25).all()


def test_the_only_image_of_a_class_is_left_for_tests(save):
    labels = np.array([*range(4), *[4] * 6])
    images = IMAGES[:10]
    for seed in range(20):
        splits = npz.load(save(images=images, labels=labels), 5, seed)
        assert splits["train"].labels.tolist() == [4, 4]
        assert set(splits["test"].labels) == set(range(5))


def test_images_that_are_given_for_fits(save):
    path = save(
        images=IMAGES[:20], labels=LABELS[:20], class_names=np.array(["a", "b", "ü"]),
        train_images=IMAGES[20:], train_labels=LABELS[20:], other=np.zeros(3),
    )  # fmt: skip
    splits = npz.load(path, 3)
    assert rows(splits["test"]) == [*range(20)]
    assert rows(splits["train"]) == [*range(20, 50)]
    np.testing.assert_array_equal(splits["train"].labels, LABELS[20:])
    assert splits["test"].class_names == ("a", "b", "ü")


GIVEN = {
    "train": {"train_images": IMAGES[:20], "train_labels": LABELS[:20]},
    "validation": {"validation_images": IMAGES[20:29], "validation_labels": LABELS[:9]},
    "test": {"images": IMAGES[29:], "labels": LABELS[29:]},
}


@pytest.mark.parametrize(
    "names",
    [("train",), ("validation",), ("train", "validation"), ("train", "test"),
     ("train", "validation", "test")],
)  # fmt: skip
def test_the_splits_are_those_that_the_file_holds(save, names):
    arrays = {key: array for name in names for key, array in GIVEN[name].items()}
    splits = npz.load(save(**arrays), 3)
    assert splits.names == names
    for name in names:
        images, labels = GIVEN[name].values()
        assert len(splits[name]) == len(images)
        np.testing.assert_array_equal(splits[name].images, images)
        np.testing.assert_array_equal(splits[name].labels, labels)
    if "test" not in names:
        with pytest.raises(InputError, match=f"choices: {', '.join(names)}$"):
            datasets.choose_split(splits, "test")


def test_fits_are_made_on_drawn_images_beside_validation(save):
    drawn = npz.load(save(images=IMAGES, labels=LABELS), 3)
    splits = npz.load(save(images=IMAGES, labels=LABELS, **GIVEN["validation"]), 3)
    assert splits.names == ("train", "validation", "test")
    for name in ("train", "test"):
        assert rows(splits[name]) == rows(drawn[name])
    both = datasets.choose_split(splits, "validation+test")
    assert rows(both) == [*range(20, 29), *rows(drawn["test"])]


SCALED = np.float32(IMAGES) / 255


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (IMAGES, SCALED, "images are uint8, train_images float32"),
        (SCALED * 255, SCALED, "images lie in 0 .. 255, train_images in 0 .. 1: "),
        (SCALED, SCALED * 2 - 1, "images lie in 0 .. 1, train_images in -1 .. 1: "),
        (IMAGES // 255, IMAGES, "images lie in 0 .. 1, train_images in 0 .. 255: "),
        (SCALED, SCALED[:, :2], "images are [3, 4, 2], train_images [2, 4, 2]"),
    ],
)
def test_parts_that_do_not_belong_together(save, one, other, message):
    path = save(images=one, labels=LABELS, train_images=other, train_labels=LABELS)
    with pytest.raises(InputError, match=re.escape(message)) as error:
        npz.load(path, 3)
    assert "my.npz" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("other", [SCALED / 3, SCALED * 1.1 - 0.05, SCALED * 0 + 0.1])
def test_parts_that_are_darker_or_brighter_belong_together(save, other):
    path = save(images=SCALED, labels=LABELS, train_images=other, train_labels=LABELS)
    assert npz.load(path, 3).names == ("train", "test")


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "uint16"])
def test_numbers_that_are_no_bytes_become_float32(save, dtype):
    values = IMAGES.astype(dtype) / (2 if "float" in dtype else 1)
    splits = npz.load(save(images=values.astype(dtype), labels=LABELS), 3)
    assert splits["test"].images.dtype == np.float32
    np.testing.assert_array_equal(splits["test"].images, values.astype(np.float32))


NAN = IMAGES.astype(float)
NAN[3, 1, 2, 0] = np.nan
BAD = [
    ({"x": IMAGES, "y": LABELS}, "has no images and no labels, it holds x, y: np."),
    ({"images": IMAGES}, "has no labels, it holds images"),
    ({"images": IMAGES, "labels": LABELS[:9]}, "got [50, 3, 4, 2] and [9]"),
    ({"images": IMAGES[0], "labels": LABELS}, "images must be [N, H, W, C]"),
    ({"images": IMAGES, "labels": LABELS + 1}, "must lie in 0 .. 2"),
    ({"images": IMAGES, "labels": LABELS - 1}, "got -1 .. 1"),
    ({"images": IMAGES, "labels": LABELS / 1}, "labels must be integers"),
    (
        {"images": IMAGES, "labels": np.eye(3)[LABELS]},
        "labels must be [N], the index of a class each, got [50, 3]: give "
        "labels.argmax(1)",
    ),
    ({"images": IMAGES, "labels": LABELS[:, None]}, "got [50, 1]: give labels[:, 0]"),
    ({"images": NAN, "labels": LABELS}, "finite, got nan at [3, 1, 2, 0]"),
    ({"images": IMAGES.astype("U"), "labels": LABELS}, "images must be real numbers"),
    ({"images": IMAGES[:4], "labels": LABELS[:4]}, "4 images are too few to draw"),
    ({"images": IMAGES[:0], "labels": LABELS[:0]}, "N at least 1"),
    (
        {"images": IMAGES, "labels": LABELS, "class_names": np.array(["a", "b"])},
        "2 class_names, and the network tells 3 classes apart",
    ),
    (
        {"images": IMAGES, "labels": LABELS, "class_names": np.arange(3)},
        "class_names must be [classes] of text, got int64",
    ),
    (
        {"images": IMAGES, "labels": LABELS, "class_names": np.array([b"a", b"b"])},
        "of text, got |S1: give class_names.astype(str)",
    ),
    (
        {"images": IMAGES, "labels": LABELS, "class_names": np.array(["a", 1, None])},
        "is no .npz file of plain arrays: it holds Python objects",
    ),
    (
        {"images": IMAGES, "labels": LABELS, "train_images": IMAGES},
        "holds one of train_images and train_labels: give both",
    ),
    (
        {"train_images": IMAGES, "train_labels": LABELS, "validation_labels": LABELS},
        "holds one of validation_images and validation_labels: give both",
    ),
    (
        {"train_images": IMAGES, "train_labels": LABELS, "labels": LABELS},
        "holds one of images and labels: give both",
    ),
    (
        {
            "images": IMAGES, "labels": LABELS, "train_images": IMAGES[:, :2],
            "train_labels": LABELS,
        },
        "images are [3, 4, 2], train_images [2, 4, 2]",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("arrays", "message"), BAD, ids=[b[1][:30] for b in BAD])
def test_arrays_that_are_not_those(save, arrays, message):
    with pytest.raises(InputError, match=re.escape(message)) as error:
        npz.load(save(**arrays), 3)
    assert "my.npz" in str(error.value) and "\n" not in str(error.value)


class Malice:
    def __reduce__(self):
        return print, ("unpickled",)


def test_files_that_are_none(tmp_path, save, capsys):
    path = save(images=IMAGES, labels=LABELS)
    whole, other = path.read_bytes(), tmp_path / "other.npz"
    for content in (b"", b"hello", pickle.dumps(Malice()), whole[:300], whole[:-40]):
        other.write_bytes(content)
        with pytest.raises(InputError, match=r"other.npz is no .npz file of plain"):
            npz.load(other, 3)
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(InputError, match="one array without a name"):
        npz.load(tmp_path / "one.npy", 3)
    with pytest.raises(InputError, match="there is no file"):
        npz.load(tmp_path / "nowhere.npz", 3)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    other.write_bytes(damaged)
    with pytest.raises(InputError, match="Bad CRC-32"):
        npz.load(other, 3)
    assert capsys.readouterr().out == ""


def zipped(path, method, patch=lambda content: content):
    """An npz packed in another way, with bytes of it changed."""
    with zipfile.ZipFile(path, "w", method) as file:
        for name, array in (("images", IMAGES), ("labels", LABELS)):
            with file.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array)
    path.write_bytes(patch(path.read_bytes()))


def with_method(number):
    """Another way of packing, in the entries' headers."""

    def patch(content):
        content = bytearray(content)
        for mark, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
            start = content.find(mark)
            while start >= 0:
                content[start + offset] = number
                start = content.find(mark, start + 1)
        return bytes(content)

    return patch


def encrypted(content):
    content = bytearray(content)
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.find(mark) + offset] |= 1
    return bytes(content)


def with_damage(content):
    """Damage in the middle of the first entry's data."""
    middle = content.find(b"PK\3\4", 1) // 2
    return content[:middle] + bytes(16) + content[middle + 16 :]


@pytest.mark.parametrize(
    ("method", "patch"),
    [
        (zipfile.ZIP_DEFLATED, with_method(9)),  # Deflate64
        (zipfile.ZIP_STORED, encrypted),
        (zipfile.ZIP_LZMA, with_damage),
        (zipfile.ZIP_BZIP2, with_damage),
        (zipfile.ZIP_BZIP2, with_method(14)),
    ],
)
def test_files_packed_in_other_ways(tmp_path, method, patch):
    path = tmp_path / "packed.npz"
    zipped(path, method)
    assert len(npz.load(path, 3)["test"]) == 40
    zipped(path, method, patch)
    with pytest.raises(
        InputError, match=r"packed.npz is no .npz file of plain"
    ) as error:
        npz.load(path, 3)
    assert "\n" not in str(error.value)


def test_a_header_that_claims_more_than_memory(tmp_path):
    path = tmp_path / "huge.npz"
    with zipfile.ZipFile(path, "w") as file, file.open("images.npy", "w") as entry:
        shape = (10**9, 32, 32, 30)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(entry, header)
    with pytest.raises(InputError, match=r"huge.npz claims to hold more than"):
        npz.load(path, 3)


def test_a_table_is_no_such_file(tmp_path):
    path = tmp_path / "my.csv"
    path.write_text("label,pixel\n0,1\n")
    with pytest.raises(InputError, match=r"my.csv is no .*np.savez\(path, images"):
        npz.load(path, 3)


@pytest.fixture
def save_folder(tmp_path):
    def write(**arrays):
        for name, array in arrays.items():
            path = tmp_path / "arrays" / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
        return tmp_path / "arrays"

    return write


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_folder_is_a_file_that_need_not_fit_into_memory(save, save_folder, dtype):
    arrays = {
        "images": IMAGES.astype(dtype), "labels": LABELS,
        "train_images": IMAGES[:9].astype(dtype), "train_labels": LABELS[:9],
        "class_names": np.array(["a", "b", "c"]),
    }  # fmt: skip
    file, folder = npz.load(save(**arrays), 3), npz.load(save_folder(**arrays), 3)
    for name in ("train", "test"):
        one, other = file[name], folder[name]
        assert one.class_names == other.class_names
        index = np.arange(len(one))
        for read in ("read", "read_targets"):
            found = (getattr(split, read)(index) for split in (one, other))
            np.testing.assert_array_equal(*found)
        base = other.images
        while not isinstance(base, np.memmap):
            base = base.base  # of an array that was read there would be none


def test_inputs_and_targets_of_a_folder(save_folder):
    inputs = {
        "left": {"image": np.zeros((1, 3, 4, 2), np.float32)},
        "time": np.zeros((1, 1), np.float32),
    }
    path = save_folder(
        **{"left/image": IMAGES, "time": LABELS[:, None], "targets": LABELS[:, None]}
    )
    split = npz.load(path, None, inputs=inputs)["test"]
    batch = split.read(np.arange(len(split)))
    assert batch["left"]["image"].shape == (40, 3, 4, 2)
    np.testing.assert_array_equal(batch["time"], split.read_targets(np.arange(40)))


def test_a_folder_of_other_contents_has_another_fingerprint(save_folder):
    first = npz.fingerprint(save_folder(images=IMAGES, labels=LABELS))
    assert npz.fingerprint(save_folder(images=IMAGES)) == first
    assert npz.fingerprint(save_folder(labels=LABELS[::-1])) != first
    assert npz.holds_arrays(save_folder()) and not npz.holds_arrays(save_folder() / "x")


def test_folders_that_are_none(save_folder):
    path = save_folder(images=IMAGES)
    with pytest.raises(InputError, match="has no labels, it holds images"):
        npz.load(path, 3)
    (path / "labels.npy").write_bytes((path / "images.npy").read_bytes()[:90])
    with pytest.raises(InputError, match=r"labels\.npy is no plain array"):
        npz.load(path, 3)
    np.save(path / "labels.npy", np.array([{}], object))
    with pytest.raises(InputError, match=r"labels\.npy is no plain array"):
        npz.load(path, 3)
