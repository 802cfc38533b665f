"""Objects that are no network are named, with the function that takes them."""

import functools
import types
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

import jaxprune
from jaxprune._base.errors import InputError
from jaxprune.compaction.network import as_compact

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(5)(nn.relu(x).mean((1, 2)))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)

    def __call__(self, x, scale):
        return self.conv(x).mean((1, 2)) * scale


LINEN, MODULE = Linen(), NNX(nnx.Rngs(0))
VARIABLES = LINEN.init(jax.random.key(0), IMAGES, train=False)
PARAMS = VARIABLES["params"]
APPLY = functools.partial(LINEN.apply, train=False)
STATE = TrainState.create(apply_fn=LINEN.apply, params=PARAMS, tx=optax.sgd(0.1))


def equinox():
    eqx = pytest.importorskip("equinox")
    return eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0))


def keras():
    pytest.importorskip("keras")
    from jaxprune.adapters.keras import keras

    return keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)])


def haiku(transform):
    hk = pytest.importorskip("haiku")
    return getattr(hk, transform)(lambda x: hk.Linear(5)(x.mean((1, 2))))


def pytorch():
    """An instance of a class that is called what PyTorch's own is."""
    base = types.new_class("Module")
    base.__module__ = "torch.nn.modules.module"
    return types.new_class("ResNet", (base,))()


OTHERS = {
    "linen": (lambda: LINEN, r"a Flax linen module: jaxprune\.from_linen\("),
    "nnx": (lambda: MODULE, r"a flax\.nnx Module: jaxprune\.from_nnx\(model\)"),
    "equinox": (equinox, r"an Equinox module: jaxprune\.from_equinox\(model\)"),
    "keras": (keras, r"a Keras model: jaxprune\.from_keras\(model\)"),
    "haiku": (lambda: haiku("transform"), r"a Haiku transform: jaxprune\.Network\(hk"),
    "haiku with state": (
        lambda: haiku("transform_with_state"), r"with state: jaxprune\.Network\(f"),
    "pytorch": (pytorch, r"a PyTorch module: torchax\.extract_jax\(model\)"),
    "train state": (lambda: STATE, r"a TrainState: give its model, and {'params'"),
    "state": (lambda: nnx.state(MODULE), r"an nnx\.State: jaxprune\.from_nnx\(nnx\.m"),
    "definition": (lambda: nnx.graphdef(MODULE), r"an nnx\.GraphDef: .*from_nnx\(nnx"),
    "class": (lambda: Linen, "the class Linen: give a model of it"),
    "path": (lambda: Path("model.keras"), r"a path: .* jaxprune\.from_keras or load_"),
    "text": (lambda: "model.keras", r"text: .* jaxprune\.from_keras or load_compact"),
    "variables": (lambda: VARIABLES, "got dict"),
    "nothing": (lambda: None, "got NoneType"),
}  # fmt: skip
# What takes a network, and those of OTHERS that it does take, or says more of.
TAKERS = {
    "find_groups": (jaxprune.find_groups, {"linen"}),
    "shrink": (lambda x: jaxprune.shrink(x, VARIABLES, IMAGES, speedup=2), {"linen"}),
    "network": (lambda x: jaxprune.Network(x, VARIABLES), set()),
    "linen": (lambda x: jaxprune.from_linen(x, VARIABLES), {"linen"}),
    "nnx": (jaxprune.from_nnx, {"nnx"}),
    "equinox": (lambda x: jaxprune.from_equinox(x), {"equinox"}),
    "keras": (lambda x: jaxprune.from_keras(x), {"keras", "path", "text"}),
}


@pytest.mark.parametrize("taker", TAKERS)
def test_another_object_is_named_with_what_takes_it(taker):
    if taker in ("equinox", "keras"):
        pytest.importorskip(taker)
    call, own = TAKERS[taker]
    for name, (make, message) in OTHERS.items():
        if name in own:
            continue
        try:
            given = make()
        except pytest.skip.Exception:
            continue  # its framework is not installed
        if taker == "network" and not callable(given):
            continue  # the types of a dataclass's fields are checked before
        with pytest.raises(InputError, match=message) as refused:
            call(given)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "variables, message",
    [
        (PARAMS, r"got one of Conv_0, .*; parameters alone are {'params': parameters}"),
        (STATE, r"got a TrainState: .*{'params': state\.params"),
        (nnx.state(MODULE), r"got an nnx\.State: jaxprune\.from_nnx\("),
        ({}, "got one of nothing"),
        (None, "got NoneType"),
    ],
)
def test_other_variables_of_a_linen_model(variables, message):
    for call in (
        lambda: jaxprune.from_linen(LINEN, variables, train=False),
        lambda: jaxprune.find_groups(LINEN, variables, IMAGES, call={"train": False}),
        lambda: jaxprune.find_groups(APPLY, variables, IMAGES),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: jaxprune.from_linen(LINEN, VARIABLES),
         r"Linen cannot be called without 'train': give call={'train': \.\.\.}, or fr"),
        (lambda: jaxprune.find_groups(LINEN, VARIABLES, IMAGES), "without 'train'"),
        (lambda: jaxprune.find_groups(LINEN.apply, VARIABLES, IMAGES),
         r"give functools\.partial\(model\.apply, train=\.\.\.\) for model\.apply"),
        (lambda: jaxprune.from_linen(LINEN, VARIABLES, train=False, training=False),
         "the call of Linen takes no argument 'training'; it takes: train"),
        (lambda: jaxprune.from_nnx(MODULE),
         r"NNX cannot be called without 'scale': give from_nnx\(module, images, scale"),
    ],
)  # fmt: skip
def test_a_call_that_misses_an_argument(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_call_as_the_model_has_it():
    apply = functools.partial(LINEN.apply, mutable=["batch_stats"], train=True)
    for given in (APPLY, functools.partial(apply, mutable=False, train=False)):
        assert "Conv_0" in jaxprune.find_groups(given, VARIABLES, IMAGES).groups
    assert jaxprune.from_nnx(MODULE, IMAGES, scale=2.0).layers.keys() == {"conv"}


def test_bytes_in_another_order():
    """JAX takes them for other numbers where a function is compiled already."""
    params = {"a": np.float32([[1, 2], [3, 4], [5, 6]])}
    swapped = {"a": params["a"].astype(">f4")}
    x = np.ones((2, 3), np.float32)

    def product(params, x):
        return x @ params["a"]

    with pytest.raises(
        InputError, match=r"variable a is >f4, .* array\.astype\('f4'\)"
    ):
        jaxprune.Network(product, swapped, x)
    small = as_compact(jaxprune.Network(product, params, x))
    expected = small(x)
    np.testing.assert_array_equal(small(x.astype(">f4")), expected)
    with pytest.raises(InputError, match="a is >f4"):
        small.with_arrays(swapped)
    with pytest.raises(InputError, match="a/0/0 is a number in lists of lists"):
        jaxprune.Network(product, {"a": params["a"].tolist()}, x)
    with pytest.raises(InputError, match="one input or more, got none"):
        jaxprune.cost(product, params, x[:0])
