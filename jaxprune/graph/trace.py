"""A network's function as a flat list of equations, read from its jaxpr.

Calls (jit, remat, ...) are written out where they stand. Loops and branches stay
equations with bodies. A custom derivative stays an equation too, unless its body holds
a contraction: then it is written out as well, but for a body that is one contraction,
which stands for the whole. Where code differs by platform, the branch for any platform
is the meaning.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from jaxprune._base import arguments
from jaxprune._base.batch import path_name
from jaxprune._base.errors import InputError, first_line

CONTRACTIONS = ("conv_general_dilated", "dot_general")
# Equations that only run another function; under which name its jaxpr is kept.
_CALLS = (
    "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint",
    "custom_lin", "custom_vmap_call",
)  # fmt: skip
_CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
# Arrays of a batch whose shapes a message has.
_SHOWN = 4
_INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")
# Where code is that runs a network, not the network's own.
_NOT_THE_USERS = "/site-packages/", "/jaxprune/graph/", "/jaxprune/compaction/"


@dataclass(frozen=True)
class Body:
    """A function inside an equation: of a loop, a branch, a custom derivative.

    Attributes:
      inputs: the values that it is given.
      equations: in an order in which they can be run.
      outputs: the values that it returns.
    """

    inputs: tuple[int, ...]
    equations: tuple["Equation", ...]
    outputs: tuple[int, ...]


class Traced:
    """A part of a trace: it is never changed, and lives as long as its process."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Traced":
        return self

    def __reduce__(self) -> Any:
        raise InputError(
            "a trace, and a layer that is read from it, are not pickled: pickle the "
            "network, and ask for them again"
        )


@dataclass(frozen=True, eq=False)
class Equation(Traced):
    """One operation. Values are numbers; each is written once.

    Attributes:
      number: its place in `Program.every`.
      primitive: JAX's operation.
      params: of the operation.
      inputs: the values that it is given.
      outputs: the values that it returns.
      original: JAX's own record of it; where a contraction stands for a custom
        derivative, that equation's.
      original_inputs: the values that `original` is given.
      scope: names of the modules around it, "block_1/conv".
      bodies: functions inside it, if it has any.
      around: JAX's records of the calls that it is inside, the nearest last.
    """

    number: int
    primitive: Any
    params: Mapping[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    original: Any
    original_inputs: tuple[int, ...]
    scope: str
    bodies: tuple[Body, ...] = ()
    around: tuple[Any, ...] = ()

    @property
    def name(self) -> str:
        """Of the operation, as JAX calls it."""
        name: str = self.primitive.name
        return name

    @property
    def sole(self) -> "Equation":
        """The one equation of a body that holds no more; otherwise itself."""
        if len(self.bodies) == 1 and len(self.bodies[0].equations) == 1:
            return self.bodies[0].equations[0]
        return self

    @property
    def described(self) -> str:
        """For a message: operation, module and line of the user's code."""
        where = [self.scope and f"in {self.scope}", self._line()]
        return " ".join([f"'{self.name}'", *filter(None, where)])

    def _line(self) -> str:
        # What a function of a library does, such as a sort, may know no more than that.
        for record in (self.original, *reversed(self.around)):
            traceback = record.source_info.traceback
            for frame in traceback.frames if traceback else ():
                path = frame.file_name.replace("\\", "/")
                if not any(part in path for part in _NOT_THE_USERS):
                    return f"({path.rsplit('/', 1)[-1]}:{frame.line_num})"
        return ""


@dataclass(frozen=True, eq=False)
class Program(Traced):
    """A function of (leaves, batch), written out.

    Attributes:
      equations: those that the results need, in an order in which they can be run.
      every: all equations by number, those inside bodies too.
      leaves: the value of each array of the parameters, by its path.
      batch: the values of the batch's arrays.
      results: the values that are returned.
      constants: values that depend on neither.
      types: of every value: shape and dtype.
      live: values that depend on the batch.
      outer: for each value that a body is given, what it is outside.
      output: structure of the results.
    """

    equations: tuple[Equation, ...]
    every: tuple[Equation, ...]
    leaves: Mapping[str, int]
    batch: tuple[int, ...]
    results: tuple[int, ...]
    constants: Mapping[int, Any]
    types: tuple[jax.ShapeDtypeStruct, ...]
    live: frozenset[int]
    outer: Mapping[int, int]
    output: Any

    @cached_property
    def coarsest(self) -> Any:
        """Of the floating-point types that images go through, that of fewest digits."""
        return coarsest(self.types[value].dtype for value in self.live)

    def shape(self, value: int) -> tuple[int, ...]:
        """Of a value."""
        return tuple(self.types[value].shape)

    def is_float(self, value: int) -> bool:
        """Whether a value holds floating-point numbers."""
        return bool(jnp.issubdtype(self.types[value].dtype, jnp.floating))

    @cached_property
    def compiled(self) -> dict[Any, Callable[..., Any]]:
        """Parts of it that have been compiled, see `jaxprune.graph.stepwise`."""
        return {}

    @cached_property
    def made_by(self) -> dict[int, Equation]:
        """The equation that returns each value."""
        return {out: eqn for eqn in self.every for out in eqn.outputs}

    @cached_property
    def read_by(self) -> dict[int, list[Equation]]:
        """The equations that are given each value, as often as they are."""
        found: dict[int, list[Equation]] = defaultdict(list)
        for eqn in self.equations:
            for value in eqn.inputs:
                found[value].append(eqn)
        return found

    def used_by(self, value: int) -> int:
        """How often a value is read."""
        return len(self.read_by[value]) + self.results.count(value)

    @cached_property
    def path_of(self) -> dict[int, str]:
        """The path of each value that is a leaf."""
        return {value: path for path, value in self.leaves.items()}

    @cached_property
    def in_collections(self) -> bool:
        """Whether a path begins with a collection's name, as linen's "params/..."."""
        return any(path.startswith("params/") for path in self.leaves)

    def behind(self, values: Iterable[int]) -> set[int]:
        """The values that depend on some, these included."""
        found = set(values)
        for eqn in self.equations:
            if found.intersection(eqn.inputs):
                found.update(eqn.outputs)
        return found

    def needed(
        self, wanted: Iterable[int], known: Iterable[int] = ()
    ) -> tuple[Equation, ...]:
        """The equations that lead to some values from others that are known."""
        known = set(known)
        left = set(wanted) - known
        found = []
        for eqn in reversed(self.equations):
            if left.intersection(eqn.outputs):
                left.update(value for value in eqn.inputs if value not in known)
                found.append(eqn)
        return tuple(found[::-1])


def coarsest(types: Iterable[Any]) -> Any:
    """Of the floating-point types among some, that of fewest digits."""
    floats = {np.dtype(t) for t in types if jnp.issubdtype(t, jnp.floating)}
    return max(floats, key=lambda t: jnp.finfo(t).eps, default=np.dtype(np.float32))


def shape_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and type that JAX gives an array or a number.

    Raises:
      InputError: it is neither, or an array that JAX does not take.
    """
    arguments.check_byte_order("an array", leaf)
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        dtype = leaf.dtype
        if not jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
            dtype = jax.dtypes.canonicalize_dtype(dtype)
        return jax.ShapeDtypeStruct(leaf.shape, dtype)
    try:
        return jax.eval_shape(jnp.asarray, leaf)
    except TypeError as error:
        kind = type(leaf).__name__
        raise InputError(f"a network takes arrays and numbers, got a {kind}") from error


def trace(function: Callable[..., Any], params: Any, batch: Any) -> Program:
    """Writes a function out.

    Args:
      function: (params, batch) -> a tree of arrays.
      params: a tree of arrays; their shapes matter alone.
      batch: an array with the images on its first axis, or a tree of such.

    Raises:
      InputError: the function does not run on these, or depends on their values.
    """
    params, batch = jax.tree.map(shape_of, (params, batch))
    paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    try:
        # Inside a mapped function too: what is traced is run elsewhere again.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            closed, output = jax.make_jaxpr(function, return_shape=True)(params, batch)
    except InputError:
        raise
    except Exception as error:  # whatever the user's own code raises
        shapes = [str(tuple(leaf.shape)) for leaf in jax.tree.leaves(batch)]
        if len(shapes) > _SHOWN:
            shapes[_SHOWN:] = [f"... of {len(shapes)} arrays"]
        raise InputError(
            f"the network does not run on the example {', '.join(shapes)} with these "
            f"variables: {_cause(error)}"
        ) from error
    writer = _Writer()
    given = [writer.new(var) for var in closed.jaxpr.invars]
    equations: list[Equation] = []
    results = writer.write(closed, given, equations, "")
    live = _live(equations, given[len(paths) :], writer.outer)
    program = Program(
        equations=tuple(equations),
        every=tuple(writer.every),
        leaves=dict(zip(paths, given, strict=False)),
        batch=tuple(given[len(paths) :]),
        results=tuple(results),
        constants=writer.constants,
        types=tuple(writer.types),
        live=frozenset(live),
        outer=writer.outer,
        output=jax.tree.structure(output),
    )
    object.__setattr__(program, "equations", program.needed(results))
    return program


def _cause(error: Exception) -> str:
    if isinstance(error, jax.errors.ConcretizationTypeError):
        return "its control flow depends on values, which a trace has none of"
    return first_line(error)


def _live(
    equations: Sequence[Equation], batch: Iterable[int], outer: Mapping[int, int]
) -> set[int]:
    """The values that depend on the batch, those inside bodies too."""
    live = set(batch)

    def mark(equations: Sequence[Equation]) -> None:
        for eqn in equations:
            for _ in range(2 if eqn.name in ("scan", "while") else 1):
                for body in eqn.bodies:
                    live.update(v for v in body.inputs if outer[v] in live)
                    mark(body.equations)
                    for out, carried in loop_carry(eqn, body):
                        if out in live:
                            live.add(carried)
            ends = {v for body in eqn.bodies for v in body.outputs}
            if live.intersection((*eqn.inputs, *ends)):
                live.update(eqn.outputs)

    mark(equations)
    return live


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many of a scan's inputs are constants, and how many it carries."""
    if "ft_in" in params:  # since JAX 0.11
        constants, carried = (len(part.vals) for part in params["ft_in"].unpack()[:2])
        return constants, carried
    return params["num_consts"], params["num_carry"]


def loop_carry(eqn: Equation, body: Body) -> list[tuple[int, int]]:
    """Each output of a loop's body, and the input that it becomes in the next turn."""
    if eqn.name == "scan":
        constants, carried = scan_counts(eqn.params)
        inputs = body.inputs[constants : constants + carried]
        return list(zip(body.outputs, inputs, strict=False))
    if eqn.name == "while" and body is eqn.bodies[1]:
        inputs = body.inputs[eqn.params["body_nconsts"] :]
        return list(zip(body.outputs, inputs, strict=True))
    return []


@dataclass
class _Writer:
    """Numbers the values of a traced function, and writes out what it calls."""

    every: list[Equation] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)
    types: list[jax.ShapeDtypeStruct] = field(default_factory=list)
    outer: dict[int, int] = field(default_factory=dict)
    platforms: set[int] = field(default_factory=set)
    around: tuple[Any, ...] = ()

    def new(self, var: Any) -> int:
        self.types.append(jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype))
        return len(self.types) - 1

    def constant(self, var: Any, value: Any) -> int:
        number = self.new(var)
        if isinstance(var, Literal):
            value = np.asarray(value, self.types[number].dtype)
        self.constants[number] = value
        return number

    def write(
        self, closed: Any, given: Sequence[int], equations: list[Equation], scope: str
    ) -> list[int]:
        """Writes a function's equations; the values that it returns."""
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
            outputs = self._write_one(eqn, inputs, equations, scope)
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def _write_one(
        self, eqn: Any, inputs: list[int], equations: list[Equation], scope: str
    ) -> list[int]:
        before, self.around = self.around, (*self.around, eqn)
        try:
            return self._write_parts(eqn, inputs, equations, scope)
        finally:
            self.around = before

    def _write_parts(
        self, eqn: Any, inputs: list[int], equations: list[Equation], scope: str
    ) -> list[int]:
        name = eqn.primitive.name
        inner_scope = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
        if name in _CALLS and (inner := _inner(eqn)) is not None:
            return self.write(inner, inputs, equations, inner_scope)
        if name == "cond" and self._by_platform(eqn, inputs):
            default = eqn.params["branches"][-1]
            return self.write(default, inputs[1:], equations, inner_scope)
        if name in _CUSTOM and (inner := _inner(eqn)) is not None:
            return self._write_custom(eqn, inner, inputs, equations, inner_scope)
        bodies = [self._body(*part, inner_scope) for part in _parts(eqn, inputs)]
        outputs = [self.new(var) for var in eqn.outvars]
        self._add(equations, eqn, inputs, outputs, inner_scope, tuple(bodies))
        if name == "platform_index" or (
            name in ("convert_element_type", "clamp")
            and self.platforms.intersection(inputs)
        ):
            self.platforms.update(outputs)
        return outputs

    def _by_platform(self, eqn: Any, inputs: list[int]) -> bool:
        return inputs[0] in self.platforms

    def _add(
        self, equations: list[Equation], eqn: Any, inputs: Sequence[int],
        outputs: Sequence[int], scope: str, bodies: tuple[Body, ...] = (),
    ) -> None:  # fmt: skip
        made = Equation(
            len(self.every), eqn.primitive, eqn.params, tuple(inputs), tuple(outputs),
            eqn, tuple(inputs), scope, bodies, self.around[:-1],
        )  # fmt: skip
        self.every.append(made)
        equations.append(made)

    def _body(self, closed: Any, given: Sequence[int], scope: str) -> Body:
        inputs = [self.new(var) for var in closed.jaxpr.invars]
        self.outer.update(zip(inputs, given, strict=True))
        equations: list[Equation] = []
        outputs = self.write(closed, inputs, equations, scope)
        return Body(tuple(inputs), tuple(equations), tuple(outputs))

    def _write_custom(
        self,
        eqn: Any,
        inner: Any,
        inputs: list[int],
        equations: list[Equation],
        scope: str,
    ) -> list[int]:
        """A custom derivative: written out, kept, or one contraction in its place."""
        before = len(self.every)
        body = self._body(inner, inputs, scope)
        needed = _needed(body)
        sole = needed[0] if len(needed) == 1 else None
        if sole is not None and sole.name in CONTRACTIONS:
            operands = tuple(self.outer.get(v, v) for v in sole.inputs)
            if set(inputs) <= set(operands) and sole.outputs == body.outputs:
                del self.every[before:]
                outputs = [self.new(var) for var in eqn.outvars]
                made = Equation(
                    before, sole.primitive, sole.params, operands, tuple(outputs),
                    eqn, tuple(inputs), sole.scope, (), self.around[:-1],
                )  # fmt: skip
                self.every.append(made)
                equations.append(made)
                return outputs
        if any(inside.name in CONTRACTIONS for inside in self.every[before:]):
            del self.every[before:]
            return self.write(inner, inputs, equations, scope)
        outputs = [self.new(var) for var in eqn.outvars]
        self._add(equations, eqn, inputs, outputs, scope, (body,))
        return outputs


def _needed(body: Body) -> list[Equation]:
    """The equations of a body that its outputs depend on."""
    left, found = set(body.outputs), []
    for eqn in reversed(body.equations):
        if left.intersection(eqn.outputs):
            left.update(eqn.inputs)
            found.append(eqn)
    return found[::-1]


def _inner(eqn: Any) -> ClosedJaxpr | None:
    """The function that an equation runs; None where it is not the only one."""
    for key in _INNER:
        if key in eqn.params:
            return _closed(eqn.params[key])
    return None


def _closed(jaxpr: Any) -> ClosedJaxpr:
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def _parts(eqn: Any, inputs: list[int]) -> list[tuple[ClosedJaxpr, list[int]]]:
    """The functions inside an equation, and what each of them is given."""
    params = eqn.params
    if eqn.primitive.name == "scan":
        return [(_closed(params["jaxpr"]), inputs)]
    if eqn.primitive.name == "cond":
        return [(_closed(branch), inputs[1:]) for branch in params["branches"]]
    if eqn.primitive.name == "while":
        first, second = params["cond_nconsts"], params["body_nconsts"]
        carried = inputs[first + second :]
        return [
            (_closed(params["cond_jaxpr"]), [*inputs[:first], *carried]),
            (_closed(params["body_jaxpr"]),
             [*inputs[first : first + second], *carried]),
        ]  # fmt: skip
    return []
