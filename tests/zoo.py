"""Small versions of networks as they are written in Flax: 16 x 16 images, 5 classes.

Their structure, and the way their code is put, are those of public implementations; the
channels are few. Every model is called as `model(x, train=False)` and returns logits.

    model = ZOO["resnet_v1"]()
    variables = random_variables(model, jnp.zeros((1, *EXAMPLE_SHAPE)))
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxprune.recipes.models import CifarResNet

EXAMPLE_SHAPE = (16, 16, 3)
CLASSES = 5
ModuleDef = Any

# nn.avg_pool divides by an integer.
avg_pool = jax.numpy_dtype_promotion("standard")(nn.avg_pool)


class ConvNorm(nn.Module):
    """Convolution, BatchNorm, activation."""

    features: int
    kernel: int = 3
    strides: int = 1
    groups: int = 1
    act: Callable | None = nn.relu

    @nn.compact
    def __call__(self, x, train):
        conv = partial(nn.Conv, use_bias=False, feature_group_count=self.groups)
        x = conv(self.features, (self.kernel, self.kernel), self.strides)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        return self.act(x) if self.act else x


class SqueezeExciteDense(nn.Module):
    ratio: int = 4

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        y = jnp.mean(x, axis=(1, 2))
        y = nn.relu(nn.Dense(max(1, channels // self.ratio))(y))
        y = nn.sigmoid(nn.Dense(channels)(y))
        return x * y[:, None, None, :]


class SqueezeExciteConv(nn.Module):
    reduced: int
    act: Callable = nn.relu
    gate: Callable = nn.sigmoid

    @nn.compact
    def __call__(self, x):
        y = x.mean(axis=(1, 2), keepdims=True)
        y = self.act(nn.Conv(self.reduced, (1, 1), name="reduce")(y))
        y = nn.Conv(features=x.shape[-1], kernel_size=(1, 1), name="expand")(y)
        return x * self.gate(y)


class VGG(nn.Module):
    layers: Sequence[int | str] = (8, 8, "M", 16, 16, "M", 24, "M")

    @nn.compact
    def __call__(self, x, train: bool = False):
        for layer in self.layers:
            if layer == "M":
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
            else:
                x = nn.Conv(layer, (3, 3), padding="SAME", use_bias=False)(x)
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
                x = nn.relu(x)
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(32)(x))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(CLASSES)(x)


class VGGPlain(nn.Module):
    def setup(self):
        self.conv1 = nn.Conv(features=8, kernel_size=(3, 3))
        self.conv2 = nn.Conv(features=16, kernel_size=(3, 3))
        self.conv3 = nn.Conv(features=16, kernel_size=(3, 3), padding="VALID")
        self.fc1 = nn.Dense(features=24)
        self.fc2 = nn.Dense(features=CLASSES)

    def __call__(self, x, train: bool = False):
        x = nn.relu(self.conv1(x))
        x = avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(self.conv2(x))
        x = avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(self.conv3(x))
        x = x.reshape((x.shape[0], -1))
        return self.fc2(nn.relu(self.fc1(x)))


class BasicBlock(nn.Module):
    filters: int
    conv: ModuleDef
    norm: ModuleDef
    strides: tuple[int, int] = (1, 1)
    squeeze_excite: ModuleDef | None = None

    @nn.compact
    def __call__(self, x):
        y = nn.relu(self.norm()(self.conv(self.filters, (3, 3), self.strides)(x)))
        y = self.conv(self.filters, (3, 3))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if self.squeeze_excite:
            y = self.squeeze_excite()(y)
        if x.shape != y.shape:
            x = self.conv(self.filters, (1, 1), self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class BottleneckBlock(nn.Module):
    """Of ResNet v1.5; with groups, of ResNeXt; with squeeze-excite too, of RegNetY."""

    filters: int
    conv: ModuleDef
    norm: ModuleDef
    strides: tuple[int, int] = (1, 1)
    expansion: int = 4
    groups: int = 1
    squeeze_excite: ModuleDef | None = None

    @nn.compact
    def __call__(self, x):
        features = self.filters * self.expansion
        y = nn.relu(self.norm()(self.conv(self.filters, (1, 1))(x)))
        grouped = partial(self.conv, feature_group_count=self.groups)
        y = grouped(self.filters, (3, 3), self.strides)(y)
        y = nn.relu(self.norm()(y))
        if self.squeeze_excite:
            y = self.squeeze_excite()(y)
        y = self.conv(features, (1, 1))(y)
        y = self.norm(scale_init=nn.initializers.zeros_init())(y)
        if x.shape != y.shape:
            x = self.conv(features, (1, 1), self.strides, name="conv_proj")(x)
            x = self.norm(name="norm_proj")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    block_cls: ModuleDef = BasicBlock
    stage_sizes: Sequence[int] = (1, 2)
    num_filters: int = 8
    num_groups: int | None = None  # of GroupNorm
    pooled_stem: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        conv = partial(nn.Conv, use_bias=False)
        if self.num_groups:
            norm = partial(nn.GroupNorm, num_groups=self.num_groups)
        else:
            norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
        if self.pooled_stem:
            x = conv(self.num_filters, (5, 5), (2, 2), padding=2, name="conv_init")(x)
            x = nn.relu(norm(name="norm_init")(x))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        else:
            x = conv(self.num_filters, (3, 3), name="conv_init")(x)
            x = nn.relu(norm(name="norm_init")(x))
        for i, block_size in enumerate(self.stage_sizes):
            for j in range(block_size):
                strides = (2, 2) if i > 0 and j == 0 else (1, 1)
                x = self.block_cls(self.num_filters * 2**i, conv, norm, strides)(x)
        x = jnp.mean(x, axis=(1, 2))
        return nn.Dense(CLASSES)(x)


class PreActBlock(nn.Module):
    filters: int
    strides: tuple[int, int] = (1, 1)

    @nn.compact
    def __call__(self, x, train):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train)
        activated = nn.relu(norm()(x))
        y = conv(self.filters, (3, 3), self.strides)(activated)
        y = conv(self.filters, (3, 3))(nn.relu(norm()(y)))
        if x.shape != y.shape:
            x = conv(self.filters, (1, 1), self.strides, name="shortcut")(activated)
        return x + y


class PreActResNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(8, (3, 3), use_bias=False)(x)
        for filters, strides in ((8, (1, 1)), (16, (2, 2)), (16, (1, 1))):
            x = PreActBlock(filters, strides)(x, train)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = x.mean(axis=(1, 2))
        return nn.Dense(CLASSES)(x)


class DenseLayer(nn.Module):
    growth_rate: int

    @nn.compact
    def __call__(self, x, train):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        y = nn.relu(norm()(x))
        y = nn.Conv(4 * self.growth_rate, (1, 1), use_bias=False)(y)
        y = nn.relu(norm()(y))
        y = nn.Conv(self.growth_rate, (3, 3), use_bias=False)(y)
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    growth_rate: int = 8
    num_layers: Sequence[int] = (2, 2)

    @nn.compact
    def __call__(self, x, train: bool = False):
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = nn.Conv(2 * self.growth_rate, (3, 3), use_bias=False)(x)
        for i, layers in enumerate(self.num_layers):
            if i > 0:  # transition
                x = nn.relu(norm()(x))
                x = nn.Conv(x.shape[-1] // 2, (1, 1), use_bias=False)(x)
                x = avg_pool(x, (2, 2), strides=(2, 2))
            for _ in range(layers):
                x = DenseLayer(self.growth_rate)(x, train)
        x = nn.relu(norm()(x)).mean(axis=(1, 2))
        return nn.Dense(CLASSES)(x)


class InceptionBlock(nn.Module):
    """Widths: reduced and final of each kernel; of the pool's projection."""

    b1: int
    b3: tuple[int, int]
    b5: tuple[int, int]
    pool: int

    @nn.compact
    def __call__(self, x, train):
        one = ConvNorm(self.b1, 1)(x, train)
        three = ConvNorm(self.b3[0], 1)(x, train)
        three = ConvNorm(self.b3[1], 3)(three, train)
        five = ConvNorm(self.b5[0], 1)(x, train)
        five = ConvNorm(self.b5[1], 5)(five, train)
        pool = nn.max_pool(x, (3, 3), strides=(1, 1), padding="SAME")
        pool = ConvNorm(self.pool, 1)(pool, train)
        return jnp.concatenate([one, three, five, pool], axis=-1)


class Inception(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = ConvNorm(12)(x, train)
        x = InceptionBlock(b1=8, b3=(6, 12), b5=(4, 8), pool=4)(x, train)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        x = InceptionBlock(b1=8, b3=(8, 8), b5=(4, 8), pool=8)(x, train)
        x = x.mean(axis=(1, 2))
        return nn.Dense(CLASSES)(x)


class Fire(nn.Module):
    squeeze: int
    expand: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.squeeze, (1, 1), name="squeeze")(x))
        left = nn.relu(nn.Conv(self.expand, (1, 1), name="expand1x1")(x))
        right = nn.relu(nn.Conv(self.expand, (3, 3), name="expand3x3")(x))
        return jnp.concatenate([left, right], axis=-1)


class SqueezeNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Conv(16, (3, 3), strides=(2, 2), padding="VALID")(x))
        x = Fire(squeeze=8, expand=12)(x)
        x = nn.max_pool(x, (3, 3), strides=(2, 2))
        x = Fire(squeeze=8, expand=16)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.Conv(CLASSES, (1, 1), name="classifier")(x)
        x = avg_pool(x, window_shape=x.shape[1:3])
        return x.reshape((x.shape[0], -1))


class InvertedResidual(nn.Module):
    filters: int
    strides: int = 1
    expand_ratio: int = 3

    @nn.compact
    def __call__(self, inputs, train):
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(nn.BatchNorm, use_running_average=not train)
        x = inputs
        if self.expand_ratio != 1:
            x = conv(x.shape[-1] * self.expand_ratio, kernel_size=(1, 1))(x)
            x = nn.relu6(norm()(x))
        depthwise = partial(conv, feature_group_count=x.shape[-1])
        x = depthwise(features=x.shape[-1], kernel_size=(3, 3), strides=self.strides)(x)
        x = nn.relu6(norm()(x))
        x = norm()(conv(self.filters, kernel_size=(1, 1))(x))
        return inputs + x if inputs.shape == x.shape else x


class MobileNetV2(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = ConvNorm(8, strides=2, act=nn.relu6)(x, train)
        x = InvertedResidual(8, expand_ratio=1)(x, train)
        x = InvertedResidual(12, strides=2)(x, train)
        x = InvertedResidual(12)(x, train)
        x = ConvNorm(32, kernel=1, act=nn.relu6)(x, train)
        x = jnp.mean(x, axis=(1, 2))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(CLASSES)(x)


class Bneck(nn.Module):
    kernel: int
    expanded: int
    filters: int
    reduced: int | None  # of squeeze-excite
    act: Callable
    strides: int

    @nn.compact
    def __call__(self, x, train):
        y = ConvNorm(self.expanded, 1, act=self.act)(x, train)
        depthwise = partial(ConvNorm, groups=y.shape[-1], act=self.act)
        y = depthwise(y.shape[-1], self.kernel, self.strides)(y, train)
        if self.reduced:
            y = SqueezeExciteConv(self.reduced, gate=nn.hard_sigmoid)(y)
        y = ConvNorm(self.filters, 1, act=None)(y, train)
        return x + y if x.shape == y.shape else y


class MobileNetV3(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = ConvNorm(8, strides=2, act=nn.hard_swish)(x, train)
        for settings in (
            # kernel, expanded, filters, reduced, activation, strides
            (3, 16, 8, 4, nn.relu, 1),
            (5, 24, 12, None, nn.hard_swish, 2),
            (5, 32, 12, 8, nn.hard_swish, 1),
        ):
            x = Bneck(*settings)(x, train)
        x = ConvNorm(32, kernel=1, act=nn.hard_swish)(x, train)
        x = jnp.mean(x, axis=(1, 2))
        x = nn.hard_swish(nn.Dense(32)(x))
        return nn.Dense(CLASSES)(x)


class MBConv(nn.Module):
    input_filters: int
    output_filters: int
    strides: int = 1
    expand_ratio: int = 3

    @nn.compact
    def __call__(self, inputs, train):
        x = inputs
        if self.expand_ratio != 1:
            filters = self.input_filters * self.expand_ratio
            x = ConvNorm(filters, 1, act=nn.swish, name="expand")(x, train)
        depthwise = partial(ConvNorm, groups=x.shape[-1], act=nn.swish)
        x = depthwise(x.shape[-1], 3, self.strides, name="depthwise")(x, train)
        reduced = max(1, self.input_filters // 4)
        x = SqueezeExciteConv(reduced, act=nn.swish, name="se")(x)
        x = ConvNorm(self.output_filters, 1, act=None, name="project")(x, train)
        if self.strides == 1 and self.input_filters == self.output_filters:
            x = x + inputs
        return x


class EfficientNet(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = ConvNorm(8, strides=2, act=nn.swish, name="stem")(x, train)
        x = MBConv(8, 8, expand_ratio=1, name="block0")(x, train)
        x = MBConv(8, 12, strides=2, name="block1")(x, train)
        x = MBConv(12, 12, name="block2")(x, train)
        x = ConvNorm(32, kernel=1, act=nn.swish, name="top")(x, train)
        x = avg_pool(x, x.shape[1:3]).reshape((x.shape[0], -1))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(CLASSES, name="head")(x)


class ConvNeXtBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        dim = x.shape[-1]
        y = nn.Conv(dim, (7, 7), feature_group_count=dim, name="dwconv")(x)
        y = nn.LayerNorm(epsilon=1e-6, name="norm")(y)
        y = nn.gelu(nn.Dense(4 * dim, name="pwconv1")(y))
        y = nn.Dense(dim, name="pwconv2")(y)
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (dim,))
        return x + gamma * y


class ConvNeXt(nn.Module):
    depths: Sequence[int] = (1, 2)
    dims: Sequence[int] = (8, 16)

    @nn.compact
    def __call__(self, x, train: bool = False):
        for i, (depth, dim) in enumerate(zip(self.depths, self.dims, strict=True)):
            if i > 0:
                x = nn.LayerNorm(epsilon=1e-6)(x)
            x = nn.Conv(dim, (2, 2), strides=(2, 2), padding="VALID")(x)
            if i == 0:
                x = nn.LayerNorm(epsilon=1e-6)(x)
            for _ in range(depth):
                x = ConvNeXtBlock()(x)
        x = nn.LayerNorm(epsilon=1e-6)(x.mean(axis=(1, 2)))
        return nn.Dense(CLASSES, name="head")(x)


def channel_shuffle(x, groups=2):
    n, h, w, c = x.shape
    x = x.reshape((n, h, w, groups, c // groups))
    return x.transpose((0, 1, 2, 4, 3)).reshape((n, h, w, c))


class ShuffleUnit(nn.Module):
    filters: int
    strides: int = 1

    @nn.compact
    def __call__(self, x, train):
        half = self.filters // 2
        if self.strides == 1:
            left, right = jnp.split(x, 2, axis=-1)
        else:
            left = right = x
            left = self.depthwise(left, train)
            left = ConvNorm(half, 1)(left, train)
        right = ConvNorm(half, 1)(right, train)
        right = self.depthwise(right, train)
        right = ConvNorm(half, 1)(right, train)
        return channel_shuffle(jnp.concatenate([left, right], axis=-1))

    def depthwise(self, x, train):
        channels = x.shape[-1]
        return ConvNorm(channels, 3, self.strides, groups=channels, act=None)(x, train)


class ShuffleNetV2(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = ConvNorm(8)(x, train)
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        x = ShuffleUnit(16, strides=2)(x, train)
        x = ShuffleUnit(16)(x, train)
        x = ShuffleUnit(16)(x, train)
        x = ConvNorm(32, kernel=1)(x, train)
        x = x.mean(axis=(1, 2))
        return nn.Dense(CLASSES)(x)


SEBlock = partial(BasicBlock, squeeze_excite=partial(SqueezeExciteConv, 4))
ResNeXtBlock = partial(BottleneckBlock, expansion=2, groups=4)
RegNetYBlock = partial(
    BottleneckBlock, expansion=1, groups=4, squeeze_excite=SqueezeExciteDense
)
ZOO: dict[str, Callable[[], nn.Module]] = {
    "vgg": VGG,
    "vgg_plain": VGGPlain,
    "resnet_v1": ResNet,
    "resnet_v15": partial(ResNet, BottleneckBlock, pooled_stem=True),
    "resnet_preact": PreActResNet,
    "resnet_groupnorm": partial(ResNet, num_groups=4),
    "senet_1x1": partial(ResNet, SEBlock),
    "resnext": partial(ResNet, ResNeXtBlock),
    "regnet": partial(ResNet, RegNetYBlock, num_filters=16),
    "densenet": DenseNet,
    "inception": Inception,
    "squeezenet": SqueezeNet,
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3": MobileNetV3,
    "efficientnet": EfficientNet,
    "convnext": ConvNeXt,
    "shufflenet_v2": ShuffleNetV2,
    "cifar_resnet": partial(CifarResNet, 8, (8, 12, 16), CLASSES),
}
