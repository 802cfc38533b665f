"""What criteria need of the ranking images, gathered in the trunk's one pass.

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

from jaxprune import arguments, processes
from jaxprune.channels import taps
from jaxprune.channels.flow import ChannelFlow, channel_flow
from jaxprune.errors import InputError, check_choice
from jaxprune.ranking.criteria import CRITERIA, NEEDS, Criterion
from jaxprune.ranking.evidence import Activations, Gradients, ReaderInput
from jaxprune.sweep.evaluation import cross_entropy


def needs_of(criteria: Collection[str | Criterion]) -> frozenset[str]:
    """What these criteria are worked out from.

    Raises:
      InputError: an unknown criterion, or one that asks for what is not in NEEDS.
    """
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
    """What is asked for of one layer: what to compute for a batch, and its sums.

    Attributes:
      needs: names of NEEDS.
    """

    def __init__(
        self,
        apply: taps.Apply,
        variables: Any,
        images: Array,
        layer: str,
        tap: str,
        needs: Collection[str],
    ):
        """Finds the readers and the norm, where they are needed.

        Args:
          apply: the network.
          variables: its variables; here only their shapes matter.
          images: some.
          layer: name of the convolution.
          tap: one of `taps.TAPS`.
          needs: names of NEEDS.

        Raises:
          InputError: something that this layer does not have.
        """
        self.needs = frozenset(needs)
        self._apply, self._layer, self._tap = apply, layer, taps.TAPS[tap]
        self._example = apply, variables, images[:1], layer
        self._readers: Mapping[str, np.ndarray] = {}
        # A tap before the ReLU has no zeros of its own.
        self._zeros_at_tap = tap == "relu"
        zeros_at_readers = "zeros" in self.needs and not self._zeros_at_tap
        if "reader_inputs" in self.needs or zeros_at_readers:
            self._readers = self._flow.readers
        if "readers" in self.needs:
            self._flow  # noqa: B018 - raises where the linear fill cannot be fitted
        if "norm_scale" in self.needs:
            self._find_norm()
        if "gradients" in self.needs:
            self._check_differentiable()
        self._sums: dict[str, Any] = {}

    @property
    def only_maps(self) -> bool:
        """Whether `compute` returns the feature maps and no more."""
        return not self._readers and "gradients" not in self.needs

    @cached_property
    def _flow(self) -> ChannelFlow:
        """Where the channels go."""
        return channel_flow(*self._example)

    def _find_norm(self) -> str:
        """The path of the scale of the BatchNorm that the channels go through."""
        parameters = self._flow.parameters
        found = [
            path for path in parameters
            if path.startswith("params/") and path.endswith("/scale")
        ]  # fmt: skip
        if len(found) != 1:
            count = len(found) or "no"
            raise InputError(
                f"criterion bn_scale needs one BatchNorm with a scale between "
                f"'{self._layer}' and what reads it, found {count}"
            )
        return found[0]

    def _check_differentiable(self) -> None:
        _, variables, image, layer = self._example
        maps = jax.eval_shape(self._capture, variables, image)
        if not jnp.issubdtype(maps.dtype, jnp.inexact):
            raise InputError(
                f"criteria taylor and fisher need gradients: what '{layer}' returns is "
                f"{maps.dtype}, which has none"
            )

    def _capture(self, variables: Any, images: Array) -> Array:
        return taps.capture(self._apply, variables, images, self._layer, self._tap)

    def compute(self, variables: Any, images: Array, labels: Array) -> dict[str, Any]:
        """Of a batch: feature maps [B, *axes, P], and what else is needed.

        Args:
          variables: the network's.
          images: a batch.
          labels: class of each, [B].
        """
        maps = self._capture(variables, images)
        found: dict[str, Any] = {"maps": maps}

        def end(maps: Array) -> tuple[Array, dict[str, Array]]:
            logits: list[Array] = []

            def network(variables: Any, images: Array) -> None:
                logits.append(
                    taps.run_from(self._apply, variables, images, self._layer, maps)
                )

            given = taps.capture_inputs(network, variables, images, [*self._readers])
            return cross_entropy(logits[0], labels).sum(), given

        if "gradients" in self.needs:
            gradient, given = jax.grad(end, has_aux=True)(maps)
            middle = tuple(range(1, maps.ndim - 1))
            found["products"] = (maps * gradient).sum(middle)
        elif self._readers:
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
            self._add(f"reader {name}", Activations.of(np.asarray(x)[:size]))

    def _add(self, key: str, part: Any) -> None:
        self._sums[key] = self._sums[key] + part if key in self._sums else part

    def evidence(self, variables: Any) -> dict[str, Any]:
        """What was asked for, of all processes' images; see NEEDS.

        Raises:
          InputError: no gradient reaches the layer.
        """
        # Every process comes to the same sums in the same order.
        sums = {key: _over_processes(self._sums[key]) for key in sorted(self._sums)}
        inputs = [
            ReaderInput(sums[f"reader {name}"], owner, _row_norms(variables, name))
            for name, owner in self._readers.items()
        ]
        make: dict[str, Callable[[], Any]] = {
            "activations": lambda: sums["tap"],
            "zeros": lambda: self._zeros(sums, inputs),
            "kernel": lambda: _param(variables, self._layer, "kernel"),
            "norm_scale": lambda: self._norm_scale(variables),
            "gradients": lambda: self._gradients(sums["gradients"]),
            "reader_inputs": lambda: inputs,
        }
        return {need: make[need]() for need in self.needs if need in make}

    def _zeros(
        self, sums: Mapping[str, Any], inputs: list[ReaderInput]
    ) -> Float[np.ndarray, " P"]:
        """Share of zeros: at the tap, or of all the features that readers are given."""
        if self._zeros_at_tap:
            return sums["tap"].zeros / sums["tap"].count
        channels = self._flow.channels
        zeros, count = np.zeros(channels), np.zeros(channels)
        for activations, owner, _ in inputs:
            held = owner >= 0
            zeros += np.bincount(owner[held], activations.zeros[held], channels)
            count += activations.count * np.bincount(owner[held], minlength=channels)
        return zeros / count

    def _norm_scale(self, variables: Any) -> Float[np.ndarray, " P"]:
        """The mean over the features that hold a channel, where there are several."""
        path = self._find_norm()
        owner, channels = self._flow.parameters[path], self._flow.channels
        name = path.removeprefix("params/").removesuffix("/scale")
        scale = np.abs(_param(variables, name, "scale").astype(np.float64))
        held = owner >= 0
        count = np.bincount(owner[held], minlength=channels)
        return np.bincount(owner[held], scale[held], channels) / count

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


def _param(variables: Any, layer: str, name: str) -> np.ndarray:
    return np.asarray(taps.at_path(variables["params"], layer)[name])


def _row_norms(variables: Any, layer: str) -> Float[np.ndarray, " F"]:
    """Squared norm of the rows of a kernel [*taps, F, U]."""
    squares = np.square(_param(variables, layer, "kernel").astype(np.float64))
    return squares.sum((*range(squares.ndim - 2), squares.ndim - 1))
