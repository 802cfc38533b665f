"""Haiku: transformed functions pruned as functions; Haiku itself is the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune
from selected import quick
from steps import Framework, walk

hk = pytest.importorskip("haiku")

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 8, 8, 3)).astype(np.float32)


def cnn(x, is_training):
    """Of Haiku's modules, without state."""
    x = jax.nn.relu(hk.Conv2D(8, 3, name="first")(x))
    x = jax.nn.relu(hk.Conv2D(8, 3, name="second")(x))
    x = hk.Flatten()(hk.max_pool(x, (1, 4, 4, 1), (1, 4, 4, 1), "VALID"))
    return hk.nets.MLP([12, 5])(x)


def resnet(x, is_training):
    """With BatchNorm, and so with state."""

    def norm(name):
        return hk.BatchNorm(True, True, 0.9, name=name)

    x = jax.nn.relu(hk.Conv2D(8, 3, name="stem")(x))
    for i in range(2):
        y = hk.Conv2D(8, 3, with_bias=False, name=f"conv1_{i}")(x)
        y = jax.nn.relu(norm(f"norm1_{i}")(y, is_training))
        y = hk.Conv2D(8, 3, with_bias=False, name=f"conv2_{i}")(y)
        x = jax.nn.relu(x + norm(f"norm2_{i}")(y, is_training))
    return hk.Linear(5)(x.mean((1, 2)))


# A function; a convolution, and the module that alone reads its channels.
ALL = {
    "cnn": (cnn, "first", "second"),
    "resnet": (resnet, "conv1_0", "conv2_0"),
}


class Model:
    """A transformed function, its parameters and its state."""

    def __init__(self, function, variables):
        self.function, self.variables = function, variables
        self.transformed = hk.without_apply_rng(hk.transform_with_state(function))

    def __call__(self, images, variables=None):
        found = self.variables if variables is None else variables
        return self.transformed.apply(found["params"], found["state"], images, False)[0]


def build(name):
    model = Model(ALL[name][0], None)
    params, state = model.transformed.init(jax.random.key(0), jnp.asarray(IMAGES), True)

    def draw(array):
        if array.ndim in (1, 4) and array.size <= 8:
            return jnp.asarray(RNG.uniform(0.2, 1, array.shape), array.dtype)
        return array

    model.variables = jax.tree.map(draw, {"params": params, "state": state})

    def function(variables, images):
        return model(images, variables)

    return model, jaxprune.Network(function, model.variables, IMAGES)


def evaluated(model, images):
    if isinstance(model, Model):
        return np.asarray(model(jnp.asarray(images)))
    return np.asarray(model.function(model.arrays, jnp.asarray(images)))


def zeroed(model, reader, gone):
    params = dict(model.variables["params"])
    weights = np.array(params[reader]["w"])
    weights[:, :, gone] = 0
    params[reader] = {**params[reader], "w": jnp.asarray(weights)}
    return Model(model.function, {**model.variables, "params": params})


def edited(model, reader, edit, images):
    def intercept(run, args, kwargs, context):
        if context.method_name == "__call__" and context.module.name == reader:
            args = (jnp.asarray(edit(args[0])),)
        return run(*args, **kwargs)

    with hk.intercept_methods(intercept):
        return evaluated(model, images)


def reloaded(model, small, folder):
    small.save(folder / "small")
    again = jaxprune.load_compact(folder / "small", small.whole)
    assert jax.tree.structure(again.params) == jax.tree.structure(small.params)
    return again


HAIKU = Framework(evaluated, zeroed, edited, lambda small: small, reloaded)


@pytest.mark.parametrize("name", quick(ALL, ()))
def test_step_by_step(name, tmp_path):
    model, network = build(name)
    smaller = walk(HAIKU, model, network, IMAGES, *ALL[name][1:], tmp_path)
    assert smaller.params.keys() == {"params", "state"}
    sizes = [sum(x.size for x in jax.tree.leaves(m)) for m in
             (model.variables, smaller.params)]  # fmt: skip
    assert sizes[1] < sizes[0]


def test_it_is_trained_as_a_function_of_its_arrays():
    _, network = build("cnn")
    keep = np.arange(8) < 5
    small = jaxprune.compact(network, "first", keep, fill="drop")
    fixed = {k: v for k, v in small.arrays.items() if not k.startswith("params/")}
    params = {k: jnp.asarray(v) for k, v in small.arrays.items() if k not in fixed}
    labels = jnp.asarray(np.arange(len(IMAGES)) % 5)
    optimiser = optax.adam(3e-3)

    @jax.jit
    def step(params, held):
        def loss(params):
            logits = small.function(params | fixed, jnp.asarray(IMAGES))
            cross = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return cross.mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, held = optimiser.update(gradients, held)
        return optax.apply_updates(params, updates), held, value

    held, losses = optimiser.init(params), []
    with jax.numpy_dtype_promotion("standard"):  # of the optimiser's
        for _ in range(20):
            params, held, value = step(params, held)
            losses.append(float(value))
    assert losses[-1] < 0.9 * losses[0]
    trained = small.with_arrays(params | fixed)
    assert trained.params["params"]["first"]["w"].shape == (3, 3, 3, 5)
    np.testing.assert_allclose(
        trained(IMAGES), small.function(params | fixed, IMAGES), atol=1e-5
    )


def test_haikus_own_code_keeps_its_widths():
    """Its modules say them in Python: smaller arrays are refused by Haiku."""
    model, network = build("cnn")
    keep = np.arange(8) < 5
    small = jaxprune.compact(network, "first", keep, fill="drop")
    with pytest.raises(ValueError, match="does not match shape"):
        model(jnp.asarray(IMAGES), small.params)
