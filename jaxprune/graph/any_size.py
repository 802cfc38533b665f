"""A network for batches of any size, written out once.

A network is traced for one batch size at a time. The traces for 2 and for 3 images
differ in sizes alone: each is a x N + b. With N a symbol (`jax.export.symbolic_shape`),
one run of the equations is the program for all batch sizes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxprune._base.errors import InputError
from jaxprune.graph.evaluate import Runner, bind
from jaxprune.graph.trace import Equation, Program, trace

_SIZES = (2, 3)


def of_any_size(
    function: Callable[[Any, Any], Any], params: Any, example: Any
) -> Callable[[Any], Any]:
    """The function of a batch of any size, also of a symbol's.

    Calls are written out, and what does not depend on the batch is computed now.

    Args:
      function: (params, batch) -> a tree of arrays, images on their first axis.
      params: a tree of arrays, which become constants.
      example: a batch.

    Raises:
      InputError: its code goes another way for another batch size, or holds an array
        that depends on it.
    """
    two, three = (trace(function, params, _of_size(example, size)) for size in _SIZES)
    arrays = dict(zip(two.leaves, jax.tree.leaves(params), strict=True))
    sizes = _sizes(two, three)

    def of_batch(batch: Any) -> Any:
        leaves = jax.tree.leaves(batch)
        runner = _AnySize(two, {}, {}, None, False, sizes, leaves[0].shape[0])
        with jax.ensure_compile_time_eval():
            env = runner.start(arrays, None, {})
        env.update(zip(two.batch, leaves, strict=True))
        runner.equations(two.equations, env)
        results = [env[value] for value in two.results]
        return jax.tree.unflatten(two.output, results)

    return of_batch


def _of_size(example: Any, size: int) -> Any:
    """Shapes of a batch of so many images."""
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((size, *np.shape(a)[1:]), a.dtype), example
    )


@dataclass(frozen=True, eq=False)
class _AnySize(Runner):
    """Runs the equations of the first of two traces.

    Attributes:
      sizes: by an equation's number, the parameters that differ: in both traces.
      images: size of the batch.
    """

    sizes: Mapping[int, Mapping[str, tuple[Any, Any]]]
    images: Any

    def alone(self, eqn: Equation, inputs: list[Any], env: dict[int, Any]) -> list[Any]:
        """Outputs of an equation, with the sizes that this batch gives it."""
        if eqn.bodies:
            return self.bodies(eqn, inputs, env)
        differ = self.sizes.get(eqn.number, {})
        if not differ and not any(isinstance(x, jax.core.Tracer) for x in inputs):
            with jax.ensure_compile_time_eval():
                return bind(eqn, inputs, eqn.params)
        found = {k: _size(*pair, self.images) for k, pair in differ.items()}
        return bind(eqn, inputs, {**eqn.params, **found})


def _size(two: Any, three: Any, images: Any) -> Any:
    """A parameter for this many images, as the two traces have it."""
    if isinstance(two, tuple):
        return tuple(_size(a, b, images) for a, b in zip(two, three, strict=True))
    return two if two == three else (three - two) * images + 3 * two - 2 * three


def _sizes(two: Program, three: Program) -> dict[int, dict[str, tuple[Any, Any]]]:
    """The parameters that differ, by the number of their equation.

    Raises:
      InputError: the traces differ in more.
    """
    found: dict[int, dict[str, tuple[Any, Any]]] = {}
    for one, other in _pairs(two.equations, three.equations):
        differ = {
            key: (value, other.params[key])
            for key, value in one.params.items()
            if _are_sizes(value) and value != other.params[key]
        }
        if differ and one.bodies:
            raise InputError(f"{_ANOTHER}: {one.described} runs over its images")
        if differ:
            found[one.number] = differ
        for a, b in zip(one.inputs, other.inputs, strict=True):
            if not _same(two.constants.get(a, 0), three.constants.get(b, 0)):
                raise InputError(f"{_ANOTHER}: it holds numbers that differ")
    return found


_ANOTHER = "the network's code is another for 3 images than for 2"


def _pairs(
    two: Sequence[Equation], three: Sequence[Equation]
) -> Iterator[tuple[Equation, Equation]]:
    """The equations of both traces, those inside bodies too."""
    if [eqn.name for eqn in two] != [eqn.name for eqn in three]:
        raise InputError(f"{_ANOTHER}: it goes another way")
    for one, other in zip(two, three, strict=True):
        yield one, other
        for body, its in zip(one.bodies, other.bodies, strict=True):
            yield from _pairs(body.equations, its.equations)


def _are_sizes(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_are_sizes, value))
    return type(value) is int


def _same(one: Any, other: Any) -> bool:
    """Whether two constants are equal; keys of random numbers are taken to be."""
    if jax.dtypes.issubdtype(getattr(one, "dtype", int), jax.dtypes.extended):
        return True
    return np.array_equal(one, other, equal_nan=True)
