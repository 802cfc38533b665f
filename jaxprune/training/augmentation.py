"""Images as training sees them: shifted, flipped, blended. Axes: N images, H, W, C."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num, UInt8


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


def blend(key: Array, images: Any) -> Any:
    """Each image with a share of another of the batch, at most half.

    For a teacher to label, as Beyer et al. 2022 do with mixup (Zhang et al. 2018): on
    images that it was trained on, it has little to tell.

    Args:
      key: what the shares are drawn by.
      images: [N, ...], or a tree of such arrays.
    """

    def blended(images: Num[Array, "N ..."]) -> Float[Array, "N ..."]:
        shape = (len(images), *[1] * (images.ndim - 1))
        own = jax.random.uniform(key, shape, minval=0.5)
        images = images.astype(jnp.float32)
        return own * images + (1 - own) * jnp.roll(images, 1, axis=0)

    return jax.tree.map(blended, images)
