"""What `experiments.bench` measures of PyTorch, with the same weights and images.

On a GPU in its best setting: channels last, torch.compile, TF32 as JAX uses it. On a
CPU channels last, which is faster than the default there too; compiling is not.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from flax import linen
from jax import Array
from torch import nn

from experiments.bench.measure import (
    STEPS,
    Bench,
    Prepared,
    peak_memory_of_process,
    trunk_and_heads,
    turn_of,
)
from jaxprune.channels.taps import at_path, list_layers
from jaxprune.data.splits import Split, batches
from jaxprune.networks.models import CifarVGG

_CUDA = torch.cuda.is_available()
_DEVICE = "cuda" if _CUDA else "cpu"
_BATCH = 2048 if _CUDA else 128


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
        layers = _layers(model, variables, example)
        cut = [name for name, _ in layers].index(layer) + 2
        modules = [module for _, module in layers]
        self.trunk = nn.Sequential(*modules[:cut])
        self.head = nn.Sequential(*modules[cut:])
        self.weights = {
            name: module.weight
            for name, module in layers
            if isinstance(module, nn.Conv2d | nn.Linear)
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of images [N, C, H, W]."""
        return self.head(self.trunk(x))


def _layers(
    model: CifarVGG, variables: Any, example: Array
) -> list[tuple[str, nn.Module]]:
    """Modules in order; those without parameters have no name."""
    calls = list_layers(partial(model.apply, train=False), variables, example)
    found: list[tuple[str, nn.Module]] = []
    pool_dropout, dense_dropout = iter(model.pool_dropout), iter(model.dense_dropout)

    def add(*modules: nn.Module) -> None:
        found.extend(("", module) for module in modules)

    side = example.shape[1]
    dense = 0
    for name, layer, _, output in calls:
        params = _tensors(at_path(variables["params"], name))
        if isinstance(layer, linen.Conv):
            if output.shape[1] < side:
                add(nn.MaxPool2d(2), nn.Dropout(next(pool_dropout)))
                side = output.shape[1]
            found.append((name, _conv(params)))
            add(nn.ReLU())
        elif isinstance(layer, linen.BatchNorm):
            stats = _tensors(at_path(variables["batch_stats"], name))
            found.append((name, _norm(layer, params, stats)))
        else:
            if dense == 0:
                add(nn.MaxPool2d(2), nn.Dropout(next(pool_dropout)), nn.Flatten())
            if dense < len(model.dense_dropout):
                add(nn.Dropout(next(dense_dropout)))
            found.append((name, _linear(params)))
            dense += 1
            if dense < len(model.dense):
                add(nn.ReLU())
    return found


def _tensors(arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(np.array(array)) for name, array in arrays.items()}


def _conv(params: Mapping[str, torch.Tensor]) -> nn.Conv2d:
    out, into = params["kernel"].shape[3], params["kernel"].shape[2]
    conv = nn.Conv2d(into, out, 3, padding=1)
    conv.weight.data = params["kernel"].permute(3, 2, 0, 1).contiguous()
    conv.bias.data = params["bias"]
    return conv


def _norm(
    layer: linen.BatchNorm,
    params: Mapping[str, torch.Tensor],
    stats: Mapping[str, torch.Tensor],
) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(
        len(params["scale"]), eps=layer.epsilon, momentum=1 - layer.momentum
    )
    norm.weight.data, norm.bias.data = params["scale"], params["bias"]
    norm.running_mean, norm.running_var = stats["mean"], stats["var"]
    return norm


def _linear(params: Mapping[str, torch.Tensor]) -> nn.Linear:
    linear = nn.Linear(*params["kernel"].shape)
    linear.weight.data = params["kernel"].T.contiguous()
    linear.bias.data = params["bias"]
    return linear


def _network(bench: Bench) -> Network:
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    run = bench.run
    example = run.scale(run.image)
    assert isinstance(run.model, CifarVGG)
    network = Network(run.model, bench.variables, example, bench.layer)
    return network.eval().to(_DEVICE, memory_format=torch.channels_last)


def _compiled(module: Any) -> Any:
    return torch.compile(module, mode="max-autotune") if _CUDA else module


def _batches(bench: Bench, split: Split, size: int = _BATCH) -> list[torch.Tensor]:
    """Scaled images on the device, as PyTorch likes them."""
    config = bench.run.config
    mean = np.array(config.pixel_mean, np.float32)
    std = np.array(config.pixel_std, np.float32)
    result = []
    for batch in batches(split, size):
        x = (batch.images.astype(np.float32) - mean) / std
        x = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(_DEVICE)
        result.append(x.to(memory_format=torch.channels_last))
    return result


def _finish() -> None:
    if _CUDA:
        torch.cuda.synchronize()


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
    network = _compiled(_network(bench))
    images = _batches(bench, bench.split)

    @_no_gradients
    def run() -> np.ndarray:
        return np.concatenate([network(x).argmax(-1).cpu().numpy() for x in images])

    _no_gradients(lambda: network(images[0]))()
    return _prepared(turn_of(run))


def train(bench: Bench) -> Prepared:
    """STEPS training steps of one batch each, with the same loss, no augmentation."""
    size = bench.run.config.train_batch_size
    base = _network(bench).train()
    network = _compiled(base)
    l2 = bench.run.l2
    optimizer = torch.optim.Adam(base.parameters(), fused=_CUDA or None)
    index = np.arange(size) % len(bench.split)
    x = _batches(bench, bench.split.select(index), size)[0]
    y = torch.tensor(bench.split.labels[index]).to(_DEVICE)

    def steps() -> None:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(x), y)
            for name, coefficient in l2.items():
                loss = loss + coefficient * (base.weights[name] ** 2).sum()
            loss.backward()
            optimizer.step()
        _finish()

    steps()
    return _prepared(turn_of(steps))


def one_pass(bench: Bench) -> Prepared:
    """For a few K: weights zeroed, and one pass over some of the images."""
    base = _network(bench)
    network = _compiled(base)
    images = _batches(bench, bench.some)
    conv = [m for m in base.trunk if isinstance(m, nn.Conv2d)][-1]

    @_no_gradients
    def loop() -> None:
        for k in bench.loop_ks:
            conv.weight[:k] = 0
            conv.bias[:k] = 0
            for x in images:
                network(x).argmax(-1).cpu()

    _no_gradients(lambda: network(images[0]))()
    return _prepared(turn_of(loop), share=bench.share_of_loop)


def cached_trunk(bench: Bench) -> Prepared:
    """The head for a few K on kept feature maps of some images, and the trunk once."""
    base = _network(bench)
    trunk, head = _compiled(base.trunk), _compiled(base.head)
    images = _batches(bench, bench.some)

    @_no_gradients
    def run_trunk() -> list[torch.Tensor]:
        maps = [trunk(x).clone() for x in images]
        _finish()
        return maps

    maps = run_trunk()

    @_no_gradients
    def run_heads() -> None:
        for k in bench.loop_ks:
            mask = (torch.arange(bench.channels) >= k).to(_DEVICE)[:, None, None]
            for feature_map in maps:
                head(feature_map * mask).argmax(-1).cpu()

    run_heads()
    return _prepared(trunk_and_heads(bench, run_trunk, run_heads), extrapolated=True)


MEASURES: dict[str, Callable[[Bench], Prepared]] = {
    "evaluation": evaluation,
    "training": train,
    "one_pass": one_pass,
    "cached_trunk": cached_trunk,
}
