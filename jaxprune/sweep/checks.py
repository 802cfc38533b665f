"""Checks of a network whose layer is tapped, on a few images.

Axes: N images.
"""

from typing import Any

import jax
import numpy as np

from jaxprune._base.arguments import is_close
from jaxprune._base.batch import size_of, take
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import REPLICATED, Sharded, make_mesh
from jaxprune.data.splits import Split
from jaxprune.evaluation.head import shuffled_with_repeats
from jaxprune.graph.evaluate import run
from jaxprune.graph.logits import log_probabilities
from jaxprune.graph.network import Network
from jaxprune.graph.trace import shape_of
from jaxprune.sweep.taps import TAPS, capture_map, run_from_map
from jaxprune.tasks.classes import Classification
from jaxprune.tasks.task import Task, shapes


def map_of_one(network: Network, images: Any, name: str) -> jax.ShapeDtypeStruct:
    """Shape and type of one image's feature map at a convolution.

    Raises:
      InputError: no such convolution, or it does not return one map for each image.
    """
    graph = network.graph(images)
    layer = graph.with_map(name)
    output = jax.eval_shape(layer.outputs, graph.program.types[layer.output])
    maps, *shape = output.shape
    if maps != size_of(images):
        raise InputError(
            f"layer '{name}' returns {maps} feature maps for {size_of(images)} images, "
            "not one for each"
        )
    return jax.ShapeDtypeStruct(tuple(shape), output.dtype)


def check_tap(
    network: Network, images: Any, name: str, tap: str, task: Task, split: Split
) -> tuple[Network, Task, int, float]:
    """Raises unless the unmasked feature map, put back, gives the network's outputs.

    Also where an image's outputs depend on the images beside it, or do not fit the
    task.

    Returns:
      The network as it is evaluated: of one that returns probabilities where the task
      goes by logits, their logarithms. The task for the split's targets. Numbers in
      the output for one image. Seconds that compilation took.
    """

    def both_ways(arrays: Any, images: Any) -> tuple[Any, Any]:
        feature_map = TAPS[tap](capture_map(network, arrays, images, name))
        put_back = run_from_map(network, arrays, images, name, feature_map)
        return run(network.graph(images).program, arrays, images), put_back

    one = make_mesh(jax.local_devices()[:1])
    both = Sharded(both_ways, one, (REPLICATED, REPLICATED), REPLICATED)
    whole, put_back = both(network.arrays, images)
    index = shuffled_with_repeats(size_of(images))
    shuffled, _ = both(network.arrays, take(images, index))
    task = _for_targets(task, whole, images, split)
    if (taken := task.with_logits(network, whole)) is not network:
        network = taken
        whole, put_back, shuffled = map(log_probabilities, (whole, put_back, shuffled))
    what = "logits" if task.logits else "output"
    if not _are_close(take(whole, index), shuffled):
        raise InputError(
            f"the network's {what} of an image depend on the other images of its "
            "batch, or on chance: give an apply for evaluation, as with train=False"
        )
    if not _are_close(whole, put_back):
        raise InputError(
            f"tap '{tap}' is not what follows layer '{name}': the network changes when "
            f"its feature map is put back: give tap 'conv'"
        )
    elements = sum(leaf.size for leaf in jax.tree.leaves(whole)) // size_of(images)
    return network, task, elements, both.compile_seconds


def _for_targets(task: Task, outputs: Any, images: Any, split: Split) -> Task:
    """The task for a split's targets.

    Raises:
      InputError: outputs are not finite, or the task does not take them, or a target.
    """
    count = size_of(images)
    if isinstance(task, Classification):
        wanted = (count, len(split.class_names))
        if not split.has_classes:
            raise InputError("task 'classification' needs a split with labels")
        if getattr(outputs, "shape", None) != wanted:
            raise InputError(
                f"the network must return logits [N, {wanted[1]}], one for each class "
                f"name, got {shapes(outputs)} for {count} images; "
                "jaxprune.classification(output=...) names a part of what is returned"
            )
    leaves = jax.tree.leaves(outputs)
    if not leaves or any(leaf.shape[:1] != (count,) for leaf in leaves):
        raise InputError(
            f"the network's output must have the images on its first axis, got "
            f"{shapes(outputs) or 'nothing'} for {count} images"
        )
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        what = "logits are" if task.logits else "output is"
        raise InputError(f"the network's {what} not finite: check its weights")
    if task.imitates:
        targets = outputs
    elif split.targets is None and not split.has_classes:
        raise InputError(f"task '{task.name}' needs targets, and the split has none")
    else:
        targets = split.read_targets(np.arange(count))
    task.check(*(jax.tree.map(shape_of, tree) for tree in (outputs, targets)))
    if not task.imitates:
        task = task.for_targets(jax.tree.map(shape_of, outputs), split.all_targets())
    if np.isnan(jax.jit(task.loss)(outputs, targets)).any():
        raise InputError(
            f"task '{task.name}': the loss of one of the first {count} images is NaN"
        )
    return task


def _are_close(one: Any, other: Any) -> bool:
    """Whether all arrays of two trees are equal but for rounding."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(is_close(a, b) for a, b in pairs)
