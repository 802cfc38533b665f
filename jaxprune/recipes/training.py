"""Training: one pure step, and a loop whose every step follows from (seed, step)."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Num, UInt8

from jaxprune._base.errors import InputError
from jaxprune._base.mesh import make_mesh, replicate, spread
from jaxprune.adapters.linen import at_path
from jaxprune.data.splits import Split
from jaxprune.recipes import losses

# Steps between two looks at the loss: often enough to stop early, rarely enough not
# to hold the device up.
_STEPS_PER_LOOK = 8


class TrainState(struct.PyTreeNode):
    """Everything that a step changes."""

    step: Int[Array, ""]
    variables: Any
    opt_state: Any


class StepMetrics(NamedTuple):
    """Of one step: loss in nats, and share of the batch predicted right."""

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


def init_state(variables: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=optimizer.init(variables["params"]),
    )


def crop_and_flip(
    key: Array, images: UInt8[Array, "N H W C"], pad: int = 4
) -> UInt8[Array, "N H W C"]:
    """Each image shifted by up to `pad` pixels, black moving in, and flipped or not."""
    n, h, w, c = images.shape
    shift_key, flip_key = jax.random.split(key)
    shifts = jax.random.randint(shift_key, (n, 2), 0, 2 * pad + 1)
    flips = jax.random.bernoulli(flip_key, 0.5, (n,))
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def augment(image: Array, shift: Array, flip: Array) -> Array:
        crop = jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), (h, w, c))
        return jnp.where(flip, crop[:, ::-1], crop)

    return jax.vmap(augment)(padded, shifts, flips)


def blend(key: Array, images: Num[Array, "N H W C"]) -> Float[Array, "N H W C"]:
    """Each image with a share of another of the batch, at most half.

    For a teacher to label, as Beyer et al. 2022 do with mixup (Zhang et al. 2018): on
    images that it was trained on, it has little to tell.
    """
    own = jax.random.uniform(key, (len(images), 1, 1, 1), minval=0.5)
    images = images.astype(jnp.float32)
    return own * images + (1 - own) * jnp.roll(images, 1, axis=0)


def make_train_step(
    apply: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    scale: Callable[[Array], Array],
    *,
    seed: int,
    l2: Mapping[str, float],
    augment: Callable[[Array, Array], Array] | None = None,
    teacher: Callable[[Array], Array] | None = None,
    temperature: float = 4.0,
    weight: float = 1.0,
) -> Step:
    """A jitted step: (state, images, labels) -> (state, metrics); state is donated.

    A batch spread over a mesh is still one batch: the loss is the mean over all of it,
    and so are BatchNorm's statistics.

    The loss is the mean cross-entropy plus `l2[layer] * sum(kernel**2)` for the
    layers named in `l2`, as Keras's regularizer adds it. With a teacher, `weight` of
    the cross-entropy gives way to the `losses.distillation` of its logits.

    Args:
      apply: a linen model's `apply`, or one of that form; called with `train=True`.
      optimizer: an optax transformation.
      scale: uint8 images -> what the network takes.
      seed: dropout and augmentation of step t draw from (seed, t).
      l2: coefficient for each layer that has one.
      augment: (key, images) -> images, before scaling.
      teacher: scaled images -> logits of a network that is not trained. Arrays that it
        closes over become constants of the program; a `jax.tree_util.Partial`'s do not.
      temperature: that both sides' logits are divided by.
      weight: of the teacher, in [0, 1]; with 1, labels play no part.

    Raises:
      InputError: temperature or weight are out of range.
    """
    losses.check_distillation(temperature, weight)

    def objective(
        params: Any, rest: Any, x: Array, labels: Array, target: Any, key: Array
    ) -> tuple[Array, tuple[Any, Array]]:
        rngs, variables = {"dropout": key}, {"params": params, **rest}
        logits, updated = apply(variables, x, train=True, rngs=rngs, mutable=list(rest))
        logits = logits.astype(jnp.float32)
        loss = losses.mean_loss(logits, labels, target, temperature, weight)
        return loss + _penalty(params, l2), (updated, logits)

    def step_function(
        state: TrainState, images: Array, labels: Array, teacher: Any = None
    ) -> tuple[TrainState, StepMetrics]:
        augment_key, dropout_key = step_keys(seed, state.step)
        x = scale(augment(augment_key, images) if augment else images)
        target = teacher(x) if teacher else None
        return _descend(objective, optimizer, state, x, labels, target, dropout_key)

    step = jax.jit(step_function, donate_argnums=0)
    if teacher is None:
        return step
    held = teacher if isinstance(teacher, Partial) else Partial(teacher)
    return partial(step, teacher=held)


def step_keys(seed: int, step: Int[Array, ""] | int) -> Array:
    """Two keys of a step: its augmentation's and its dropout's."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), step))


def _descend(
    objective: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    state: TrainState,
    x: Array,
    labels: Array,
    *others: Any,
) -> tuple[TrainState, StepMetrics]:
    """The state after one step down the objective's gradient."""
    rest = dict(state.variables)
    params = rest.pop("params")
    (loss, (updated, logits)), gradients = jax.value_and_grad(objective, has_aux=True)(
        params, rest, x, labels, *others
    )
    updates, opt_state = optimizer.update(gradients, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    correct = jnp.argmax(logits, axis=-1) == labels
    after = TrainState(state.step + 1, {"params": params, **updated}, opt_state)
    return after, StepMetrics(loss, correct.mean(dtype=jnp.float32))


def _penalty(params: Any, l2: Mapping[str, float]) -> Array:
    """Sum of each named layer's coefficient times its squared kernel."""
    total = jnp.zeros(())
    for layer, coefficient in l2.items():
        total += coefficient * jnp.sum(at_path(params, layer)["kernel"] ** 2)
    return total


def steps_per_epoch(split: Split, batch_size: int) -> int:
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
    split: Split,
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
            batch = spread((split.read(own), split.labels[own]), mesh)
            state, metrics = step(state, *batch)
            waiting.append(metrics)
            if len(waiting) == _STEPS_PER_LOOK or i == per_epoch - 1:
                for m in waiting:
                    if not np.isfinite(m.loss):
                        raise InputError(
                            f"the loss is {float(m.loss)} at step "
                            f"{epoch * per_epoch + len(done)} (epoch {epoch + 1}): "
                            "lower the learning rate; the last checkpoint is kept"
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
