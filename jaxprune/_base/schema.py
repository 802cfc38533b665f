"""JSON checked against a type before anything uses it."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from jaxprune._base.errors import InputError

# Decorates a TypedDict: other keys are kept as they are.
and_others = with_config(ConfigDict(extra="allow"))

# Of a layer, a criterion or a fill, wherever it becomes part of a file's name: nothing
# that leaves the folder.
Name = Annotated[str, Field(pattern=r"^(\w[\w.\-]*)(/\w[\w.\-]*)*$", max_length=200)]
Word = Annotated[str, Field(pattern=r"^\w[\w.\-]*$", max_length=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def read(path: Path, kind: Any) -> Any:
    """The content of a JSON file, as `kind`: a dataclass, a TypedDict, `list[int]`, ...

    Raises:
      InputError: it is no JSON or of another shape; names file, field, what was
        expected and what is there.
    """
    return parse(path.read_bytes(), kind, path)


def parse(text: str | bytes, kind: Any, where: Any) -> Any:
    """JSON as `kind`; `where` it is from goes into the message of an InputError."""
    try:
        return _adapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise InputError(_message(error, where)) from None


def check(value: Any, kind: Any, where: Any) -> Any:
    """A JSON-able value as `kind`."""
    return parse(json.dumps(value), kind, where)


def check_json(what: str, value: Any) -> None:
    """Raises InputError if `value` is no dictionary that can be written as JSON."""
    if not isinstance(value, Mapping):
        raise InputError(f"{what} must be a dictionary, got {type(value).__name__}")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{what} must be JSON-able: {error}") from None
    if not all(isinstance(key, str) for key in value):
        raise InputError(f"{what} must have strings as keys, got {list(value)}")


_adapter = functools.cache(TypeAdapter)


def _message(error: ValidationError, where: Any) -> str:
    """The first thing that is wrong, on one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return f"{where} is damaged: {first['msg']}"
    field = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]
    ).removeprefix(".")
    subject = f"'{field}' " if field else ""
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where} is damaged: {subject}{message}, got {first['input']!r:.60}"
