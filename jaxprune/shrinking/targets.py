"""Where a layer's output goes before anything else reads it: into a sum, into a ReLU.

    conv -> BatchNorm -> + shortcut -> ReLU

What matters of the convolution's output y is what the ReLU is given, a y + r, with r
what the other branch and the BatchNorm add. In a network that is cut the other branch
is not what it was: the layer is to give the whole network's sum, not its own y. This
follows y through operations that are affine in it, element by element, up to the first
value that is read more than once, or by another kind of operation.

Axes: N images, U outputs of a layer.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune.graph.evaluate import is_relu
from jaxprune.graph.layers import Layer
from jaxprune.graph.stepwise import Batches, Stepwise, by_batch
from jaxprune.graph.trace import Equation, Program

_UNCHANGED = {"convert_element_type", "copy", "stop_gradient", "reduce_precision"}
_SUMS = {"add", "add_any", "sub"}


@dataclass(frozen=True)
class Destination:
    """The way of a layer's output.

    Attributes:
      value: the last value on its way that is affine in it.
      path: the equations to it, each behind the value of the path that it is given.
      rectified: whether a ReLU is all that reads it.
    """

    value: int
    path: tuple[tuple[int, Equation], ...] = ()
    rectified: bool = False


def find_destinations(
    program: Program, layers: Mapping[str, Layer]
) -> dict[str, Destination]:
    """The target of each layer's fit.

    Where several layers meet in one sum, the one with the most unknowns is to give the
    sum, and the others what they gave.

    Args:
      program: the network.
      layers: those that may be fitted, in order.
    """

    def consumer(value: int) -> Equation | None:
        """The equation that alone reads a value, if there is one."""
        consumers = program.read_by[value]
        return consumers[0] if program.used_by(value) == len(consumers) == 1 else None

    found: dict[str, Destination] = {}
    meeting: dict[int, list[str]] = defaultdict(list)
    for name, layer in layers.items():
        value, path = layer.output, []
        while (eqn := consumer(value)) and _is_affine(program, eqn, value):
            path.append((value, eqn))
            (value,) = eqn.outputs
        eqn = consumer(value)
        rectified = eqn is not None and is_relu(program, eqn)
        found[name] = Destination(value, tuple(path), rectified)
        meeting[value].append(name)
    order = {name: i for i, name in enumerate(layers)}
    for names in meeting.values():
        first = max(names, key=lambda n: (layers[n].products_per_output, order[n]))
        for name in set(names) - {first}:
            found[name] = Destination(layers[name].output)
    return found


def _is_affine(program: Program, eqn: Equation, value: int) -> bool:
    """Whether an equation is affine in a value, each element by itself."""
    if program.shape(eqn.outputs[0]) != program.shape(value):
        return False
    if eqn.name in _UNCHANGED | _SUMS or eqn.name == "neg":
        return True
    fixed = not any(v in program.live for v in eqn.inputs if v != value)
    divided = eqn.name == "div" and eqn.inputs[0] == value
    return fixed and (divided or eqn.name == "mul")


def follow(
    run: Stepwise, destination: Destination, layer: Layer
) -> tuple[Float[np.ndarray, " U"], Any]:
    """The factor of a layer's output in its destination, and the rest of that.

    Args:
      run: of the network, in which the layer has not been run.
      destination: of the layer.
      layer: the layer.

    Returns:
      The factor, NaN where it differs from position to position; and the rest, as
      `Batches` if it depends on the images.
    """
    program = run.program
    shape = program.shape(destination.value)

    def row(found: list[Any]) -> Float[Array, " U"]:
        """What a layer's output is multiplied by."""
        (other,) = found
        rows = jnp.broadcast_to(other, shape).astype(jnp.float32)
        rows = layer.outputs(rows).reshape(-1, layer.channels)
        return jnp.where((rows == rows[0]).all(0), rows[0], jnp.nan)

    factor: np.ndarray = np.ones(layer.channels, np.float32)
    known: dict[int, Batches] = {}
    for value, eqn in destination.path:
        others = [v for v in eqn.inputs if v != value]
        known |= {v: run.read(v) for v in others if v in program.live}
        if eqn.name == "neg" or (eqn.name == "sub" and eqn.inputs[1] == value):
            factor = -factor
        elif eqn.name in ("mul", "div"):
            part = run.part(others, (), then=row, name=layer.output)
            by = np.asarray(part({}))
            factor = factor * by if eqn.name == "mul" else factor / by
    if not destination.path:
        return factor, np.float32(0)
    rest = run.part([destination.value], {*known, layer.output})
    zeros = {layer.output: jnp.zeros(shape, program.types[layer.output].dtype)}
    if not known:
        return factor, rest(zeros)[0]
    return factor, by_batch(
        lambda i: rest({**zeros, **{v: array[i] for v, array in known.items()}}),
        run.count,
    )[0]
