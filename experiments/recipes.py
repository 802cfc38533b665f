"""The experiments: a network with its data, its training and its report's choices."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.config import Config
from jaxprune.networks.models import CifarVGG, PairCNN


@dataclass(frozen=True)
class Recipe:
    """An experiment.

    Attributes:
      network: the class of the model.
      config: what the flags that are not given are.
      criterion: as the report ranks channels; has a flag, like the next two.
      tap: where the report takes the feature map.
      fill: what a pruned channel becomes in the report.
      smallest_image: pixels that a side must have.
      crop_and_flip: whether training images are shifted and mirrored.
      l2: coefficient of each layer's L2 penalty.
    """

    network: type[CifarVGG] | type[PairCNN]
    config: Config
    criterion: str
    tap: str
    fill: str
    smallest_image: int = 8
    crop_and_flip: bool = False
    l2: Mapping[str, float] = field(default_factory=dict)


def _cifar_vgg() -> Recipe:
    convs_with_l2 = ("conv2d_6", "conv2d_7", "conv2d_9", "conv2d_10", "conv2d_12")
    return Recipe(
        network=CifarVGG,
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
        l2=dict.fromkeys((*convs_with_l2, "dense_2"), 1e-3),
    )


def _pair(dataset: str, train_pairs: int, test_pairs: int) -> Recipe:
    return Recipe(
        network=PairCNN,
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


def _sizes(network: type[CifarVGG] | type[PairCNN]) -> dict[str, Any]:
    """The network's own widths; the last dense layer's is the number of classes."""
    return {"widths": tuple(network.widths), "dense": tuple(network.dense[:-1])}


RECIPES: dict[str, Recipe] = {
    "cifar_vgg": _cifar_vgg(),
    "mnist_pair": _pair("mnist_pair", 200_000, 10_000),
    "digits_pair": _pair("digits_pair", 30_000, 4_000),
}
