"""Images shifted, flipped and blended."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.training.augmentation import blend, crop_and_flip


def test_crop_and_flip_moves_each_image_by_itself():
    images = np.zeros((64, 8, 8, 1), np.uint8)
    images[:, 3, 3] = 255
    moved = crop_and_flip(jax.random.key(0), jnp.asarray(images), pad=2)
    moved = np.asarray(moved)
    assert set(np.unique(moved)) == {0, 255}
    places = {tuple(np.argwhere(m)[0]) for m in moved}
    assert len(places) > 10 and all(m.sum() == 255 for m in moved)
    rows, columns = ({int(place[axis]) for place in places} for axis in (0, 1))
    assert rows == {1, 2, 3, 4, 5}
    assert columns == {1, 2, 3, 4, 5, 6}  # column 3 shifted, or 4 when flipped


def test_blend_adds_a_share_of_another_image():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (64, 5, 4, 3), np.uint8)
    blended = blend(jax.random.key(0), jnp.asarray(images))
    flat, others = images.reshape(64, -1) * 1.0, np.roll(images, 1, 0).reshape(64, -1)
    difference = flat - others
    shares = ((np.asarray(blended).reshape(64, -1) - others) * difference).sum(1)
    shares /= (difference**2).sum(1)
    expected = others + shares[:, None] * difference
    np.testing.assert_allclose(blended.reshape(64, -1), expected, atol=1e-2)
    assert shares.min() > 0.5 - 1e-4 and shares.max() < 1 + 1e-4
    assert 0.6 < shares.mean() < 0.9 and len(np.unique(shares.round(3))) > 30
