"""Twins in PyTorch: a Flax network layer for layer, with the same weights.

Multiply-adds and parameters are counted as `jaxprune.cost` counts them.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from flax import linen
from jax import Array
from torch import nn

from jaxprune.adapters.linen import at_path, called_layers
from jaxprune.recipes.models import CifarResNet, CifarVGG, resnet_blocks


class Twin(nn.Module):
    """A CifarVGG or CifarResNet.

    Attributes:
      body: all of it.
      layers: its convolutions, BatchNorms and dense layers, by Flax's names.
    """

    def __init__(self, model: linen.Module, variables: Any, example: Array):
        """Takes the weights.

        Args:
          model: the Flax network.
          variables: its variables.
          example: one scaled image [1, H, W, C].
        """
        super().__init__()
        # A dict holds no modules for PyTorch: these are the body's, and a deep copy's
        # are those of the copy's body.
        self.layers, modules = modules_of(model, variables, example)
        self.body = nn.Sequential(*modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of scaled images [N, C, H, W]."""
        return self.body(x)


class Block(nn.Module):
    """A CifarResNet's residual block: conv1, conv2 and, where it has one, shortcut."""

    def __init__(self, layers: Mapping[str, nn.Module]):
        """Takes the layers, by their names in the block."""
        super().__init__()
        self.inner = nn.Sequential(
            layers["conv1"], layers["bn1"], nn.ReLU(), layers["conv2"], layers["bn2"]
        )
        self.shortcut = (
            nn.Sequential(layers["shortcut"], layers["bn_shortcut"])
            if "shortcut" in layers
            else nn.Identity()
        )
        self.end = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output."""
        return self.end(self.inner(x) + self.shortcut(x))


def modules_of(
    model: linen.Module, variables: Any, example: Array
) -> tuple[dict[str, nn.Module], list[nn.Module]]:
    """Layers by Flax's names, and with all that lies between them, in order.

    Args:
      model: the Flax network.
      variables: its variables.
      example: one scaled image [1, H, W, C].
    """
    calls = called_layers(partial(model.apply, train=False), variables, example)
    layers = {call.name: _layer(call.name, call.module, variables) for call in calls}
    sides = {call.name: call.output.shape[1] for call in calls}
    return layers, TWINS[type(model)](model, layers, sides)


def multiply_adds(network: nn.Module, x: torch.Tensor) -> int:
    """Multiply-adds of all convolutions and dense layers for the inputs `x`.

    Args:
      network: in evaluation mode; its convolutions have no groups.
      x: scaled images.
    """
    counts = []

    def count(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        counts.append(output[:, :1].numel() * layer.weight.numel())

    with ExitStack() as hooks, torch.inference_mode():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                hooks.enter_context(module.register_forward_hook(count))
        network(x)
    return sum(counts)


def parameters(network: nn.Module) -> int:
    """Weights and BatchNorm statistics."""
    arrays = network.state_dict().values()
    return sum(array.numel() for array in arrays if array.is_floating_point())


def _vgg(
    model: CifarVGG, layers: Mapping[str, nn.Module], sides: Mapping[str, int]
) -> list[nn.Module]:
    """A CifarVGG's modules; a pool lies where the next convolution's output is smaller.

    Args:
      model: the Flax network.
      layers: by name, in order of execution.
      sides: pixels of a side of each layer's output.
    """
    found: list[nn.Module] = []
    pool_dropout, dense_dropout = iter(model.pool_dropout), iter(model.dense_dropout)
    side, dense = next(iter(sides.values())), 0
    for name, layer in layers.items():
        if isinstance(layer, nn.Conv2d):
            if sides[name] < side:
                found += [nn.MaxPool2d(2), nn.Dropout(next(pool_dropout))]
                side = sides[name]
            found += [layer, nn.ReLU()]
        elif isinstance(layer, nn.BatchNorm2d):
            found.append(layer)
        else:
            if dense == 0:
                found += [nn.MaxPool2d(2), nn.Dropout(next(pool_dropout)), nn.Flatten()]
            if dense < len(model.dense_dropout):
                found.append(nn.Dropout(next(dense_dropout)))
            found.append(layer)
            dense += 1
            if dense < len(model.dense):
                found.append(nn.ReLU())
    return found


def _resnet(
    model: CifarResNet, layers: Mapping[str, nn.Module], sides: Mapping[str, int]
) -> list[nn.Module]:
    """A CifarResNet's modules."""
    blocks = [
        Block({name: layers[f"{block}/{name}"] for name in _IN_A_BLOCK
               if f"{block}/{name}" in layers})
        for block in resnet_blocks(model.depth)
    ]  # fmt: skip
    start = [layers["conv"], layers["bn"], nn.ReLU()]
    return [*start, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), layers["dense"]]


_IN_A_BLOCK = ("conv1", "bn1", "conv2", "bn2", "shortcut", "bn_shortcut")
TWINS: dict[type, Callable[..., list[nn.Module]]] = {
    CifarVGG: _vgg,
    CifarResNet: _resnet,
}


def _layer(name: str, layer: Any, variables: Any) -> nn.Module:
    """A layer with its weights."""
    arrays = {
        **at_path(variables["params"], name),
        **(at_path(variables["batch_stats"], name) if _is_norm(layer) else {}),
    }
    tensors = {key: torch.tensor(np.array(array)) for key, array in arrays.items()}
    if _is_norm(layer):
        return _norm(layer, tensors)
    kernel = tensors["kernel"]
    made: Any
    if isinstance(layer, linen.Dense):
        made = nn.Linear(*kernel.shape)
        made.weight.data = kernel.T.contiguous()
    else:
        size, _, into, out = kernel.shape
        made = nn.Conv2d(
            into, out, size, layer.strides, size // 2, bias="bias" in tensors
        )
        made.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
    if "bias" in tensors:
        made.bias.data = tensors["bias"]
    return made


def _is_norm(layer: Any) -> bool:
    return isinstance(layer, linen.BatchNorm)


def _norm(layer: Any, tensors: Mapping[str, torch.Tensor]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(
        len(tensors["scale"]), eps=layer.epsilon, momentum=1 - layer.momentum
    )
    norm.weight.data, norm.bias.data = tensors["scale"], tensors["bias"]
    norm.running_mean, norm.running_var = tensors["mean"], tensors["var"]
    return norm
