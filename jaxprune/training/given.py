"""What a fine-tuning is given, and whether it fits the networks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxprune._base import arguments
from jaxprune._base.batch import path_name, size_of
from jaxprune._base.errors import InputError, first_line
from jaxprune.compaction.network import Compact
from jaxprune.data.splits import Joined, Split
from jaxprune.graph.network import Network
from jaxprune.graph.trace import shape_of
from jaxprune.tasks.classes import Classification, classification
from jaxprune.tasks.imitation import imitation
from jaxprune.tasks.task import Task, shapes
from jaxprune.training.loop import Images

Augment = Callable[[Array, Any], Any]


@dataclass(frozen=True, eq=False)
class _Array:
    """Images of arrays; targets are 0 where there are none."""

    images: Any
    targets: Any

    def __len__(self) -> int:
        first = self.images
        return len(first if isinstance(first, Joined) else jax.tree.leaves(first)[0])

    def read(self, index: np.ndarray) -> Any:
        """The images at `index`, of types that JAX has."""
        return jax.tree.map(lambda array: _canonical(array[index]), self.images)

    def read_targets(self, index: np.ndarray) -> Any:
        """Their targets."""
        return jax.tree.map(lambda array: _canonical(array[index]), self.targets)


def _canonical(rows: np.ndarray) -> np.ndarray:
    """Of a type that JAX has."""
    return rows.astype(jax.dtypes.canonicalize_dtype(rows.dtype), copy=False)


def given_images(images: Any, labels: Any, task: Task | None) -> tuple[Images, bool]:
    """The images as they are read, and whether they have labels or targets.

    Raises:
      InputError: they are none, or there are not as many labels.
    """
    if isinstance(images, Split):
        if labels is not None:
            raise InputError("a Split has labels: give no others")
        return images, images.has_classes or images.targets is not None
    if not isinstance(images, Joined):
        images = jax.tree.map(lambda a: arguments.check_real("images", a), images)
    found = _Array(images, None)
    arrays = [images] if isinstance(images, Joined) else jax.tree.leaves(images)
    if not arrays or any(a.ndim < 2 or not len(a) for a in arrays):
        raise InputError(f"images must be [N, ...], got {shapes(images) or 'nothing'}")
    count = len(found)
    if any(len(array) != count for array in arrays):
        sizes = ", ".join(str(len(array)) for array in arrays)
        raise InputError(f"all inputs must be of as many images, got {sizes}")
    if labels is None:
        return replace(found, targets=np.zeros(count, np.int32)), False
    if task is not None and not isinstance(task, Classification):
        labels = jax.tree.map(lambda a: arguments.check_real("labels", a), labels)
        if {np.shape(leaf)[:1] for leaf in jax.tree.leaves(labels)} != {(count,)}:
            raise InputError(
                f"targets must be {count}, one for each image, got {shapes(labels)}"
            )
        return replace(found, targets=labels), True
    labels = arguments.as_array("labels", labels)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise InputError(
            f"labels must be {count} integers, one for each image, got "
            f"{labels.dtype} {list(labels.shape)}"
        )
    return replace(found, targets=labels), True


def given_inputs(
    small: Any, images: Images, batch_size: int, augment: Augment | None
) -> Any:
    """The shapes of what the network is given.

    Raises:
      InputError: it is no compact network that can be trained, or does not take it.
    """
    arguments.check_kind("small", small, Compact, "a compact network, as of shrink")
    if small.whole is None:
        raise InputError(
            "a network that was loaded without its model cannot be trained: "
            "load_compact(path, model)"
        )
    arguments.check_count("batch_size", batch_size)

    def of_batch(array: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *array.shape[1:]), array.dtype)

    x = jax.tree.map(of_batch, images.read(np.arange(1)))
    if augment is not None:
        given = shapes(x)
        try:
            x = jax.eval_shape(augment, jax.random.key(0), x)
        except Exception as error:  # whatever the caller's own code raises
            raise InputError(
                f"augment fails on images {given}: {first_line(error)}"
            ) from error
    takes = jax.tree.map(of_batch, small.example)
    if not _fits(takes, x):
        raise InputError(
            f"the network takes {_described(takes)}, got {_described(x)}: "
            "augment, (key, images) -> what it takes, prepares them"
        )
    return x


def _fits(takes: Any, x: Any) -> bool:
    """Whether inputs have the shapes and kinds of type that a network takes."""
    structures: list[Any] = [jax.tree.structure(tree) for tree in (takes, x)]
    pairs = zip(jax.tree.leaves(takes), jax.tree.leaves(x), strict=False)
    return structures[0] == structures[1] and all(
        a.shape == b.shape
        and jnp.issubdtype(a.dtype, jnp.floating)
        == jnp.issubdtype(b.dtype, jnp.floating)
        for a, b in pairs
    )


def _described(tree: Any) -> str:
    """Types and shapes of a tree's arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return ", ".join(
        f"{path_name(path)} {leaf.dtype} {list(leaf.shape)}".strip()
        for path, leaf in leaves
    )


def task_of(task: Task | None, small: Compact, x: Any, labelled: bool) -> Task:
    """The task that is given, or what the outputs are.

    Raises:
      InputError: labels of outputs that are no logits [N, C].
    """
    if task is not None:
        arguments.check_kind("task", task, Task, "a Task, as of jaxprune.regression()")
        return task
    if [len(shape) for shape in _shapes(small.network, x)] == [2]:
        return classification()
    if labelled:
        raise InputError(
            "the network returns no logits [N, C]: say what its outputs are for, as "
            "with task=jaxprune.segmentation()"
        )
    return imitation()


def check_outputs(
    task: Task, small: Compact, whole: Network | None, x: Any, images: Images | None
) -> None:
    """Raises InputError unless outputs of both networks, and targets, fit the task.

    Args:
      task: the task.
      small: the network that is trained.
      whole: that it learns from.
      x: shapes of a batch.
      images: with targets; None where there are none.
    """
    found = [_shapes(small.network, x)]
    if whole is not None:
        found.append(_shapes(whole, x))
    if found[0] != found[-1]:
        both = " and ".join(map(str, found))
        raise InputError(f"the networks must return outputs of one shape, got {both}")
    outputs = jax.eval_shape(small.function, dict(small.arrays), x)
    outputs = jax.eval_shape(task.part, outputs)
    if isinstance(task, Classification):
        _check_classes(outputs, images)
    elif images is not None:
        index = np.arange(size_of(x))
        targets = jax.tree.map(shape_of, images.read_targets(index))
        task.check(outputs, targets)
        if isinstance(images, Split):
            task.for_targets(outputs, images.all_targets())
        else:
            task.for_targets(outputs, [images.read_targets(np.arange(len(images)))])
    elif task.imitates:
        task.check(outputs, outputs)


def _check_classes(outputs: Any, images: Images | None) -> None:
    """Raises InputError unless outputs are logits [N, C], of all labels."""
    if len(getattr(outputs, "shape", ())) != 2:
        raise InputError(
            f"the networks must return logits [N, C], got {shapes(outputs)}"
        )
    if images is None:
        return
    labels, classes = images.read_targets(np.arange(len(images))), outputs.shape[1]
    if not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(
            f"labels must lie in 0 .. {classes - 1}, as the network tells {classes} "
            f"classes apart; got {labels.min()} .. {labels.max()}"
        )


def _shapes(network: Network, x: Any) -> list[tuple[int, ...]]:
    """Of what a network returns for a batch."""
    program = network.graph(x).program
    return [program.shape(value) for value in program.results]
