"""A recipe's weights from a file that Keras has saved, which Keras reads.

Layers are matched by their names. Where these are not the recipe's, as Keras numbers
its own anew in every session, layers of a kind are matched in the order in which each
network runs them. Whether the file's network is the recipe's is then tried on images:
both run in float64, and must return the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune._base.errors import InputError
from jaxprune.adapters.networks import of_keras
from jaxprune.graph.evaluate import in_float64, run
from jaxprune.graph.layers import Layer
from jaxprune.graph.logits import are_probabilities, log_probabilities
from jaxprune.graph.network import Graph, Network
from jaxprune.graph.trace import Program

# Keras's name of a weight -> the collection and name of it in linen.
_WEIGHTS = {
    "kernel": ("params", "kernel"),
    "bias": ("params", "bias"),
    "gamma": ("params", "scale"),
    "beta": ("params", "bias"),
    "moving_mean": ("batch_stats", "mean"),
    "moving_variance": ("batch_stats", "var"),
}
# Share of the largest value that two networks' values may differ by. In float64 their
# sums agree to 1e-12; constants that programs hold in float32 to 6e-8.
_SAME = 1e-6
# Of a weight in linen: its collection and name.
Key = tuple[str, str]


class Weight(NamedTuple):
    """A weight of a layer: its path in the network, and its shape."""

    path: str
    shape: tuple[int, ...]


# The weights of layers, in the order in which a network runs them.
Layers = Mapping[str, Mapping[Key, Weight]]


def import_keras(
    path: Path | str, network: Network, images: Float[Any, "N *axes"]
) -> Any:
    """Variables for a linen network from a file that Keras has saved.

    Args:
      path: the file, `.keras` or `.h5`, with the architecture.
      network: the network, of whose parameters only the shapes matter.
      images: some, as the network takes them. The file's network must return the same
        for them: logits, or their softmax.

    Raises:
      InputError: Keras is not installed or cannot read the file, a layer does not fit,
        or the file's network computes something else: the first layer that differs is
        named.
    """
    theirs = of_keras(path, images)
    try:
        graphs = network.graph(images), theirs.graph(images)
        ours = _layers(graphs[0].program, _linen_key)
        found = _layers(graphs[1].program, _keras_key)
        names = _matched(ours, found)
        arrays: dict[str, Any] = {}
        for layer, name in names.items():
            _check_shapes(layer, ours[layer], name, found[name])
            for key, weight in ours[layer].items():
                array = theirs.arrays[found[name][key].path]
                arrays[weight.path] = np.asarray(array, np.float32)
        variables = network.tree(arrays)
        one = _Side(graphs[0], arrays, _calls(graphs[0], _linen_key))
        other = _Side(graphs[1], theirs.arrays, _calls(graphs[1], _keras_key))
        _check_same(one, other, names, images)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return variables


def _linen_key(path: str) -> tuple[str, Key]:
    """A weight's layer, and its key."""
    collection, *layer, name = path.split("/")
    return "/".join(layer), (collection, name)


def _keras_key(path: str) -> tuple[str, Key]:
    """A weight's layer, and its key.

    Raises:
      InputError: a recipe's layers have no such weight.
    """
    layer, _, name = path.rpartition("/")
    if name not in _WEIGHTS:
        raise InputError(
            f"its layer '{layer}' has a weight '{name}', which no Conv2D, Dense or "
            "BatchNormalization has"
        )
    return layer, _WEIGHTS[name]


def _layers(program: Program, key_of: Callable[[str], tuple[str, Key]]) -> Layers:
    """The layers whose weights a network reads."""
    found: dict[str, dict[Key, Weight]] = {}
    for eqn in program.equations:
        for value in eqn.inputs:
            if (path := program.path_of.get(value)) is not None:
                layer, key = key_of(path)
                weight = Weight(path, program.shape(value))
                found.setdefault(layer, {})[key] = weight
    return found


def _calls(graph: Graph, key_of: Callable[[str], tuple[str, Key]]) -> dict[str, Layer]:
    """The first call of each layer that multiplies, in order of execution."""
    found: dict[str, Layer] = {}
    for call in graph.layers.values():
        if call.leaf is not None:
            found.setdefault(key_of(call.leaf)[0], call)
    return found


def _matched(ours: Layers, theirs: Layers) -> dict[str, str]:
    """The names of our layers, and those of the same layers in the file.

    Raises:
      InputError: the file has more or fewer layers of a kind.
    """
    last = {name.rpartition("/")[2]: name for name in theirs}
    if len(last) == len(theirs) and last.keys() == ours.keys():
        return {name: last[name] for name in ours}
    found: dict[str, str] = {}
    kinds = {_kind(weights) for weights in (*ours.values(), *theirs.values())}
    for kind in sorted(kinds):
        needed, given = (
            [name for name, weights in layers.items() if _kind(weights) == kind]
            for layers in (ours, theirs)
        )
        if len(needed) != len(given):
            raise InputError(
                f"it has {len(given)} {kind}, the network has {len(needed)}"
            )
        found |= zip(needed, given, strict=True)
    return {name: found[name] for name in ours}


def _kind(weights: Mapping[Key, Weight]) -> str:
    """What layers with such weights are, for people."""
    kernel = weights.get(("params", "kernel"))
    if kernel is None:
        return "normalisations"
    return "dense layers" if len(kernel.shape) == 2 else "convolutions"


def _check_shapes(
    ours: str,
    needed: Mapping[Key, Weight],
    theirs: str,
    given: Mapping[Key, Weight],
) -> None:
    """Raises InputError unless two layers have the same weights, of the same shapes."""
    shapes = [
        {name: weights[collection, name].shape for collection, name in sorted(weights)}
        for weights in (needed, given)
    ]
    if shapes[0] != shapes[1]:
        need, has = (
            ", ".join(f"{name} {shape}" for name, shape in each.items())
            for each in shapes
        )
        raise InputError(
            f"its layer '{theirs}' does not fit '{ours}': it has {has}, the network "
            f"needs {need}"
        )


@dataclass(frozen=True)
class _Side:
    """One of two networks that are compared.

    Attributes:
      graph: the network.
      arrays: its weights by path.
      calls: of its layers that multiply, by their names.
    """

    graph: Graph
    arrays: Mapping[str, Any]
    calls: Mapping[str, Layer]

    def values(self, images: Any, want: Sequence[int]) -> list[np.ndarray]:
        """Some values for images, in float64."""
        program = self.graph.program

        @jax.jit
        def exactly(arrays: Any, images: Any) -> list[Array]:
            found: list[Array] = run(program, arrays, images, want=want, exact=True)
            return found

        with in_float64():
            return [np.asarray(value) for value in exactly(self.arrays, images)]


def _check_same(
    ours: _Side, theirs: _Side, names: Mapping[str, str], images: Any
) -> None:
    """Raises InputError unless two networks return the same for images.

    Args:
      ours: the recipe's.
      theirs: the file's.
      names: of our layers, and of the same layers in the file.
      images: as both take them.
    """
    images, sides = np.asarray(images), (ours, theirs)
    results = [side.graph.program.results for side in sides]
    shapes = [side.graph.program.shape(side.graph.program.results[0]) for side in sides]
    if len(results[1]) != 1 or shapes[0] != shapes[1]:
        raise InputError(f"it does not return logits {list(shapes[0])} alone")
    (one,), (other,) = (
        side.values(images, want) for side, want in zip(sides, results, strict=True)
    )
    with jax.enable_x64(True):
        if are_probabilities(other):
            least = np.log(np.finfo(np.float64).tiny)
            one = np.maximum(jax.nn.log_softmax(jnp.asarray(one)), least)
            other = np.asarray(log_probabilities(jnp.asarray(other)))
    lost = _difference(one, other)
    if lost > _SAME:
        where = _first_difference(ours, theirs, names, images)
        way = _way(theirs, results[1])
        raise InputError(
            "it computes something else than the network: "
            + (where or f"what its last layer's output becomes{way} {_by(lost)}")
        )


def _first_difference(
    ours: _Side, theirs: _Side, names: Mapping[str, str], images: np.ndarray
) -> str:
    """The first layer that is given, or returns, something else; "" if none is."""
    pairs = [
        (theirs.calls[names[name]], name, call)
        for name, call in ours.calls.items()
        if names[name] in theirs.calls
    ]
    mine = ours.values(images, [v for *_, c in pairs for v in (c.input, c.output)])
    other = theirs.values(images, [v for c, *_ in pairs for v in (c.input, c.output)])
    for i, (their, name, our) in enumerate(pairs):
        what = f"its layer '{names[name]}' ('{name}' here)"
        given = our.features(mine[2 * i]), their.features(other[2 * i])
        if (lost := _difference(*given)) > _SAME:
            return f"what {what} is given{_way(theirs, [their.input])} {_by(lost)}"
        returned = our.outputs(mine[2 * i + 1]), their.outputs(other[2 * i + 1])
        if (lost := _difference(*returned)) > _SAME:
            return f"what {what} returns {_by(lost)}"
    return ""


def _way(side: _Side, values: Sequence[int]) -> str:
    """The modules between the layers that multiply and some values, for people."""
    known = [call.output for call in side.calls.values()]
    equations = side.graph.program.needed(values, known)
    scopes = dict.fromkeys(eqn.scope for eqn in equations if eqn.scope)
    return f", by way of {', '.join(scopes)}," if scopes else ""


def _by(lost: float) -> str:
    """How much values differ, for people."""
    if np.isinf(lost):
        return "is of another shape"
    return f"differs by {lost:.2g} of the largest value"


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    """As a share of the largest value; infinite where shapes differ."""
    if one.shape != other.shape:
        return np.inf
    scale = np.abs(one).max(initial=np.finfo(np.float64).tiny)
    return float(np.abs(one - other).max(initial=0) / scale)
