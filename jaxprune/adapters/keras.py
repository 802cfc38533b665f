"""Keras models, on its JAX backend, as networks; and the smaller model."""

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._base import arguments
from jaxprune._base.errors import InputError, first_line
from jaxprune.adapters.checks import check_call, check_heads
from jaxprune.adapters.hdf5 import check_heaps
from jaxprune.adapters.offsets import Offset
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network

if "keras" not in sys.modules:
    os.environ.setdefault("KERAS_BACKEND", "jax")
try:
    import keras
    from keras import tree
except ImportError as error:
    raise ImportError(f"{error}: pip install 'jaxprune[keras]'") from error


@dataclass(frozen=True, eq=False)
class Keras:
    """The Keras model that a network is read from.

    Attributes:
      model: the model.
      call: keyword arguments of its call.
    """

    framework: ClassVar[str] = "Keras model"
    model: Any
    call: Mapping[str, Any]

    @property
    def untrained(self) -> frozenset[str]:
        """Paths of the variables that Keras does not train, as of frozen layers."""
        trained = {id(variable) for variable in self.model.trainable_variables}
        variables = _variables(self.model).items()
        return frozenset(path for path, v in variables if id(v) not in trained)

    def network(self, model: Any) -> Network:
        """Another model as a network, called in the same way."""
        return from_keras(model, **self.call)

    def smaller(
        self, whole: Network, small: Network, offsets: Mapping[str, Offset]
    ) -> Any:
        """See `to_keras`."""
        return to_keras(whole, small, offsets)


def from_keras(model: Any, example: Any = None, **call: Any) -> Network:
    """A Keras model as a network, in inference mode.

    The paths of the network's leaves are those of the model's variables,
    "conv2d/kernel".

    Args:
      model: the model, built; or the path of a file that Keras saved it to, `.keras` or
        `.h5`, which is read without running code that the file may hold.
      example: a batch of inputs; by default drawn, of the shape that the model says.
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
        kind = arguments.form_of(model)
        raise InputError(f"model must be a Keras model or its file, got {kind}")
    if not model.built:
        raise InputError("the Keras model is not built: call it on a batch first")
    if len(getattr(model, "inputs", ())) > 1:
        raise InputError("the Keras model takes several inputs: a network takes one")
    mode = {"training": False} if _takes_training(model) else {}
    how = "from_keras(model, {0}=...)"
    check_call(model, type(model).call, 2, mode | call, how)
    variables = _variables(model)
    numbers = {path: v for path, v in variables.items() if _is_parameter(v)}
    fixed = {id(v): v.value for v in variables.values() if not _is_parameter(v)}

    def function(params: Any, batch: Any) -> Any:
        values = fixed | {id(v): params[path] for path, v in numbers.items()}
        output, _ = model.stateless_call(
            [values[id(v)] for v in model.trainable_variables],
            [values[id(v)] for v in model.non_trainable_variables],
            batch, **mode | call,
        )  # fmt: skip
        return output

    params = {path: np.asarray(variable.value) for path, variable in numbers.items()}
    if example is None and hasattr(model, "inputs"):
        example = _example(model)
    return Network(function, params, example, Keras(model, call))


def to_keras(whole: Network, small: Network, offsets: Mapping[str, Offset]) -> Any:
    """The smaller model: its layers' configurations with other numbers.

    A map that is added to what a layer returns becomes the bias of an `EinsumDense`
    behind it, with an activation of its own; such a layer is a `Sequential` then.

    Args:
      whole: the network of the whole Keras model.
      small: what is left of it, its arrays by path.
      offsets: maps that are added to what layers return, by the path of their kernel.

    Raises:
      InputError: the model cannot be made from its layers' configurations.
    """
    model = whole.origin.model
    variables = _variables(model).items()
    paths = {id(v): path for path, v in variables if path in small.arrays}
    cloner = _Cloner(small, offsets, paths)
    try:
        smaller = cloner.whole(model)
    except InputError:
        raise
    except Exception as error:  # whatever layers of somebody's own raise
        raise InputError(
            "the Keras model cannot be made again from its layers' configurations: "
            f"{first_line(error)}"
        ) from error
    for each in cloner.made:
        _assign(each, paths, small.arrays)
    return smaller


class _Made(NamedTuple):
    """A layer, the one made of it, that with what is added, and what that is."""

    layer: Any
    copy: Any
    together: Any
    offset: Offset | None


class _Cloner:
    """Makes a model's layers again, with the numbers that follow from other arrays.

    Attributes:
      made: the layers that have been made.
    """

    def __init__(
        self, small: Network, offsets: Mapping[str, Offset], paths: Mapping[int, str]
    ):
        self.made: list[_Made] = []
        self._arrays, self._paths = small.arrays, paths
        self._layers = {x.leaf: x for x in small.layers.values() if x.leaf}
        self._offsets = offsets
        self._copies: dict[int, Any] = {}  # of a layer, wherever it is used
        # Models inside the model, by what stands for them until they are called.
        self._inner: dict[Any, Any] = {}
        self._called: dict[Any, Any] = {}

    def whole(self, model: Any) -> Any:
        """The model again."""
        if isinstance(model, keras.Sequential):
            copy = self.layer(model)
            copy.build((None, *model.input_shape[1:]))
            return copy
        return self._functional(model)

    def _functional(self, model: Any, inputs: Any = None) -> Any:
        return keras.models.clone_model(
            model, inputs, clone_function=self.layer, call_function=self._call
        )

    def layer(self, layer: Any) -> Any:
        """A layer again; the same for the same one."""
        if not isinstance(layer, keras.Layer):
            return layer  # an operation on arrays
        if id(layer) not in self._copies:
            self._copies[id(layer)] = self._copy(layer)
        return self._copies[id(layer)]

    def _copy(self, layer: Any) -> Any:
        if isinstance(layer, keras.Sequential):
            # Without the input that it says, whose channels may be others.
            copies = [self.layer(one) for one in layer.layers]
            return keras.Sequential(copies, name=layer.name)
        if isinstance(layer, keras.Model):
            self._inner[place := keras.layers.Identity(name=layer.name)] = layer
            return place
        own = [self._paths[id(v)] for v in layer.variables if id(v) in self._paths]
        config = layer.get_config()
        if own:  # by the names that they have inside the layer
            inside = len(os.path.commonpath(map(os.path.dirname, own))) + 1
            arrays = {path[inside:]: self._arrays[path] for path in own}
            calls = [self._layers[path] for path in own if path in self._layers]
            config |= _numbers(layer, arrays, calls)
        found = (self._offsets[path] for path in own if path in self._offsets)
        offset = next(found, None)
        if any(n is not None and n > 1 for n in config.get("noise_shape") or ()):
            raise InputError(f"'{layer.name}' keeps a number of channels: noise_shape")
        if offset is None:
            copy = together = type(layer).from_config(config)
        else:
            copy, together = _with_offset(layer, config, offset)
        self.made.append(_Made(layer, copy, together, offset))
        return together

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if layer in self._inner:
            if layer not in self._called:
                inputs = tree.map_structure(_input, args[0])
                self._called[layer] = self._functional(self._inner[layer], inputs)
            layer = self._called[layer]
        return layer(*args, **kwargs)


def _input(x: Any) -> Any:
    """An input of the shape that a symbolic tensor has."""
    return keras.Input(x.shape[1:], dtype=x.dtype)


def _load(path: Path) -> Any:
    """The model of a file.

    Raises:
      InputError: Keras cannot read it, or it holds weights alone.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if path.name.endswith(".weights.h5"):
        raise InputError(
            f"{path} holds weights alone, without the architecture: build the model, "
            "call its load_weights, and save all of it with model.save"
        )
    check_heaps(path)
    try:
        # The only generator that Keras draws with, which layers do when they are made.
        with jax.default_prng_impl("threefry2x32"):
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


def _takes_training(model: Any) -> bool:
    """Whether its call says whether it is training."""
    return "training" in inspect.signature(type(model).call).parameters


def _example(model: Any) -> Any:
    """A drawn batch of the shape that a model says it takes; None if it is open."""
    (given,) = model.inputs
    if None in (shape := tuple(given.shape[1:])):
        return None
    rng = np.random.default_rng(0)
    if jnp.issubdtype(given.dtype, jnp.floating):
        return rng.normal(size=(2, *shape)).astype(given.dtype)
    return rng.integers(0, 2, (2, *shape)).astype(given.dtype)


def _numbers(
    layer: Any, arrays: Mapping[str, Any], calls: Sequence[Layer]
) -> dict[str, Any]:
    """The numbers of a layer's configuration that follow from its arrays."""
    found = keras.layers
    kernel = np.shape(arrays.get("kernel", 0))
    transposed = (
        found.Conv1DTranspose, found.Conv2DTranspose, found.Conv3DTranspose
    )  # fmt: skip
    if isinstance(layer, found.SeparableConv1D | found.SeparableConv2D):
        return {"filters": np.shape(arrays["pointwise_kernel"])[-1]}
    if isinstance(layer, transposed):
        return {"filters": kernel[-2]}
    if isinstance(layer, found.Conv1D | found.Conv2D | found.Conv3D):
        groups = calls[0].groups if calls else layer.groups
        return {"filters": kernel[-1], "groups": groups}
    if isinstance(layer, found.Dense):
        return {"units": kernel[-1]}
    if isinstance(layer, found.EinsumDense):
        return {"output_shape": _einsum_shape(layer, kernel)}
    if isinstance(layer, found.GroupNormalization) and layer.groups > 1:
        before = layer.beta if layer.gamma is None else layer.gamma
        left = arrays["beta" if layer.gamma is None else "gamma"]
        return {"groups": len(left) * layer.groups // before.shape[0]}
    if isinstance(layer, found.MultiHeadAttention):
        return _attention(layer, arrays)
    if isinstance(layer, found.Embedding):
        rows, columns = np.shape(arrays["embeddings"])
        return {"input_dim": rows, "output_dim": columns}
    return {}


def _einsum_shape(layer: Any, kernel: Sequence[int]) -> tuple[int | None, ...]:
    """The output shape of an `EinsumDense`: of the kernel's axes as they are now."""
    operands, _, result = layer.equation.replace(" ", "").partition("->")
    sizes = dict(zip(operands.partition(",")[2], kernel, strict=True))
    shape = layer.get_config()["output_shape"]
    shape = [shape] if isinstance(shape, int) else [*shape]
    axes = result[len(result) - len(shape) :]
    return tuple(sizes.get(axis, n) for axis, n in zip(axes, shape, strict=True))


def _with_offset(layer: Any, config: dict[str, Any], offset: Offset) -> tuple[Any, Any]:
    """A layer with a map added to what it returns: the layer itself, and both."""
    if isinstance(layer, keras.layers.MultiHeadAttention):
        raise InputError(
            f"'{layer.name}' cannot be handed back: a map is to be added to what "
            "a layer inside it returns"
        )
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
    check_heads(layer.name, dim, values)
    return {"num_heads": heads, "key_dim": dim, "value_dim": values}


def _assign(made: "_Made", paths: Mapping[int, str], arrays: Mapping[str, Any]) -> None:
    """Gives a layer that was made of another its arrays."""
    layer, copy, together, offset = made
    # The bias that a copy may have besides is its last variable.
    for before, variable in zip(layer.variables, copy.variables, strict=False):
        if id(before) not in paths:
            continue
        array = arrays[paths[id(before)]]
        if array.shape != tuple(variable.shape):
            raise InputError(
                f"the Keras model cannot be handed back: '{layer.name}', a "
                f"{type(layer).__name__}, has {tuple(variable.shape)} numbers by its "
                f"configuration where {array.shape} are left"
            )
        variable.assign(array)
    if hasattr(copy, "finalize_state"):
        copy.finalize_state()
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
