"""The benchmark's PyTorch network is the Flax network, layer for layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxprune
from jaxprune.recipes import models
from jaxprune.recipes.models import CifarVGG
from random_data import random_variables

torch = pytest.importorskip("torch")

from experiments.bench.pytorch import Network  # noqa: E402 - after the skip

MODEL = CifarVGG(widths=range(2, 15), dense=(6, 5, 4, 10))
LAYER = "conv2d_12"


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(0, 1, (5, 32, 32, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(images):
    return random_variables(MODEL, images)


def flax_layers(monkeypatch, variables, images):
    """What the Flax network does in training, in order."""
    found = []

    def record(next_fun, args, kwargs, context):
        layer = context.module
        if isinstance(layer, nn.Conv | nn.Dense):
            kind = "conv" if isinstance(layer, nn.Conv) else "dense"
            found.append((kind, args[0].shape[-1], layer.features))
        elif isinstance(layer, nn.BatchNorm):
            found.append(("norm", args[0].shape[-1], layer.epsilon, layer.momentum))
        elif isinstance(layer, nn.Dropout) and not layer.deterministic:
            found.append(("dropout", layer.rate))
        return next_fun(*args, **kwargs)

    def recorded(name, function):
        def call(x):
            found.append((name,))
            return function(x)

        return call

    monkeypatch.setattr(nn, "relu", recorded("relu", nn.relu))
    pool = recorded("pool", models.max_pool_2x2)
    monkeypatch.setattr(models, "max_pool_2x2", pool)

    def run(variables, images):
        return MODEL.apply(
            variables, images, train=True, mutable="batch_stats",
            rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip

    with nn.intercept_methods(record):
        jax.eval_shape(run, variables, images)
    return found


def torch_layers(network):
    """The same of the PyTorch network."""
    found = []
    for layer in (*network.trunk, *network.head):
        match layer:
            case torch.nn.Conv2d():
                assert (layer.kernel_size, layer.padding) == ((3, 3), (1, 1))
                found.append(("conv", layer.in_channels, layer.out_channels))
            case torch.nn.Linear():
                found.append(("dense", layer.in_features, layer.out_features))
            case torch.nn.BatchNorm2d():
                keep = 1 - layer.momentum  # PyTorch's is the share of what is new
                found.append(("norm", layer.num_features, layer.eps, keep))
            case torch.nn.Dropout():
                found.append(("dropout", layer.p))
            case torch.nn.MaxPool2d():
                assert layer.kernel_size == 2
                found.append(("pool",))
            case torch.nn.ReLU():
                found.append(("relu",))
            case _:
                assert isinstance(layer, torch.nn.Flatten)
    return found


def test_the_same_layers(monkeypatch, variables, images):
    network = Network(MODEL, variables, images[:1], LAYER)
    theirs = flax_layers(monkeypatch, variables, images)
    assert [row for row in theirs if row[0] == "dropout"] == [
        ("dropout", rate) for rate in (*MODEL.pool_dropout, *MODEL.dense_dropout)
    ]
    assert torch_layers(network) == theirs


def test_the_same_forward_pass(variables, images):
    network = Network(MODEL, variables, images[:1], LAYER).eval()
    x = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        feature_map = network.trunk(x).numpy().transpose(0, 2, 3, 1)
        logits = network(x).numpy()

    def apply(variables, images, **kwargs):
        return MODEL.apply(variables, images, train=False, **kwargs)

    # Sums of up to 126 products in another order, through 17 layers: float32's
    # rounding, 6e-8, some ten times over.
    expected = np.asarray(apply(variables, images))
    np.testing.assert_allclose(logits, expected, atol=2e-6 * np.abs(expected).max())
    expected = np.asarray(
        jaxprune.capture(apply, variables, images, LAYER, jaxprune.TAPS["relu"])
    )
    np.testing.assert_allclose(
        feature_map, expected, atol=2e-6 * np.abs(expected).max()
    )


def test_parameters_have_flax_names(variables, images):
    network = Network(MODEL, variables, images[:1], LAYER)
    names = {name for name in variables["params"] if name.startswith(("conv", "dense"))}
    assert set(network.weights) == names
