"""The experiments: a network with its data, its training and its report's choices."""

from dataclasses import dataclass, field
from typing import Any

from jaxprune.networks.models import CifarVGG, PairCNN


@dataclass(frozen=True)
class Recipe:
    """Defaults of an experiment; every one but the last three has a flag."""

    network: type[CifarVGG] | type[PairCNN]
    dataset: str
    criterion: str
    tap: str
    fill: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    epochs: int
    train_batch_size: int
    learning_rate: float
    warmup_epochs: float = 1.0
    source_images: int = 6000
    train_pairs: int = 0
    test_pairs: int = 0
    smallest_image: int = 8
    crop_and_flip: bool = False
    l2: dict[str, float] = field(default_factory=dict)


_PAIR: dict[str, Any] = {
    "network": PairCNN,
    "criterion": "abs_mean",
    "tap": "conv",
    "fill": "bias",
    "pixel_mean": (0.0,),
    "pixel_std": (255.0,),
    "train_batch_size": 128,
    "learning_rate": 2e-3,
}
_CONVS_WITH_L2 = ("conv2d_6", "conv2d_7", "conv2d_9", "conv2d_10", "conv2d_12")

RECIPES: dict[str, Recipe] = {
    "cifar_vgg": Recipe(
        network=CifarVGG,
        dataset="cifar10",
        criterion="mean",
        tap="relu",
        fill="zero",
        # Mean and standard deviation of CIFAR-10's training pixels.
        pixel_mean=(125.3, 122.95, 113.87),
        pixel_std=(63.0, 62.1, 66.7),
        epochs=100,
        train_batch_size=128,
        learning_rate=1e-3,
        warmup_epochs=5.0,
        smallest_image=32,
        crop_and_flip=True,
        l2=dict.fromkeys((*_CONVS_WITH_L2, "dense_2"), 1e-3),
    ),
    "mnist_pair": Recipe(
        dataset="mnist_pair", epochs=3, train_pairs=200_000, test_pairs=10_000, **_PAIR
    ),
    "digits_pair": Recipe(
        dataset="digits_pair", epochs=3, train_pairs=30_000, test_pairs=4_000, **_PAIR
    ),
}
