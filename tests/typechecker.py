"""beartype as jaxtyping's checker, without doing the same again."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jaxtyping
from beartype import beartype

_known: dict[Any, Any] = {}
_with_shapes = jaxtyping.jaxtyped


def typechecker(stub: Any) -> Any:
    """beartype of the empty function whose call checks a signature.

    jaxtyping makes one each time that a nested function is defined, and beartype takes
    longer for it than most functions for their work.
    """
    key = (stub.__module__, stub.__qualname__, *stub.__annotations__.items())
    if key not in _known:
        _known[key] = beartype(stub)
    return _known[key]


def _jaxtyped(*given: Any, typechecker: Callable | None) -> Any:
    """jaxtyping's decorator, but for functions that name no array's shape.

    To bind each call's arguments, as shapes need it, takes a sixth of the tests' time.
    """
    decorate = partial(_with_shapes, typechecker=typechecker)
    if given:  # not by the import hook
        return decorate(*given)

    def decorated(target: Any) -> Any:
        nested = "<locals>" in target.__qualname__
        shapes = "jaxtyping" in str(target.__annotations__)
        if isinstance(target, type) or nested or shapes:
            return decorate(target)
        return beartype(target)

    return decorated


jaxtyping.jaxtyped = _jaxtyped
