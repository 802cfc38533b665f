"""CIFAR-10 and MNIST from TFDS, decoded once and kept as memory-mapped arrays.

tensorflow_datasets is imported only to prepare or decode a dataset, so a machine
without it runs from the cache. TensorFlow itself is needed only to prepare one:

    <cache_dir>/<dataset>/<fingerprint of dataset_info.json>/
        test_images.npy  test_labels.npy  test.json (class names, SHA-256, source)
"""

import importlib.util
import json
import logging
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from jaxprune._base import manifest, schema
from jaxprune._base.errors import InputError
from jaxprune._base.files import replacing, sha256, write_text

_PROBE_SECONDS = 8
_ARRAYS = ("images", "labels")
_log = logging.getLogger(__name__)

Decoded = tuple[UInt8[np.ndarray, "N H W C"], Int[np.ndarray, " N"], tuple[str, ...]]


def cache_folder(cache_dir: str | None) -> Path:
    """The folder that is named, or $XDG_CACHE_HOME/jaxprune or ~/.cache/jaxprune."""
    if cache_dir:
        return Path(cache_dir).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jaxprune"


def load(
    name: str, split: str, data_dir: str | None = None, cache_dir: str | None = None
) -> Decoded:
    """One split of a TFDS dataset: images, labels and class names.

    Reads the cache where it holds this very dataset; otherwise decodes the prepared
    dataset, after having TFDS download and prepare it if it has to.

    Args:
      name: the dataset's TFDS name.
      split: its TFDS split.
      data_dir: folder of prepared datasets, as TFDS takes it; by default
        $TFDS_DATA_DIR or ~/tensorflow_datasets.
      cache_dir: folder of decoded arrays.

    Raises:
      InputError: the dataset is not here and cannot be downloaded.
    """
    cache = cache_folder(cache_dir) / name
    prepared = _find_prepared(name, data_dir)
    if prepared is None and data_dir is None:
        entry = _only_entry(cache, split)
        decoded = _read(entry, split) if entry else None
        if decoded:
            return decoded
    if prepared is None:
        prepared = _prepare(name, data_dir, cache)
    entry = cache / sha256(prepared / "dataset_info.json")[:16]
    decoded = _read(entry, split)
    if decoded is None:
        _decode(name, split, prepared, entry)
        decoded = _read(entry, split)
    if decoded is None:
        raise InputError(f"the cache {entry} changed while it was read; run again")
    return decoded


def _data_dir(data_dir: str | None) -> Path:
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(data_dir or default).expanduser()


def _find_prepared(name: str, data_dir: str | None) -> Path | None:
    """Folder of the newest version of the dataset that is prepared on this disk."""
    versions = [
        (tuple(map(int, path.parent.name.split("."))), path.parent)
        for path in (_data_dir(data_dir) / name).glob("*.*.*/dataset_info.json")
        if path.parent.name.replace(".", "").isdigit()
    ]
    return max(versions)[1] if versions else None


def _only_entry(cache: Path, split: str) -> Path | None:
    entries = sorted(path.parent for path in cache.glob(f"*/{split}.json"))
    if len(entries) > 1:
        sources = ", ".join(_about(entry, split)["source"] for entry in entries)
        raise InputError(
            f"{cache} holds several datasets called {cache.name}, decoded from "
            f"{sources}: say which with data_dir, or remove all but one"
        )
    return entries[0] if entries else None


def _about(entry: Path, split: str) -> dict[str, Any]:
    """The entry's description; empty strings where it cannot be read."""
    try:
        about = json.loads((entry / f"{split}.json").read_text())
        return {"source": str(about["source"]), **about}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"source": f"{entry} (damaged)"}


def _read(entry: Path, split: str) -> Decoded | None:
    """The cached split, or None (and a warning) where it is absent or damaged."""
    if not (entry / f"{split}.json").is_file():
        return None
    about = _about(entry, split)
    try:
        for key in _ARRAYS:
            if sha256(entry / f"{split}_{key}.npy") != about["sha256"][key]:
                raise ValueError(f"{split}_{key}.npy does not match its checksum")
        names = manifest.digest(about["class_names"])
        if about["sha256"]["class_names"] != names:
            raise ValueError("the class names do not match their checksum")
        images = np.load(entry / f"{split}_images.npy", mmap_mode="r")
        labels = np.load(entry / f"{split}_labels.npy")
        return images, labels, tuple(about["class_names"])
    except PermissionError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("the cache %s is damaged (%s) and is built again", entry, error)
        return None


def _decode(name: str, split: str, prepared: Path, entry: Path) -> None:
    """Decodes a prepared split into the cache entry."""
    info = schema.read(prepared / "dataset_info.json", dict[str, Any])
    if info.get("fileFormat") != "array_record":
        raise InputError(
            f"{prepared} is stored as {info.get('fileFormat', 'tfrecord')}, which only "
            "TensorFlow reads: give a new data_dir and it is prepared as array_record"
        )
    tfds = _import_tfds()
    try:
        builder = tfds.builder_from_directory(prepared)
        source = builder.as_data_source(split)
        examples = [source[i] for i in range(len(source))]
        images = np.stack([example["image"] for example in examples])
        labels = np.array([example["label"] for example in examples], np.int64)
    except Exception as error:
        raise InputError(
            f"the prepared dataset {prepared} cannot be read ({_first_line(error)}): "
            "remove the folder and it is downloaded again"
        ) from error
    entry.mkdir(parents=True, exist_ok=True)
    with replacing(entry / f"{split}_images.npy") as path:
        np.save(path, images)
    with replacing(entry / f"{split}_labels.npy") as path:
        np.save(path, labels)
    about = {
        "source": str(prepared.resolve()),
        "version": builder.info.full_name,
        "class_names": builder.info.features["label"].names,
        "sha256": {
            **{key: sha256(entry / f"{split}_{key}.npy") for key in _ARRAYS},
            "class_names": manifest.digest(builder.info.features["label"].names),
        },
    }
    write_text(entry / f"{split}.json", json.dumps(about, indent=2) + "\n")


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
            f"({_first_line(error)})"
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
        raise InputError(missing.format(_first_line(error))) from error
    return Path(builder.data_dir)


def _import_tfds(message: str = "{}") -> Any:
    logging.getLogger("absl").addFilter(lambda record: "OpenCV" not in record.msg)
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


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
