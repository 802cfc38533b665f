"""Checks of several frameworks: of a model's call, and of what can be handed back."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from jaxprune._base.errors import InputError


def check_call(
    model: Any, method: Callable[..., Any], given: int, call: Mapping[str, Any],
    how: str,
) -> None:  # fmt: skip
    """Checks that a model can be called with these arguments.

    Args:
      model: the model.
      method: its class's function that is called, whose first argument is the model.
      given: the number of arguments before those of `call`, the model included.
      call: the keyword arguments.
      how: how to give one, with "{}" for its name.

    Raises:
      InputError: one is missing, or not known.
    """
    kind = type(model).__name__
    parameters = [*inspect.signature(method).parameters.values()][given:]
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {p.name: p for p in parameters if p.kind not in several}
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in call:
            raise InputError(
                f"{kind} cannot be called without '{name}': give {how.format(name)}"
            )
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    if unknown := sorted(set(call) - set(named)):
        takes = ", ".join(named) or "none"
        raise InputError(
            f"the call of {kind} takes no argument '{unknown[0]}'; it takes: {takes}"
        )


def check_heads(name: str, queries: int, values: int) -> None:
    """Checks the widths of an attention's heads.

    Raises:
      InputError: queries and values have different ones, which the attention of Flax
        NNX and that of Keras on JAX cannot have.
    """
    if queries != values:
        raise InputError(
            f"'{name}' cannot be handed back: {queries} numbers are left of each "
            f"head's queries and {values} of its values, and its code takes as many of "
            "both; call the network itself"
        )
