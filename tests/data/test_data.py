import importlib.util
import json
import os
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from jaxprune._base.errors import InputError
from jaxprune.data import datasets, tfds
from jaxprune.data.pairs import pair_split
from jaxprune.data.splits import Split, batches, image_split


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A dataset `tiny`, prepared by TFDS: 30 train, 12 test images, 3 classes."""
    folder = tmp_path_factory.mktemp("tfds")
    prepare(folder, {"train": 30, "test": 12})
    return folder


def prepare(
    folder, counts, shape=(4, 4, 1), label="label", kind=None, version="1.0.0",
    labelled=lambda i: i % 3,
):  # fmt: skip
    """Has TFDS prepare `tiny`: images of one number each, the class of which repeats.

    With a label of another name or kind it is a dataset without class.
    """
    import tensorflow_datasets

    core, features = tensorflow_datasets.core, tensorflow_datasets.features
    names = features.ClassLabel(names=["a", "b", "c"])
    kinds = {"numbers": np.int64, "several": features.Sequence(names), None: names}

    class Tiny(core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = core.Version(version)

        def _info(self):
            both = {"image": features.Image(shape=shape), label: kinds[kind]}
            return core.DatasetInfo(builder=self, features=features.FeaturesDict(both))

        def _split_generators(self, dl_manager):
            return {n: self._generate_examples(counts[n]) for n in counts}

        def _generate_examples(self, n):
            for i in range(n):
                image = Image.fromarray(np.full((4, 4), i, np.uint8))
                given = [labelled(i)] if kind == "several" else labelled(i)
                yield i, {"image": image, label: given}

    Tiny(data_dir=folder, file_format="array_record").download_and_prepare()


def load(folder, cache, split="test"):
    return tfds.load("tiny", split, folder and str(folder), str(cache))


def test_decodes_and_caches(prepared, tmp_path):
    images, labels, names = load(prepared, tmp_path, "train")
    assert images.shape == (30, 4, 4, 1) and images.dtype == np.uint8
    assert isinstance(images, np.memmap)
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 3, labels)
    assert names == ("a", "b", "c")
    (about,) = (tmp_path / "tiny").glob("*/train.json")
    assert json.loads(about.read_text())["source"] == str(prepared / "tiny" / "1.0.0")


def test_the_second_run_needs_no_tfds(prepared, tmp_path, monkeypatch):
    first = load(prepared, tmp_path)

    def absent():
        raise AssertionError("tensorflow_datasets was imported")

    monkeypatch.setattr(tfds, "_import_tfds", absent)
    for folder in (prepared, None):
        if folder is None:
            monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
        again = load(folder, tmp_path)
        np.testing.assert_array_equal(first[0], again[0])


def test_other_splits_are_decoded_when_they_are_read(tmp_path, monkeypatch):
    prepare(tmp_path / "tfds", {"validation": 6, "test": 9, "train": 12})
    folders = {"cache_dir": str(tmp_path / "cache")}
    for data_dir in (str(tmp_path / "tfds"), None):
        splits = datasets.load_any("tiny", data_dir=data_dir, **folders)
        assert splits.names == ("train", "test", "validation")
        found = [path.stem for path in tmp_path.glob("cache/tiny/*/*.json")]
        expected = ["test", "train"] if data_dir else ["test", "train", "validation"]
        assert sorted(found) == expected
        some = datasets.choose_split(splits, "validation[-50%:]+train[:3]")
        assert len(some) == 6
        assert isinstance(splits["validation"].images.base, np.memmap)
        assert datasets.overlap(splits, "validation+train", "train[:25%]+test") == 3
        # What was decoded is enough.
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
        monkeypatch.setattr(tfds, "_import_tfds", lambda *_: pytest.fail("imported"))


def test_a_dataset_without_a_test_split(tmp_path):
    prepare(tmp_path / "tfds", {"train": 6, "validation": 3})
    splits = datasets.load_any(
        "tiny", data_dir=str(tmp_path / "tfds"), cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(InputError, match="unknown split 'test'; choices: train, valid"):
        datasets.choose_split(splits, "test")
    assert (tmp_path / "tfds" / "tiny" / "1.0.0" / "dataset_info.json").exists()


def test_a_version_of_a_dataset(tmp_path, monkeypatch):
    folder, places = tmp_path / "tfds", {"cache_dir": str(tmp_path / "cache")}
    for count, version in ((3, "1.0.0"), (6, "1.2.0")):
        prepare(folder, {"train": count, "test": 3}, version=version)
    for cached in (False, True):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path if cached else folder))
        for name, count in (("tiny:1.0.0", 3), ("tiny:1.2.*", 6), ("tiny:*.*.0", 6)):
            if cached and name == "tiny:*.*.0":
                with pytest.raises(InputError, match="several datasets called tiny"):
                    datasets.load_any(name, **places)
            else:
                assert len(datasets.load_any(name, **places)["train"]) == count
        for name in ("tiny:2.0.0", "tiny:1.0", "tiny:x", "tiny:", ":1.0.0"):
            with pytest.raises(InputError, match=f"TFDS has no dataset '{name}'"):
                datasets.load_any(name, **places)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "kind"}, "tiny holds image, kind: an image and a label, which"),
        ({"kind": "numbers"}, "tiny holds image, label: an image and a label, which"),
        ({"kind": "several"}, "tiny holds image, label: an image and a label, which"),
        (
            {"labelled": lambda i: -1},
            "split 'train' of tiny: labels must lie in 0 .. 2",
        ),
        ({"shape": (None, None, 1)}, "tiny has images of several sizes: write them to"),
    ],
)
def test_datasets_that_are_not_of_labelled_images(tmp_path, options, message):
    prepare(tmp_path / "tfds", {"train": 6}, **options)
    with pytest.raises(InputError, match=message):
        datasets.load_any(
            "tiny", data_dir=str(tmp_path / "tfds"), cache_dir=str(tmp_path / "cache")
        )


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "foreign"])
def test_a_damaged_cache_is_built_again(prepared, tmp_path, damage, caplog):
    first, _, _ = load(prepared, tmp_path)
    first = np.array(first)
    (path,) = (tmp_path / "tiny").glob("*/test_images.npy")
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[:-5])
    elif damage == "flip":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "remove":
        path.unlink()
    else:
        path.with_name("test.json").write_text("[1]")
    again, _, _ = load(prepared, tmp_path)
    np.testing.assert_array_equal(first, again)
    assert "damaged" in caplog.text


def test_two_datasets_of_one_name_are_never_mixed_up(prepared, tmp_path, monkeypatch):
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    info = other / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("{", '{\n"description": "another",', 1))
    load(prepared, tmp_path / "cache")
    load(other, tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "tiny").iterdir())) == 2
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="several datasets called tiny"):
        load(None, tmp_path / "cache")


def test_a_prepared_dataset_that_is_damaged(prepared, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(prepared, broken)
    (record,) = (broken / "tiny" / "1.0.0").glob("*test*record*")
    record.write_bytes(record.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot be read .* give a new data_dir"):
        load(broken, tmp_path / "cache")
    assert record.exists()
    assert not [*(tmp_path / "cache").rglob("*.npy")]


def test_a_dataset_stored_as_tfrecord(prepared, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    info = other / "tiny" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(InputError, match="only TensorFlow reads"):
        load(other, tmp_path / "cache")


def test_absent_data_offline_fails_fast_and_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    started = time.monotonic()
    with pytest.raises(InputError) as caught:
        datasets.load(
            "mnist_pair", data_dir=str(tmp_path), cache_dir=str(tmp_path / "c")
        )
    assert time.monotonic() - started < 15
    message = str(caught.value)
    assert str(tmp_path) in message and "data_dir" in message and "copy" in message


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is here"
)
def test_absent_data_without_tensorflow_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "_unreachable", lambda url: None)
    with pytest.raises(InputError, match=r"takes TensorFlow: pip install .*\[tfds\]"):
        tfds.load("mnist", "test", str(tmp_path), str(tmp_path / "c"))
    assert not list(tmp_path.iterdir())


def check_pairs(pairs: Split, source: Split) -> None:
    digit = np.full(len(source.images), -1)
    digit[source.sources[:, 0]] = source.labels
    left, right = digit[pairs.sources].T
    assert (left >= 0).all() and (right >= 0).all()
    np.testing.assert_array_equal(pairs.labels, left == right)
    assert (pairs.sources[:, 0] != pairs.sources[:, 1]).all()
    assert pairs.labels.sum() == len(pairs) // 10


def test_pairs_of_the_embedded_digits():
    digits = datasets.load("digits")
    pairs = datasets.load("digits_pair", train_pairs=5000, test_pairs=1005)
    check_pairs(pairs["train"], digits["train"])
    check_pairs(pairs["test"], digits["test"])
    assert not set(pairs["train"].sources.flat) & set(pairs["test"].sources.flat)
    assert (
        len(set(digits["train"].sources.flat) | set(digits["test"].sources.flat))
        == 1797
    )
    assert pairs["train"].image_shape == (28, 28, 2)
    assert pairs["train"].images.shape == (1797, 28, 28, 1)  # never materialised
    example = pairs["test"].read(np.array([3]))[0]
    for channel, source in enumerate(pairs["test"].sources[3]):
        np.testing.assert_array_equal(
            example[..., channel], pairs["test"].images[source, ..., 0]
        )
    # All digits take part in both kinds, as often as they occur.
    assert len(np.unique(pairs["train"].sources)) > 1300


def test_pairs_follow_from_the_seed_alone():
    first, again, other = (
        datasets.load("digits_pair", seed=seed, train_pairs=50, test_pairs=50)[
            "train"
        ].sources
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_source_images_are_limited():
    pairs = datasets.load(
        "digits_pair", source_images=300, train_pairs=9000, test_pairs=50
    )["train"]
    assert len(np.unique(pairs.sources)) == 300


def test_impossible_pairs():
    split = datasets.load("digits")["test"]
    one = split.select(np.flatnonzero(split.labels == 3))
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="at least two digits"):
        pair_split(one, 20, rng)
    with pytest.raises(InputError, match="at least 10 pairs"):
        pair_split(split, 9, rng)


def test_batches_pad_the_last_one():
    split = datasets.load("digits")["test"]
    sizes = [batch.size for batch in batches(split, 100)]
    assert sizes == [100, 100, 100, 60]
    last = list(batches(split, 100))[-1]
    assert last.images.shape == (100, 28, 28, 1) and not last.images[60:].any()


def test_slices_of_splits():
    splits = datasets.load("digits")
    assert len(datasets.choose_split(splits, "test")) == 360
    assert len(datasets.choose_split(splits, "train[:1000]")) == 1000
    tail = datasets.choose_split(splits, "train[1400:]")
    np.testing.assert_array_equal(tail.labels, splits["train"].labels[1400:])


@pytest.mark.parametrize(
    ("which", "message"),
    [("tset", "did you mean 'test'"), ("train[5:5]", "empty"), ("test[9999:]", "empty"),
     ("test[:500%]", "lie in -100% .. 100%"), ("test[5]", "not of the form"),
     ("test[1.5:]", "whole examples"), ("train+tset[:5]", "did you mean 'test'"),
     ("train[:0]+test[:-360]", "'train' has 1437 and 'test' has 360"),
     ("train+", "not of the form"), ("test[:4:2]", "not of the form")],
)  # fmt: skip
def test_bad_splits(which, message):
    with pytest.raises(InputError, match=message):
        datasets.choose_split(datasets.load("digits"), which)


def test_unknown_dataset():
    with pytest.raises(InputError, match="did you mean 'cifar10'"):
        datasets.load("cifar-10")


@pytest.mark.parametrize(
    ("name", "shape", "last", "counts"),
    [
        ("mnist", (28, 28, 1), "9", [980, 1135]),
        ("cifar10", (32, 32, 3), "truck", [1000, 1000]),
    ],
)
def test_test_images_for_real(data_dir, decoded, name, shape, last, counts):
    images, labels, names = tfds.load(name, "test", data_dir, decoded)
    assert images.shape == (10_000, *shape) and images.dtype == np.uint8
    assert len(names) == 10 and names[-1] == last
    assert np.bincount(labels)[:2].tolist() == counts


@pytest.mark.slow
def test_mnist_pairs_for_real(data_dir, tmp_path):
    cache = os.environ.get("JAXPRUNE_TEST_CACHE", str(tmp_path))
    mnist = datasets.load("mnist", data_dir=data_dir, cache_dir=cache)
    assert len(mnist["train"]) == 60_000 and len(mnist["test"]) == 10_000
    pairs = datasets.load(
        "mnist_pair", data_dir=data_dir, cache_dir=cache,
        train_pairs=20_000, test_pairs=10_000,
    )  # fmt: skip
    check_pairs(pairs["train"], mnist["train"])
    check_pairs(pairs["test"], mnist["test"])
    assert len(np.unique(pairs["train"].sources)) <= 6000


@pytest.mark.slow
def test_cifar10_for_real(data_dir, tmp_path):
    cifar = datasets.load("cifar10", data_dir=data_dir, cache_dir=str(tmp_path))
    assert len(cifar["train"]) == 50_000 and cifar["test"].image_shape == (32, 32, 3)
    assert np.bincount(cifar["test"].labels).tolist() == [1000] * 10
    assert cifar["test"].class_names[3] == "cat"
    mean = np.asarray(cifar["train"].images).mean((0, 1, 2))
    np.testing.assert_allclose(mean, [125.3, 122.95, 113.87], atol=0.1)


def test_a_split_says_in_a_line_what_it_holds():
    split = image_split(np.zeros((4, 2, 2, 3), np.uint8), np.arange(4) % 2, ("a", "b"))
    assert repr(split) == "Split(4 examples of [2, 2, 3], 2 classes)"
    several = {"x": np.zeros((5, 2)), "t": np.zeros(5)}
    assert repr(image_split(several)) == "Split(5 examples of [], [2], no classes)"
