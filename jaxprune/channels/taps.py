"""Reading what a layer is given and returns, and running a network from there.

Works on any linen model, unchanged. `apply(variables, x, **kwargs)` is the model's
own `apply`, or a function of that form around it, such as
`functools.partial(model.apply, train=False)`; it passes its kwargs on. What `x` is,
raw pixels or scaled inputs, is up to that function.
A layer is named by its path, `"conv2d_12"` or `"block_1/conv"`.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Num

from jaxprune import arguments
from jaxprune.errors import InputError, check_choice, first_line

Apply = Callable[..., Any]
Activation = Callable[[Array], Array]


def _identity(x: Array) -> Array:
    return x


# Where a feature map is taken: at the convolution's own output, or after the ReLU
# that follows it. relu(relu(x)) = relu(x), so a map taken after the ReLU can be put
# back at the convolution's output, and no model needs a module for its ReLU.
TAPS: dict[str, Activation] = {"conv": _identity, "relu": nn.relu}


@dataclass(frozen=True)
class Call:
    """One call of a module, as `intercept` shows it.

    Attributes:
      name: the module's path, such as "block_1/conv"; "" for the model itself.
      module: the module, bound to its variables.
      args: the positional arguments.
      kwargs: the keyword arguments.
    """

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    _run: Callable[..., Any]

    @property
    def _keyword(self) -> str | None:
        """The input's name, where it is given by keyword."""
        if self.args:
            return None
        parameters = [*inspect.signature(type(self.module).__call__).parameters]
        return parameters[1] if len(parameters) > 1 else None

    @property
    def input(self) -> Any:
        """The first argument, given by position or by keyword."""
        return self.args[0] if self.args else self.kwargs.get(self._keyword or "")

    @property
    def arrays(self) -> list[Any]:
        """All arrays among the arguments."""
        leaves = jax.tree.leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if hasattr(leaf, "shape")]

    @property
    def is_layer(self) -> bool:
        """Whether the module is a layer: without children, and with arrays."""
        found = [v for c in self.module.variables.values() for v in c.values()]
        return not any(isinstance(v, Mapping) for v in found) and any(
            np.ndim(v) > 0 for v in found
        )

    def run(self) -> Any:
        """What the call returns."""
        return self._run(*self.args, **self.kwargs)

    def run_on(self, x: Any) -> Any:
        """What the call returns when its input is `x` instead."""
        if self._keyword is None:
            return self._run(x, *self.args[1:], **self.kwargs)
        return self._run(**{**self.kwargs, self._keyword: x})


def intercept(apply: Apply, answer: Callable[[Call], Any]) -> Apply:
    """The network in which `answer` decides what the call of each module returns.

    `lambda call: call.run()` changes nothing.
    """

    def interceptor(run: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return run(*args, **kwargs)
        name = "/".join(context.module.path)
        return answer(Call(name, context.module, args, kwargs, run))

    def intercepted(variables: Any, x: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(interceptor):
            return apply(variables, x, **kwargs)

    return intercepted


class Layer(NamedTuple):
    """One call of a layer: its path, its module, what it is given and what it returns.

    Of arrays there are shapes only.
    """

    name: str
    module: nn.Module
    input: Any
    output: Any


def _shape_of(leaf: Any) -> Any:
    is_array = hasattr(leaf, "shape")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array else leaf


def list_layers(
    apply: Apply, variables: Any, x: Array | np.ndarray | jax.ShapeDtypeStruct
) -> tuple[Layer, ...]:
    """Every call of a layer (a module with arrays of its own), in order of execution.

    Raises:
      InputError: the network does not run on `x` with these variables.
    """
    layers: list[Layer] = []

    def record(call: Call) -> Any:
        output = call.run()
        if call.is_layer:
            shapes = jax.tree.map(_shape_of, (call.input, output))
            layers.append(Layer(call.name, call.module, *shapes))
        return output

    recorded = intercept(apply, record)
    try:
        # A new function each time: JAX would not trace one that it knows already.
        jax.eval_shape(lambda *arguments: recorded(*arguments), variables, x)
    except InputError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise InputError(
            f"the network does not run on the example {tuple(np.shape(x))} with these "
            f"variables: {first_line(error)}"
        ) from error
    return tuple(layers)


def last_conv(apply: Apply, variables: Any, x: Array | np.ndarray) -> str:
    """Name of the convolution (`nn.Conv`) that is executed last.

    Raises:
      InputError: the network calls no convolution.
    """
    return _convs(list_layers(apply, variables, x))[-1]


def _convs(layers: tuple[Layer, ...]) -> list[str]:
    names = [layer.name for layer in layers if isinstance(layer.module, nn.Conv)]
    if not names:
        raise InputError(
            "the network calls no convolution (flax.linen.Conv); if it does, give its "
            "apply itself, not a jitted one"
        )
    return names


def find_conv(apply: Apply, variables: Any, x: Array | np.ndarray, name: str) -> Layer:
    """The convolution called `name`.

    Raises:
      InputError: there is none (the convolutions are listed), `name` is another
        kind of layer, or it is called more than once.
    """
    return choose_conv(list_layers(apply, variables, x), name)


def choose_conv(layers: tuple[Layer, ...], name: str) -> Layer:
    """The convolution called `name` of those that `list_layers` returns.

    Raises:
      InputError: see `find_conv`.
    """
    found = [layer for layer in layers if layer.name == name]
    if not found:
        check_choice("layer", name, dict.fromkeys(_convs(layers)))
    if not isinstance(found[0].module, nn.Conv):
        kind = type(found[0].module).__name__
        raise InputError(f"layer '{name}' is no convolution but a {kind}")
    if len(found) > 1:
        raise InputError(
            f"layer '{name}' is called {len(found)} times in one forward pass; its "
            "channels have no single feature map to rank or mask"
        )
    return found[0]


def capture(
    apply: Apply,
    variables: Any,
    x: Array | np.ndarray,
    layer: str,
    activation: Activation = _identity,
) -> Num[Array, "N *axes P"]:
    """The layer's output for the inputs `x`, with `activation` applied to it."""
    arguments.check_collections(variables)
    arguments.check_kind("layer", layer, str, "a layer's name")
    path = tuple(layer.split("/"))
    _, state = apply(
        variables,
        x,
        capture_intermediates=lambda m, name: m.path == path and name == "__call__",
        mutable=["intermediates"],
    )
    outputs = state.get("intermediates", {})
    for part in path:
        outputs = outputs.get(part, {})
    if len(outputs) != 1:
        raise InputError(f"layer '{layer}' must be called exactly once")
    return activation(outputs["__call__"][0])


def capture_inputs(
    apply: Apply, variables: Any, x: Array | np.ndarray, names: Collection[str]
) -> dict[str, Array]:
    """What each of the named layers is given for the inputs `x`.

    Raises:
      InputError: a layer is not called, or more than once.
    """
    given: dict[str, Array] = {}

    def note(call: Call) -> Any:
        if call.name in names:
            if call.name in given:
                raise InputError(f"layer '{call.name}' is called more than once")
            given[call.name] = call.input
        return call.run()

    intercept(apply, note)(variables, x)
    if missing := sorted(set(names) - set(given)):
        raise InputError(f"layer '{missing[0]}' is not called")
    return given


def run_from(
    apply: Apply,
    variables: Any,
    x: Array | np.ndarray,
    layer: str,
    output: Float[Array, "N *axes P"],
) -> Any:
    """The network's output when `layer` returns `output`.

    Under jit, all that only leads to the layer is dead code and is not computed.

    Raises:
      InputError: the layer is not called, or more than once.
    """
    calls = 0

    def substitute(call: Call) -> Any:
        nonlocal calls
        if call.name != layer:
            return call.run()
        calls += 1
        return output

    result = intercept(apply, substitute)(variables, x)
    if calls != 1:
        raise InputError(
            f"layer '{layer}' was called {calls} times, expected 1 (a jitted apply is "
            "not traced again: give the function itself)"
        )
    return result


def at_path(tree: Any, name: str) -> Any:
    """The subtree of a layer called by its path; empty where there is none."""
    for part in name.split("/"):
        tree = tree.get(part, {})
    return tree
