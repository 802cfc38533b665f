"""The variables that are left when channels go, and what those still sent on.

Removing a channel cuts the convolution's outputs, every BatchNorm behind it and the
rows that it feeds in the layers that read it. It still sent something there: a
constant, since its masked value is one, and all that follows up to the next layer is
computed from constants. The constant is added to a dense layer's bias. A convolution
pads with zeros, so that at the border it reads the constant less often: there it is a
map, in the collection "offsets", kept as its few different rows and an index to them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from jaxprune.channels import flow as dependence
from jaxprune.channels import masking, taps
from jaxprune.channels.masking import Pruning
from jaxprune.compaction import proof
from jaxprune.errors import InputError


def cut_variables(
    apply: taps.Apply, variables: Any, prunings: Sequence[Pruning], x: Array
) -> Any:
    """The smaller variables, what pruned channels send on folded in.

    Args:
      apply: the network.
      variables: its variables.
      prunings: what to remove.
      x: one input.

    Raises:
      InputError: a layer would read nothing that is left.
    """
    flat = flatten_dict(variables, sep="/")
    consumers = {name for p in prunings for name in p.flow.consumers}
    calls = {c.name: c for c in dependence.list_calls(apply, variables, x)}
    masked = masking.mask_channels(apply, prunings)
    given = jax.jit(lambda v, x: taps.capture_inputs(masked, v, x, consumers))(
        variables, x
    )
    for name in sorted(consumers):
        _fold(flat, calls[name], prunings, np.asarray(given[name]))
    outputs = {p.flow.layer: p.keep for p in prunings}
    for name in {name for p in prunings for name in p.flow.norms}:
        outputs[name] = _kept_of(prunings, name, "norms")
    for path, value in flat.items():
        layer = "/".join(path.split("/")[1:-1])
        if layer in consumers and path.endswith("/kernel"):
            keep = _kept_of(prunings, layer, "consumers")
            if not keep.any():
                raise InputError(f"'{layer}' reads pruned channels only: keep one more")
            value = value[..., keep, :]
        if layer in outputs and not path.endswith("/index"):
            value = value[..., outputs[layer]]
        flat[path] = np.ascontiguousarray(value)
    return unflatten_dict(flat, sep="/")


def _kept_of(prunings: Sequence[Pruning], name: str, role: str) -> np.ndarray:
    """Features of a layer that every pruning leaves."""
    masks = [
        p.kept_features(getattr(p.flow, role)[name])
        for p in prunings
        if name in getattr(p.flow, role)
    ]
    return np.logical_and.reduce(masks)


def _fold(
    flat: dict[str, Any],
    call: dependence.Call,
    prunings: Sequence[Pruning],
    given: np.ndarray,
) -> None:
    """Adds to `flat` what the pruned features send through a layer."""
    folded = np.zeros(given.shape[-1], bool)
    dropped = np.zeros(given.shape[-1], bool)
    for pruning in prunings:
        if call.name in pruning.flow.consumers:
            gone = ~pruning.kept_features(pruning.flow.consumers[call.name])
            (dropped if pruning.values is None else folded)[gone] = True
    constants = np.where(folded & ~dropped, given, 0).astype(np.float32)
    if not constants.any():
        return
    kernel = flat[f"params/{call.name}/kernel"]
    uniform = (constants == constants.reshape(-1, given.shape[-1])[0]).all()
    bias = f"params/{call.name}/bias"
    if isinstance(call.module, nn.Dense):
        sent = constants.astype(np.float64) @ kernel.astype(np.float64)
        if uniform and bias in flat:
            row = sent.reshape(-1, kernel.shape[-1])[0]
            flat[bias] = (flat[bias] + row).astype(flat[bias].dtype)
            return
    else:
        sent = np.asarray(proof.linear(call.module, kernel, jnp.asarray(constants)))
    sent = sent[0].astype(np.float32)
    path = f"offsets/{call.name}"
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
