"""The variables that are left when channels go, and what those still sent on.

Removing a channel cuts the convolution's outputs, every BatchNorm after it and the
rows that it feeds in the layers that read it. It still sent something there. With a
fill at the layer's output that is a constant, since all that follows up to the next
layer is computed from constants; with a mean at the readers it is that mean; with the
linear fill it is a constant and a share of each kept channel, whose rows take up that
share (W_k + A W_p). The constant is added to
a dense layer's bias. A convolution pads with zeros, so that at the border it reads the
constant less often: there it is a map, in the collection "offsets", kept as its few
different rows and an index to them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from jaxprune.channels import masking, taps
from jaxprune.channels.flow import layer_of
from jaxprune.channels.masking import Pruning
from jaxprune.compaction.proof import linear
from jaxprune.errors import InputError


def given_behind_values(
    apply: taps.Apply, variables: Any, prunings: Sequence[Pruning], x: Array
) -> dict[str, Array]:
    """What the readers of channels that have `values` are given, with them masked.

    Args:
      apply: the network.
      variables: its variables.
      prunings: what is removed. Fills that take effect at the readers need no run.
      x: one input.
    """
    filled = [p for p in prunings if p.fill.values is not None]
    readers = {name for p in filled for name in p.flow.readers}
    if not readers:
        return {}
    masked = masking.mask_channels(apply, [p.mask for p in prunings])
    run = jax.jit(lambda v, x: taps.capture_inputs(masked, v, x, readers))
    return run(variables, x)


def cut_variables(
    layers: Sequence[taps.Layer],
    variables: Any,
    prunings: Sequence[Pruning],
    given: Mapping[str, Array],
) -> Any:
    """The smaller variables, what pruned channels send on folded in.

    Args:
      layers: the network's, called with one input.
      variables: its variables.
      prunings: what to remove.
      given: see `given_behind_values`.

    Raises:
      InputError: a layer would read, or return, nothing that is left.
    """
    flat = flatten_dict(variables, sep="/")
    readers = {name for p in prunings for name in p.flow.readers}
    called = {layer.name: layer for layer in layers}
    for name in sorted(readers):
        shape = called[name].input.shape
        constants = _constants(name, prunings, shape, given)
        _fold_constants(flat, called[name], constants)
        for pruning in prunings:
            if name in pruning.fill.moments:
                regression = pruning.mask.at_readers[name]
                kernel = f"params/{name}/kernel"
                flat[kernel] = regression.fold(flat[kernel])
    producers = {name for p in prunings for name in p.flow.producers}
    parameters = {path for p in prunings for path in p.flow.parameters}
    for path, value in flat.items():
        layer = layer_of(path)
        if layer in readers and path.endswith("/kernel"):
            keep = _kept_of(prunings, layer, "readers")
            if not keep.any():
                raise InputError(f"'{layer}' reads pruned channels only: keep one more")
            value = value[..., keep, :]
        if layer in producers and not path.endswith("/index"):
            keep = _kept_of(prunings, layer, "producers")
            if not keep.any():
                raise InputError(f"'{layer}' would return nothing: keep one more of it")
            value = value[..., keep]
        elif path in parameters:
            value = value[..., _kept_of(prunings, path, "parameters")]
        flat[path] = np.ascontiguousarray(value)
    return unflatten_dict(flat, sep="/")


def _kept_of(prunings: Sequence[Pruning], name: str, role: str) -> np.ndarray:
    """Features of a layer, or elements of an array, that every pruning leaves."""
    masks = [
        p.kept_features(getattr(p.flow, role)[name])
        for p in prunings
        if name in getattr(p.flow, role)
    ]
    return np.logical_and.reduce(masks)


def _constants(
    name: str,
    prunings: Sequence[Pruning],
    shape: Sequence[int],
    given: Mapping[str, Array],
) -> np.ndarray:
    """What pruned features send a layer whatever the image is, as its input; else 0.

    Args:
      name: the layer.
      prunings: what is removed.
      shape: of what the layer is given for one image.
      given: the same in the masked network, see `given_behind_values`.
    """
    constants = np.zeros(shape, np.float32)
    for pruning in prunings:
        owner = pruning.flow.readers.get(name)
        if owner is None:
            continue
        gone = ~pruning.kept_features(owner)
        if pruning.fill.values is not None:
            constants[..., gone] = np.asarray(given[name])[..., gone]
        elif pruning.fill.moments:
            regression = pruning.mask.at_readers[name]
            constants[..., regression.features] = regression.constants
        else:
            constants[..., gone] = pruning.fill.at_reader(pruning.flow, name)[gone]
    return constants


def _fold_constants(
    flat: dict[str, Any], layer: taps.Layer, constants: np.ndarray
) -> None:
    """Adds to `flat` what constant features send through a layer."""
    if not constants.any():
        return
    kernel = flat[f"params/{layer.name}/kernel"]
    uniform = (constants == constants.reshape(-1, constants.shape[-1])[0]).all()
    bias = f"params/{layer.name}/bias"
    if isinstance(layer.module, nn.Dense):
        sent = constants.astype(np.float64) @ kernel.astype(np.float64)
        if uniform and bias in flat:
            row = sent.reshape(-1, kernel.shape[-1])[0]
            flat[bias] = (flat[bias] + row).astype(flat[bias].dtype)
            return
    else:
        sent = np.asarray(linear(layer.module, kernel, jnp.asarray(constants)))
    sent = sent[0].astype(np.float32)
    path = f"offsets/{layer.name}"
    if f"{path}/rows" in flat:
        sent = sent + flat[f"{path}/rows"][flat[f"{path}/index"]]
    positions = sent.shape[:-1]
    rows, index = np.unique(
        sent.reshape(-1, kernel.shape[-1]), axis=0, return_inverse=True
    )
    flat[f"{path}/rows"] = rows
    flat[f"{path}/index"] = index.reshape(positions).astype(
        np.min_scalar_type(len(rows))
    )
