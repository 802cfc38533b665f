"""What a pruned channel becomes.

A fill takes effect at one of two places. `zero`, `bias`, `mean` and values of one's own
are constants at the layer's output. `drop` and `linear` change what is given to the
layers that read the channels: there a pruned channel is 0, or what the kept channels
predict for it (`jaxprune.channels.linear`); so does what `mean_fills` returns, whose
means are those of the readers' inputs. A fill means the same in a network that is
masked, swept or compact.

Axes: P channels of the layer, F input features of a reader.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxprune import arguments
from jaxprune.channels.flow import ChannelFlow
from jaxprune.channels.linear import Moments, Regression
from jaxprune.errors import InputError, check_choice

# The fills that have a name, in the order in which they are shown.
FILLS = ("zero", "bias", "mean", "drop", "linear")

# (input of a reader [..., F], mask [P]) -> what it is given instead.
AtReader = Callable[[Array, Any], Array]


@dataclass(frozen=True)
class Fill:
    """What a pruned channel becomes, resolved for one layer.

    Attributes:
      name: one of FILLS, or "values".
      values: the channel's output at every position; None where the fill takes effect
        at the readers' inputs.
      moments: of what each reader is given; of the fill `linear` alone.
      means: of what each reader is given, 0 where no channel is; of `mean_fills` alone.
      facts: JSON-able facts of how it was made.
    """

    name: str
    values: Float[np.ndarray, " P"] | None = None
    moments: Mapping[str, Moments] = field(default_factory=dict)
    means: Mapping[str, Float[np.ndarray, " F"]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def readers(self) -> list[tuple[np.ndarray, np.ndarray, int]]:
        """Covariance, gram and P of each reader: what criteria go by."""
        return [(m.ridged, m.gram, m.channels) for m in self.moments.values()]

    def regressions(self, keep: Bool[np.ndarray, " P"]) -> dict[str, Regression]:
        """For each reader, pruned channels as predicted from those that are kept."""
        return {name: m.regress(keep) for name, m in self.moments.items()}

    def at_readers(
        self, flow: ChannelFlow, keep: Bool[np.ndarray, " P"]
    ) -> dict[str, AtReader]:
        """What becomes of each reader's input; none where `values` are given."""
        if self.values is not None:
            return {}
        if self.moments:
            return dict(self.regressions(keep))
        return {
            name: Constant(owner, self.at_reader(flow, name))
            for name, owner in flow.readers.items()
        }

    def at_reader(self, flow: ChannelFlow, name: str) -> Float[np.ndarray, " F"]:
        """The constants that pruned features hold there, of `drop` and `mean_fills`."""
        return self.means.get(name, np.zeros(len(flow.readers[name]), np.float32))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Constant:
    """A reader's input with a constant in the place of each pruned feature.

    Attributes:
      owner: the channel that each input feature holds, [F], negative for none.
      values: the constants, [F].
    """

    owner: Any
    values: Any

    def __call__(self, x: Array, keep: Any) -> Array:
        """The input [..., F], masked."""
        values = jnp.asarray(self.values, x.dtype)
        return jnp.where(kept_features(keep, self.owner), x, values)


def kept_features(keep: Any, owner: Any) -> Any:
    """Channels' mask [..., P] -> mask [..., F] of the features that they hold."""
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
      bias: what a channel becomes when its kernel is zeroed.
      mean: of every channel, where that is known.

    Raises:
      InputError: an unknown name, one that needs what is not given, or values that are
        not finite or not one for each channel.
    """
    if isinstance(fill, Fill):
        channels = {m.channels for m in fill.moments.values()}
        if fill.values is not None:
            channels.add(len(fill.values))
        if channels - {len(bias)}:
            raise InputError(
                f"fill '{fill.name}' was made for {channels.pop()} channels, '{layer}' "
                f"has {len(bias)}"
            )
        return fill
    if not isinstance(fill, str):
        what = f"fill, a number for each channel of '{layer}',"
        values = arguments.check_numbers(what, fill, bias.shape)
        return Fill("values", values.astype(np.float32))
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
        return Fill(fill)
    constants = {"zero": np.zeros(len(bias)), "bias": bias, "mean": mean}
    return Fill(fill, np.asarray(constants[fill], np.float32))
