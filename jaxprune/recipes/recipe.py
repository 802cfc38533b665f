"""The experiments: a network with its data, its training and its report's choices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from jaxprune.recipes.config import Config
from jaxprune.recipes.models import CifarResNet, CifarVGG, PairCNN, resnet_blocks


@dataclass(frozen=True)
class Recipe:
    """An experiment.

    Attributes:
      build: configuration and number of classes -> the model.
      config: defaults of the flags.
      criterion: as the report ranks channels; has a flag, like the next two.
      tap: the place of the report's feature map, one of `TAPS`.
      fill: the fill of the report.
      smallest_image: pixels that a side must have.
      crop_and_flip: whether training images are shifted and mirrored.
      l2: configuration -> coefficient of each layer's L2 penalty.
      layer: configuration -> the convolution that is pruned where no flag names one;
        None where that is the last.
    """

    build: Callable[[Config, int], nn.Module]
    config: Config
    criterion: str
    tap: str
    fill: str
    smallest_image: int = 8
    crop_and_flip: bool = False
    l2: Callable[[Config], Mapping[str, float]] = lambda config: {}
    layer: Callable[[Config], str] | None = None

    def defaults(self, config: Config) -> "Defaults":
        """The default layer, criterion, tap and fill."""
        layer = None if self.layer is None else self.layer(config)
        return Defaults(self.criterion, self.tap, self.fill, layer)


class Defaults(NamedTuple):
    """Defaults: what is pruned, and how, where no flag says otherwise.

    Attributes:
      criterion: that ranks the channels.
      tap: the place of the feature map, one of `TAPS`; None for that after the ReLU
        where one follows the layer directly.
      fill: the fill of pruned channels.
      layer: whose channels; None for the last convolution.
    """

    criterion: str
    tap: str | None
    fill: str
    layer: str | None = None


def _cifar_vgg() -> Recipe:
    convs_with_l2 = ("conv2d_6", "conv2d_7", "conv2d_9", "conv2d_10", "conv2d_12")
    l2 = dict.fromkeys((*convs_with_l2, "dense_2"), 1e-3)
    return Recipe(
        build=_by_widths(CifarVGG),
        config=Config(
            model="cifar_vgg",
            dataset="cifar10",
            **_sizes(CifarVGG),
            # Mean and standard deviation of CIFAR-10's training pixels.
            pixel_mean=(125.3, 122.95, 113.87),
            pixel_std=(63.0, 62.1, 66.7),
            epochs=100,
            train_batch_size=128,
            learning_rate=1e-3,
            warmup_epochs=5.0,
        ),
        criterion="mean",
        tap="relu",
        fill="zero",
        smallest_image=32,
        crop_and_flip=True,
        l2=lambda config: l2,
    )


def _cifar_resnet() -> Recipe:
    """The data and schedule of cifar_vgg, with L2 on the 3x3 convolutions."""
    vgg = _cifar_vgg()

    def build(config: Config, classes: int) -> CifarResNet:
        return CifarResNet(
            config.depth, config.widths, classes, dtype=jnp.dtype(config.dtype)
        )

    def l2(config: Config) -> Mapping[str, float]:
        blocks = resnet_blocks(config.depth)
        inside = (f"{name}/{conv}" for name in blocks for conv in ("conv1", "conv2"))
        return dict.fromkeys(("conv", *inside), 1e-4)

    def layer(config: Config) -> str:
        # What conv2 returns is added to the shortcut: its channels cannot leave alone.
        return f"{resnet_blocks(config.depth)[-1]}/conv1"

    return replace(
        vgg,
        build=build,
        config=replace(
            vgg.config,
            model="cifar_resnet",
            widths=tuple(CifarResNet.widths),
            dense=(),
            depth=CifarResNet.depth,
            learning_rate=2e-3,
        ),
        tap="conv",
        smallest_image=8,
        l2=l2,
        layer=layer,
    )


def _pair(dataset: str, train_pairs: int, test_pairs: int) -> Recipe:
    return Recipe(
        build=_by_widths(PairCNN),
        config=Config(
            model=dataset,
            dataset=dataset,
            **_sizes(PairCNN),
            pixel_mean=(0.0,),
            pixel_std=(255.0,),
            epochs=3,
            train_batch_size=128,
            learning_rate=2e-3,
            train_pairs=train_pairs,
            test_pairs=test_pairs,
        ),
        criterion="abs_mean",
        tap="conv",
        fill="bias",
    )


def _by_widths(
    network: type[CifarVGG] | type[PairCNN],
) -> Callable[[Config, int], nn.Module]:
    """Builds a network of the configuration's widths and dense layers."""
    return lambda config, classes: network(
        widths=config.widths,
        dense=(*config.dense, classes),
        dtype=jnp.dtype(config.dtype),
    )


def _sizes(network: type[CifarVGG] | type[PairCNN]) -> dict[str, Any]:
    """The network's own widths; the last dense layer's is the number of classes."""
    return {"widths": tuple(network.widths), "dense": tuple(network.dense[:-1])}


RECIPES: dict[str, Recipe] = {
    "cifar_vgg": _cifar_vgg(),
    "cifar_resnet": _cifar_resnet(),
    "mnist_pair": _pair("mnist_pair", 200_000, 10_000),
    "digits_pair": _pair("digits_pair", 30_000, 4_000),
}
