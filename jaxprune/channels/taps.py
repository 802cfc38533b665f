"""Reading a layer's output, and running a network from a given one.

Works on any linen model, unchanged. `apply(variables, x, **kwargs)` is the model's
own `apply`, or a function of that form around it, such as
`functools.partial(model.apply, train=False)`; it passes its kwargs on.
A layer is named by its path, `"conv2d_12"` or `"block_1/conv"`.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from jaxprune.errors import InputError, check_choice

Apply = Callable[..., Any]
Activation = Callable[[Array], Array]


def _identity(x: Array) -> Array:
    return x


# Where a feature map is taken: at the convolution's own output, or behind the ReLU
# that follows it. relu(relu(x)) = relu(x), so a map taken behind the ReLU can be put
# back at the convolution's output, and no model needs a module for its ReLU.
TAPS: dict[str, Activation] = {"conv": _identity, "relu": nn.relu}


class Layer(NamedTuple):
    """One call of a module with parameters: its path, class and output shape."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]


def list_layers(
    apply: Apply, variables: Any, x: Array | np.ndarray
) -> tuple[Layer, ...]:
    """Every call of a convolution, dense layer or norm, in the order of execution."""
    layers: list[Layer] = []

    def record(next_fun: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        output = next_fun(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and "params" in module.variables:
            children = module.variables["params"].values()
            leaf = not any(isinstance(child, dict) for child in children)
            if leaf and hasattr(output, "shape"):
                layers.append(Layer("/".join(module.path), module, output.shape))
        return output

    # A new function each time: JAX would not trace one that it knows already.
    with nn.intercept_methods(record):
        jax.eval_shape(lambda *arguments: apply(*arguments), variables, x)
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
    layers = list_layers(apply, variables, x)
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
) -> Float[Array, "N *axes P"]:
    """The layer's output for the inputs `x`, with `activation` applied to it."""
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

    def note(next_fun: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        name = "/".join(context.module.path)
        if name in names and context.method_name == "__call__":
            if name in given:
                raise InputError(f"layer '{name}' is called more than once")
            given[name] = args[0] if args else kwargs["inputs"]
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(note):
        apply(variables, x)
    if missing := sorted(set(names) - set(given)):
        raise InputError(f"layer '{missing[0]}' is not called")
    return given


def replace(
    apply: Apply,
    variables: Any,
    x: Array | np.ndarray,
    layer: str,
    feature_map: Float[Array, "N *axes P"],
) -> Any:
    """The network's output when `layer` returns `feature_map`.

    Under jit, all that only leads to the layer is dead code and is not computed.

    Raises:
      InputError: the layer is not called, or more than once.
    """
    path = tuple(layer.split("/"))
    calls = 0

    def substitute(next_fun: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal calls
        if context.module.path == path and context.method_name == "__call__":
            calls += 1
            return feature_map
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(substitute):
        output = apply(variables, x)
    if calls != 1:
        raise InputError(
            f"layer '{layer}' was called {calls} times, expected 1 (a jitted apply is "
            "not traced again: give the function itself)"
        )
    return output


def at_path(tree: Any, name: str) -> Any:
    """The subtree of a layer called by its path; empty where there is none."""
    for part in name.split("/"):
        tree = tree.get(part, {})
    return tree
