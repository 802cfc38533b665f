"""Flax linen: models as networks, and their own code on fewer channels."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import meta, unfreeze
from jax import lax
from jaxtyping import Array, Num

from jaxprune._base import arguments
from jaxprune._base.errors import InputError
from jaxprune._base.mesh import usual_options
from jaxprune.adapters.checks import check_call
from jaxprune.conv import with_offset
from jaxprune.graph.network import Network
from jaxprune.graph.trace import shape_of, trace


@dataclass(frozen=True)
class Linen:
    """The linen model that a network is read from.

    Attributes:
      model: the model.
      call: keyword arguments of its call, such as `{"train": False}`.
    """

    model: nn.Module
    call: Mapping[str, Any]

    def apply(self, variables: Any, x: Any, **kwargs: Any) -> Any:
        """The model's own `apply`; `kwargs` go before those of `call`."""
        return self.model.apply(variables, x, **{**self.call, **kwargs})


def from_linen(model: Any, variables: Any, example: Any = None, **call: Any) -> Network:
    """A linen model as a network.

    Args:
      model: the model.
      variables: its variables, as `model.init` returns them.
      example: a batch of inputs.
      call: keyword arguments of the model's call, such as `train=False`.

    Raises:
      InputError: the variables have no collection "params", or hold something else
        than finite real numbers; or the call takes other arguments.
    """
    arguments.check_model(model, nn.Module, "a linen model")
    arguments.check_collections(variables)
    how = "call={{'{0}': ...}}, or from_linen(model, variables, images, {0}=...)"
    check_call(model, type(model).__call__, 2, call, how)
    origin = Linen(model, call)
    return Network(origin.apply, plain(variables), example, origin)


def check_apply(function: Callable[..., Any], variables: Any) -> None:
    """Checks a model's own `apply`, if a function is one, with what it is given.

    Raises:
      InputError: see `from_linen`.
    """
    call: dict[str, Any] = {}
    while isinstance(function, partial):
        call = {**function.keywords, **call}
        function = function.func
    model = getattr(function, "__self__", None)
    if not isinstance(model, nn.Module) or function.__name__ != "apply":
        return
    arguments.check_collections(variables)
    known = {"rngs", "mutable", "method", "capture_intermediates"}
    call = {name: value for name, value in call.items() if name not in known}
    how = "functools.partial(model.apply, {0}=...) for model.apply"
    if call.get("method") is None:
        check_call(model, type(model).__call__, 2, call, how)


def plain(variables: Any) -> Any:
    """Variables without linen's boxes and frozen dictionaries."""
    return meta.unbox(unfreeze(variables))


@usual_options()
def capture(
    apply: Callable[..., Any],
    variables: Any,
    x: Num[Array, "N ..."] | Any,
    layer: str,
    activation: Callable[[Array], Array] = lambda y: y,
) -> Num[Array, "N *axes P"]:
    """The output of a linen model's layer, by linen's `capture_intermediates`.

    Args:
      apply: the model's `apply`, or a function that passes its arguments on.
      variables: the model's.
      x: inputs.
      layer: path of the module, "block_1/conv".
      activation: applied to what the layer returns.

    Raises:
      InputError: the layer is not called, or more than once; or there are no inputs.
    """
    arguments.check_collections(variables)
    if isinstance(x, np.ndarray | jax.Array) and not x.size:
        raise InputError(f"x must hold inputs, got shape {list(x.shape)}")
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
    kwargs: Mapping[str, Any]
    _run: Callable[..., Any]

    @property
    def input(self) -> Any:
        """The first argument, given by position or by keyword."""
        if self.args:
            return self.args[0]
        parameters = [*inspect.signature(type(self.module).__call__).parameters]
        return self.kwargs.get(parameters[1]) if len(parameters) > 1 else None

    def run(self) -> Any:
        """The output of the call."""
        return self._run(*self.args, **self.kwargs)


def intercept(
    apply: Callable[..., Any], answer: Callable[[Call], Any]
) -> Callable[..., Any]:
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


class Called(NamedTuple):
    """One call of a module that holds arrays itself; its result as a shape."""

    name: str
    module: nn.Module
    output: Any


def called_layers(
    apply: Callable[..., Any], variables: Any, x: Any
) -> tuple[Called, ...]:
    """Every call of a module that holds arrays itself, in order.

    Raises:
      InputError: the network does not run on `x` with these variables.
    """
    calls: list[Called] = []

    def note(call: Call) -> Any:
        output = call.run()
        found = [v for c in call.module.variables.values() for v in c.values()]
        arrays = [v for v in found if not isinstance(v, Mapping)]
        if len(arrays) == len(found) and any(np.ndim(v) > 0 for v in arrays):
            shape = jax.tree.map(shape_of, output)
            calls.append(Called(call.name, call.module, shape))
        return output

    noted = intercept(apply, note)
    trace(lambda v, x: noted(v, x), variables, x)
    return tuple(calls)


def at_path(tree: Any, name: str) -> Any:
    """The subtree of a module called by its path; empty where there is none."""
    for part in name.split("/"):
        tree = tree.get(part, {})
    return tree


def narrowed(network: Network) -> Callable[..., Any]:
    """A linen model's own code on variables of fewer channels.

    Layers have as many features, and groups, as their kernels. A map that is added to
    a layer's output is read from the collection "offsets".

    Args:
      network: of the whole model.

    Returns:
      `apply(variables, x, **kwargs)`; kwargs go to the model's call.
    """
    origin: Linen = network.origin
    sizes: dict[str, int] = {}

    def note(call: Call) -> Any:
        if isinstance(call.module, nn.GroupNorm) and call.module.num_groups:
            sizes[call.name] = call.input.shape[-1] // call.module.num_groups
        return call.run()

    noted = intercept(origin.apply, note)
    jax.eval_shape(lambda v, x: noted(v, x), network.params, network.few)
    return intercept(origin.apply, partial(_as_wide_as_its_kernel, sizes=sizes))


def _as_wide_as_its_kernel(call: Call, sizes: Mapping[str, int]) -> Any:
    """Runs a layer with as many features, and groups, as its variables have.

    The module is the one that linen has made for this call. A clone would be another
    module to whoever intercepts too, so it is set for the length of the call.
    """
    module = call.module
    changes: dict[str, Any] = {}
    if call.name in sizes:
        changes["num_groups"] = call.input.shape[-1] // sizes[call.name]
    elif not isinstance(module, nn.Conv | nn.Dense | nn.ConvTranspose):
        return call.run()
    if module.has_variable("params", "kernel"):
        kernel: Any = meta.unbox(module.get_variable("params", "kernel"))
        changes["features"] = kernel.shape[-1]
        if getattr(module, "feature_group_count", 1) != 1:
            groups = call.input.shape[-1] // kernel.shape[-2]
            changes["feature_group_count"] = groups
        if getattr(module, "transpose_kernel", False):
            changes["features"] = kernel.shape[-2]
    if module.has_variable("offsets", "rows"):
        field, default = (
            ("dot_general", lax.dot_general)
            if isinstance(module, nn.Dense)
            else ("conv_general_dilated", lax.conv_general_dilated)
        )
        if not hasattr(module, field):
            raise InputError(f"a map cannot be added to what '{call.name}' returns")
        offset = (jnp.asarray(module.get_variable("offsets", n)) for n in _OFFSET)
        changes[field] = with_offset(getattr(module, field) or default, *offset)
    before = {name: getattr(module, name) for name in changes}
    try:
        for name, value in changes.items():
            object.__setattr__(module, name, value)
        return call.run()
    finally:
        for name, value in before.items():
            object.__setattr__(module, name, value)


_OFFSET = ("rows", "index")
