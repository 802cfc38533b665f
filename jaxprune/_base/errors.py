"""The one exception that means: the input is wrong, and here is what to do."""

import difflib
import re
from collections.abc import Iterable


class InputError(ValueError):
    """An argument, a file or a configuration that cannot be used as it is.

    The message is one line that says what was expected, what was found and what to
    do. Scripts print it and exit with code 2; any other exception is a bug.
    """

    __module__ = "jaxprune"  # where it is imported from


def check_choice(kind: str, name: str, choices: Iterable[str]) -> None:
    """Raises InputError, with the choices and the nearest, if `name` is not one.

    >>> check_choice("fill", "zeros", ["zero", "bias", "mean"])
    Traceback (most recent call last):
    ...
    jaxprune.InputError: unknown fill 'zeros'; did you mean 'zero'? \
choices: zero, bias, mean
    """
    choices = list(choices)
    if isinstance(name, str) and name in choices:
        return
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f" did you mean '{near[0]}'?" if near else ""
    raise InputError(f"unknown {kind} '{name}';{hint} choices: {', '.join(choices)}")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none.

    Without the address that Flax and JAX end it with. Keras has the cause further down,
    in bold; then that.
    """
    message = str(error)
    if bold := re.search(r"\x1b\[1m(.+?)\x1b\[0m", message, re.DOTALL):
        message = bold[1]
    line = (message.splitlines() or [type(error).__name__])[0]
    return re.sub(r"\s*\(?https?://\S+\)?\s*$", "", line)[:200]
