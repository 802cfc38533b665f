"""Fills: what a pruned channel becomes.

A fill takes effect at one of two places. `zero`, `bias`, `mean` and a user's own values
are constants at the layer's output. `drop`, `linear` and what `mean_fills` returns
change what the layers that read the channels are given: there a pruned channel is 0,
what the kept channels predict for it (`jaxprune.fills.linear`), or its mean. A fill
means the same in a network that is masked, swept or compact.

Axes: P channels of the layer, F input features of a consumer.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxprune._base import arguments
from jaxprune._base.errors import InputError, check_choice
from jaxprune.fills.leave_one_out import leave_out
from jaxprune.fills.linear import Moments, Nested, Regression
from jaxprune.graph.groups import PruningGroup, kept_indices

# The fills that have a name, in the order in which they are shown.
FILLS = ("zero", "bias", "mean", "drop", "linear")

# (features of a consumer's operand [..., F], mask [P]) -> what it is given instead.
AtConsumer = Callable[[Array, Any], Array]


@dataclass(frozen=True)
class Fill:
    """A fill, resolved for one layer or group.

    Attributes:
      name: one of FILLS, or "values".
      facts: JSON-able facts of its making.
    """

    name: str
    facts: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @property
    def channels(self) -> int | None:
        """How many it was made for; None where that does not matter."""
        return None

    @property
    def numbers(self) -> dict[str, Float[np.ndarray, "..."]]:
        """Facts that tell it from another fill of its name."""
        return {}

    def check(self, group: PruningGroup) -> None:
        """Raises InputError if it was fitted for other consumers."""

    def among(self, layers: Collection[str]) -> "Fill":
        """The fill where the network has no layers but these."""
        del layers
        return self

    def at_consumers(
        self, group: PruningGroup, keep: Bool[np.ndarray, " P"]
    ) -> dict[str, AtConsumer]:
        """The change of each consumer's operand; none where it acts at the layer."""
        return {}

    def nested(self, order: Int[np.ndarray, " P"]) -> dict[str, Nested]:
        """For each consumer, the regressions of all K; of the linear fill alone."""
        return {}


@dataclass(frozen=True)
class ConstantFill(Fill):
    """A constant at the layer's output.

    Attributes:
      values: the channel's output at every position.
    """

    values: Float[np.ndarray, " P"] = field(repr=False)

    @property
    def numbers(self) -> dict[str, Float[np.ndarray, "..."]]:
        """Facts that tell it from another fill of its name."""
        return {"values": self.values}

    @property
    def channels(self) -> int | None:
        """How many it was made for."""
        return len(self.values)


@dataclass(frozen=True)
class MeanFill(Fill):
    """A constant at each consumer: `drop`, which is 0, and what `mean_fills` returns.

    Attributes:
      means: of each consumer's features, 0 where no channel is; empty for `drop`.
    """

    means: Mapping[str, Float[np.ndarray, " F"]] = field(
        default_factory=dict, repr=False
    )

    @property
    def numbers(self) -> dict[str, Float[np.ndarray, "..."]]:
        """Facts that tell it from another fill of its name."""
        return {f"mean {name}": np.asarray(m) for name, m in self.means.items()}

    def check(self, group: PruningGroup) -> None:
        """Raises InputError if it was fitted for other consumers."""
        _check_consumers(self, self.means, group)
        for name, means in self.means.items():
            if np.shape(means) != group.readers[name].shape:
                raise InputError(
                    f"fill '{self.name}' was fitted on {len(means)} input features of "
                    f"'{name}', which has {len(group.readers[name])}"
                )

    def among(self, layers: Collection[str]) -> "MeanFill":
        """The fill of those of its consumers that are among some layers, if any are."""
        return replace(self, means=_among(self.means, layers))

    def at_consumer(self, group: PruningGroup, name: str) -> Float[np.ndarray, " F"]:
        """The values of a consumer's, or a sum's, pruned features."""
        return self.means.get(name, np.zeros(len(group.readers[name]), np.float32))

    def at_consumers(
        self, group: PruningGroup, keep: Bool[np.ndarray, " P"]
    ) -> dict[str, AtConsumer]:
        """The change of each consumer's operand."""
        return {
            name: Constant(owner, self.at_consumer(group, name))
            for name, owner in group.readers.items()
        }


@dataclass(frozen=True)
class LinearFill(Fill):
    """A prediction from the kept channels at each consumer; see `fills.linear`.

    Sums by themselves leave their terms out.

    Attributes:
      moments: of each consumer's operand.
    """

    moments: Mapping[str, Moments] = field(default_factory=dict, repr=False)

    @property
    def numbers(self) -> dict[str, Float[np.ndarray, "..."]]:
        """Facts that tell it from another fill of its name."""
        return {
            f"moments {name}": np.stack(
                [m.mean, np.diagonal(m.ridged, axis1=1, axis2=2)]
            )
            for name, m in self.moments.items()
        }

    @property
    def consumers(self) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Covariance, gram and P of each consumer: what criteria go by."""
        return [(m.ridged, m.gram, m.channels) for m in self.moments.values()]

    @property
    def channels(self) -> int | None:
        """How many it was made for."""
        return next((m.channels for m in self.moments.values()), None)

    def check(self, group: PruningGroup) -> None:
        """Raises InputError if it was fitted for other consumers."""
        _check_consumers(self, self.moments, group)

    def among(self, layers: Collection[str]) -> "LinearFill":
        """The fill of those of its consumers that are among some layers, if any are."""
        return replace(self, moments=_among(self.moments, layers))

    def regressions(self, keep: Bool[np.ndarray, " P"]) -> dict[str, Regression]:
        """For each consumer, pruned channels as predicted from those that are kept."""
        return {name: m.regress(keep) for name, m in self.moments.items()}

    def at_consumers(
        self, group: PruningGroup, keep: Bool[np.ndarray, " P"]
    ) -> dict[str, AtConsumer]:
        """The change of each consumer's operand."""
        dropped = {
            name: Constant(owner, np.zeros(len(owner), np.float32))
            for name, owner in group.sums.items()
        }
        return {**self.regressions(keep), **dropped}

    def nested(self, order: Int[np.ndarray, " P"]) -> dict[str, Nested]:
        """For each consumer, the regressions of all K in this order of pruning."""
        return {name: m.nest(order) for name, m in self.moments.items()}

    def left_out(self, kept: Bool[np.ndarray, " P"]) -> dict[str, AtConsumer]:
        """The change of each consumer's operand where one channel more may go."""
        return {name: leave_out(m, kept) for name, m in self.moments.items()}


def _among(fitted: Mapping[str, Any], layers: Collection[str]) -> Mapping[str, Any]:
    """What was fitted to some layers; all, where that is nothing."""
    return {name: own for name, own in fitted.items() if name in layers} or fitted


def _check_consumers(
    fill: Fill, fitted: Mapping[str, Any], group: PruningGroup
) -> None:
    if unknown := set(fitted) - set(group.readers):
        raise InputError(
            f"fill '{fill.name}' was fitted on what '{min(unknown)}' reads, which "
            f"does not read '{group.name}'"
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Constant:
    """A consumer's features with a constant in the place of each pruned one.

    Attributes:
      owner: the channel that each feature holds, [F], negative for none.
      values: the constants, [F].
    """

    owner: Any
    values: Any

    def __call__(self, x: Array, keep: Any) -> Array:
        """The features [..., F], masked."""
        values = jnp.asarray(self.values, x.dtype)
        return jnp.where(kept_features(keep, self.owner), x, values)


def kept_features(keep: Any, owner: Any) -> Any:
    """Channels' mask [..., P] -> mask [..., F] of the features that they hold."""
    if isinstance(keep, np.ndarray) and keep.ndim == 1:
        return kept_indices(keep, owner)
    return (owner < 0) | keep[..., owner.clip(0)]


def resolve_fill(
    fill: str | np.ndarray | Fill,
    *,
    layer: str,
    bias: Float[np.ndarray, " P"],
    mean: Float[np.ndarray, " P"] | None = None,
) -> Fill:
    """The fill that a name, an array or a `Fill` stands for.

    Args:
      fill: "zero", "bias" (kernel zeroed, bias kept), "mean" (the channel's own mean),
        "drop" (whatever reads the channel reads 0), the value of every channel, or a
        fill that has been made, such as `linear_fill` returns.
      layer: its name, for messages.
      bias: value of a channel whose kernel is zeroed.
      mean: of every channel, where that is known.

    Raises:
      InputError: an unknown name, one that needs what is not given, or values that are
        not finite or not one for each channel.
    """
    if isinstance(fill, Fill):
        if fill.channels not in (None, len(bias)):
            raise InputError(
                f"fill '{fill.name}' was made for {fill.channels} channels, '{layer}' "
                f"has {len(bias)}"
            )
        return fill
    if not isinstance(fill, str):
        what = f"fill, a number for each channel of '{layer}',"
        values = arguments.check_numbers(what, fill, bias.shape)
        return ConstantFill("values", values.astype(np.float32))
    check_choice("fill", fill, FILLS)
    if fill == "linear":
        raise InputError(
            "fill 'linear' is fitted on images: give "
            "jaxprune.linear_fill(apply, variables, images, layer=...)"
        )
    if fill == "mean" and mean is None:
        raise InputError(
            "fill 'mean' depends on images: give the channels' means, such as a "
            f"sweep's result.channel_means, an array of {len(bias)} numbers"
        )
    if fill == "drop":
        return MeanFill(fill)
    constants = {"zero": np.zeros(len(bias)), "bias": bias, "mean": mean}
    return ConstantFill(fill, np.asarray(constants[fill], np.float32))
