"""The images for a user's network: --data=my.npz, a folder, a TFDS name."""

from collections.abc import Collection
from pathlib import Path

from jaxprune._base.errors import InputError, check_choice
from jaxprune.cli import cluster
from jaxprune.cli.settings import NetworkSettings
from jaxprune.cli.user_network import SHA256, UserNetwork
from jaxprune.data import datasets, npz, slices
from jaxprune.data import images as folders
from jaxprune.data.datasets import Splits
from jaxprune.data.images import ImageFolder
from jaxprune.recipes.config import UserConfig


def folder(settings: NetworkSettings) -> ImageFolder | None:
    """The folder of images that --data names; None where it names something else.

    Raises:
      InputError: it holds something else, or --image_size has no folder to go with.
    """
    data = settings.data
    if (
        data is not None
        and data not in datasets.DATASETS
        and Path(data).is_dir()
        and not npz.holds_arrays(Path(data))
    ):
        return folders.find(data)
    if settings.image_size is not None:
        raise InputError(
            "--image_size is of a folder of images, and --data names "
            f"{'none' if data is None else data}"
        )
    return None


def described(
    data: str | None, network: UserNetwork, folder: ImageFolder | None
) -> str | None:
    """The images as the configuration has them: a name, or a SHA-256.

    Args:
      data: of the flag; None where it is not given.
      network: the network that takes them.
      folder: the folder, if it is one.
    """
    if data is None:
        return None
    if folder is not None:
        return f"{SHA256}{folder.fingerprint(network.side)}"
    return f"{SHA256}{npz.fingerprint(_existing(data))}" if _is_file(data) else data


def images(
    settings: NetworkSettings,
    conf: UserConfig,
    network: UserNetwork,
    folder: ImageFolder | None,
) -> Splits:
    """The images that the network is tested on, and those that fits are made on.

    Raises:
      InputError: they are not to be had, or not what the network takes.
    """
    data = settings.data or conf.dataset
    if (
        network.inputs is not None
        and not data.startswith(SHA256)
        and not _is_file(data)
    ):
        names = ", ".join(npz.input_names(network.inputs))
        raise InputError(
            f"{conf.model} takes several inputs: give {names} in an .npz file, --data"
        )
    if network.classes is None and not _is_file(data) and conf.task != "imitation":
        if data.startswith(SHA256):
            raise InputError("give --data again, the .npz file with the targets")
        raise InputError(
            f"--task={conf.task} takes --data=images.npz with targets; {data} has "
            "classes"
        )
    if folder is not None:
        size = network.side
        numbers = folder.numbers(network.classes)
        of_classes = folder.class_names if numbers is None else numbers
        _check(conf, data, network, (size, size, 3), of_classes)
        _check_splits(settings, folder.files)
        with cluster.progress(
            total=len(folder), unit="img", desc="decoding", delay=1
        ) as bar:
            splits = folders.decode(
                folder, size, cache_dir=settings.cache_dir, on_images=bar.update
            )
        return splits if numbers is None else splits.numbered(numbers)
    if data.startswith(SHA256):
        raise InputError("the images are a file's or folder's: say which with --data")
    if _is_file(data):
        path = _existing(data)
        splits = npz.load(path, network.classes, conf.seed, network.inputs)
    else:
        splits = datasets.load_any(
            data,
            data_dir=settings.data_dir,
            cache_dir=settings.cache_dir,
            seed=conf.seed,
        )
    first = splits.first
    shape = first.image_shape if network.inputs is None else ()
    _check(conf, data, network, shape, first.class_names)
    _check_splits(settings, splits.names)
    return splits


def _check_splits(settings: NetworkSettings, names: Collection[str]) -> None:
    """Raises InputError where a flag names a split that there is not."""
    for flag in ("rank_split", "eval_split", "select_split", "calibration_split"):
        which = getattr(settings, flag, None)  # of those that the command has
        try:
            for part in slices.parse(which) if which is not None else ():
                check_choice("split", part.name, names)
        except InputError as error:
            raise InputError(f"--{flag}: {error}") from None


def _check(
    conf: UserConfig,
    data: str,
    network: UserNetwork,
    shape: tuple[int, ...],
    names: tuple[str, ...],
) -> None:
    """Raises InputError if images or classes are not what the network takes."""
    if network.inputs is None and network.channels_first(shape) is None:
        taken = ("any" if size is None else str(size) for size in network.shape)
        raise InputError(
            f"{data} has images [{', '.join(map(str, shape))}], and {conf.model} takes "
            f"[{', '.join(taken)}], by its example"
        )
    if network.classes is not None and len(names) != network.classes:
        raise InputError(
            f"{data} has {len(names)} classes, and {conf.model} tells "
            f"{network.classes} apart"
        )


def _is_file(data: str) -> bool:
    """Whether --data names a file or a folder of arrays, and no dataset of TFDS."""
    if data.endswith(".npz") or "/" in data:
        return True
    return Path(data).is_file() or npz.holds_arrays(Path(data))


def _existing(data: str) -> Path:
    if not Path(data).is_file() and not npz.holds_arrays(Path(data)):
        kind = "file" if data.endswith(".npz") else "file or folder"
        raise InputError(f"--data: there is no {kind} {data}")
    return Path(data)
