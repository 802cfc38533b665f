"""The two networks: a VGG for CIFAR-10 and a small CNN for pairs of digits.

Both are built from `widths` and `dense`, so a pruned network is the same class with
smaller numbers. `__call__(images, train)` takes scaled float images [N, H, W, C] and
returns logits [N, classes].
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxprune.errors import InputError
from jaxprune.networks.conv import conv_general_dilated, max_pool_2x2, with_offset


class CifarVGG(nn.Module):
    """VGG-like network with 13 convolutions; every one is conv -> ReLU (-> BatchNorm).

    Modules carry Keras's names (`conv2d_12`, `batch_normalization_10`, `dense_3`) and
    Keras's BatchNorm constants. With the default sizes and 32 x 32 x 3 images it has
    21,557,322 parameters, BatchNorm statistics included.

    Attributes:
      widths: channels of the 13 convolutions.
      dense: units of the dense layers; the last is the number of classes.
      pool_dropout: dropout rates after the five pools.
      dense_dropout: dropout rates before each dense layer but the last.
      dtype: computation type; parameters stay float32.
    """

    widths: Sequence[int] = (64, 64, 128, 128, *[256] * 3, *[512] * 6)
    dense: Sequence[int] = (4096, 1024, 512, 10)
    pool_dropout: Sequence[float] = (0.05, 0.05, 0.15, 0.2, 0.25)
    dense_dropout: Sequence[float] = (0.3, 0.5, 0.5)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], train: bool = False
    ) -> Float[Array, "N classes"]:
        """Logits of scaled images; `train` turns on dropout and batch statistics."""
        _check_lengths(self, widths=13, dense=4, pool_dropout=5, dense_dropout=3)
        x, conv, norm = images, 0, 0
        # Convolutions in each block, and how many of its last ones have a BatchNorm.
        for block, (convs, norms) in enumerate(
            [(2, 1), (2, 1), (3, 3), (3, 3), (3, 3)]
        ):
            for j in range(convs):
                name = _keras_name("conv2d", conv)
                x = nn.relu(_conv(self, self.widths[conv], name)(x))
                conv += 1
                if j >= convs - norms:
                    x = nn.BatchNorm(
                        use_running_average=not train,
                        momentum=0.99,
                        epsilon=1e-3,
                        dtype=self.dtype,
                        name=_keras_name("batch_normalization", norm),
                    )(x)
                    norm += 1
            x = max_pool_2x2(x)
            x = nn.Dropout(self.pool_dropout[block], deterministic=not train)(x)
        x = x.reshape(x.shape[0], -1)
        for j, units in enumerate(self.dense):
            if j < len(self.dense_dropout):
                x = nn.Dropout(self.dense_dropout[j], deterministic=not train)(x)
            x = nn.Dense(units, dtype=self.dtype, name=_keras_name("dense", j))(x)
            if j < len(self.dense) - 1:
                x = nn.relu(x)
        return x


class PairCNN(nn.Module):
    """[conv 3x3 -> BatchNorm -> ReLU -> max-pool] x 3, then two dense layers.

    A pair of digits comes as two channels. BatchNorm has PyTorch's constants.

    Attributes:
      widths: channels of the three convolutions `conv1` .. `conv3`.
      dense: units of the two dense layers; the last is the number of classes.
      dtype: computation type; parameters stay float32.
    """

    widths: Sequence[int] = (32, 64, 128)
    dense: Sequence[int] = (128, 2)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], train: bool = False
    ) -> Float[Array, "N classes"]:
        """Logits of scaled images; `train` turns on batch statistics."""
        _check_lengths(self, widths=3, dense=2)
        x = images
        for i, width in enumerate(self.widths, start=1):
            x = _conv(self, width, f"conv{i}")(x)
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                name=f"bn{i}",
            )(x)
            x = max_pool_2x2(nn.relu(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.dense[0], dtype=self.dtype, name="dense1")(x))
        return nn.Dense(self.dense[1], dtype=self.dtype, name="dense2")(x)


def _conv(parent: Any, width: int, name: str) -> nn.Conv:
    """A 3x3 convolution; a compacted network has a map to add to what some return."""
    function = conv_general_dilated
    if parent.has_variable("offsets", name):
        function = with_offset(
            conv_general_dilated, **parent.get_variable("offsets", name)
        )
    return nn.Conv(
        width, (3, 3), dtype=parent.dtype, conv_general_dilated=function, name=name
    )


def _keras_name(base: str, index: int) -> str:
    return base if index == 0 else f"{base}_{index}"


def _check_lengths(module: nn.Module, **lengths: int) -> None:
    for field, length in lengths.items():
        if len(getattr(module, field)) != length:
            raise InputError(
                f"{type(module).__name__} takes {length} {field}, "
                f"got {tuple(getattr(module, field))}"
            )
