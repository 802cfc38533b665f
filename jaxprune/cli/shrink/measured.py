"""What `jaxprune shrink` has measured, in state.json, as later runs read it."""

from typing import Any

import jax
from typing_extensions import TypedDict

from jaxprune._base.errors import InputError
from jaxprune._base.journal import Journal, OtherKeyError
from jaxprune.cli import provenance
from jaxprune.shrinking.curves import Curve

# Facts that decide whether measurements still hold.
DECISIVE = (
    "weights", "eval_split", "calibration_split", "config", "data", "device",
    "precision",
)  # fmt: skip


class Rung(TypedDict):
    """A finished budget, and what made it."""

    widths: dict[str, int]
    row: dict[str, Any]
    machine: dict[str, str]
    versions: dict[str, str]
    commit: str | None


class State(TypedDict, total=False):
    """The journal's entries; `jax` and `method` say how the curves were found."""

    curves: dict[str, Curve]
    jax: str
    method: str
    rungs: dict[str, Rung]


def method(curves: str) -> dict[str, str]:
    """How loss curves are found: by which of CURVES, under which version of JAX.

    Earlier versions judged them on the images of their fills, and said one word.
    """
    return {"method": f"{curves}, on the other half", "jax": jax.__version__}


def read(journal: Journal, curves: str) -> dict[str, Any]:
    """The measurements of an earlier run, if of the same network and images.

    Curves that were found in another way, or by another version of JAX, are left out.

    Raises:
      InputError: they are of others, or damaged.
    """
    try:
        found: dict[str, Any] = {"curves": {}, "rungs": {}, **journal.read(State)}
        same = all(found.get(key) == value for key, value in method(curves).items())
        return found if same else {**found, "curves": {}}
    except OtherKeyError as error:
        others = provenance.differing(error.found, journal.key, DECISIVE)
        raise InputError(
            f"{journal.path.parent} is of another network or other images: "
            f"{'; '.join(others)}. Remove it, or give another --workdir"
        ) from None
    except InputError as error:
        raise InputError(f"{error}: remove it to measure anew") from None
