"""Arguments that stand for a network: a `Network`, or a model and variables."""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from flax import linen as nn

from jaxprune._base import arguments
from jaxprune._base.errors import InputError, first_line
from jaxprune._base.mesh import usual_options
from jaxprune.adapters import linen
from jaxprune.graph.network import Network

P = ParamSpec("P")
R = TypeVar("R")


def takes_network(
    function: Callable[Concatenate[Network, P], R],
) -> Callable[..., R]:
    """Lets a function of a `Network` be called with a model and its variables instead.

    `function(network, ...)`, `function(apply, variables, ...)` and, with the keyword
    `call`, `function(model, variables, ..., call={"train": False})` are the same.
    """

    @functools.wraps(function)
    def with_network(*args: Any, **kwargs: Any) -> R:
        with usual_options():
            args, network = _first(args, kwargs, "network", "model", "apply")
            if not isinstance(network, Network):
                if not isinstance(network, nn.Module):
                    arguments.check_function(network)
                args, variables = _first(args, kwargs, "variables", "params")
                network = as_network(network, variables, kwargs.pop("call", None))
            elif "call" in kwargs:
                raise InputError(
                    "a Network has its call's arguments already: no `call`"
                )
            return function(network, *args, **kwargs)

    return with_network


def _first(args: tuple, kwargs: dict, *names: str) -> tuple[tuple, Any]:
    """The argument of one of these names, or else the first; and the others."""
    for name in names:
        if name in kwargs:
            return args, kwargs.pop(name)
    if not args:
        raise InputError(f"give a Network, or a model and its variables: no {names[0]}")
    return args[1:], args[0]


def as_network(model: Any, variables: Any, call: Any = None) -> Network:
    """The network that a model, or its `apply`, is with these variables.

    Args:
      model: a linen model, a network that has been compacted before, or a function of
        parameters and a batch.
      variables: its parameters.
      call: keyword arguments of a linen model's call.

    Raises:
      InputError: none of these, or parameters that are not the model's.
    """
    if isinstance(model, nn.Module):
        arguments.check_kind("call", call or {}, dict, "a dictionary")
        return linen.from_linen(model, variables, **(call or {}))
    if hasattr(model, "as_network"):
        if call is not None:
            raise InputError("a compact network keeps its call's arguments: no `call`")
        found: Network = model.as_network(variables)
        return found
    if call:
        raise InputError("only a linen model takes `call`: give a function of its own")
    linen.check_apply(model, variables)
    return Network(model, linen.plain(variables))


def of_keras(model: Any, example: Any = None) -> Network:
    """A Keras model, or its file, as a network; Keras is imported by this call.

    Args:
      model: the model, or the path of its file; see `from_keras`.
      example: a batch of inputs.

    Raises:
      InputError: see `from_keras`; or Keras is not installed.
    """
    try:
        from jaxprune.adapters.keras import from_keras
    except ImportError as error:
        raise InputError(first_line(error)) from error
    return from_keras(model, example)
