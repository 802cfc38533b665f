"""beartype as jaxtyping's checker, without doing the same again."""

from typing import Any

from beartype import beartype

_known: dict[Any, Any] = {}


def typechecker(stub: Any) -> Any:
    """beartype of the empty function whose call checks a signature.

    jaxtyping makes one each time that a nested function is defined, and beartype takes
    longer for it than most functions for their work.
    """
    key = (stub.__module__, stub.__qualname__, *stub.__annotations__.items())
    if key not in _known:
        _known[key] = beartype(stub)
    return _known[key]
