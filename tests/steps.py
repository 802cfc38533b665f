"""Everything that is done with a network of a framework, one step after the other.

What must come out is computed by the framework alone: in its own network weights are
really set to zero, or a layer is given predictions that NumPy has made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

import jaxprune
from reference import check_predictions

NAMES = tuple("abcde")
RIDGE = 1e-2


@dataclass(frozen=True)
class Framework:
    """A framework's own means; models are its own, in their callers' mode.

    Attributes:
      evaluated: (model, images) -> the outputs of evaluation mode.
      zeroed: (model, reader, gone) -> the model whose layer `reader` has zeros in its
        kernel for these input channels.
      edited: (model, reader, edit, images) -> the outputs if `reader` is given
        edit(x) for its input x, which is an array.
      back: a compact network -> the smaller model.
      reloaded: (model, another of its kind, folder) -> the model, saved and loaded.
      axis: of the channels, in what `edit` is given.
    """

    evaluated: Callable[..., np.ndarray]
    zeroed: Callable[..., Any]
    edited: Callable[..., np.ndarray]
    back: Callable[[jaxprune.Compact], Any]
    reloaded: Callable[..., Any]
    axis: int = -1


def walk(
    framework, model, network, images, layer, reader, folder, *, tolerance=2e-5,
    keep_whole=(),
):  # fmt: skip
    """Takes a network through every step.

    Args:
      framework: its `Framework`.
      model: the framework's own model.
      network: what `from_*` has made of it.
      images: float32, at least 16.
      layer: name of a convolution whose channels `reader` alone reads.
      reader: way to that layer, as `zeroed` and `edited` take it.
      folder: to save to.
      tolerance: of outputs, for sums in another order.
      keep_whole: groups that `shrink` leaves.

    Returns:
      The smaller model that `shrink` has led to.
    """
    whole = framework.evaluated(model, images)
    np.testing.assert_allclose(network(images), whole, atol=tolerance, rtol=1e-4)
    channels = network.layers[layer].channels
    gone = np.arange(channels) < channels // 2

    # Its groups.
    groups = jaxprune.find_groups(network).groups
    assert layer in groups and groups[layer].units <= channels

    # One layer, dropped.
    dropped = framework.evaluated(framework.zeroed(model, reader, gone), images)
    assert np.abs(dropped - whole).max() > 3 * tolerance
    small = jaxprune.compact(network, layer, ~gone, fill="drop")
    np.testing.assert_allclose(small(images), dropped, atol=tolerance, rtol=1e-4)

    # Predicted.
    predicted = with_predictions(framework, model, reader, gone, images)
    assert np.abs(predicted - dropped).max() > 3 * tolerance
    mesh = jaxprune.make_mesh(jax.devices()[:1])
    fill = jaxprune.linear_fill(network, images, layer=layer, ridge=RIDGE, mesh=mesh)
    small = jaxprune.compact(network, layer, ~gone, fill=fill)
    np.testing.assert_allclose(small(images), predicted, atol=tolerance, rtol=1e-3)

    # A sweep, whose order is that of the channels.
    labels = np.arange(len(images)) % len(NAMES)
    split = jaxprune.image_split(images, labels, NAMES)
    tapped = jaxprune.tap_layer(network, split, layer=layer, mesh=mesh)
    ks = [0, 1, channels // 2]
    scores = np.arange(channels, dtype=float)
    result = jaxprune.sweep_layer(tapped, scores, fill="drop", ks=ks)
    for row, logits in ((0, whole), (2, dropped)):
        check_predictions(result.predictions[row], logits)
        right = (logits.argmax(-1) == labels).mean()
        assert abs(result.accuracy[row] - right) <= 0.01

    # The whole network, and back.
    small = jaxprune.shrink(network, images, speedup=1.4, keep_whole=keep_whole)
    smaller = framework.back(small)
    returned = framework.evaluated(smaller, images)
    np.testing.assert_allclose(returned, small(images), atol=tolerance, rtol=1e-4)
    again = framework.reloaded(smaller, small, folder)
    np.testing.assert_array_equal(framework.evaluated(again, images), returned)
    return smaller


def with_predictions(framework, model, reader, gone, images):
    """Outputs where ridge regression, in NumPy, predicts what a layer is not given."""
    seen = []

    def note(x):
        seen.append(np.moveaxis(np.asarray(x, np.float64), framework.axis, -1))
        return x

    framework.edited(model, reader, note, images)
    rows = np.concatenate([x.reshape(-1, len(gone)) for x in seen])
    mean = rows.mean(0)
    covariance = (rows - mean).T @ (rows - mean) / len(rows)
    ridge = RIDGE * np.trace(covariance) / len(gone) * np.eye(len(gone))
    kept = (covariance + ridge)[np.ix_(~gone, ~gone)]
    coefficients = np.linalg.solve(kept, covariance[np.ix_(~gone, gone)])

    def predict(x):
        y = np.moveaxis(np.array(x, np.float64), framework.axis, -1)
        y[..., gone] = mean[gone] + (y[..., ~gone] - mean[~gone]) @ coefficients
        return np.moveaxis(y, -1, framework.axis).astype(np.float32)

    return framework.edited(model, reader, predict, images)
