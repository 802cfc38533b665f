"""Criteria: a score for each channel; the lowest is pruned first.

A criterion is a function of arrays, and `CRITERIA` says which: names of NEEDS. What is
asked for is gathered in one pass over the ranking images, see
`jaxprune.sweep.statistics`.

Axes: N images, H x W positions, P channels, F features of a consumer.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num
from scipy.spatial import distance

from jaxprune.ranking.elimination import ConsumerMoments, eliminate
from jaxprune.ranking.statistics import (
    Activations,
    ConsumerInput,
    Gradients,
    MeasureLosses,
)

Scores = Float[np.ndarray, " P"]


def mean(feature_map: Float[np.ndarray, "... P"]) -> Scores:
    """Mean activation of every channel over all axes but the last.

    The criterion of the CIFAR-10 report. The mean feature map [H, W, P] gives the
    same scores as all N feature maps.
    """
    return feature_map.mean(tuple(range(feature_map.ndim - 1)), dtype=np.float64)


def abs_mean(feature_map: Float[np.ndarray, "... P"]) -> Scores:
    """Absolute value of the mean activation: the criterion of the MNIST report.

    Differs from `mean` only where activations are signed, before BatchNorm and ReLU.
    """
    return np.abs(mean(feature_map))


def std(activations: Activations) -> Scores:
    """Standard deviation over images and positions.

    What a constant in the channel's place would not give back.
    """
    return np.sqrt(activations.variance)


def apoz(zeros: Float[np.ndarray, " P"]) -> Scores:
    """Share of activations that are not zero: 1 - APoZ (Hu et al. 2016).

    Args:
      zeros: share of each channel's values that are zero behind a ReLU: at the tap, or
        where the channel is read if the tap is before it.
    """
    return 1.0 - zeros


def l1(kernel: Float[np.ndarray, "*taps I P"]) -> Scores:
    """Sum of the absolute weights of a channel's filter (Li et al. 2017)."""
    return np.abs(_filters(kernel)).sum(1)


def l2(kernel: Float[np.ndarray, "*taps I P"]) -> Scores:
    """Euclidean norm of a channel's filter (Li et al. 2017)."""
    return np.sqrt(np.square(_filters(kernel)).sum(1))


def fpgm(kernel: Float[np.ndarray, "*taps I P"]) -> Scores:
    """Sum of the distances to all other filters (FPGM; He et al. 2019).

    The filter where it is least is nearest to the geometric median: the others can
    stand for it.
    """
    filters = _filters(kernel)
    return distance.cdist(filters, filters).sum(1)


def _filters(kernel: np.ndarray) -> Float[np.ndarray, "P _"]:
    return kernel.reshape(-1, kernel.shape[-1]).T.astype(np.float64)


def bn_scale(norm_scale: Num[np.ndarray, " P"]) -> Scores:
    """|gamma| of the BatchNorm that the channels go through (Liu et al. 2017)."""
    return np.abs(norm_scale.astype(np.float64))


def taylor(gradients: Gradients) -> Scores:
    """The change of the loss, to first order, if a channel becomes zero.

    |mean over positions of a dL/da|, averaged over images (Molchanov et al. 2017); L
    is an image's cross-entropy.
    """
    return gradients.absolute / (gradients.images * gradients.positions)


def fisher(gradients: Gradients) -> Scores:
    """The change of the loss, by the diagonal of the Fisher information.

    1 / 2N times the sum over images of (sum over positions of a dL/da)^2 (Theis et al.
    2018).
    """
    return gradients.squares / (2 * gradients.images)


def wanda(consumer_inputs: Sequence[ConsumerInput], channels: int) -> Scores:
    """Standard deviation where a channel is read, times the norm of the rows there.

    How far what reads the channel moves if it becomes its mean: Wanda (Sun et al. 2024)
    for whole channels, about the mean in place of zero. Where a channel has several
    features or consumers, their squares are added up.
    """
    moved = np.zeros(channels)
    for read in consumer_inputs:
        held = read.owner >= 0
        squares = (read.activations.variance * read.rows)[held]
        moved += np.bincount(read.owner[held], squares, channels)
    return np.sqrt(moved)


def linear(consumers: Sequence[ConsumerMoments]) -> Scores:
    """The cost of pruning at the consumers under the linear fill: backward elimination.

    The channel that goes next is the one whose removal moves what the consumers return
    the least: the variance v_j that its regression on the kept channels leaves, times
    the squared norm of its row of the kernel as it is by then. Both follow from
    rank-one updates, O(P^2) a channel:

        v_j = 1 / Q_jj,   a = -Q_:j / Q_jj,   W += a W_j,   Q -= Q_:j Q_j: / Q_jj

    with Q the inverse covariance of the kept channels; where a channel holds several
    features of a group, with their block in the place of Q_jj. The residuals of one
    order are uncorrelated, so the costs add up: a channel's score is the expected
    squared change once it and all before it are gone.

    Args:
      consumers: `Fill.consumers` of a linear fill.
    """
    return eliminate(consumers, weighted=True)


def residual_variance(consumers: Sequence[ConsumerMoments]) -> Scores:
    """`linear` without the weights: the variance alone that the kept ones leave."""
    return eliminate(consumers, weighted=False)


def random(channels: int, seed: int | Sequence[int]) -> Scores:
    """Drawn uniformly from [0, 1): the control that a criterion must beat."""
    return np.random.default_rng(seed).random(channels)


def oracle(losses: MeasureLosses, channels: int) -> Scores:
    """The rise of the loss when that channel alone is pruned, measured (nats).

    Molchanov et al. 2017, "oracle-loss". Harm done by a channel counts against it;
    where many channels do a little and all in one direction, the loss without all of
    them is far from the sum: see `abs_oracle`.
    """
    before, without = losses(np.ones(channels, bool))
    return without - before


def abs_oracle(losses: MeasureLosses, channels: int) -> Scores:
    """How far the loss moves either way when that channel alone is pruned (nats).

    Molchanov et al. 2017, "oracle-abs".
    """
    return np.abs(oracle(losses, channels))


def greedy_oracle(losses: MeasureLosses, channels: int) -> Scores:
    """The step at which a channel goes when each step prunes what then costs least.

    Every step measures the loss without each channel that is left, P^2 / 2 masks in
    all; of equal losses the lowest channel's goes.
    """
    scores = np.zeros(channels)
    kept = np.ones(channels, bool)
    for step in range(channels - 1):
        gone = int(np.argmin(losses(kept).without))
        kept[gone] = False
        scores[gone] = step
    scores[kept] = channels - 1
    return scores


class Criterion(NamedTuple):
    """A score, and what it is worked out from: its arguments' names in NEEDS."""

    score: Callable[..., Scores]
    needs: tuple[str, ...]


# What a criterion can ask for.
NEEDS: dict[str, str] = {
    "mean_feature_map": "mean over the ranking images [*axes, P]",
    "activations": "`Activations` at the tap, over images and positions",
    "zeros": "share of zeros behind the ReLU [P]",
    "kernel": "the layer's [*taps, I, P]",
    "norm_scale": "of the BatchNorm behind it, by channel [P]",
    "gradients": "`Gradients` of the loss at the tap; the ranking images' labels",
    "consumer_inputs": "a `ConsumerInput` for each layer that reads the channels",
    "consumers": "`Fill.consumers` of the linear fill",
    "losses": "measures what pruning costs, with the fill; see `MeasureLosses`",
    "channels": "their number, P",
    "seed": "of random numbers",
}

CRITERIA: dict[str, Criterion] = {
    "mean": Criterion(mean, ("mean_feature_map",)),
    "abs_mean": Criterion(abs_mean, ("mean_feature_map",)),
    "std": Criterion(std, ("activations",)),
    "apoz": Criterion(apoz, ("zeros",)),
    "l1": Criterion(l1, ("kernel",)),
    "l2": Criterion(l2, ("kernel",)),
    "bn_scale": Criterion(bn_scale, ("norm_scale",)),
    "fpgm": Criterion(fpgm, ("kernel",)),
    "taylor": Criterion(taylor, ("gradients",)),
    "fisher": Criterion(fisher, ("gradients",)),
    "wanda": Criterion(wanda, ("consumer_inputs", "channels")),
    "linear": Criterion(linear, ("consumers",)),
    "residual_variance": Criterion(residual_variance, ("consumers",)),
    "random": Criterion(random, ("channels", "seed")),
    "oracle": Criterion(oracle, ("losses", "channels")),
    "abs_oracle": Criterion(abs_oracle, ("losses", "channels")),
    "greedy_oracle": Criterion(greedy_oracle, ("losses", "channels")),
}
