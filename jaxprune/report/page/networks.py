"""The smaller networks of a run directory, as tables of the page."""

import os
from pathlib import Path
from typing import Any, NamedTuple, NotRequired
from urllib.parse import quote

from typing_extensions import TypedDict

from jaxprune._base import manifest, schema
from jaxprune.report.measures import ACCURACY, check_measure


class Download(NamedTuple):
    """A file beside the page.

    Attributes:
      name: of the file.
      href: relative to the page.
      size: in bytes.
    """

    name: str
    href: str
    size: int


class Network(NamedTuple):
    """A network that was saved.

    Attributes:
      name: of its folder.
      score: its first score, after fine-tuning if it was trained.
      baseline: that of the whole network.
      measured: its figures, as the script that made it keeps them.
      downloads: its files.
    """

    name: str
    score: float
    baseline: float
    measured: dict[str, Any]
    downloads: list[Download]


@schema.and_others
class _Times(TypedDict):
    speedup: float


@schema.and_others
class _Measured(TypedDict):
    """The fields of a network that are shown; there are more."""

    parameters: int
    parameters_before: int
    multiply_adds: int
    multiply_adds_before: int
    file_bytes: int
    latency: dict[str, _Times]


@schema.and_others
class _About(TypedDict):
    measure: NotRequired[str]
    measured: _Measured


@schema.and_others
class _Spec(TypedDict):
    about: _About


def saved_networks(workdir: Path, page: Path, prefix: str) -> list[Network]:
    """The networks in the folders whose names begin so, see `compaction.artefact`.

    Args:
      workdir: the run directory.
      page: the folder that the page is for, which links are relative to.
      prefix: "compact" or "shrink".

    Raises:
      InputError: a network's record is damaged.
    """
    return [
        _network(path, page) for path in sorted(workdir.glob(f"{prefix}-*/spec.json"))
    ]


def _network(path: Path, page: Path) -> Network:
    about = manifest.read_file(path, _Spec)["about"]
    measured = about["measured"]
    measure = check_measure(path, about.get("measure", ACCURACY), [measured])
    return Network(
        path.parent.name,
        measured.get(f"{measure}_finetuned", measured[measure]),
        measured[f"baseline_{measure}"],
        measured,
        [_download(file, page) for file in sorted(path.parent.iterdir())],
    )


def _download(file: Path, page: Path) -> Download:
    where = os.path.relpath(file.resolve(), page.resolve())
    return Download(file.name, quote(Path(where).as_posix()), file.stat().st_size)
