"""Flax NNX: modules as networks, and the smaller module of the same classes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune.adapters.checks import check_call, check_heads
from jaxprune.adapters.offsets import Offset
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network


@dataclass(frozen=True, eq=False)
class NNX:
    """The NNX module that a network is read from.

    Attributes:
      model: the module, in its caller's mode.
      call: keyword arguments of its call.
    """

    framework: ClassVar[str] = "NNX module"
    model: nnx.Module
    call: Mapping[str, Any]

    @property
    def untrained(self) -> frozenset[str]:
        """Paths of the leaves that are no `nnx.Param`."""
        others = nnx.state(self.model, nnx.Not(nnx.Param))
        paths = nnx.to_flat_state(others).paths
        return frozenset("/".join(map(str, path)) for path in paths)

    def network(self, model: nnx.Module) -> Network:
        """Another module as a network, called in the same way."""
        return from_nnx(model, **self.call)

    def smaller(
        self, whole: Network, small: Network, offsets: Mapping[str, Offset]
    ) -> nnx.Module:
        """See `to_nnx`."""
        return to_nnx(whole, small, offsets)


class OffsetVariable(nnx.Variable):
    """A map that is added to what a layer returns; unlike a `Param`, not trained."""


class WithOffset(nnx.Module):
    """A layer's product, with the map rows[index] added to what it returns.

    It stands in a layer for `lax.conv_general_dilated` or `lax.dot_general`.
    """

    def __init__(self, function: Callable[..., Any], offset: Offset):
        self.function = function
        self.rows = OffsetVariable(jnp.asarray(offset.rows))
        self.index = OffsetVariable(jnp.asarray(offset.index))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The product, and the map."""
        y = self.function(*args, **kwargs)
        return y + self.rows[...][self.index[...]].astype(y.dtype)


def from_nnx(model: Any, example: Any = None, **call: Any) -> Network:
    """A Flax NNX module as a network, in evaluation mode.

    The module itself is left as it is. The paths of the network's leaves are those of
    the module's attributes, "blocks/0/conv1/kernel".

    Args:
      model: the module.
      example: a batch of inputs.
      call: keyword arguments of the module's call.

    Raises:
      InputError: it is no NNX module, or holds something else than finite real numbers.
    """
    arguments.check_model(model, nnx.Module, "a flax.nnx Module")
    how = "from_nnx(module, images, {0}=...)"
    check_call(model, type(model).__call__, 2, call, how)
    evaluated = nnx.clone(model)
    evaluated.eval()
    graphdef, *states = nnx.split(evaluated, nnx.RngState, nnx.Not(nnx.RngState))
    random, state = states

    def function(params: Any, x: Any) -> Any:
        return nnx.merge(graphdef, random, _filled(state, params))(x, **call)

    params = nnx.to_pure_dict(state)
    return Network(function, params, example, NNX(model, call))


def to_nnx(whole: Network, small: Network, offsets: Mapping[str, Offset]) -> nnx.Module:
    """The smaller module, of the classes of the whole one, in its mode.

    Args:
      whole: the network of the whole NNX module.
      small: what is left of it, its arrays by path.
      offsets: maps that are added to what layers return, by the path of their kernel.

    Raises:
      InputError: a map is added where no layer of Flax's can take one.
    """
    model = nnx.clone(whole.origin.model)
    state = nnx.state(model, nnx.Not(nnx.RngState))
    arrays = jax.tree.map(jnp.array, whole.tree(small.arrays))
    nnx.update(model, _filled(state, arrays))
    modules = {
        "/".join(map(str, path)): module for path, module in nnx.iter_modules(model)
    }
    for leaf, offset in offsets.items():
        _add(modules.get(leaf.rpartition("/")[0]), leaf, offset)
    by_leaf = {layer.leaf: layer for layer in small.layers.values() if layer.leaf}
    for path, module in modules.items():
        layer = by_leaf.get(f"{path}/kernel" if path else "kernel")
        _resize(module, path, layer)
    return model


def _filled(state: Any, arrays: Any) -> Any:
    """A state with other arrays."""
    filled = nnx.clone(state)
    nnx.replace_by_pure_dict(filled, arrays)
    return filled


def _resize(module: Any, path: str, layer: Layer | None) -> None:
    """Sets the numbers that a module of Flax's own keeps beside its arrays."""
    shape: Any = module.kernel.shape if hasattr(module, "kernel") else ()
    match module:
        case nnx.Conv():
            # Stacked modules have one axis more.
            shape = module.kernel_shape = shape[-len(module.kernel_shape) :]
            if layer is not None:
                module.feature_group_count = layer.groups
            module.in_features = shape[-2] * module.feature_group_count
            module.out_features = shape[-1]
        case nnx.ConvTranspose():
            shape = module.kernel_shape = shape[-len(module.kernel_shape) :]
            ends = shape[-2:][::-1] if module.transpose_kernel else shape[-2:]
            module.in_features, module.out_features = ends
        case nnx.Linear():
            module.in_features, module.out_features = shape[-2:]
        case nnx.LinearGeneral():
            given, returned = len(module.in_features), len(module.out_features)
            module.in_features = tuple(shape[-given - returned : -returned])
            module.out_features = tuple(shape[-returned:])
        case nnx.Einsum():
            module.kernel_shape = shape[-len(module.kernel_shape) :]
            if module.bias is not None:
                module.bias_shape = module.bias.shape[-len(module.bias_shape or ()) :]
        case nnx.Embed():
            module.num_embeddings, module.features = module.embedding.shape[-2:]
        case nnx.MultiHeadAttention():
            heads, dim = module.query.kernel.shape[-2:]
            check_heads(path, dim, module.value.kernel.shape[-1])
            # Its logits are divided by the root of the head's width, which is its own.
            for variable in (module.query.kernel, module.query.bias):
                if variable is not None and not module.normalize_qk:
                    variable[...] = variable[...] * (dim / module.head_dim) ** 0.5
            module.num_heads, module.head_dim = heads, dim
            module.num_kv_heads = module.key.kernel.shape[-2]
            module.qkv_features = prod(module.query.kernel.shape[-2:])
            module.in_features = module.query.kernel.shape[-3]
            module.in_kv_features = module.key.kernel.shape[-3]
            module.out_features = module.out.kernel.shape[-1]
        case nnx.GroupNorm() if module.scale is not None or module.bias is not None:
            module.num_groups = _features(module) // module.group_size
        case nnx.BatchNorm():
            module.num_features = module.mean.shape[-1]
        case nnx.LayerNorm() | nnx.RMSNorm() | nnx.InstanceNorm():
            module.num_features = _features(module)


def _features(module: Any) -> int:
    """How many features a normalisation has, as its arrays say."""
    for array in (module.scale, getattr(module, "bias", None)):
        if array is not None:
            return int(array.shape[-1])
    return int(module.num_features)


def _add(module: Any, leaf: str, offset: Offset) -> None:
    """Adds a map to what a layer returns: to its bias, where it is a constant."""
    constant, bias = offset.constant, getattr(module, "bias", None)
    if constant is not None and bias is not None and bias.size == constant.size:
        sent = jnp.asarray(constant.reshape(bias.shape), bias.dtype)
        bias[...] = bias[...] + sent
    elif constant is not None and isinstance(module, nnx.Conv | nnx.Linear):
        module.bias = nnx.Param(jnp.asarray(constant, module.kernel.dtype))
        module.use_bias = True
    elif isinstance(module, nnx.Conv):
        product = WithOffset(module.conv_general_dilated, offset)
        module.conv_general_dilated = nnx.data(product)
    elif isinstance(module, nnx.Linear):
        module.dot_general = nnx.data(WithOffset(module.dot_general, offset))
    else:
        raise InputError(
            f"'{leaf}' cannot be handed back: a map is to be added to what it returns, "
            "which no layer of its kind takes"
        )
