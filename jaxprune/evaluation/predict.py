"""A network's outputs over a split; its logits.

Axes: N images, B images of a batch, C classes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import (
    REPLICATED,
    SPREAD,
    Sharded,
    make_mesh,
    replicate,
    round_up,
    usual_options,
)
from jaxprune.adapters.linen import plain
from jaxprune.data.splits import Batch, Split, batches
from jaxprune.graph.trace import trace


def compiled(apply: Callable[..., Any], mesh: Mesh | None = None) -> Sharded:
    """The network as a program that several calls of `predict` share.

    It is compiled at its first use, and says then what that took
    (`compile_seconds`).

    Args:
      apply: `apply(variables, images)` -> outputs for a split's images as they are.
      mesh: the devices to work on; by default all of this process.
    """
    spread = (REPLICATED, SPREAD)
    return Sharded(apply, mesh or make_mesh(), spread, SPREAD)


@usual_options()
def predict(
    apply: Callable[..., Any] | Sharded,
    variables: Any,
    split: Split,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    on_images: Callable[[int], Any] | None = None,
) -> Float[np.ndarray, "N C"]:
    """Logits of every image of a split, in its order.

    Args:
      apply: `apply(variables, images)` -> logits [B, C]. It takes the split's images as
        they are, so it scales them. Or what `compiled` made of it for the same mesh:
        then calls with the same batch size compile once.
      variables: the network's variables.
      split: the images.
      batch_size: images in a batch, B; rounded up to a multiple of the devices. Black
        images fill the last batch up, and their logits are left out.
      mesh: the devices to work on; by default all of this process.
      on_images: called with the number of images done since the last call.

    Returns:
      Logits in float32, whatever type the network computes in.

    Raises:
      InputError: a batch size below 1, no images, variables that are not those of
        the network, or one that does not return a row of logits for each image.
    """
    arguments.check_count("batch_size", batch_size)
    arguments.check_kind("split", split, Split, "a Split, as image_split returns")
    if not len(split):
        raise InputError("the split has no images")
    arguments.check_parameters(variables)
    variables = plain(variables)
    mesh = mesh or make_mesh()
    if not isinstance(apply, Sharded):
        one = split.read(np.arange(1))
        trace(apply, variables, one)  # or says why that cannot be
        _check_logits(jax.eval_shape(apply, variables, one), one)
    program = apply if isinstance(apply, Sharded) else compiled(apply, mesh)
    parts = []
    for batch, found in outputs(program, variables, split, batch_size, mesh):
        logits = np.asarray(found, np.float32)
        _check_logits(logits, batch.images)
        parts.append(logits[: batch.size])
        if on_images is not None:
            on_images(batch.size)
    return np.concatenate(parts)


def outputs(
    program: Sharded, variables: Any, split: Split, batch_size: int, mesh: Mesh
) -> Iterator[tuple[Batch, Any]]:
    """A network's outputs, batch by batch; arguments as of `predict`."""
    variables = replicate(variables, mesh)
    for batch in batches(split, round_up(batch_size, mesh.size)):
        yield batch, program(variables, batch.images)


def _check_logits(logits: Any, images: np.ndarray) -> None:
    """Raises InputError unless there is a row of logits for each image."""
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    if len(shape) != 2 or shape[0] != len(images):
        raise InputError(
            f"the network must return logits [{len(images)}, classes], got "
            f"shape {list(shape)}"
        )
