"""The pictures of all sweeps of a page; what several of them show is there once."""

from functools import cached_property
from typing import Any

import numpy as np

from jaxprune.report.page import pixels
from jaxprune.report.page.pixels import Maps, Mosaic
from jaxprune.report.page.sweeps import Sweep, TaskSweep


class Pictures:
    """Pictures as they are asked for.

    Attributes:
      maps: mean feature maps of each layer.
    """

    def __init__(self) -> None:
        self.maps: list[Maps] = []
        self._maps: dict[bytes, int] = {}
        # By size: the places of pictures, by their pixels.
        self._pools: dict[tuple[int, ...], dict[bytes, int]] = {}
        self._pictures: list[list[Any]] = []

    def feature_maps(self, sweep: Sweep | TaskSweep) -> int:
        """The place of the sweep's mean feature maps."""
        key = sweep.result.mean_feature_map.tobytes()
        if key not in self._maps:
            self._maps[key] = len(self.maps)
            self.maps.append(pixels.feature_maps(sweep.result.mean_feature_map))
        return self._maps[key]

    def places(self, images: np.ndarray, pictures: np.ndarray) -> dict[int, int]:
        """Places in their pool of the pictures of images, of as many as it takes."""
        size = pictures.shape[1:]
        pool = self.pool(pictures)
        if pool < 0:
            return {}
        held, kept = self._pools[size], self._pictures[pool]
        places = {}
        for image, picture in zip(images.tolist(), pictures, strict=True):
            key = picture.tobytes()
            if key not in held and len(held) < pixels.most_thumbnails(*size[:2]):
                held[key] = len(held)
                kept.append(picture)
            if key in held:
                places[image] = held[key]
        return places

    def pool(self, pictures: np.ndarray) -> int:
        """The pool that pictures of this size are in; -1 where there are none."""
        if not len(pictures):
            return -1
        size = pictures.shape[1:]
        if size not in self._pools:
            self._pools[size] = {}
            self._pictures.append([])
        return [*self._pools].index(size)

    @cached_property
    def pools(self) -> list[Mosaic]:
        """The thumbnails of each size, once all are asked for."""
        return [pixels.thumbnails(kept) for kept in self._pictures]
