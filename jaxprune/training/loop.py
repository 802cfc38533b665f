"""Training: a loop whose every step follows from (seed, step), of any step."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxprune._base.errors import InputError
from jaxprune._base.mesh import make_mesh, replicate, spread

# Steps between two looks at the loss: often enough to stop early, rarely enough not
# to hold the device up.
_STEPS_PER_LOOK = 8


@runtime_checkable
class Images(Protocol):
    """Images with targets, such as a `Split`."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: Int[np.ndarray, " B"]) -> Any:
        """The images at `index`, [B, ...], or a tree of such arrays."""

    def read_targets(self, index: Int[np.ndarray, " B"]) -> Any:
        """Their classes [B], or other targets [B, ...]."""


class TrainState(struct.PyTreeNode):
    """Everything that a step changes."""

    step: Int[Array, ""]
    variables: Any
    opt_state: Any


class StepMetrics(NamedTuple):
    """Of one step: its loss, and the share of the batch that was predicted right.

    NaN where there are no labels.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]


class EpochResult(NamedTuple):
    """Of one epoch: the state after it, and means over its steps."""

    epoch: int
    state: TrainState
    loss: float
    accuracy: float
    seconds: float


Step = Callable[[TrainState, Any, Any], tuple[TrainState, StepMetrics]]


def adam(
    learning_rate: float, steps: int, warmup_steps: int
) -> optax.GradientTransformation:
    """Adam with linear warm-up from 0 and cosine decay to 0."""
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, max(steps, warmup_steps + 1)
    )
    return optax.adam(schedule)


def step_keys(seed: int, step: Int[Array, ""] | int) -> Array:
    """Two keys of a step: its augmentation's and its dropout's."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), step))


def descend(
    objective: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    params: Any,
    opt_state: Any,
    *others: Any,
) -> tuple[Any, Any, Array, Any]:
    """One step down the gradient of `objective(params, *others)` -> (loss, more).

    Returns:
      Parameters and optimizer state after it, the loss before it, and more.
    """
    (loss, more), gradients = jax.value_and_grad(objective, has_aux=True)(
        params, *others
    )
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss, more


def steps_per_epoch(split: Images, batch_size: int) -> int:
    """Full batches in an epoch; what is left over waits for the next shuffle.

    Raises:
      InputError: the split is smaller than a batch.
    """
    if len(split) < batch_size:
        raise InputError(
            f"the training split has {len(split)} images, fewer than one batch of "
            f"{batch_size}: lower the batch size"
        )
    return len(split) // batch_size


def epoch_order(
    seed: int, epoch: int, images: int, batch_size: int
) -> Int[np.ndarray, "steps B"]:
    """The images of each step of an epoch: in an order that follows from (seed, epoch).

    >>> epoch_order(0, 0, images=5, batch_size=2).shape
    (2, 2)
    """
    order = np.random.default_rng([seed, epoch]).permutation(images)
    steps = images // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def fit(
    step: Step,
    state: TrainState,
    split: Images,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    mesh: Mesh | None = None,
    on_step: Callable[[StepMetrics], Any] = lambda metrics: None,
) -> Iterator[EpochResult]:
    """Trains from the state's epoch on to `epochs`, yielding after each epoch.

    Epoch e sees the images in an order that follows from (seed, e). A batch is spread
    over the devices of a mesh, by default this process's first; each process reads its
    own share of it.

    Raises:
      InputError: a loss is not finite, or the split is smaller than a batch.
    """
    per_epoch = steps_per_epoch(split, batch_size)
    mesh = mesh or make_mesh(jax.local_devices()[:1])
    state = replicate(state, mesh)
    for epoch in range(int(state.step) // per_epoch, epochs):
        order = epoch_order(seed, epoch, len(split), batch_size)
        started = time.perf_counter()
        waiting: list[StepMetrics] = []
        done: list[StepMetrics] = []
        for i, index in enumerate(order):
            own = np.array_split(index, jax.process_count())[jax.process_index()]
            batch = spread((split.read(own), split.read_targets(own)), mesh)
            state, metrics = step(state, *batch)
            waiting.append(metrics)
            if len(waiting) == _STEPS_PER_LOOK or i == per_epoch - 1:
                for m in waiting:
                    if not np.isfinite(m.loss):
                        raise InputError(
                            f"the loss is {float(m.loss)} at step "
                            f"{epoch * per_epoch + len(done)} (epoch {epoch + 1}): "
                            "lower the learning rate; the last checkpoint, if there "
                            "is one, is kept"
                        )
                    done.append(m)
                    on_step(m)
                waiting.clear()
        yield EpochResult(
            epoch + 1,
            state,
            float(np.mean([m.loss for m in done])),
            float(np.mean([m.accuracy for m in done])),
            time.perf_counter() - started,
        )
