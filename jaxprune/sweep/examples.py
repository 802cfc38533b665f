"""A few images with their targets and outputs, as pictures, where outputs can be seen.

Axes: T images, R values of K, H x W positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Num, UInt8

from jaxprune._base import processes
from jaxprune.evaluation.program import Plan
from jaxprune.sweep.activations import TappedLayer
from jaxprune.sweep.strategy import AtLayer, choose_place

# Images that are shown: half of them lose most, half of them gain most.
_SHOWN = 8
# Pixels of a picture's longer side.
_SIDE = 128


def most_moved(losses: Float[np.ndarray, "K N"], row: int) -> Int[np.ndarray, " T"]:
    """The images whose loss rises, or falls, most from the first K to another."""
    by_change = np.argsort(losses[row] - losses[0], kind="stable")
    half = min(_SHOWN, len(by_change)) // 2 or 1
    return np.unique(np.concatenate([by_change[:half], by_change[-half:]]))


def pictures(
    tapped: TappedLayer, plan: Plan, images: Int[np.ndarray, " T"], ks: list[int]
) -> dict[str, Any]:
    """The fields of a `TaskResult` that show images, where there is something to see.

    Args:
      tapped: the layer.
      plan: masks.
      images: their numbers.
      ks: the values of K.
    """
    if tapped.task.predict is None or processes.are_several():
        return {}
    outputs = np.stack([_predicted(tapped, plan, images, k) for k in ks], 1)
    targets = np.asarray(jax.tree.leaves(tapped.split.read_targets(images))[0])
    if targets.ndim not in (3, 4) or outputs.ndim != targets.ndim + 1:
        return {}
    low, high = float(targets.min()), float(targets.max())
    return {
        "shown": images,
        "shown_targets": _picture(targets, low, high),
        "shown_ks": np.array(ks),
        "shown_outputs": np.stack(
            [_picture(outputs[:, r], low, high) for r in range(len(ks))], 1
        ),
    }


def _predicted(
    tapped: TappedLayer, plan: Plan, images: Int[np.ndarray, " T"], k: int
) -> np.ndarray:
    """What the task shows of the outputs with k channels pruned."""
    place = choose_place(tapped, plan.fill, sums=False)
    assert isinstance(place, AtLayer)
    maps = np.zeros((len(images), *tapped.mean_feature_map.shape), tapped.dtype)
    for row, image in enumerate(images.tolist()):
        tapped.maps.read(image, maps[row : row + 1])
    weights = (tapped.network.arrays, plan.nested or place.constants)
    keep = np.ones(tapped.channels, bool)
    keep[plan.order[:k]] = False
    head, predict = place.head, tapped.task.predict
    assert predict is not None

    @jax.jit
    def run(weights: Any, x: Any, maps: Any, keep: Any) -> Any:
        around = head.around(weights, x)
        return predict(head.outputs(weights, around, maps, keep))

    x = jnp.asarray(tapped.split.read(images))
    return np.asarray(run(weights, x, maps, keep))


def _picture(
    values: Num[np.ndarray, "T H W *c"], low: float, high: float
) -> UInt8[np.ndarray, "T h w c"]:
    """Class indices as they are; other numbers from black, `low`, to white, `high`."""
    step = max(1, -(-max(values.shape[1:3]) // _SIDE))
    small = values[:, ::step, ::step]
    if small.ndim == 3:
        small = small[..., None]
    if np.issubdtype(values.dtype, np.integer):
        return small.clip(0, 255).astype(np.uint8)
    if small.shape[-1] != 3:
        small = small[..., :1]
    scaled = (small.astype(np.float64) - low) / max(high - low, 1e-12)
    return np.round(255 * scaled.clip(0, 1)).astype(np.uint8)
