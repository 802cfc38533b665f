"""How much is evaluated at once, by the device and the network's largest array."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune.graph import sizes
from jaxprune.graph.network import Network


def wide(params, x):
    """8 x 8 x 16 numbers of an image at the most."""
    return (x[..., :1] * params["w"]).sum((1, 2))


NETWORK = Network(wide, {"w": np.ones(16, np.float32)}, jnp.ones((3, 8, 8, 2)))


@pytest.mark.parametrize(
    ("memory", "images"),
    [
        (None, 2**27 // 1024),
        ({"bytes_limit": 2**40}, 2**27 // 1024),
        ({"bytes_limit": 2**34, "bytes_in_use": 2**33}, 2**26 // 1024),
    ],
)
def test_an_accelerator_is_kept_busy_within_its_memory(memory, images, monkeypatch):
    """By all of its memory, so that one that fills up changes nothing."""
    device = SimpleNamespace(memory_stats=lambda: memory)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert sizes.usual_batch_size(NETWORK) == images


def test_a_cpu_gets_small_batches():
    assert sizes.usual_batch_size(NETWORK) == 128
    assert sizes.images_at_once(NETWORK, NETWORK.few) == 2**22 // 1024
    assert sizes.chunk_size(2**30) == 1
