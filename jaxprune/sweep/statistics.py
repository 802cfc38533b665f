"""Statistics of the ranking images that criteria need, from the trunk's one pass.

The devices work out, besides a batch's feature maps, what the layers that read the
channels are given, and gradients from the feature maps on; the sums are kept in float64
and put together over batches and processes.

Axes: B images of a batch, P channels, F features of a layer that reads them.
"""

from collections.abc import Callable, Collection, Mapping
from functools import cached_property, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxprune._base import arguments, processes
from jaxprune._base.errors import InputError, check_choice
from jaxprune.graph.evaluate import run
from jaxprune.graph.groups import PruningGroup
from jaxprune.graph.network import Network
from jaxprune.ranking.criteria import CRITERIA, NEEDS, Criterion
from jaxprune.ranking.statistics import Activations, ConsumerInput, Gradients
from jaxprune.sweep.taps import TAPS, capture_map
from jaxprune.tasks.task import Task


def needs_of(criteria: Collection[str | Criterion]) -> frozenset[str]:
    """The needs of these criteria.

    Raises:
      InputError: an unknown criterion, or one that asks for what is not in NEEDS.
    """
    if isinstance(criteria, str):
        raise InputError(f"criteria must be a list of names, got '{criteria}'")
    return frozenset(need for c in criteria for need in find_criterion(c).needs)


def find_criterion(criterion: str | Criterion) -> Criterion:
    """A criterion by its name, or one of the user's own.

    Raises:
      InputError: an unknown criterion, or one that asks for what is not in NEEDS.
    """
    if isinstance(criterion, str):
        check_choice("criterion", criterion, CRITERIA)
        return CRITERIA[criterion]
    arguments.check_kind("a criterion", criterion, Criterion, "a name or a Criterion")
    for need in criterion.needs:
        check_choice("need of a criterion", need, NEEDS)
    return criterion


class Gathering:
    """The statistics of one layer: a batch's computation, and its sums.

    Attributes:
      needs: names of NEEDS.
    """

    def __init__(
        self,
        network: Network,
        layer: str,
        tap: str,
        needs: Collection[str],
        task: Task,
    ):
        """Finds the consumers and the norm, where they are needed.

        Args:
          network: the network; here only its shapes matter.
          layer: name of the convolution.
          tap: one of `TAPS`.
          needs: names of NEEDS.
          task: whose loss has gradients.

        Raises:
          InputError: something that this layer does not have.
        """
        self.needs = frozenset(needs)
        self._network, self._layer, self._tap = network, layer, TAPS[tap]
        self._task = task
        self._consumers: Mapping[str, np.ndarray] = {}
        # A tap before the ReLU has no zeros of its own.
        self._zeros_at_tap = tap == "relu"
        zeros_at_consumers = "zeros" in self.needs and not self._zeros_at_tap
        if "consumer_inputs" in self.needs or zeros_at_consumers:
            self._consumers = self._group.consumers
        if "consumers" in self.needs:
            self._group  # noqa: B018 - raises where the linear fill cannot be fitted
        if "norm_scale" in self.needs:
            self._find_norm()
        if "gradients" in self.needs:
            self._check_differentiable()
        self._sums: dict[str, Any] = {}

    @property
    def only_maps(self) -> bool:
        """Whether `compute` returns the feature maps and no more."""
        return not self._consumers and "gradients" not in self.needs

    @cached_property
    def _group(self) -> PruningGroup:
        """Where the channels go."""
        return self._network.graph().channels_of(self._layer)

    def _find_norm(self) -> tuple[str, np.ndarray]:
        """The scale of the BatchNorm that the channels go through: path, and channels.

        Of every element, the channel that it belongs to.
        """
        found = [
            (path, owner)
            for (path, _), owner in self._group.leaves.items()
            if path.endswith("/scale")
        ]
        if len(found) != 1:
            count = len(found) or "no"
            raise InputError(
                f"criterion bn_scale needs one BatchNorm with a scale between "
                f"'{self._layer}' and what reads it, found {count}"
            )
        return found[0]

    def _check_differentiable(self) -> None:
        layer = self._network.layers[self._layer]
        dtype = layer.program.types[layer.output].dtype
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise InputError(
                f"criteria taylor and fisher need gradients: what '{self._layer}' "
                f"returns is {dtype}, which has none"
            )
        if self._task.imitates:
            raise InputError(
                f"criteria taylor and fisher need gradients: the loss of task "
                f"'{self._task.name}' is least for the whole network, whose gradient "
                "is 0; give targets"
            )

    def compute(self, arrays: Any, images: Any, targets: Any) -> dict[str, Any]:
        """Of a batch: feature maps [B, *axes, P], and what else is needed.

        Args:
          arrays: the network's.
          images: a batch.
          targets: of each.
        """
        maps = self._tap(capture_map(self._network, arrays, images, self._layer))
        found: dict[str, Any] = {"maps": maps}
        graph = self._network.graph(images)
        layer = graph.layer(self._layer)
        consumers = [graph.layer(name) for name in self._consumers]

        program = graph.program

        def end(maps: Array) -> tuple[Array, dict[str, Array]]:
            given = {layer.output: layer.from_outputs(maps)}
            want = [*program.results, *(consumer.input for consumer in consumers)]
            found = run(program, arrays, images, want=want, given=given)
            count = len(program.results)
            outputs = jax.tree.unflatten(program.output, found[:count])
            pairs = zip(consumers, found[count:], strict=True)
            features = {consumer.name: consumer.features(x) for consumer, x in pairs}
            return self._task.loss(outputs, targets).sum(), features

        if "gradients" in self.needs:
            gradient, given = jax.grad(end, has_aux=True)(maps)
            middle = tuple(range(1, maps.ndim - 1))
            found["products"] = (maps * gradient).sum(middle)
        elif self._consumers:
            _, given = end(maps)
        else:
            given = {}
        return {**found, "given": given}

    def add(self, found: Mapping[str, Any], size: int) -> None:
        """Adds what `compute` found of a batch whose first `size` images are real."""
        maps = found["maps"][:size]
        if "activations" in self.needs or (
            "zeros" in self.needs and self._zeros_at_tap
        ):
            self._add("tap", Activations.of(maps))
        if "products" in found:
            products = np.asarray(found["products"])[:size]
            positions = int(np.prod(maps.shape[1:-1]))
            self._add("gradients", Gradients.of(products, positions))
        for name, x in found["given"].items():
            self._add(f"consumer {name}", Activations.of(np.asarray(x)[:size]))

    def _add(self, key: str, part: Any) -> None:
        self._sums[key] = self._sums[key] + part if key in self._sums else part

    def evidence(self) -> dict[str, Any]:
        """The statistics over all processes' images, by need; see NEEDS.

        Raises:
          InputError: no gradient reaches the layer.
        """
        # Every process comes to the same sums in the same order.
        sums = {key: _over_processes(self._sums[key]) for key in sorted(self._sums)}
        inputs = [
            ConsumerInput(sums[f"consumer {name}"], owner, self._row_norms(name))
            for name, owner in self._consumers.items()
        ]
        make: dict[str, Callable[[], Any]] = {
            "activations": lambda: sums["tap"],
            "zeros": lambda: self._zeros(sums, inputs),
            "kernel": lambda: self._network.kernel(self._layer),
            "norm_scale": self._norm_scale,
            "gradients": lambda: self._gradients(sums["gradients"]),
            "consumer_inputs": lambda: inputs,
        }
        return {need: make[need]() for need in self.needs if need in make}

    def _zeros(
        self, sums: Mapping[str, Any], inputs: list[ConsumerInput]
    ) -> Float[np.ndarray, " P"]:
        """Share of zeros: at the tap, or of all features that consumers are given."""
        if self._zeros_at_tap:
            return sums["tap"].zeros / sums["tap"].count
        channels = self._group.units
        zeros, count = np.zeros(channels), np.zeros(channels)
        for activations, owner, _ in inputs:
            held = owner >= 0
            zeros += np.bincount(owner[held], activations.zeros[held], channels)
            count += activations.count * np.bincount(owner[held], minlength=channels)
        return zeros / count

    def _norm_scale(self) -> Float[np.ndarray, " P"]:
        """The mean over the features that hold a channel, where there are several."""
        path, owner = self._find_norm()
        scale = np.abs(np.asarray(self._network.arrays[path], np.float64))
        held, channels = owner >= 0, self._group.units
        count = np.bincount(owner[held], minlength=channels)
        return np.bincount(owner[held], scale[held], channels) / count

    def _row_norms(self, consumer: str) -> Float[np.ndarray, " F"]:
        """Squared norm of the rows of a consumer's kernel [*taps, F, U]."""
        squares = np.square(self._network.kernel(consumer).astype(np.float64))
        return squares.sum((*range(squares.ndim - 2), squares.ndim - 1))

    def _gradients(self, gradients: Gradients) -> Gradients:
        if not gradients.absolute.any():
            raise InputError(
                f"criteria taylor and fisher need gradients, and none reaches "
                f"'{self._layer}': the network rounds, or is constant, behind it"
            )
        return gradients


def _over_processes(part: Activations | Gradients) -> Any:
    """The sum of all processes' parts."""
    names = [*vars(part)]
    columns = [processes.gather(np.asarray(getattr(part, n))[None]) for n in names]
    parts = (
        type(part)(*(row[0] if row[0].ndim else row[0].item() for row in rows))
        for rows in zip(*columns, strict=True)
    )
    return reduce(add, parts)
