"""Datasets of TFDS, decoded once and kept as memory-mapped arrays.

tensorflow_datasets is imported only to prepare or decode a dataset, so a machine
without it runs from the cache. TensorFlow itself is needed only to prepare one. An
entry of the cache is

    <cache_dir>/<dataset>/<fingerprint of dataset_info.json>
"""

import importlib.util
import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from jaxprune._base import schema
from jaxprune._base.errors import InputError, first_line
from jaxprune._base.files import sha256
from jaxprune.data import cache

_PROBE_SECONDS = 8
_AT_ONCE = 1024  # images in memory


@schema.and_others
class _Named(TypedDict):
    name: str


@schema.and_others
class _Info(TypedDict):
    fileFormat: NotRequired[str]
    splits: NotRequired[list[_Named]]


def split_names(
    name: str, data_dir: str | None = None, cache_dir: str | None = None
) -> tuple[str, ...]:
    """The splits of a TFDS dataset, train and test first; prepares it as `load` does.

    Raises:
      InputError: the dataset is not here and cannot be downloaded.
    """
    base, version = _parse(name)
    folder = cache.cache_folder(cache_dir) / base
    prepared = _find_prepared(base, version, data_dir)
    absent = prepared is None and data_dir is None
    entry = _only_entry(folder, version) if absent else None
    if entry is not None:
        names = _names_in(entry)
    else:
        prepared = prepared or _prepare(name, data_dir, folder)
        names = [split["name"] for split in _info(prepared).get("splits", [])]
    if not names:
        raise InputError(f"{prepared or entry} holds no split")
    return tuple(sorted(names, key=lambda n: (n != "train", n != "test")))


def load(
    name: str, split: str, data_dir: str | None = None, cache_dir: str | None = None
) -> cache.Decoded:
    """One split of a TFDS dataset: images, labels and class names.

    Reads the cache where it holds this very dataset; otherwise decodes the prepared
    dataset, after having TFDS download and prepare it if it has to.

    Args:
      name: the dataset's TFDS name, "mnist" or "mnist:3.0.1".
      split: its TFDS split.
      data_dir: folder of prepared datasets, as TFDS takes it; by default
        $TFDS_DATA_DIR or ~/tensorflow_datasets.
      cache_dir: folder of decoded arrays.

    Raises:
      InputError: the dataset is not here and cannot be downloaded.
    """
    base, version = _parse(name)
    folder = cache.cache_folder(cache_dir) / base
    prepared = _find_prepared(base, version, data_dir)
    if prepared is None and data_dir is None:
        entry = _only_entry(folder, version)
        decoded = cache.read(entry, split) if entry else None
        if decoded:
            return decoded
    if prepared is None:
        prepared = _prepare(name, data_dir, folder)
    entry = folder / sha256(prepared / "dataset_info.json")[:16]
    return cache.load(entry, split, partial(_decode, name, split, prepared))


def _data_dir(data_dir: str | None) -> Path:
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser()


def _parse(name: str) -> tuple[str, str]:
    """Name and version that a dataset is asked for by, by default any version.

    >>> _parse("mnist:3.0.1"), _parse("mnist")
    (('mnist', '3.0.1'), ('mnist', '*.*.*'))
    """
    before, _, version = name.rpartition(":")
    if not before or not version or version.strip("0123456789.*"):
        return name, "*.*.*"
    return before, version


def _find_prepared(name: str, version: str, data_dir: str | None) -> Path | None:
    """Folder of the newest such version of the dataset that is prepared here."""
    versions = [
        (tuple(map(int, path.parent.name.split("."))), path.parent)
        for path in (_data_dir(data_dir) / name).glob(f"{version}/dataset_info.json")
        if path.parent.name.replace(".", "").isdigit()
    ]
    return max(versions)[1] if versions else None


def _only_entry(folder: Path, version: str) -> Path | None:
    """The cache's only entry of a version of a dataset; None where there is none."""
    found = {
        path.parent: path.stem
        for path in folder.glob("*/*.json")
        if fnmatch(_cached_version(path), version)
    }
    if len(found) > 1:
        sources = sorted(cache.about(entry, found[entry])["source"] for entry in found)
        raise InputError(
            f"{folder} holds several datasets called {folder.name}, decoded from "
            f"{', '.join(sources)}: say which with data_dir, or remove all but one"
        )
    return next(iter(found), None)


def _cached_version(path: Path) -> str:
    """Of the dataset whose split is described in a file of the cache."""
    about = cache.about(path.parent, path.stem)
    return str(about.get("version", "")).rpartition("/")[2] or "0.0.0"


def _names_in(entry: Path) -> list[str]:
    """The splits of the dataset that an entry is of."""
    found = [path.stem for path in entry.glob("*.json")]
    lists = [cache.about(entry, split).get("splits") for split in found]
    # Older versions wrote no list, and read these two.
    return next((names for names in lists if names), ["train", "test"])


def _info(prepared: Path) -> Any:
    return schema.read(prepared / "dataset_info.json", _Info)


def _decode(name: str, split: str, prepared: Path) -> cache.Decoding:
    """A prepared split, to be decoded."""
    info = _info(prepared)
    if info.get("fileFormat") != "array_record":
        raise InputError(
            f"{prepared} is stored as {info.get('fileFormat', 'tfrecord')}, which only "
            "TensorFlow reads: give a new data_dir and it is prepared as array_record"
        )
    tfds = _import_tfds()
    with _reading(prepared):
        builder = tfds.builder_from_directory(prepared)
        features = dict(builder.info.features)
        source = builder.as_data_source(split)
    image, label = features.get("image"), features.get("label")
    shape = tuple(getattr(image, "shape", None) or ())
    names = getattr(label, "names", None)
    if len(shape) != 3 or not names or getattr(label, "shape", None):
        raise InputError(
            f"{name} holds {', '.join(sorted(features))}: an image and a label, which "
            "is a class, are needed"
        )
    if None in shape:
        raise InputError(
            f"{name} has images of several sizes: write them to a folder of images"
        )
    about = {
        "source": str(prepared.resolve()),
        "version": builder.info.full_name,
        "splits": [split["name"] for split in info["splits"]],
    }
    chunks = _chunks(source, prepared)
    return cache.Decoding(len(source), chunks, tuple(names), about)


def _chunks(source: Any, prepared: Path) -> Iterator[cache.Chunk]:
    for start in range(0, len(source), _AT_ONCE):
        with _reading(prepared):
            index = range(start, min(start + _AT_ONCE, len(source)))
            examples = [source[i] for i in index]
            images = np.stack([example["image"] for example in examples])
            labels = np.array([example["label"] for example in examples], np.int64)
        yield images, labels


@contextmanager
def _reading(prepared: Path) -> Iterator[None]:
    """Says of an error that the prepared dataset cannot be read."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"the prepared dataset {prepared} cannot be read ({first_line(error)}): "
            "give a new data_dir and it is prepared again there"
        ) from error


def _prepare(name: str, data_dir: str | None, cache: Path) -> Path:
    """Has TFDS download the dataset and prepare it, with TensorFlow; its folder."""
    folder = _data_dir(data_dir)
    missing = (
        f"{name} is not in {folder} and cannot be prepared ({{}}): with data_dir "
        "give a folder that holds it as TFDS prepares it (file_format='array_record'), "
        f"or copy another machine's decoded {cache} here"
    )
    tfds = _import_tfds(missing)
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    except Exception as error:
        raise InputError(
            f"TFDS has no dataset '{name}', and {folder} holds none "
            f"({first_line(error)})"
        ) from error
    url = next(iter(builder.url_infos), None)
    if url is not None and (reason := _unreachable(url)):
        raise InputError(missing.format(reason))
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            missing.format("this takes TensorFlow: pip install 'jaxprune[tfds]'")
        )
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise InputError(missing.format(first_line(error))) from error
    return Path(builder.data_dir)


def _import_tfds(message: str = "{}") -> Any:
    logging.getLogger("absl").addFilter(lambda record: "OpenCV" not in str(record.msg))
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            message.format(f"reading it needs tensorflow-datasets: {error}")
        ) from error
    return tfds


def _unreachable(url: str) -> str | None:
    """Why `url` does not answer within a few seconds, or None if it does.

    TFDS retries for minutes. The request runs in a thread because a name lookup has
    no timeout of its own.
    """
    reason: list[str | None] = [f"no answer from {url} within {_PROBE_SECONDS} s"]

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=_PROBE_SECONDS).close()
            reason[0] = None
        except urllib.error.HTTPError:
            reason[0] = None
        except OSError as error:
            reason[0] = f"no answer from {url}: {getattr(error, 'reason', error)}"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return reason[0]
