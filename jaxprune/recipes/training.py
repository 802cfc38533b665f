"""The training step of the experiments: their model's own code, dropout and L2."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxprune.adapters.linen import at_path
from jaxprune.training import losses
from jaxprune.training.loop import Step, StepMetrics, TrainState, descend, step_keys


def init_state(variables: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=optimizer.init(variables["params"]),
    )


def make_train_step(
    apply: Callable[..., Any],
    optimizer: optax.GradientTransformation,
    scale: Callable[[Array], Array],
    *,
    seed: int,
    l2: Mapping[str, float],
    augment: Callable[[Array, Array], Array] | None = None,
) -> Step:
    """A jitted step: (state, images, labels) -> (state, metrics); state is donated.

    A batch spread over a mesh is still one batch: the loss is the mean over all of it,
    and so are BatchNorm's statistics.

    The loss is the mean cross-entropy plus `l2[layer] * sum(kernel**2)` for the
    layers named in `l2`, as Keras's regularizer adds it.

    Args:
      apply: a linen model's `apply`, or one of that form; called with `train=True`.
      optimizer: an optax transformation.
      scale: uint8 images -> what the network takes.
      seed: dropout and augmentation of step t draw from (seed, t).
      l2: coefficient for each layer that has one.
      augment: (key, images) -> images, before scaling.
    """

    def objective(
        params: Any, rest: Any, x: Array, labels: Array, key: Array
    ) -> tuple[Array, tuple[Any, Array]]:
        rngs, variables = {"dropout": key}, {"params": params, **rest}
        logits, updated = apply(variables, x, train=True, rngs=rngs, mutable=list(rest))
        logits = logits.astype(jnp.float32)
        loss = losses.cross_entropy(logits, labels)
        return loss + _penalty(params, l2), (updated, logits)

    def step(
        state: TrainState, images: Array, labels: Array
    ) -> tuple[TrainState, StepMetrics]:
        augment_key, dropout_key = step_keys(seed, state.step)
        x = scale(augment(augment_key, images) if augment else images)
        rest = dict(state.variables)
        params, opt_state, loss, (updated, logits) = descend(
            objective, optimizer, rest.pop("params"), state.opt_state,
            rest, x, labels, dropout_key,
        )  # fmt: skip
        after = TrainState(state.step + 1, {"params": params, **updated}, opt_state)
        return after, StepMetrics(loss, losses.accuracy(logits, labels))

    return jax.jit(step, donate_argnums=0)


def _penalty(params: Any, l2: Mapping[str, float]) -> Array:
    """Sum of each named layer's coefficient times its squared kernel."""
    total = jnp.zeros(())
    for layer, coefficient in l2.items():
        total += coefficient * jnp.sum(at_path(params, layer)["kernel"] ** 2)
    return total
