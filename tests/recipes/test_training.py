import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxprune._base.errors import InputError
from jaxprune._base.mesh import make_mesh
from jaxprune.data.splits import Split
from jaxprune.recipes import training as train
from jaxprune.training import loop
from jaxprune.training.augmentation import crop_and_flip
from random_data import random_split, random_variables

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Small(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        x = nn.Dropout(0.2, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(4, name="out")(x)


MODEL = Small()


def scale(images):
    return images.astype(jnp.float32) / 255


def make(split, *, epochs=2, batch_size=5, learning_rate=1e-2, seed=0, l2=None):
    steps = epochs * (len(split) // batch_size)
    optimizer = loop.adam(learning_rate, steps, warmup_steps=2)
    step = train.make_train_step(
        MODEL.apply, optimizer, scale, seed=seed, l2=l2 or {},
        augment=crop_and_flip,
    )  # fmt: skip
    variables = random_variables(MODEL, jnp.zeros((1, *split.image_shape)))
    return step, train.init_state(variables, optimizer)


def fit(split, *, epochs=2, batch_size=5, **options):
    step, state = make(split, epochs=epochs, batch_size=batch_size, **options)
    return list(
        loop.fit(
            step, state, split, epochs=epochs, batch_size=batch_size,
            seed=options.get("seed", 0),
        )
    )  # fmt: skip


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_everything_follows_from_the_seed():
    split = random_split()
    first, again, other = (fit(split, seed=s)[-1].state for s in (0, 0, 1))
    assert_equal(first.variables, again.variables)
    kernels = (s.variables["params"]["out"]["kernel"] for s in (first, other))
    assert not np.array_equal(*kernels)


def test_going_on_from_an_epoch_ends_with_the_same_parameters():
    split = random_split()
    whole = fit(split, epochs=3)[-1].state
    step, state = make(split, epochs=3)
    epochs = loop.fit(step, state, split, epochs=3, batch_size=5, seed=0)
    stopped = jax.tree.map(jnp.copy, next(epochs).state)
    step, _ = make(split, epochs=3)
    (*_, last) = loop.fit(step, stopped, split, epochs=3, batch_size=5, seed=0)
    assert_equal(last.state, whole)


def test_it_learns_what_can_be_learnt():
    """Class = brightness: separable, so a working step must get it right."""
    labels = np.arange(40) % 4
    images = np.broadcast_to(
        (60 * labels).astype(np.uint8)[:, None, None, None], (40, 8, 8, 3)
    )
    split = Split(images, np.arange(40)[:, None], labels, ("a", "b", "c", "d"))
    results = fit(split, epochs=30, batch_size=20)
    assert results[-1].accuracy > 0.9
    assert results[-1].loss < results[0].loss / 2


def test_the_loss_is_cross_entropy_plus_kernel_squares():
    split = random_split(n=8)

    def loss(l2):
        step, state = make(split, l2=l2)
        kernel = state.variables["params"]["conv"]["kernel"]
        squares = float(np.sum(np.asarray(kernel, np.float64) ** 2))
        return float(step(state, split.images, split.labels)[1].loss), squares

    plain, squares = loss({})
    with_l2, _ = loss({"conv": 0.5})
    assert with_l2 - plain == pytest.approx(0.5 * squares, rel=1e-5)


class Nested(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return Small(name="block")(x, train)


def test_a_layer_with_a_penalty_may_lie_in_a_block():
    split = random_split(n=8)
    variables = random_variables(Nested(), jnp.zeros((1, *split.image_shape)))
    kernel = variables["params"]["block"]["conv"]["kernel"]
    losses = []
    for l2 in ({}, {"block/conv": 0.5}):
        optimizer = loop.adam(1e-2, 4, 2)
        step = train.make_train_step(Nested().apply, optimizer, scale, seed=0, l2=l2)
        state = train.init_state(variables, optimizer)
        losses.append(float(step(state, split.images, split.labels)[1].loss))
    squares = float(np.sum(np.asarray(kernel, np.float64) ** 2))
    assert losses[1] - losses[0] == pytest.approx(0.5 * squares, rel=1e-5)


def test_one_compilation_over_epochs():
    step, state = make(split := random_split())
    state = jax.tree.map(jnp.asarray, state)
    list(loop.fit(step, state, split, epochs=2, batch_size=5, seed=0))
    assert step._cache_size() == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step():
    split = random_split()
    step, state = make(split)
    state.variables["params"]["out"]["bias"][0] = np.inf
    with pytest.raises(InputError, match=r"at step 0 \(epoch 1\)"):
        list(loop.fit(step, state, split, epochs=1, batch_size=5, seed=0))


def test_fewer_images_than_a_batch():
    with pytest.raises(InputError, match="fewer than one batch of 24"):
        fit(random_split(), batch_size=24)


def test_eight_devices_train_as_one_does():
    """Loss, gradients and BatchNorm's statistics are those of the whole batch."""
    split = random_split(n=32)
    results = []
    for devices in (1, 8):
        step, state = make(split, batch_size=16)
        mesh = make_mesh(jax.local_devices()[:devices])
        epochs = loop.fit(
            step, state, split, epochs=2, batch_size=16, seed=0, mesh=mesh
        )
        results.append(list(epochs)[-1])
    one, eight = results
    assert len(jax.tree.leaves(eight.state.variables)[0].devices()) == 8
    assert one.loss == pytest.approx(eight.loss, rel=1e-4)
    # Adam divides by the gradient's size: where that is rounding, so is the step.
    for a, b in zip(
        jax.tree.leaves(one.state.variables),
        jax.tree.leaves(eight.state.variables),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=2e-3)
