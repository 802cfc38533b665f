"""A network without the pruned channels, equal to the masked network.

    small = compact(model, variables, "conv2d_12", keep, fill="zero", example=x)
    logits = small(x)

Removing a channel cuts the convolution's outputs, every BatchNorm behind it and the
rows that it feeds in the layers that read it. It still sent something there: a
constant, since its masked value is one, and all that follows up to the next layer is
computed from constants. The constant is added to a dense layer's bias. A convolution
pads with zeros, so that at the border it reads the constant less often: there it is a
map, in the collection "offsets", kept as its few different rows and an index to them.

Axes: N images, P channels of a layer, F input features of a later layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

from jaxprune import dependence, masking, taps
from jaxprune import proof as proof_lib
from jaxprune.compact_network import BY_WIDTHS, Compact
from jaxprune.errors import InputError
from jaxprune.masking import Fill, Pruning
from jaxprune.proof import Proof


def compact(
    model: nn.Module | Compact,
    variables: Any,
    layer: str,
    keep: Any,
    *,
    fill: Fill = "zero",
    example: Any,
    call: Mapping[str, Any] | None = None,
) -> Compact:
    """Removes channels of one layer; see `compact_layers`, which this is for one.

    Args:
      model: any linen model, or a network that has been compacted before.
      variables: its variables.
      layer: name of a convolution.
      keep: mask [P], True where a channel is kept.
      fill: what a pruned channel is in the masked network: "zero", "bias" (kernel
        zeroed, bias kept), its value in an array [P], or "drop" (whatever reads it
        reads 0), which is plain slicing.
      example: inputs [N, ...], for tracing and for the comparison; a few images.
      call: keyword arguments of the model's call.
    """
    return compact_layers(
        model, variables, {layer: (keep, fill)}, example=example, call=call
    )


def compact_layers(
    model: nn.Module | Compact,
    variables: Any,
    layers: Mapping[str, tuple[Any, Fill]],
    *,
    example: Any,
    call: Mapping[str, Any] | None = None,
) -> Compact:
    """Removes channels of several layers at once.

    Args:
      model: any linen model, or a network that has been compacted before.
      variables: its variables.
      layers: name of a convolution -> (mask of its channels, fill).
      example: inputs [N, ...], for tracing and for the comparison; a few images.
      call: keyword arguments of the model's call.

    Returns:
      The smaller network, compared with the masked one on the example.

    Raises:
      InputError: bad masks or fills, variables or an example that do not fit, channels
        that cannot be removed (the operation and the layer are named), or a difference
        that rounding does not explain.
    """
    example = jnp.asarray(example)
    if example.ndim < 2 or not len(example):
        raise InputError(
            f"example must be a batch of inputs [N, ...], got {example.shape}"
        )
    variables = jax.tree.map(np.asarray, unfreeze(variables))
    if "params" not in variables or not layers:
        raise InputError("variables need a collection 'params', and layers a layer")
    whole = _as_compact(model, variables, example, call)
    try:
        return _compact(whole, layers, example)
    except jax.errors.UnexpectedTracerError as error:
        raise InputError(
            "a layer is called inside a transformation (nn.scan, nn.remat, nn.jit), "
            "where what it is given cannot be seen: build the model without"
        ) from error


def _compact(
    whole: Compact, layers: Mapping[str, tuple[Any, Fill]], example: Array
) -> Compact:
    apply, variables = whole.apply, whole.variables
    prunings = [
        masking.make_pruning(
            variables, dependence.channel_flow(apply, variables, example, name), *how
        )
        for name, how in layers.items()
    ]
    smaller = cut_variables(apply, variables, prunings, example[:1])
    small = replace(
        whole,
        model=_narrow(whole, smaller, example),
        variables=smaller,
        kept={**whole.kept, **{p.flow.layer: _kept(whole, p) for p in prunings}},
        channels={
            **{p.flow.layer: p.flow.channels for p in prunings},
            **whole.channels,
        },
        fills={**whole.fills, **{p.flow.layer: p.name for p in prunings}},
    )
    _check_runs(small, example, whole)
    return replace(small, report=prove(whole, prunings, small, example))


def prove(
    whole: Compact, prunings: Sequence[Pruning], small: Compact, x: Array
) -> Proof:
    """Compares the compact network with the masked one; see `jaxprune.proof`."""
    # A matrix unit that rounds its factors would need a wider bound.
    with jax.default_matmul_precision("highest"):
        before, bound = proof_lib.rounding_bound(
            whole.apply,
            whole.variables,
            x,
            lambda apply: masking.mask_channels(apply, prunings),
        )
        after = jax.jit(lambda v, x: small.apply(v, x))(small.variables, x)
    return proof_lib.compare(before, np.asarray(after, np.float32), bound)


def _as_compact(
    model: nn.Module | Compact, variables: Any, example: Array, call: Any
) -> Compact:
    if isinstance(model, Compact):
        if call is not None:
            raise InputError(
                "a compact network keeps its call's arguments: leave `call`"
            )
        return replace(model, variables=variables)
    shape = example.shape[1:]
    return Compact(model, variables, dict(call or {}), {}, {}, {}, shape, None)


def _kept(whole: Compact, pruning: Pruning) -> tuple[int, ...]:
    layer = pruning.flow.layer
    first = whole.kept.get(layer, range(pruning.flow.channels))
    return tuple(c for c, keep in zip(first, pruning.keep, strict=True) if keep)


def _narrow(whole: Compact, variables: Any, example: Array) -> nn.Module:
    """The model with the widths of its variables, where it is built from widths."""
    model = whole.model
    if type(model).__name__ not in BY_WIDTHS:
        return model
    calls = dependence.list_calls(whole.apply, whole.variables, example[:1])
    convs = [call.name for call in calls if isinstance(call.module, nn.Conv)]
    widths = [variables["params"][name]["kernel"].shape[-1] for name in convs]
    return model.clone(widths=tuple(widths))


def _check_runs(small: Compact, example: Array, whole: Compact) -> None:
    """Raises if the model's code cannot run with fewer channels."""
    try:
        output = jax.eval_shape(
            lambda v, x: small.apply(v, x), small.variables, example
        )
    except Exception as error:  # whatever the model's own code raises
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the model's code does not run with fewer channels, as one that writes "
            f"their number into a reshape or a parameter: {line}"
        ) from error
    expected = jax.eval_shape(lambda v, x: whole.apply(v, x), whole.variables, example)
    if getattr(output, "ndim", 0) != 2 or output.shape != expected.shape:
        shapes = jax.tree.map(jnp.shape, output)
        raise InputError(f"the network must return logits [N, C], got {shapes}")


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
    given = _observe(masking.mask_channels(apply, prunings), variables, x, consumers)
    for name in sorted(consumers):
        _fold(flat, calls[name], prunings, given[name])
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


def _observe(
    apply: taps.Apply, variables: Any, x: Array, names: set[str]
) -> dict[str, np.ndarray]:
    """What the named layers are given."""

    def run(variables: Any, x: Array) -> dict[str, Array]:
        given: dict[str, Array] = {}

        def note(next_fun: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            name = "/".join(context.module.path)
            if name in names and context.method_name == "__call__":
                given[name] = args[0] if args else kwargs["inputs"]
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(note):
            apply(variables, x)
        return given

    return {k: np.asarray(v) for k, v in jax.jit(run)(variables, x).items()}


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
        sent = np.asarray(proof_lib.linear(call.module, kernel, jnp.asarray(constants)))
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
