"""What `experiments.bench` measures of PyTorch, with the same weights and images.

On a GPU channels last, TF32 as JAX uses it, cuDNN's fastest algorithms, torch.compile
with CUDA graphs. Its mode max-autotune was not ready after six minutes for one network
on an H200. On a CPU channels last, which is faster than the default there too;
compiling is not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from jax import Array
from torch import nn

from experiments.bench.measure import (
    STEPS,
    Bench,
    Prepared,
    batch_size,
    peak_memory_of_process,
    trunk_and_heads,
    turn_of,
)
from experiments.bench.torch_models import modules_of
from jaxprune.data.splits import Split, batches
from jaxprune.recipes.config import AnyConfig
from jaxprune.recipes.models import CifarVGG

_CUDA = torch.cuda.is_available()
DEVICE = "cuda" if _CUDA else "cpu"


class Network(nn.Module):
    """CifarVGG layer for layer, cut after the ReLU of a convolution.

    Attributes:
      trunk: up to and with that ReLU.
      head: the rest.
      weights: of convolutions and dense layers, by Flax's names.
    """

    def __init__(self, model: CifarVGG, variables: Any, example: Array, layer: str):
        """Takes the weights.

        Args:
          model: the Flax network.
          variables: its variables.
          example: one scaled image [1, H, W, C].
          layer: the convolution to cut after.
        """
        super().__init__()
        layers, modules = modules_of(model, variables, example)
        cut = modules.index(layers[layer]) + 2
        self.trunk = nn.Sequential(*modules[:cut])
        self.head = nn.Sequential(*modules[cut:])
        self.weights = {
            name: module.weight
            for name, module in layers.items()
            if isinstance(module, nn.Conv2d | nn.Linear)
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images [N, C, H, W]."""
        return self.head(self.trunk(x))


def _network(bench: Bench) -> Network:
    run = bench.run
    example = run.scale(run.image)
    assert isinstance(run.model, CifarVGG)
    network = Network(run.model, bench.variables, example, bench.layer)
    return ready(network)


def ready(network: nn.Module) -> Any:
    """The network on the device, in evaluation mode, in its fastest layout."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return network.eval().to(DEVICE, memory_format=torch.channels_last)


def compiled(module: Any) -> Any:
    """The module in its fastest form."""
    return torch.compile(module, mode="reduce-overhead") if _CUDA else module


def _batches(bench: Bench, split: Split, size: int | None = None) -> list[torch.Tensor]:
    """Scaled images on the device."""
    size = size or batch_size(split)
    return [scaled(bench.run.config, b.images) for b in batches(split, size)]


def scaled(config: AnyConfig, images: np.ndarray) -> torch.Tensor:
    """Images [N, H, W, C] on the device, as the network and PyTorch like them."""
    mean, std = (np.array(v, np.float32) for v in (config.pixel_mean, config.pixel_std))
    return on_device((images.astype(np.float32) - mean) / std)


def on_device(x: np.ndarray) -> torch.Tensor:
    """Scaled images [N, H, W, C] on the device, as PyTorch likes them."""
    moved = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(DEVICE)
    return moved.to(memory_format=torch.channels_last)


def finish() -> None:
    """Waits for the device."""
    if _CUDA:
        torch.cuda.synchronize()


def _warm_up(run: Callable[[], Any]) -> Any:
    """What it returns at last: on a GPU the first calls record CUDA graphs."""
    return [run() for _ in range(3 if _CUDA else 1)][-1]


def _peak_memory() -> float:
    """MiB so far: of the GPU, or of the process."""
    if _CUDA:
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_memory_of_process()


_prepared = partial(Prepared, peak_memory=_peak_memory)


def _no_gradients(function: Callable[[], Any]) -> Callable[[], Any]:
    """The function as PyTorch runs it fastest where nothing is trained."""
    return torch.inference_mode()(function)


def evaluation(bench: Bench) -> Prepared:
    """The network's predictions of all images, once; images lie scaled in memory."""
    network = compiled(_network(bench))
    images = _batches(bench, bench.split)

    @_no_gradients
    def run() -> np.ndarray:
        return np.concatenate([network(x).argmax(-1).cpu().numpy() for x in images])

    _warm_up(_no_gradients(lambda: network(images[0])))
    return _prepared(turn_of(run))


def train(bench: Bench) -> Prepared:
    """STEPS training steps of one batch each, with the same loss, no augmentation."""
    size = bench.run.training.train_batch_size
    base = _network(bench).train()
    network = compiled(base)
    l2 = bench.run.l2
    optimizer = torch.optim.Adam(base.parameters(), fused=_CUDA or None)
    index = np.arange(size) % len(bench.split)
    x = _batches(bench, bench.split.select(index), size)[0]
    y = torch.tensor(bench.split.labels[index]).to(DEVICE)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x), y)
            for name, coefficient in l2.items():
                loss = loss + coefficient * (base.weights[name] ** 2).sum()
            loss.backward()
            optimizer.step()
        finish()

    _warm_up(steps)
    return _prepared(turn_of(steps))


def one_pass(bench: Bench) -> Prepared:
    """For a few K: weights zeroed, and one pass over some of the images."""
    base = _network(bench)
    network = compiled(base)
    images = _batches(bench, bench.some)
    conv = [m for m in base.trunk if isinstance(m, nn.Conv2d)][-1]

    @_no_gradients
    def loop() -> None:
        for k in bench.loop_ks:
            conv.weight[:k] = 0
            conv.bias[:k] = 0
            for x in images:
                network(x).argmax(-1).cpu()

    _warm_up(_no_gradients(lambda: network(images[0])))
    return _prepared(turn_of(loop), share=bench.share_of_loop)


def cached_trunk(bench: Bench) -> Prepared:
    """The head for a few K on kept feature maps of some images, and the trunk once."""
    base = _network(bench)
    trunk, head = compiled(base.trunk), compiled(base.head)
    images = _batches(bench, bench.some)

    @_no_gradients
    def run_trunk() -> list[torch.Tensor]:
        maps = [trunk(x).clone() for x in images]
        finish()
        return maps

    maps = _warm_up(run_trunk)

    @_no_gradients
    def run_heads() -> None:
        for k in bench.loop_ks:
            mask = (torch.arange(bench.channels) >= k).to(DEVICE)[:, None, None]
            for feature_map in maps:
                head(feature_map * mask).argmax(-1).cpu()

    _warm_up(run_heads)
    return _prepared(trunk_and_heads(bench, run_trunk, run_heads), extrapolated=True)


MEASURES: dict[str, Callable[[Bench], Prepared]] = {
    "evaluation": evaluation,
    "training": train,
    "one_pass": one_pass,
    "cached_trunk": cached_trunk,
}
