"""How long a network takes at other widths: from layers that are timed here.

Each convolution and dense layer is timed by itself at a few numbers of input and output
features; in between, a straight line along either. What the whole network takes beyond
its layers, pools and norms, goes with the number of elements that layers return.

Axes: I, O numbers of features given and returned that a layer is timed at.
"""

import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from pydantic import Field
from typing_extensions import TypedDict

from jaxprune import sealed
from jaxprune.channels import taps
from jaxprune.compaction.network import Compact
from jaxprune.errors import InputError
from jaxprune.shrinking.costs import Costs, Number, Widths
from jaxprune.shrinking.machine import machine

# Shares of the features that a layer is timed at, on either side.
_SHARES = (0.06, 0.25, 0.5, 0.75, 1.0)
# Multiples that widths may be rounded to, in a window of widths; what is as fast.
_MULTIPLES, _WINDOW, _AS_FAST = (1, 2, 4, 8, 16, 32), 32, 1.03
# Seconds that a program is timed for, the fewest calls, and runs of a layer in a call.
_SECONDS, _CALLS, _TIMES = 0.03, 3, 4


@dataclass(frozen=True)
class Timed:
    """A layer's seconds.

    Attributes:
      given: numbers of input features, ascending [I].
      returned: numbers of output features, ascending [O].
      seconds: for each pair [I, O].
      positions: of its output, for one input of the network.
    """

    given: tuple[int, ...]
    returned: tuple[int, ...]
    seconds: Float[np.ndarray, "I O"]
    positions: int

    def at(self, given: Number, returned: Number) -> float:
        """Between the numbers that were timed, a straight line along each side."""
        column = [np.interp(returned, self.returned, row) for row in self.seconds]
        return float(np.interp(given, self.given, column))


@dataclass(frozen=True)
class LatencyTable:
    """Predicted seconds of a call, by widths.

    Attributes:
      batch: inputs of a call.
      costs: how many features each layer has.
      layers: what was timed.
      rest: seconds of the whole network that are not its layers'.
      multiple: numbers of features that are multiples of this are faster here.
    """

    batch: int
    costs: Costs
    layers: Mapping[str, Timed]
    rest: float
    multiple: int = 1

    def seconds(self, widths: Widths) -> float:
        """Of a call; `widths` of all groups."""
        elements = self._elements(widths) / self._elements(self.costs.whole)
        return self._of_layers(widths) + self.rest * elements

    def _of_layers(self, widths: Widths) -> float:
        return sum(self.layer(name, widths) for name in self.layers)

    def layer(self, name: str, widths: Widths) -> float:
        """Seconds of one layer."""
        product = self.costs.layers[name]
        given, returned = product.inputs, product.outputs
        return self.layers[name].at(given.features(widths), returned.features(widths))

    def _elements(self, widths: Widths) -> Number:
        return sum(
            timed.positions * self.costs.layers[name].outputs.features(widths)
            for name, timed in self.layers.items()
        )


def measure_latency(
    whole: Compact,
    costs: Costs,
    x: Array,
    *,
    cache: Path | None = None,
    on_layer: Callable[[str], Any] = lambda name: None,
) -> LatencyTable:
    """Times a network's layers on this machine.

    Args:
      whole: the network.
      costs: see `jaxprune.shrinking.costs.model_costs`.
      x: one batch of inputs.
      cache: folder in which times are kept, by device and version.
      on_layer: called with each layer's name once it is timed.
    """
    clock = _Clock(cache)
    layers = {}
    shapes = _shapes(whole, x)
    for name, (module, given, returned) in shapes.items():
        if name in costs.layers:
            layers[name] = _time_layer(clock, module, given, returned)
            on_layer(name)
    largest = max(layers, key=lambda name: costs.layers[name].count(costs.whole))
    multiple = _fastest_multiple(clock, *shapes[largest])
    clock.save()
    program = jax.jit(lambda v, x: whole.apply(v, x))
    variables = jax.device_put(whole.variables)
    seconds = clock.measure(lambda: program(variables, x))
    table = LatencyTable(len(x), costs, layers, 0.0, multiple)
    return replace(table, rest=seconds - table.seconds(costs.whole))


def _shapes(whole: Compact, x: Array) -> dict[str, tuple[Any, Any, Any]]:
    """Each layer's module, and what it is given and returns, as shapes."""
    found: dict[str, tuple[Any, Any, Any]] = {}

    def note(call: taps.Call) -> Any:
        output = call.run()
        if call.is_layer and hasattr(output, "shape"):
            module = call.module.clone(parent=None)
            found.setdefault(call.name, (module, call.input, output))
        return output

    jax.eval_shape(taps.intercept(whole.apply, note), whole.variables, x)
    return found


def _time_layer(clock: "_Clock", module: Any, given: Any, returned: Any) -> Timed:
    groups = getattr(module, "feature_group_count", 1)
    each = given.shape[-1] // groups, returned.shape[-1] // groups
    if groups == 1:
        widths = [_grid(f) for f in each]
        pairs = [(i, o, 1) for i, o in itertools.product(*widths)]
    else:  # whole groups go: what is given follows from what is returned
        counts = _grid(groups)
        widths = [(each[0],), tuple(each[1] * g for g in counts)]
        pairs = [(each[0] * g, each[1] * g, g) for g in counts]
    seconds = []
    for features, outputs, count in pairs:
        changes = {"features": outputs}
        if groups != 1:
            changes["feature_group_count"] = count
        shape = (*given.shape[:-1], features)
        seconds.append(clock.time(module.clone(**changes), shape, given.dtype))
    grid = np.reshape(seconds, [len(w) for w in widths])
    positions = int(np.prod(returned.shape[1:-1]))
    return Timed(widths[0], widths[1], grid, positions)


def _fastest_multiple(clock: "_Clock", module: Any, given: Any, returned: Any) -> int:
    """What widths should be rounded up to: the least that is as fast as any.

    Any width in a window is as likely as another, given and returned alike.
    """
    top = returned.shape[-1] // _WINDOW * _WINDOW
    if getattr(module, "feature_group_count", 1) != 1 or not top:
        return 1
    shape, dtype = given.shape[:-1], given.dtype
    seconds = {
        width: clock.time(module.clone(features=width), (*shape, width), dtype)
        for width in range(top - _WINDOW + 1, top + 1)
    }
    mean = {m: np.mean([seconds[-(-w // m) * m] for w in seconds]) for m in _MULTIPLES}
    best = min(mean.values())
    return next(m for m in _MULTIPLES if mean[m] <= _AS_FAST * best)


def _grid(features: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(features * share)) for share in _SHARES}))


class _Times(TypedDict):
    machine: dict[str, str]
    seconds: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class _Clock:
    """Times layers, and keeps what it has timed in a file.

    Attributes:
      overhead: seconds of a call that does nothing.
    """

    def __init__(self, folder: Path | None):
        self.machine = machine()
        name = re.sub(r"[^\w.]+", "_", "-".join(self.machine.values()))
        self.path = folder / f"latency-{name}.json" if folder else None
        self.known: dict[str, float] = {}
        if self.path and self.path.exists():
            try:
                found = sealed.read_file(self.path, _Times)
            except (InputError, OSError):
                found = None  # damaged: timed again
            if found and found["machine"] == self.machine:
                self.known = found["seconds"]
        one = jnp.zeros(1)
        nothing = jax.jit(lambda x: x + 1)
        self.overhead = _median(lambda: nothing(one))

    def time(self, module: Any, shape: tuple[int, ...], dtype: Any) -> float:
        """Of a layer whose weights are ones, on zeros of this shape."""
        key = f"{_describe(module)} {np.dtype(dtype)} {list(shape)}"
        if key not in self.known:
            x = jnp.zeros(shape, dtype)
            # Initialisers would be compiled for every width.
            shapes = jax.eval_shape(module.init, jax.random.key(0), x)
            variables = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), shapes)
            program = jax.jit(partial(_repeatedly, module.apply))
            self.known[key] = self.measure(lambda: program(variables, x)) / _TIMES
        return self.known[key]

    def measure(self, run: Callable[[], Any]) -> float:
        """Seconds of a call, its overhead taken off."""
        return max(_median(run) - self.overhead, 0.0)

    def save(self) -> None:
        """Keeps the times; where that cannot be, they are measured again next time."""
        if self.path:
            facts = {"machine": self.machine, "seconds": self.known}
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                sealed.write_file(self.path, facts)


def _describe(module: Any) -> str:
    """A layer's class and settings, without its name; functions by theirs."""
    names = {field.name for field in dataclasses.fields(module)} - {"parent", "name"}
    values = {name: getattr(module, name) for name in sorted(names)}
    settings = (f"{k}={_name(v) if callable(v) else v}" for k, v in values.items())
    return f"{type(module).__name__}({', '.join(settings)})"


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _repeatedly(apply: taps.Apply, variables: Any, x: Array) -> Array:
    """A layer several times over, in memory that is there already, as in a network.

    By itself a call spends up to half its time on getting memory from the system.
    """
    output = jax.eval_shape(apply, variables, x)

    def once(_: Any, carry: Any) -> Any:
        variables, x, _ = carry
        # Nothing may be moved out of the loop: not what is done to the kernel either.
        return jax.lax.optimization_barrier((variables, x, apply(variables, x)))

    start = variables, x, jnp.zeros(output.shape, output.dtype)
    return jax.lax.fori_loop(0, _TIMES, once, start)[-1]


def _median(run: Callable[[], Any]) -> float:
    """Median seconds of a call, once it is compiled."""
    jax.block_until_ready(run())
    seconds: list[float] = []
    while len(seconds) < _CALLS or sum(seconds) < _SECONDS:
        started = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))
