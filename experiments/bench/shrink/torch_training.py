"""A PyTorch network evaluated, recalibrated and fine-tuned.

Fine-tuning is `jaxprune.cli.finetuning`'s, step by step: the same images in the same
order, with the same shifts, flips and blending (they are drawn by the same keys), the
same loss, teacher, Adam and cosine decay, and BatchNorm's momentum. Only rounding is
another.
"""

import copy
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from experiments.bench.pytorch import DEVICE, on_device, scaled
from experiments.bench.torch_models import Twin
from jaxprune._base.errors import InputError
from jaxprune.cli import cluster
from jaxprune.cli.finetuning import Finetuning, Way
from jaxprune.cli.run_directory import Run
from jaxprune.cli.settings import EpochSettings
from jaxprune.data.splits import Split
from jaxprune.training import loop
from jaxprune.training.finetune import MOMENTUM
from jaxprune.training.hyperparameters import TRAINING


def accuracy(run: Run, network: Twin, split: Split) -> float:
    """Share of the split's images that the network predicts right, in [0, 1]."""
    size, right = run.batch_size(split), 0
    network.eval()
    with (
        cluster.progress(total=len(split), unit="img", desc="PyTorch") as bar,
        torch.inference_mode(),
    ):
        for x, labels in labelled(run, split, size):
            right += int((network(x).argmax(-1) == labels).sum())
            bar.update(len(labels))
    return right / len(split)


def labelled(
    run: Run, split: Split, size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Scaled images and labels in order; the last batch is as small as it is."""
    for start in range(0, len(split), size):
        index = np.arange(start, min(start + size, len(split)))
        yield scaled(run.config, split.read(index)), _tensor(split.labels[index])


def recalibrated(run: Run, network: Twin, split: Split, size: int) -> Twin:
    """A copy of the network with BatchNorm's statistics estimated over whole batches.

    Each batch is normalised by its own statistics, dropout is off, and the means of the
    batches' statistics are kept: `torch.optim.swa_utils.update_bn` without dropout.
    """
    network = copy.deepcopy(network).eval()
    norms = _norms(network)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    whole_batches = split.select(np.arange(len(split) // size * size))
    with torch.no_grad():
        for x, _ in labelled(run, whole_batches, size):
            network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def finetuned(tuning: Finetuning, network: Twin, whole: Twin, way: Way) -> Twin:
    """A copy of the network after the epochs of fine-tuning.

    Args:
      tuning: the fine-tuning.
      network: stays as it is.
      whole: that --distill learns from.
      way: how.

    Raises:
      InputError: a loss is not finite.
    """
    network = copy.deepcopy(network)
    settings, split = tuning.settings, tuning.images()
    size = tuning.batch_size
    per_epoch = loop.steps_per_epoch(split, size)
    optimizer = torch.optim.Adam(network.parameters(), way.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, settings.finetune_epochs * per_epoch
    )
    network.eval()
    if way.batch_norm == TRAINING:
        for norm in _norms(network):
            norm.momentum = 1 - MOMENTUM
            norm.train()
    inputs = jax.jit(tuning.inputs)
    for epoch in range(settings.finetune_epochs):
        order = loop.epoch_order(tuning.seed, epoch, len(split), size)
        for i, index in enumerate(order):
            key = loop.step_keys(tuning.seed, jnp.int32(epoch * per_epoch + i))[0]
            x = on_device(np.asarray(inputs(key, jnp.asarray(split.read(index)))))
            optimizer.zero_grad()
            labels = _tensor(split.labels[index])
            loss = _loss(settings, network, whole, x, labels)
            loss.backward()
            optimizer.step()
            schedule.step()
            if not np.isfinite(loss.item()):
                raise InputError(
                    f"the loss of a network of Torch-Pruning is {loss.item()} in epoch "
                    f"{epoch + 1}: lower --finetune_learning_rate"
                )
    return network.eval()


def finetuning_loss(tuning: Finetuning, network: Twin, whole: Twin) -> float:
    """As `jaxprune.cli.finetuning.Finetuning.loss` has it."""
    run, split = tuning.run, tuning.images()
    size = tuning.batch_size
    count = loop.steps_per_epoch(split, size) * size
    network.eval()
    with torch.no_grad():
        losses = [
            _loss(tuning.settings, network, whole, x, labels).item()
            for x, labels in labelled(run, split.select(np.arange(count)), size)
        ]
    return float(np.mean(losses))


def _norms(network: Twin) -> list[nn.BatchNorm2d]:
    return [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]


def _loss(
    settings: EpochSettings,
    network: Twin,
    whole: Twin,
    x: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Of a batch, as `jaxprune.training.losses` has it."""
    weight = settings.distill_weight if settings.distill else 0.0
    temperature = settings.distill_temperature
    logits = network(x)
    loss = torch.zeros((), device=DEVICE)
    if settings.distill:
        with torch.no_grad():
            target = whole(x)
        student, teacher = (
            functional.log_softmax(y / temperature, -1) for y in (logits, target)
        )
        divergence = functional.kl_div(
            student, teacher, reduction="batchmean", log_target=True
        )
        loss = loss + weight * temperature**2 * divergence
    if weight < 1:
        loss = loss + (1 - weight) * functional.cross_entropy(logits, labels)
    return loss


def _tensor(labels: np.ndarray) -> torch.Tensor:
    return torch.tensor(labels, dtype=torch.int64, device=DEVICE)
