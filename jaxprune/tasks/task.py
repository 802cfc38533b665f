"""A task: the loss of a network's outputs, and the scores that people go by.

Axes: N images, S terms of a score.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune._base import arguments
from jaxprune._base.batch import path_name
from jaxprune._base.errors import InputError, first_line
from jaxprune.graph.logits import are_probabilities, with_log_probabilities
from jaxprune.graph.network import Network

# What a task keeps of an image under this name is its loss.
LOSS = "loss"
# (outputs, targets) -> a number for each image [N], or terms of a score [N, S].
OfImages = Callable[[Any, Any], Array]
Combine = Callable[[Float[np.ndarray, "*K S"]], Float[np.ndarray, "*K"]]


@dataclass(frozen=True)
class Score:
    """A figure of a task: of each image, and of many.

    Attributes:
      of_images: (outputs, targets) -> [N], whose mean is the figure; or terms [N, S].
      combine: sums of the terms over images [..., S] -> the figure [...], in NumPy.
      higher_is_better: whether a larger figure is the better one.
    """

    of_images: OfImages
    combine: Combine | None = None
    higher_is_better: bool = True


@dataclass(frozen=True)
class Task:
    """What a network's outputs are for.

    Attributes:
      name: of the task.
      loss: (outputs, targets) -> [N], a number for each image.
      scores: by name; the first one decides how many channels can go.
      output: part of the network's output that the task goes by: a key, a position, a
        function of the output, or None for all of it.
      predict: what is shown of outputs, such as the class of each pixel; None where
        there is nothing to show.
      max_drop: loss of the first score that is small, in its units.
      logits: whether outputs are logits [N, ..., C]. Of a network that ends with a
        softmax, the logarithms of what it returns are taken.
      imitates: whether targets are the whole network's own outputs.
    """

    name: str
    loss: OfImages
    scores: Mapping[str, Score] = field(default_factory=dict)
    output: Any = None
    predict: Callable[[Any], Any] | None = None
    max_drop: float = 0.01
    logits: bool = False
    imitates: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"a task has a name, got {self.name!r:.60}")
        if not callable(self.loss):
            raise InputError(
                f"task '{self.name}': its loss is a function of outputs and targets, "
                f"got {type(self.loss).__name__}"
            )
        arguments.check_kind(
            f"task '{self.name}': scores", self.scores, Mapping, "Scores by name"
        )
        if not self.scores:
            raise InputError(f"task '{self.name}' has no score to choose channels by")
        for name, score in self.scores.items():
            arguments.check_kind(f"score '{name}'", score, Score, "a jaxprune.Score")
            if name == LOSS:
                raise InputError(f"task '{self.name}': '{LOSS}' is no name of a score")
        arguments.check_number("max_drop", self.max_drop, 0.0, float("inf"))

    @property
    def measure(self) -> str:
        """The name of the first score."""
        return next(iter(self.scores))

    def judge(self, outputs: Any, targets: Any) -> dict[str, Array]:
        """What is kept of outputs: their loss [N], and each score's terms."""
        loss = _wide(self.loss(outputs, targets))
        return {LOSS: loss, **self.terms(outputs, targets)}

    def terms(self, outputs: Any, targets: Any) -> dict[str, Array]:
        """What each score is made of, for each image; see `Score`."""
        return {
            name: _wide(score.of_images(outputs, targets))
            for name, score in self.scores.items()
        }

    def kept(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Which of a batch's values are kept for each image."""
        return values

    def applied(self, network: Network) -> Network:
        """The network that returns the part of its output that the task goes by.

        Raises:
          InputError: the output has no such part.
        """
        if self.output is None:
            return network

        def function(params: Any, batch: Any) -> Any:
            return self.part(network.function(params, batch))

        return network.with_function(function)

    def part(self, found: Any) -> Any:
        """The part of a network's output that the task goes by.

        Raises:
          InputError: the output has no such part.
        """
        output = self.output
        if output is None:
            return found
        if callable(output):
            return output(found)
        try:
            if isinstance(output, str) and hasattr(found, output):
                return getattr(found, output)
            return found[output]
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(
                f"task '{self.name}': the network's output has no part {output!r}; it "
                f"has {shapes(found)}"
            ) from error

    def with_logits(self, network: Network, outputs: Any) -> Network:
        """The network as the task takes it, some of its outputs seen."""
        rows = getattr(outputs, "ndim", 0) > 1
        if self.logits and rows and are_probabilities(outputs):
            return with_log_probabilities(network)
        return network

    def for_targets(self, outputs: Any, targets: Iterable[Any]) -> "Task":
        """The task for images with these targets; one that needs none is as it was.

        Args:
          outputs: shapes of the outputs of some images.
          targets: of all images, batch by batch.

        Raises:
          InputError: a target that no output can be right for.
        """
        return self

    def check(self, outputs: Any, targets: Any) -> None:
        """Raises InputError unless the task fits outputs and targets.

        Args:
          outputs: shapes of the outputs of some images.
          targets: shapes of their targets.
        """
        leaves = jax.tree.leaves(outputs)
        if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
            raise InputError(
                f"task '{self.name}': the network's output has no floating-point array"
            )
        counts = {leaf.shape[:1] for leaf in jax.tree.leaves(targets)}
        if len(counts) != 1 or () in counts:
            raise InputError(
                f"task '{self.name}' takes targets that have the images on their first "
                f"axis, got {shapes(targets) or 'nothing'}"
            )
        ((images,),) = counts
        found = self._tried("", self.judge, outputs, targets)
        if self.predict is not None:
            self._tried(": its predict", self.predict, outputs)
        for name, terms in found.items():
            score = self.scores.get(name)
            combine = score.combine if score is not None else None
            if terms.ndim != (1 if combine is None else 2) or len(terms) != images:
                kind = "a number" if combine is None else "terms [N, S]"
                raise InputError(
                    f"task '{self.name}': {name} must be {kind} for each of {images} "
                    f"images, got shape {list(terms.shape)}"
                )
            if combine is not None:
                self._check_combine(name, combine, terms.shape[1])

    def _tried(self, what: str, function: Callable[..., Any], *given: Any) -> Any:
        """Shapes of what one of the task's functions returns.

        Raises:
          InputError: it fails; with the shapes of what it is given.
        """
        try:
            return jax.eval_shape(function, *given)
        except InputError:
            raise
        except Exception as error:
            of = " and targets ".join(map(shapes, given))
            raise InputError(
                f"task '{self.name}'{what} does not fit outputs {of}: "
                f"{first_line(error)}"
            ) from error

    def _check_combine(self, name: str, combine: Combine, terms: int) -> None:
        """Raises InputError unless sums of terms [K, S] make K figures."""
        try:
            with np.errstate(all="ignore"):
                shape = np.shape(combine(np.ones((2, terms))))
        except Exception as error:
            raise InputError(
                f"task '{self.name}': combine of {name} fails on sums [2, {terms}]: "
                f"{first_line(error)}"
            ) from error
        if shape != (2,):
            raise InputError(
                f"task '{self.name}': combine of {name} must make [2] of sums [2, "
                f"{terms}], got {list(shape)}"
            )


def _wide(terms: Array) -> Array:
    """In float32 at least."""
    wide = jnp.float64 if terms.dtype == jnp.float64 else jnp.float32
    return terms.astype(wide)


def shapes(tree: Any) -> str:
    """Shapes of a tree's arrays, in words.

    >>> shapes({"a": np.zeros((2, 3)), "b": np.zeros(2)})
    'a [2, 3], b [2]'
    >>> shapes(np.zeros((2, 3)))
    '[2, 3]'
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return ", ".join(
        f"{path_name(path)} {list(leaf.shape)}".strip() for path, leaf in leaves
    )
