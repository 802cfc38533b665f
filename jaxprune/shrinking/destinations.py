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
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxprune.channels.program import Program, Run, Step

_UNCHANGED = {"convert_element_type", "copy", "stop_gradient", "reduce_precision"}
_SUMS = {"add", "add_any", "sub"}


@dataclass(frozen=True)
class Destination:
    """What becomes of a layer's output.

    Attributes:
      value: the last one that is affine in it, and depends on it alone of its path.
      path: the steps to it, each behind the value of the path that it is given.
      rectified: whether a ReLU is all that reads it.
    """

    value: int
    path: tuple[tuple[int, Step], ...] = ()
    rectified: bool = False


def find_destinations(
    program: Program, unknowns: Mapping[int, int]
) -> dict[int, Destination]:
    """The destination that each layer is to be fitted for.

    Where several layers meet in one sum, the one with the most unknowns is to give the
    sum, and the others what they gave.

    Args:
      program: the network.
      unknowns: for each layer that may be fitted, by its index, those of an output.
    """
    uses, live = program.uses(), program.depends()
    reader = {value: step for step in program.steps for value in step.inputs}
    ends = {*program.given, *program.results}

    def alone(value: int) -> bool:
        return uses[value] == 1 and value not in ends

    found: dict[int, Destination] = {}
    meeting: dict[int, list[int]] = defaultdict(list)
    for i in unknowns:
        value, path = program.returned[i], []
        while alone(value) and _is_affine(program, reader[value], value, live):
            path.append((value, reader[value]))
            (value,) = reader[value].outputs
        rectified = alone(value) and _is_relu(program, reader[value])
        found[i] = Destination(value, tuple(path), rectified)
        meeting[value].append(i)
    for layers in meeting.values():
        first = max(layers, key=lambda i: (unknowns[i], i))
        for i in set(layers) - {first}:
            found[i] = Destination(program.returned[i])
    return found


def _is_affine(program: Program, step: Step, value: int, live: Collection[int]) -> bool:
    """Whether a step is affine in a value, each element by itself."""
    if program.shapes[step.outputs[0]] != program.shapes[value]:
        return False
    if step.name in _UNCHANGED | _SUMS or step.name == "neg":
        return True
    fixed = not any(v in live for v in step.inputs if v != value)
    divided = step.name == "div" and step.inputs[0] == value
    return fixed and (divided or step.name == "mul")


def _is_relu(program: Program, step: Step) -> bool:
    constants = [program.constants[v] for v in step.inputs if v in program.constants]
    return step.name == "max" and any(not np.any(np.asarray(c)) for c in constants)


def follow(
    run: Run, destination: Destination, dtype: Any
) -> tuple[Float[np.ndarray, " U"], Float[np.ndarray, "N *axes U"]]:
    """The factor of a layer's output in its destination, and the rest of that.

    Args:
      run: of the network, in which the layer has not been run.
      destination: of the layer.
      dtype: of its output.

    Returns:
      The factor, NaN where it differs from position to position; and the rest.
    """
    shape = run.program.shapes[destination.value]
    factor: np.ndarray = np.ones(shape[-1], np.float32)
    rest = jnp.zeros(shape, dtype)
    for value, step in destination.path:
        others = {v: run.read(v) for v in step.inputs if v != value}
        (rest,) = step.run(*(others.get(v, rest) for v in step.inputs))
        if step.name == "neg" or (step.name == "sub" and step.inputs[1] == value):
            factor = -factor
        elif step.name in ("mul", "div"):
            (other,) = others.values()
            rows = np.broadcast_to(np.asarray(other, np.float32), shape)
            rows = rows.reshape(-1, shape[-1])
            row = np.where((rows == rows[0]).all(0), rows[0], np.nan)
            factor = factor * row if step.name == "mul" else factor / row
    return factor, np.asarray(rest)
