"""Keras models, on its JAX backend, as networks; and the smaller model."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxprune._base.errors import InputError, first_line
from jaxprune.adapters.offsets import Offset
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network

if TYPE_CHECKING:
    from jaxprune.compaction.network import Compact

if "keras" not in sys.modules:
    os.environ.setdefault("KERAS_BACKEND", "jax")
try:
    import keras
    from keras import tree
except ImportError as error:
    raise ImportError("Keras is missing: pip install 'jaxprune[keras]'") from error


@dataclass(frozen=True, eq=False)
class Keras:
    """The Keras model that a network is read from.

    Attributes:
      model: the model.
      call: keyword arguments of its call.
    """

    model: Any
    call: Mapping[str, Any]

    def network(self, model: Any) -> Network:
        """Another model as a network, called in the same way."""
        return from_keras(model, **self.call)

    def smaller(self, small: "Compact", offsets: Mapping[str, Offset]) -> Any:
        """See `to_keras`."""
        return to_keras(small, offsets)


def from_keras(model: Any, example: Any = None, **call: Any) -> Network:
    """A Keras model as a network, in inference mode.

    The paths of the network's leaves are those of the model's variables,
    "conv2d/kernel".

    Args:
      model: the model, built; or the path of a file that Keras saved it to, `.keras` or
        `.h5`, which is read without running code that the file may hold.
      example: a batch of inputs; by default of zeros, as the model says.
      call: keyword arguments of the model's call.

    Raises:
      InputError: no model, one that is not built, a file that Keras cannot read, or
        another backend of Keras than JAX.
    """
    if keras.backend.backend() != "jax":
        raise InputError(
            f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=jax before it "
            "is imported"
        )
    if isinstance(model, str | Path):
        model = _load(Path(model))
    if not isinstance(model, keras.Model):
        kind = type(model).__name__
        raise InputError(f"model must be a Keras model or its file, got {kind}")
    if not model.built:
        raise InputError("the Keras model is not built: call it on a batch first")
    variables = _variables(model)
    numbers = {path: v for path, v in variables.items() if _is_parameter(v)}
    fixed = {id(v): v.value for v in variables.values() if not _is_parameter(v)}

    def function(params: Any, batch: Any) -> Any:
        values = fixed | {id(v): params[path] for path, v in numbers.items()}
        output, _ = model.stateless_call(
            [values[id(v)] for v in model.trainable_variables],
            [values[id(v)] for v in model.non_trainable_variables],
            batch, training=False, **call,
        )  # fmt: skip
        return output

    params = {path: np.asarray(variable.value) for path, variable in numbers.items()}
    if example is None and hasattr(model, "inputs"):
        example = _example(model)
    return Network(function, params, example, Keras(model, call))


def to_keras(small: "Compact", offsets: Mapping[str, Offset]) -> Any:
    """The smaller model: its layers' configurations with other numbers.

    A map that is added to what a layer returns becomes the bias of an `EinsumDense`
    behind it, with an activation of its own; such a layer is a `Sequential` then.

    Args:
      small: a compact network of a Keras model.
      offsets: maps that are added to what layers return, by the layer's name.

    Raises:
      InputError: the model cannot be made from its layers' configurations.
    """
    assert small.whole is not None
    whole = small.whole.origin.model
    paths = {id(variable): path for path, variable in _variables(whole).items()}
    found = small.network.layers.values()
    layers = {layer.leaf: layer for layer in found if layer.leaf}
    added = {small.network.layers[name].leaf: offsets[name] for name in offsets}
    made: list[_Made] = []

    def clone(layer: Any) -> Any:
        if isinstance(layer, keras.Sequential):
            # Without the input that it says, whose channels may be others.
            copies = [clone(one) for one in layer.layers]
            return keras.Sequential(copies, name=layer.name)
        if isinstance(layer, keras.Model):
            nested[place := keras.layers.Identity(name=layer.name)] = layer
            return place
        own = [path for v in layer.variables if (path := paths.get(id(v))) in small.arrays]
        # By the names that they have inside the layer.
        prefix = os.path.commonpath(own) if len(own) > 1 else layer.name
        arrays = {path.removeprefix(f"{prefix}/"): small.arrays[path] for path in own}
        calls = [layers[path] for path in own if path in layers]
        config = layer.get_config() | (_numbers(layer, arrays, calls) if own else {})
        offset = next((added[path] for path in own if path in added), None)
        if offset is None:
            copy = together = type(layer).from_config(config)
        else:
            copy, together = _with_offset(layer, config, offset)
        made.append(_Made(layer, copy, together, offset))
        return together

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if layer in nested:
            if layer not in made_of:
                inputs = tree.map_structure(_input, args[0])
                made_of[layer] = functional(nested[layer], input_tensors=inputs)
            layer = made_of[layer]
        return layer(*args, **kwargs)

    # Models inside the model, and theirs, by what stands for them until it is called.
    nested: dict[Any, Any] = {}
    made_of: dict[Any, Any] = {}
    functional = partial(
        keras.models.clone_model, clone_function=clone, call_function=call
    )
    try:
        if isinstance(whole, keras.Sequential):
            model = clone(whole)
            model.build((None, *whole.input_shape[1:]))
        else:
            model = functional(whole)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"the Keras model cannot be handed back: {first_line(error)}"
        ) from error
    for each in made:
        _assign(each, paths, small.arrays)
    return model


def _input(x: Any) -> Any:
    """An input of the shape that a symbolic tensor has."""
    return keras.Input(x.shape[1:], dtype=x.dtype)


class _Made(NamedTuple):
    """A layer, the one made of it, that with what is added, and what that is."""

    layer: Any
    copy: Any
    together: Any
    offset: Offset | None


def _load(path: Path) -> Any:
    """The model of a file.

    Raises:
      InputError: Keras cannot read it, or it holds weights alone.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if path.name.endswith(".weights.h5"):
        raise InputError(
            f"{path} holds weights alone: build the model, model.load_weights(...), and "
            "give the model"
        )
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # whatever a damaged file makes Keras raise
        raise InputError(f"Keras cannot read {path}: {first_line(error)}") from error


def _variables(model: Any) -> dict[str, Any]:
    """A model's variables by path; a path of several variables is numbered."""
    found: dict[str, Any] = {}
    for variable in (*model.trainable_variables, *model.non_trainable_variables):
        layer, _, name = variable.path.rpartition("/")
        path, number = variable.path, 1
        while path in found:
            number += 1
            path = f"{layer}_{number}/{name}"
        found[path] = variable
    return found


def _is_parameter(variable: Any) -> bool:
    """Whether a variable is no state of a generator of random numbers."""
    return bool(jnp.issubdtype(variable.dtype, jnp.floating))


def _example(model: Any) -> Any:
    """A batch of zeros of the shapes that a model says it takes; None where it is open."""
    shapes = [tuple(x.shape[1:]) for x in model.inputs]
    if len(shapes) != 1 or None in shapes[0]:
        return None
    return np.zeros((2, *shapes[0]), model.inputs[0].dtype)


def _numbers(
    layer: Any, arrays: Mapping[str, Any], calls: Sequence[Layer]
) -> dict[str, Any]:
    """The numbers of a layer's configuration that follow from its arrays."""
    found = keras.layers
    kernel = np.shape(arrays.get("kernel"))
    transposed = (
        found.Conv1DTranspose, found.Conv2DTranspose, found.Conv3DTranspose
    )  # fmt: skip
    if isinstance(layer, found.SeparableConv1D | found.SeparableConv2D):
        return {"filters": np.shape(arrays["pointwise_kernel"])[-1]}
    if isinstance(layer, transposed):
        return {"filters": kernel[-2]}
    if isinstance(layer, found.Conv1D | found.Conv2D | found.Conv3D):
        return {"filters": kernel[-1], "groups": calls[0].groups if calls else 1}
    if isinstance(layer, found.Dense):
        return {"units": kernel[-1]}
    if isinstance(layer, found.EinsumDense):
        shape = layer.get_config()["output_shape"]
        shape = [shape] if isinstance(shape, int) else [*shape]
        return {"output_shape": (*shape[:-1], kernel[-1])}
    if isinstance(layer, found.GroupNormalization) and layer.gamma is not None:
        size = layer.gamma.shape[0] // layer.groups if layer.groups > 0 else 1
        groups = np.shape(arrays["gamma"])[0] // size if layer.groups > 1 else 1
        return {"groups": groups if layer.groups > 0 else layer.groups}
    if isinstance(layer, found.MultiHeadAttention):
        return _attention(layer, arrays)
    if isinstance(layer, found.Embedding):
        rows, columns = np.shape(arrays["embeddings"])
        return {"input_dim": rows, "output_dim": columns}
    return {}


def _with_offset(layer: Any, config: dict[str, Any], offset: Offset) -> tuple[Any, Any]:
    """A layer with a map added to what it returns: the layer itself, and both."""
    if "use_bias" in config and offset.constant is not None:
        copy = type(layer).from_config(config | {"use_bias": True})
        return copy, copy
    if "activation" not in config:
        raise InputError(
            f"'{layer.name}' cannot be handed back: a map is to be added to what it "
            "returns, which no layer of its kind takes"
        )
    copy = type(layer).from_config(config | {"activation": "linear"})
    positions = "xyz"[: offset.index.ndim]
    axes = f"{positions}c"
    shape = (*offset.index.shape, offset.rows.shape[1])
    if config.get("data_format") == "channels_first":
        axes, shape = f"c{positions}", (shape[-1], *shape[:-1])
    add = keras.layers.EinsumDense(
        f"b{axes},c->b{axes}", shape, bias_axes=axes, trainable=False, name="offset"
    )
    activation = keras.layers.Activation(config["activation"])
    return copy, keras.Sequential([copy, add, activation], name=layer.name)


def _attention(layer: Any, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an attention's configuration; arrays by their layer inside it."""
    _, heads, dim = np.shape(arrays["query/kernel"])
    values = np.shape(arrays["value/kernel"])[-1]
    return {"num_heads": heads, "key_dim": dim, "value_dim": values}


def _assign(made: "_Made", paths: Mapping[int, str], arrays: Mapping[str, Any]) -> None:
    """Gives a layer that was made of another its arrays."""
    layer, copy, together, offset = made
    # The bias that a copy may have besides is its last variable.
    for before, variable in zip(layer.variables, copy.variables, strict=False):
        if (path := paths.get(id(before))) in arrays:
            variable.assign(arrays[path])
    if isinstance(copy, keras.layers.MultiHeadAttention):
        # Its logits are divided by the root of the key's width, which is its own.
        scale = (copy.key_dim / layer.key_dim) ** 0.5
        for variable in copy.query_dense.variables:
            variable.assign(variable.value * scale)
    if offset is None:
        return
    if copy is together:
        copy.bias.assign(copy.bias + offset.constant)
        return
    added = offset.rows[offset.index]
    first = copy.get_config().get("data_format") == "channels_first"
    add = together.get_layer("offset")
    add.kernel.assign(np.ones(add.kernel.shape, np.float32))
    add.bias.assign(np.moveaxis(added, -1, 0) if first else added)
