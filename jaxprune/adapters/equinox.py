"""Equinox: modules of one input as networks of batches, and the smaller module."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune.adapters.checks import check_call
from jaxprune.adapters.offsets import Offset
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network

try:
    import equinox as eqx
except ImportError as error:
    raise ImportError(f"{error}: pip install 'jaxprune[equinox]'") from error


@dataclass(frozen=True, eq=False)
class Equinox:
    """The Equinox module that a network is read from.

    Attributes:
      model: the module, in its caller's mode.
      state: its `eqx.nn.State`; None where it has none.
      call: keyword arguments of its call, the same for each input.
    """

    framework: ClassVar[str] = "Equinox module"
    model: eqx.Module
    state: Any
    call: Mapping[str, Any]

    def network(self, model: Any) -> Network:
        """Another module as a network, called in the same way."""
        state = None
        if self.state is not None:
            model, state = model
        return from_equinox(model, state, **self.call)

    def smaller(
        self, whole: Network, small: Network, offsets: Mapping[str, Offset]
    ) -> Any:
        """See `to_equinox`."""
        return to_equinox(whole, small, offsets)


class WithOffset(eqx.Module):
    """A layer, with the map rows[index] added to what it returns, channels first.

    Attributes:
      layer: the layer.
      rows: the map's different rows [R, C]; no gradient reaches them.
      index: the row of each position [*positions].
    """

    layer: Any
    rows: jax.Array
    index: jax.Array

    def __call__(self, x: Any, **kwargs: Any) -> Any:
        """The layer's output, and the map."""
        y = self.layer(x, **kwargs)
        offset = jnp.moveaxis(jax.lax.stop_gradient(self.rows)[self.index], -1, 0)
        return y + offset.astype(y.dtype)


def from_equinox(
    model: Any, state: Any = None, example: Any = None, **call: Any
) -> Network:
    """An Equinox module as a network, in inference mode and over a batch.

    A module takes one input; `jax.vmap` gives it the batch. The module itself is left
    as it is. The paths of the network's leaves are those of its attributes,
    "layers/0/weight".

    Args:
      model: the module.
      state: its `eqx.nn.State`, if it has one; `model(x, state)` then returns the
        output and a state.
      example: a batch of inputs.
      call: keyword arguments of the module's call.

    Raises:
      InputError: it is no Equinox module, or holds something else than finite real
        numbers.
    """
    arguments.check_model(model, eqx.Module, "an Equinox module")
    how = "from_equinox(module, state, images, {0}=...)"
    check_call(model, type(model).__call__, 2 if state is None else 3, call, how)
    if state is not None:
        arguments.check_kind("state", state, eqx.nn.State, "an Equinox State")
        try:
            jax.tree.leaves(state)
        except ValueError as error:
            raise InputError(
                "the state has been used: give that of the module's last call"
            ) from error
    arrays, rest = eqx.partition(eqx.nn.inference_mode(model), _is_parameter)

    def one(params: Any, x: Any) -> Any:
        if state is None:
            return eqx.combine(params, rest)(x, **call)
        module = eqx.combine(params["params"], rest)
        return module(x, params["state"], **call)[0]

    def function(params: Any, batch: Any) -> Any:
        return jax.vmap(one, in_axes=(None, 0))(params, batch)

    params = arrays if state is None else {"params": arrays, "state": state}
    return Network(function, params, example, Equinox(model, state, call))


def to_equinox(whole: Network, small: Network, offsets: Mapping[str, Offset]) -> Any:
    """The smaller module, of the classes of the whole one, in its mode.

    Args:
      whole: the network of the whole Equinox module.
      small: what is left of it, its arrays by path.
      offsets: maps that are added to what layers return, by the path of their kernel.

    Returns:
      The module; or the module and its state, where the whole one has a state.

    Raises:
      InputError: a layer that a map is added to is not one module's.
    """
    origin: Equinox = whole.origin
    params = jax.tree.map(jnp.array, whole.tree(small.arrays))
    arrays = params if origin.state is None else params["params"]
    # Its tree is the caller's, in whose mode the module is, with these arrays.
    own, rest = eqx.partition(origin.model, _is_parameter)
    leaves = jax.tree.leaves(arrays)
    model = eqx.combine(jax.tree.unflatten(jax.tree.structure(own), leaves), rest)
    prefix = "" if origin.state is None else "params/"
    found = {layer.leaf: layer for layer in small.layers.values() if layer.leaf}
    paths = {f"{prefix}{'/'.join(map(str, keys))}": keys for keys, _ in _modules(model)}
    for leaf, offset in offsets.items():
        way = paths.get(leaf.rpartition("/")[0])
        if way is None:
            raise InputError(
                f"'{leaf}' cannot be handed back: a map is to be added to what its "
                "layer returns, and no module returns it alone"
            )
        model = _add(model, way, offset)
    for keys, module in [*_modules(model)]:
        path = "/".join(map(str, (*keys, "weight")))
        _resize(module, found.get(prefix + path))
    return model if origin.state is None else (model, params["state"])


def _is_parameter(leaf: Any) -> bool:
    """Whether it is an array of numbers; keys of random numbers are none."""
    return eqx.is_array(leaf) and not jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.extended
    )


def _modules(node: Any, keys: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every module in a tree, with the way to it; the inner ones after the outer."""
    parts: list[tuple[Any, Any]] = []
    if isinstance(node, eqx.Module):
        yield keys, node
        parts = [
            (f.name, getattr(node, f.name, None)) for f in dataclasses.fields(node)
        ]
    elif isinstance(node, Mapping):
        parts = [*node.items()]
    elif hasattr(node, "_fields"):
        parts = [(name, getattr(node, name)) for name in node._fields]
    elif isinstance(node, list | tuple):
        parts = list(enumerate(node))
    for key, part in parts:
        yield from _modules(part, (*keys, key))


def _resize(module: Any, layer: Layer | None) -> None:
    """Sets the numbers that a module of Equinox's own keeps beside its arrays."""
    shape: Any = getattr(getattr(module, "weight", None), "shape", ())
    numbers: dict[str, Any] = {}
    match module:
        case eqx.nn.Conv() | eqx.nn.ConvTranspose() if shape:
            shape = shape[-2 - module.num_spatial_dims :]  # stacked ones have one more
            numbers["groups"] = module.groups if layer is None else layer.groups
            numbers["out_channels"] = shape[0]
            numbers["in_channels"] = shape[1] * numbers["groups"]
        case eqx.nn.Linear() if shape:
            ends = zip(("out_features", "in_features"), shape[-2:], strict=True)
            numbers = {n: s for n, s in ends if getattr(module, n) != "scalar"}
        case eqx.nn.MLP():
            first, last = module.layers[0], module.layers[-1]
            ends = zip(("in_size", "width_size", "out_size"), (
                first.weight.shape[-1], first.weight.shape[-2], last.weight.shape[-2],
            ), strict=True)  # fmt: skip
            numbers = {n: s for n, s in ends if getattr(module, n) != "scalar"}
        case eqx.nn.GroupNorm() if shape:
            size = (module.channels or shape[-1]) // module.groups
            numbers = {"channels": shape[-1], "groups": shape[-1] // size}
        case eqx.nn.BatchNorm() if shape:
            numbers["input_size"] = shape[-1]
        case eqx.nn.LayerNorm() | eqx.nn.RMSNorm() if shape:
            numbers["shape"] = shape[-len(module.shape) :]
        case eqx.nn.Embedding() if shape:
            numbers["num_embeddings"], numbers["embedding_size"] = shape[-2:]
        case eqx.nn.MultiheadAttention():
            _resize_attention(module)
    _set(module, numbers)


def _resize_attention(module: Any) -> None:
    """The heads of an attention, and its widths."""
    queries, values = module.query_proj.weight, module.value_proj.weight
    size, heads = module.qk_size, module.num_heads
    if queries.shape[0] % size == 0:  # whole heads have gone
        heads = queries.shape[0] // size
    else:
        size = queries.shape[0] // heads
        # Its logits are divided by the root of the head's width, which is its own.
        scale = (size / module.qk_size) ** 0.5
        _set(module.query_proj, {"weight": queries * scale})
        if module.query_proj.bias is not None:
            _set(module.query_proj, {"bias": module.query_proj.bias * scale})
    _set(
        module,
        {
            "num_heads": heads,
            "qk_size": size,
            "vo_size": values.shape[0] // heads,
            "query_size": queries.shape[1],
            "key_size": module.key_proj.weight.shape[1],
            "value_size": values.shape[1],
            "output_size": module.output_proj.weight.shape[0],
        },
    )


def _set(module: Any, numbers: Mapping[str, Any]) -> None:
    """Sets attributes of a module that nobody else holds yet."""
    for name, value in numbers.items():
        object.__setattr__(module, name, value)


def _add(model: Any, keys: tuple, offset: Offset) -> Any:
    """Adds a map to what a layer returns: to its bias, where it is a constant."""

    def layer_of(node: Any) -> Any:
        for key in keys:
            inside = isinstance(node, Mapping) or not isinstance(key, str)
            node = node[key] if inside else getattr(node, key)
        return node

    layer, constant = layer_of(model), offset.constant
    own = isinstance(layer, eqx.nn.Conv | eqx.nn.ConvTranspose | eqx.nn.Linear)
    if constant is not None and own:
        ones = (1,) * (layer.weight.ndim - 2)
        bias = jnp.asarray(constant, layer.weight.dtype).reshape(-1, *ones)
        bias = bias if layer.bias is None else layer.bias + bias
        _set(layer, {"bias": bias, "use_bias": True})
        return model
    wrapped = WithOffset(layer, jnp.asarray(offset.rows), jnp.asarray(offset.index))
    return eqx.tree_at(layer_of, model, wrapped)
