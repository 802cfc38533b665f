"""Torch-Pruning's networks for a budget of multiply-adds.

As its own scripts do it: in small steps, until the multiply-adds are reached. What a
group of channels is worth is asked again in each step. Taylor's gradients are those of
the cross-entropy summed over the calibration images, whose labels it needs; they are
computed again whenever the network has become a little smaller.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch_pruning
from torch.nn import functional

from experiments.bench.pytorch import scaled
from experiments.bench.shrink import torch_training
from experiments.bench.shrink.stages import Competitor
from experiments.bench.torch_models import Twin, multiply_adds, parameters
from jaxprune._base.errors import InputError
from jaxprune._base.files import replacing
from jaxprune.cli import cluster
from jaxprune.cli.finetuning import Finetuning
from jaxprune.cli.run_directory import Run
from jaxprune.cli.shrink.ladder import Ladder
from jaxprune.data.splits import Split

PEER = "Torch-Pruning"
# Steps from the whole network to none at all; 400 is Torch-Pruning's own number.
_STEPS = 400
# Steps with the same gradients: together they remove 2.5 % of the channels.
_STEPS_OF_GRADIENTS = 10


class Method(NamedTuple):
    """A way to prune.

    Attributes:
      importance: makes what says how much a channel is worth.
      isomorphic: whether channels are compared among groups of the same form alone
        (Fang et al. 2024), not among all.
      labels: whether it needs gradients, and so labels.
    """

    importance: Callable[[], torch_pruning.importance.Importance]
    isomorphic: bool
    labels: bool


def _magnitude() -> torch_pruning.importance.Importance:
    return torch_pruning.importance.GroupMagnitudeImportance(p=2)


def _taylor() -> torch_pruning.importance.Importance:
    return torch_pruning.importance.GroupTaylorImportance()


METHODS = {
    "group L2, global": Method(_magnitude, isomorphic=False, labels=False),
    "group L2, isomorphic": Method(_magnitude, isomorphic=True, labels=False),
    "group Taylor, global": Method(_taylor, isomorphic=False, labels=True),
    "group Taylor, isomorphic": Method(_taylor, isomorphic=True, labels=True),
}


def competitor(
    tuning: Finetuning,
    ladder: Ladder,
    whole: Twin,
    name: str,
    limit: float,
    calibration: Split,
) -> Competitor:
    """The network that a method makes.

    Args:
      tuning: the fine-tuning.
      ladder: of the network that is cut, for its job and images.
      whole: the network in PyTorch.
      name: of the method.
      limit: multiply-adds for one image, at most.
      calibration: images for gradients, with labels, and to recalibrate on.

    Raises:
      InputError: see `cut`.
    """
    run, split, method = ladder.run, ladder.whole.split, METHODS[name]
    example = scaled(run.config, np.asarray(run.image))
    network = cut(
        run, whole, method, example, limit, calibration, ladder.settings.keep_whole
    )
    return Competitor(
        by=PEER,
        method=name,
        labels=method.labels,
        facts={
            "multiply_adds": multiply_adds(network, example),
            "parameters": parameters(network),
            "widths": _widths(network),
        },
        state=network,
        accuracy=lambda network: torch_training.accuracy(run, network, split),
        recalibrated=lambda network: torch_training.recalibrated(
            run, network, calibration, tuning.batch_size
        ),
        finetuned=lambda network, way: torch_training.finetuned(
            tuning, network, whole, way
        ),
        loss=lambda network: torch_training.finetuning_loss(tuning, network, whole),
        save=lambda path: save(network, path),
    )


def save(network: Twin, path: Path) -> None:
    """Writes the network, whole or not at all, for `torch.load`."""
    with replacing(path) as temporary:
        torch.save(network, temporary)


def cut(
    run: Run,
    whole: Twin,
    method: Method,
    example: torch.Tensor,
    limit: float,
    calibration: Split,
    keep_whole: Sequence[str] = (),
) -> Twin:
    """A copy of the network, cut to at most so many multiply-adds.

    Args:
      run: the run directory's job.
      whole: the network.
      method: importance and scope of the pruning.
      example: one scaled image.
      limit: multiply-adds for one image, at most.
      calibration: images with labels, for the gradients.
      keep_whole: layers of which nothing is pruned.

    Raises:
      InputError: Torch-Pruning prunes no further before the limit is reached.
    """
    network = copy.deepcopy(whole).eval()
    last = list(network.layers)[-1]  # the logits
    pruner = torch_pruning.BasePruner(
        network,
        example,
        importance=method.importance(),
        global_pruning=True,
        isomorphic=method.isomorphic,
        pruning_ratio=1.0,
        iterative_steps=_STEPS,
        ignored_layers=[network.layers[name] for name in (*keep_whole, last)],
    )
    count = start = multiply_adds(network, example)
    with cluster.progress(total=_STEPS, desc="Torch-Pruning", unit="step") as bar:
        for step in range(_STEPS):
            if count <= limit:
                break
            if method.labels and step % _STEPS_OF_GRADIENTS == 0:
                _accumulate(run, network, calibration)
            pruner.step()
            count = multiply_adds(network, example)
            bar.update()
    if count > limit:
        raise InputError(
            f"Torch-Pruning gets no further than {start / count:.3g} times fewer "
            "multiply-adds: lower --speedup"
        )
    network.zero_grad()
    return network


def _accumulate(run: Run, network: Twin, calibration: Split) -> None:
    """Gradients of the summed cross-entropy, as the network is when it is used."""
    network.zero_grad()
    for x, labels in torch_training.labelled(
        run, calibration, run.batch_size(calibration)
    ):
        functional.cross_entropy(network(x), labels, reduction="sum").backward()


def _widths(network: Twin) -> dict[str, int]:
    """Channels of each convolution and units of each dense layer."""
    return {
        name: len(layer.weight)
        for name, layer in network.layers.items()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
    }
