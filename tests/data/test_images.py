"""Folders of images: what is decoded, what is kept, and what is no such folder."""

import os
import re
import shutil
import sys
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from jaxprune._base.errors import InputError
from jaxprune.data import cache, datasets, images

RNG = np.random.default_rng(0)
# Pillow rounds to bytes between the two axes, and where a box begins to float32.
ROUNDING = 2


@pytest.fixture(autouse=True)
def one_seed(monkeypatch):
    """The same images whichever tests are run."""
    monkeypatch.setattr(sys.modules[__name__], "RNG", np.random.default_rng(0))


def photo(shape=(12, 15, 3)):
    """Noise that is smooth enough for JPEG."""
    small = RNG.integers(0, 256, (4, 4, *shape[2:]), np.uint8)
    return np.asarray(Image.fromarray(small).resize(shape[1::-1], Image.BILINEAR))


def save(path, pixels=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo() if pixels is None else pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Classes ant, bee and cow, of 5, 6 and 7 images; hidden and other files beside."""
    place = tmp_path / "photos"
    for name, count in (("bee", 6), ("ant", 5), ("cow", 7)):
        for i in range(count):
            save(place / name / f"{i}.{('png', 'jpg', 'JPEG')[i % 3]}")
    (place / ".git").mkdir()
    (place / "ant" / ".DS_Store").write_text("x")
    (place / "README.txt").write_text("x")
    return place


@pytest.fixture
def load(tmp_path):
    """Loads a folder with a cache of the test's own."""

    def found(path, size=8, **options):
        return images.load_folder(
            path, size, cache_dir=str(tmp_path / "cache"), **options
        )

    return found


def cropped(path, size):
    """As for ImageNet: the shorter side to 256 / 224, then the centre, in two steps."""
    image = Image.open(path).convert("RGB")
    if image.size == (size, size):
        return np.asarray(image, int)
    shorter, least = round(size * 256 / 224), min(image.size)
    resized = image.resize([s * shorter // least for s in image.size], Image.BICUBIC)
    left, top = (round((side - size) / 2) for side in resized.size)
    return np.asarray(resized.crop((left, top, left + size, top + size)), int)


def test_a_folder_is_one_split_of_all_classes(folder, load):
    splits = load(folder)
    assert splits.names == ("train",)
    train = splits["train"]
    assert train.class_names == ("ant", "bee", "cow")
    assert train.images.dtype == np.uint8 and train.image_shape == (8, 8, 3)
    assert isinstance(train.images.base, np.memmap)
    assert np.bincount(train.labels).tolist() == [5, 6, 7]
    files = images.find(folder).files["train"]
    for pixels, label, file in zip(train.images, train.labels, files, strict=True):
        assert train.class_names[label] == file.name.split("/")[0]
        assert np.abs(pixels - cropped(folder / file.name, 8)).max() <= ROUNDING
    # Not class by class, but always in one order, which others do not change.
    assert (np.diff(train.labels) < 0).any()
    save(folder / "cow" / "new.png")
    names = [file.name for file in images.find(folder).files["train"]]
    assert [name for name in names if name != "cow/new.png"] == [f.name for f in files]


@pytest.mark.parametrize("shape", [(40, 30), (30, 41), (7, 7), (300, 9), (224, 224)])
@pytest.mark.parametrize("size", [7, 24])
def test_resized_and_cropped(tmp_path, load, shape, size):
    """Upwards, downwards, square, very long, and of that size already."""
    place = tmp_path / "photos"
    for name in "ab":
        save(place / name / "x.png", photo((*shape, 3)))
    split = load(place, size)["train"]
    for pixels, label in zip(split.images, split.labels, strict=True):
        expected = cropped(place / "ab"[label] / "x.png", size)
        assert np.abs(pixels - expected).max() <= ROUNDING


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"]


def test_everything_becomes_rgb(tmp_path, load):
    place = tmp_path / "photos"
    for mode in MODES:
        kind = "jpg" if mode == "CMYK" else "png"
        for name in "ab":
            path = place / name / f"{mode}.{kind}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(photo()).convert(mode)
            image.save(path, **({"transparency": b"\0\1"} if mode == "P" else {}))
    split = load(place)["train"]
    files = images.find(place).files["train"]
    for pixels, file in zip(split.images, files, strict=True):
        is_grey = (pixels == pixels[..., :1]).all()
        assert is_grey == (file.name[2:].split(".")[0] in ("1", "L", "LA"))


@pytest.mark.parametrize("name", ["validation", "val"])
def test_splits_that_the_first_level_names(folder, load, name):
    for split in ("train", name, "test"):
        shutil.copytree(folder, folder.with_name("split") / split)
    for file in ("1.jpg", "2.JPEG"):
        folder.with_name("split").joinpath("test", "bee", file).unlink()
    splits = load(folder.with_name("split"))
    assert splits.names == ("train", "validation", "test")
    assert [len(splits[split]) for split in splits.names] == [18, 18, 16]
    np.testing.assert_array_equal(splits["train"].images, load(folder)["train"].images)
    some = datasets.choose_split(splits, "validation[:10%]+test[-3:]")
    expected = [*splits["validation"].images[:2], *splits["test"].images[-3:]]
    np.testing.assert_array_equal(some.read(np.arange(5)), expected)
    assert datasets.overlap(splits, "test[:5]+train", "validation+test[4:]") == 1


def test_a_class_may_be_called_train(folder, load):
    (folder / "bee").rename(folder / "train")
    assert load(folder)["train"].class_names == ("ant", "cow", "train")


def decoded(monkeypatch):
    """The names of files that are decoded from now on."""
    names, image = [], images._image

    def spy(path, size):
        names.append(path.name)
        return image(path, size)

    monkeypatch.setattr(images, "_image", spy)
    return names


def test_what_was_decoded_is_found_again(folder, load, monkeypatch):
    counts = []
    monkeypatch.setattr(images, "_CHUNK", 5 * 8 * 8 * 3)
    first = load(folder, on_images=counts.append)
    assert sum(counts) == 18
    names, counts = decoded(monkeypatch), []
    again = load(folder, on_images=counts.append)
    assert not names and sum(counts) == 18
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(first["train"].images, again["train"].images)
    monkeypatch.chdir(folder.parent)
    load("photos")
    assert not names
    load(folder, 9)
    assert len(names) == 18
    other = folder.with_name("other")
    shutil.copytree(folder, other)
    load(other)
    assert len(names) == 36


def touch(path):
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: touch(f / "cow" / "0.png"),
        lambda f: (f / "cow" / "0.png").write_bytes((f / "cow/3.png").read_bytes()),
        lambda f: (f / "cow" / "0.png").unlink(),
        lambda f: (f / "cow" / "0.png").rename(f / "cow" / "00.png"),
        lambda f: (f / "cow").rename(f / "dog"),
        lambda f: save(f / "ant" / "new.png"),
    ],
)
def test_a_folder_that_has_changed_is_decoded_again(folder, load, monkeypatch, change):
    load(folder)
    names = decoded(monkeypatch)
    change(folder)
    split = load(folder)["train"]
    assert len(names) == len(split) >= 17
    for pixels, file in zip(
        split.images, images.find(folder).files["train"], strict=True
    ):
        assert np.abs(pixels - cropped(folder / file.name, 8)).max() <= ROUNDING
    names.clear()
    load(folder)
    assert not names


def test_only_what_changed_is_decoded(folder, load, monkeypatch):
    for split in ("train", "test"):
        shutil.copytree(folder, folder.with_name("split") / split)
    load(folder.with_name("split"))
    names = decoded(monkeypatch)
    save(folder.with_name("split") / "test" / "ant" / "new.png")
    load(folder.with_name("split"))
    assert len(names) == 19 and "new.png" in names


def test_images_are_decoded_some_at_a_time(folder, load, monkeypatch):
    whole = np.array(load(folder, 300)["train"].images)
    shutil.rmtree(folder.with_name("cache"))
    monkeypatch.setattr(images, "_CHUNK", 2 * 300 * 300 * 3 + 1)
    monkeypatch.setattr(images.os, "cpu_count", lambda: 2)
    tracemalloc.start()
    try:
        split = load(folder, 300)["train"]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two of 18 images, a chunk of them, and Pillow.
    assert peak < whole.nbytes / 2
    np.testing.assert_array_equal(split.images, whole)


def test_a_damaged_cache_is_built_again(folder, load, caplog):
    whole = np.array(load(folder)["train"].images)
    (path,) = folder.with_name("cache").rglob("train_images.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    np.testing.assert_array_equal(load(folder)["train"].images, whole)
    assert caplog.text.count("is damaged") == 1


def test_nothing_is_left_of_a_folder_that_cannot_be_decoded(folder, load):
    bad = folder / "cow" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(InputError, match=re.escape(f"{bad} cannot be decoded: ")):
        load(folder)
    left = [p.name for p in folder.with_name("cache").rglob("*") if p.is_file()]
    assert left in ([], [".lock"])
    save(bad)
    assert len(load(folder)["train"]) == 18


def test_what_a_killed_process_has_left_is_removed(folder, load):
    load(folder)
    (record,) = folder.with_name("cache").rglob("train.json")
    record.unlink()
    left = record.with_name(".train_images.999999999.tmp.npy")
    left.write_bytes(b"half of it")
    load(folder)
    assert record.exists() and not left.exists()


def test_a_cache_that_is_too_small(folder, load, monkeypatch):
    free = shutil.disk_usage(folder)._replace(free=18 * 8 * 8 * 3 - 1)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: free)
    with pytest.raises(InputError, match=r"another folder \(cache_dir\)"):
        load(folder)
    monkeypatch.setattr(
        cache.shutil, "disk_usage", lambda path: free._replace(free=free.free + 1)
    )
    load(folder)


def one_class(folder):
    shutil.rmtree(folder / "bee")
    shutil.rmtree(folder / "cow")


def split_without_class(folder):
    for name in ("train", "test"):
        shutil.copytree(folder / "ant", folder.with_name("new") / name / "ant")
        shutil.copytree(folder / "bee", folder.with_name("new") / name / "bee")
    shutil.rmtree(folder.with_name("new") / "test" / "bee")
    shutil.rmtree(folder)
    folder.with_name("new").rename(folder)


def splits_of(*names):
    def change(folder):
        for name in names:
            for kind in ("ant", "bee"):
                shutil.copytree(folder / kind, folder.with_name("new") / name / kind)
        shutil.rmtree(folder)
        folder.with_name("new").rename(folder)

    return change


def only_files_in_splits(folder):
    shutil.rmtree(folder)
    for name in ("train", "test"):
        save(folder / name / "1.png")


BAD = [
    (shutil.rmtree, "there is no folder {0}"),
    (lambda f: [shutil.rmtree(p) for p in f.iterdir() if p.is_dir()],
     "{0} holds no images: each lies in the subfolder of its class"),
    (one_class, "{0} has one class, ant: there must be two or more"),
    (lambda f: (f / "dog").mkdir(), "{0}/dog holds no images"),
    (lambda f: save(f / "ant" / "more" / "1.png"), "{0}/ant/more is a folder: the im"),
    (lambda f: save(f / "1.png"), "{0}/1.png is in no class"),
    (lambda f: (f / "bee" / "list.txt").write_text("x"), "{0}/bee/list.txt is no im"),
    (lambda f: (f / "bee" / "9.jpg").write_text("x"), "{0}/bee/9.jpg is no JPEG"),
    (lambda f: (f / "bee" / "9.jpg").write_text(""), "{0}/bee/9.jpg is no JPEG"),
    (lambda f: save(f / "bee" / "9.png", format="BMP"), "{0}/bee/9.png is no JPEG"),
    (lambda f: save(f / "bee" / "9.png", photo()[..., 0].astype(np.uint16)),
     "{0}/bee/9.png has 16 bits a pixel: convert it to 8"),
    (lambda f: (f / "bee" / "9.png").symlink_to("nothing.png"),
     "{0}/bee/9.png cannot be read: No such file"),
    (lambda f: (f / "bee" / "9.png").symlink_to("9.png"),
     "{0}/bee/9.png cannot be read: Too many levels of symbolic links"),
    (lambda f: (f / "dog").symlink_to("dog"),
     "{0}/dog cannot be read: Too many levels of symbolic links"),
    (lambda f: (f / "dog").symlink_to("."), "{0}/dog/README.txt is no image"),
    (lambda f: os.mkfifo(f / "bee" / "9.png"), "{0}/bee/9.png is no image"),
    (split_without_class, "{0}/test has no class bee"),
    (splits_of("train", "extra"), "{0} holds extra beside splits, which are train, "),
    (splits_of("val", "validation"), "{0} holds both val and validation"),
    (only_files_in_splits, "1.png is in no class: images lie in the subfolder"),
    (lambda f: (f / "bee").rename(f / "b\ne"), "class 'b\\ne' has no printable name"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BAD, ids=[b[1][:40] for b in BAD])
def test_folders_that_are_none(folder, load, change, message):
    change(folder)
    with pytest.raises(InputError, match=re.escape(message.format(folder))) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["cow/0.png", "cow"])
def test_what_may_not_be_read_is_named(folder, load, monkeypatch, place):
    """The tests may be run by a user who may read everything."""
    opened, listed = Image.open, os.listdir

    def refuse(path):
        if str(path) == str(folder / place):
            raise PermissionError(13, "Permission denied", str(path))

    def opens(path, **options):
        refuse(path)
        return opened(path, **options)

    def lists(path):
        refuse(path)
        return listed(path)

    monkeypatch.setattr(images.Image, "open", opens)
    monkeypatch.setattr(images.os, "listdir", lists)
    with pytest.raises(InputError, match=f"{place} cannot be read: Permission denied"):
        load(folder)


@pytest.mark.parametrize("size", [0, -1, True])
def test_sizes_that_are_none(folder, load, size):
    with pytest.raises(InputError, match="image_size must be an integer of at least 1"):
        load(folder, size)
