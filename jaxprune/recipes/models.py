"""The networks: a VGG and ResNets for CIFAR-10, a small CNN for pairs of digits.

`__call__(images, train)` takes scaled float images [N, H, W, C] and returns logits
[N, classes].
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxprune._base.errors import InputError
from jaxprune.conv import conv_general_dilated, max_pool_2x2


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
            x = _norm(self, train, f"bn{i}")(_conv(self, width, f"conv{i}")(x))
            x = max_pool_2x2(nn.relu(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.dense[0], dtype=self.dtype, name="dense1")(x))
        return nn.Dense(self.dense[1], dtype=self.dtype, name="dense2")(x)


class CifarResNet(nn.Module):
    """ResNet for CIFAR-10: a convolution, three stages of residual blocks, a mean.

    He, Zhang, Ren and Sun 2016, section 4.2, with a projection (their option B) where
    the resolution changes. Their option A pads the shortcut with channels of zeros,
    which ties channel c of a stage to channel c of the next: neither could be pruned
    by itself. With the default sizes and 3 input channels it has 272,474 parameters,
    BatchNorm statistics aside.

    Attributes:
      depth: layers, 6n + 2: 20, 32, 44, 56, 110 in the paper.
      widths: channels of the three stages; the first convolution has the first's.
      classes: units of the dense layer.
      dtype: computation type; parameters stay float32.
    """

    depth: int = 20
    widths: Sequence[int] = (16, 32, 64)
    classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "N H W C"], train: bool = False
    ) -> Float[Array, "N classes"]:
        """Logits of scaled images; `train` turns on batch statistics."""
        _check_lengths(self, widths=3)
        x = _plain_conv(self, self.widths[0], "conv")(images)
        x = nn.relu(_norm(self, train, "bn")(x))
        names = resnet_blocks(self.depth)
        per_stage = len(names) // 3
        for i, name in enumerate(names):
            stage, block = divmod(i, per_stage)
            halve = stage > 0 and block == 0
            x = _Block(self.widths[stage], halve, self.dtype, name=name)(x, train)
        return nn.Dense(self.classes, dtype=self.dtype, name="dense")(x.mean((1, 2)))


def resnet_blocks(depth: int) -> tuple[str, ...]:
    """Names of a CifarResNet's residual blocks; each has a `conv1` and a `conv2`.

    >>> resnet_blocks(8)
    ('stage1_block0', 'stage2_block0', 'stage3_block0')

    Raises:
      InputError: the depth is not 6n + 2.
    """
    if depth < 8 or depth % 6 != 2:
        raise InputError(f"depth of a CifarResNet is 6n + 2 (8, 14, 20), got {depth}")
    return tuple(
        f"stage{stage}_block{block}"
        for stage in (1, 2, 3)
        for block in range(depth // 6)
    )


class _Block(nn.Module):
    """conv -> BatchNorm -> ReLU -> conv -> BatchNorm, a shortcut added, ReLU.

    Attributes:
      width: channels of both convolutions.
      halve: whether the resolution halves and the channels change: then the shortcut
        is a 1x1 convolution and BatchNorm, otherwise the block's input.
      dtype: computation type.
    """

    width: int
    halve: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = _plain_conv(self, self.width, "conv1", halve=self.halve)(x)
        y = nn.relu(_norm(self, train, "bn1")(y))
        y = _norm(self, train, "bn2")(_plain_conv(self, self.width, "conv2")(y))
        if self.halve:
            x = _plain_conv(self, self.width, "shortcut", size=1, halve=True)(x)
            x = _norm(self, train, "bn_shortcut")(x)
        return nn.relu(x + y)


def _plain_conv(
    parent: Any, width: int, name: str, *, size: int = 3, halve: bool = False
) -> nn.Conv:
    """A convolution without bias, which BatchNorm follows."""
    # SAME would pad an even image on one side only where the stride is 2.
    pad = size // 2
    return nn.Conv(
        width,
        (size, size),
        strides=2 if halve else 1,
        padding=((pad, pad), (pad, pad)) if halve else "SAME",
        use_bias=False,
        dtype=parent.dtype,
        kernel_init=nn.initializers.he_normal(),
        conv_general_dilated=conv_general_dilated,
        name=name,
    )


def _norm(parent: Any, train: bool, name: str) -> nn.BatchNorm:
    """BatchNorm with PyTorch's constants."""
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=parent.dtype,
        name=name,
    )


def _conv(parent: Any, width: int, name: str) -> nn.Conv:
    """A 3x3 convolution."""
    return nn.Conv(
        width,
        (3, 3),
        dtype=parent.dtype,
        conv_general_dilated=conv_general_dilated,
        name=name,
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
