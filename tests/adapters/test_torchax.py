"""PyTorch, by torchax as a function of its state; PyTorch itself is the truth."""

import numpy as np
import pytest

import jaxprune

try:
    import torch
    import torchax
except Exception as error:  # torchax lags behind PyTorch, and then raises as it may
    pytest.skip(f"torchax cannot be imported: {error}", allow_module_level=True)

IMAGES = np.random.default_rng(0).normal(size=(16, 3, 8, 8)).astype(np.float32)


def test_weights_really_zeroed_in_the_module():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    ).eval()
    params, function = torchax.extract_jax(model)
    network = jaxprune.Network(lambda p, x: function(p, (x,)), params, IMAGES)
    layer = next(iter(network.layers))
    gone = np.arange(8) % 3 == 0
    small = jaxprune.compact(network, layer, ~gone, fill="drop")
    with torch.no_grad():
        model[3].weight[:, torch.tensor(gone)] = 0
        expected = model(torch.tensor(IMAGES)).numpy()
    np.testing.assert_allclose(small(IMAGES), expected, atol=1e-5)
    assert small.params["0.weight"].shape[0] == small.params["1.weight"].shape[0] == 5
