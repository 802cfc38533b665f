"""A network as a list of operations with its layers left open: read, and run by hand.

The network is traced with some of its layers cut out, as it is in
`jaxprune.channels.coupling`, and the functions that it calls are written out. What is
left is one list of steps between numbered values, in which one can look where a layer's
output goes; and which can be run step by step, whoever is asked for first.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import Literal
from jaxtyping import Array

from jaxprune.channels import taps
from jaxprune.channels.flow import run_cut
from jaxprune.channels.tags import inner_jaxpr
from jaxprune.errors import InputError


class Step(NamedTuple):
    """An operation.

    Attributes:
      equation: JAX's own record of it.
      inputs: the values that it is given.
      outputs: the values that it returns.
    """

    equation: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of the operation, as JAX calls it."""
        name: str = self.equation.primitive.name
        return name

    def run(self, *inputs: Any) -> list[Any]:
        """What it returns."""
        primitive, params = self.equation.primitive, self.equation.params
        with self.equation.ctx.manager:
            result = primitive.bind(*inputs, **primitive.get_bind_params(params))
        return list(result) if primitive.multiple_results else [result]


@dataclass(frozen=True)
class Program:
    """A network's steps. Values are numbers; a value is written once.

    Attributes:
      layers: the calls of layers that are left open, in the order of the code.
      given: for each of them, the value that it is given.
      returned: for each of them, the value that it returns.
      image: the network's input.
      variables: the network's arrays, by path.
      constants: values that do not depend on any of these.
      steps: in an order in which they can be run.
      results: the network's output.
      shapes: of every value.
    """

    layers: tuple[taps.Layer, ...]
    given: tuple[int, ...]
    returned: tuple[int, ...]
    image: int
    variables: Mapping[str, int]
    constants: Mapping[int, Any]
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    shapes: Mapping[int, tuple[int, ...]]

    def uses(self) -> Counter[int]:
        """How many steps, layers and results read each value."""
        read = Counter([*self.given, *self.results])
        for step in self.steps:
            read.update(step.inputs)
        return read

    def depends(self) -> set[int]:
        """The values that depend on the image, or on what a layer returns."""
        found = {self.image, *self.returned}
        for step in self.steps:
            if found.intersection(step.inputs):
                found.update(step.outputs)
        return found


def trace_program(
    apply: taps.Apply,
    variables: Any,
    x: Array | jax.ShapeDtypeStruct,
    is_open: Callable[[nn.Module], bool],
) -> Program:
    """The steps of a network.

    Args:
      apply: the network, see `jaxprune.channels.taps`.
      variables: its variables.
      x: an input; its shape is used.
      is_open: which of its layers are left open.

    Raises:
      InputError: the network does not run, or calls a layer where what it is given
        cannot be seen.
    """
    every = taps.list_layers(apply, variables, x)
    layers = tuple(call for call in every if is_open(call.module))
    flat = flatten_dict(unfreeze(variables), sep="/")

    def network(flat: Any, x: Array, outputs: Any) -> Any:
        variables = unflatten_dict(flat, sep="/")
        given, result = run_cut(apply, variables, x, outputs, is_open)
        return [arrays[0] for arrays in given], result

    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), x)
    outputs = [call.output for call in layers]
    try:
        jaxpr = jax.make_jaxpr(network)(flat, shapes, outputs)
    except jax.errors.UnexpectedTracerError as error:
        raise InputError(
            "a layer is called inside a transformation (nn.scan, nn.remat, nn.jit, "
            "jax.jit), where what it is given cannot be seen"
        ) from error
    writer = _Writer()
    paths = sorted(flat)  # as JAX orders the leaves of a dict
    given = [writer.new(var) for var in jaxpr.jaxpr.invars]
    results = writer.write(jaxpr, given)
    return Program(
        layers=layers,
        given=tuple(results[: len(layers)]),
        returned=tuple(given[len(paths) + 1 :]),
        image=given[len(paths)],
        variables=dict(zip(paths, given, strict=False)),
        constants=writer.constants,
        steps=tuple(writer.steps),
        results=tuple(results[len(layers) :]),
        shapes=writer.shapes,
    )


class _Writer:
    """Numbers the values of a traced program, and writes out what it calls."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.constants: dict[int, Any] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}

    def new(self, var: Any) -> int:
        number = len(self.shapes)
        self.shapes[number] = tuple(var.aval.shape)
        return number

    def constant(self, var: Any, value: Any) -> int:
        number = self.new(var)
        self.constants[number] = value
        return number

    def write(self, closed: Any, given: list[int]) -> list[int]:
        """Writes a program's steps; the values that it returns."""
        jaxpr = closed.jaxpr
        env = dict(zip(jaxpr.invars, given, strict=True))
        for var, value in zip(jaxpr.constvars, closed.consts, strict=True):
            env[var] = self.constant(var, value)

        def read(var: Any) -> int:
            if isinstance(var, Literal):
                return self.constant(var, var.val)
            return env[var]

        for eqn in jaxpr.eqns:
            inputs = [read(var) for var in eqn.invars]
            inner = inner_jaxpr(eqn)
            if inner is not None and len(inner.invars) == len(inputs):
                outputs = self.write(_closed(eqn, inner), inputs)
            else:
                outputs = [self.new(var) for var in eqn.outvars]
                self.steps.append(Step(eqn, tuple(inputs), tuple(outputs)))
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(var) for var in jaxpr.outvars]


def _closed(eqn: Any, inner: Any) -> Any:
    """The function that an equation calls, with its constants."""
    found = next(eqn.params[k] for k in ("jaxpr", "call_jaxpr") if k in eqn.params)
    return found if hasattr(found, "consts") else jax.extend.core.ClosedJaxpr(inner, ())


class Run:
    """A program being run on one batch; a value is worked out when first asked for.

    Args:
      program: the network.
      variables: its arrays, by path.
      x: the batch that it was traced for.
      layer: what the i-th open layer returns for what it is given.
      also: values that are asked for as often beside the program itself.
    """

    def __init__(
        self,
        program: Program,
        variables: Mapping[str, Any],
        x: Array,
        layer: Callable[[int, Array], Array],
        also: Counter[int],
    ):
        self.program, self.layer = program, layer
        self.values: dict[int, Any] = {program.image: x, **program.constants}
        self.values |= {program.variables[path]: a for path, a in variables.items()}
        # A feature map goes when the last that reads it has done so.
        self.left = program.uses() + also
        self.fixed = set(self.values) - {program.image}
        self.done: set[int] = set()
        self.step_of = {out: step for step in program.steps for out in step.outputs}
        self.layer_of = {value: i for i, value in enumerate(program.returned)}

    def read(self, value: int) -> Any:
        """A value, and all that it needs first."""
        if value in self.values:
            return self.values[value]
        assert value not in self.done, "asked for more often than was said"
        if value in self.layer_of:
            i = self.layer_of[value]
            found = [self.layer(i, self.read(self.program.given[i]))]
            inputs: tuple[int, ...] = (self.program.given[i],)
            outputs: tuple[int, ...] = (value,)
        else:
            step = self.step_of[value]
            found = step.run(*(self.read(v) for v in step.inputs))
            inputs, outputs = step.inputs, step.outputs
        for out, array in zip(outputs, found, strict=True):
            if self.left[out] > 0:
                self.values[out] = array
        self.done.update(outputs)
        for read in inputs:
            self.release(read)
        return found[outputs.index(value)]

    def release(self, value: int) -> None:
        """One who reads it has done so."""
        self.left[value] -= 1
        if self.left[value] <= 0 and value not in self.fixed:
            self.values.pop(value, None)
