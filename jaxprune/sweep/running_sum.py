"""The changed pairs of a layer that one dense layer reads, without that layer's cost.

What a dense layer returns is a sum over the channels that it reads. From one mask to
the next only the pruned channel's part of it changes, so the sum is updated instead of
worked out again: for every run of STEP channels it is summed afresh for the batch,
which keeps rounding from adding up, and each pair adds the parts of the few channels
that were pruned since.

Axes: B images, P channels, S as many as fill whole steps, R features of the dense layer
that hold one channel, F all its features, U its units, M pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxprune import mesh as meshes
from jaxprune.channels import taps
from jaxprune.channels.flow import channel_flow, list_calls
from jaxprune.channels.taps import at_path
from jaxprune.errors import InputError
from jaxprune.mesh import REPLICATED, SPREAD, Sharded
from jaxprune.sweep.evaluation import carry_forward, changed_pairs, chunks, fetch

# Channels between two fresh sums. More make the pairs' own sums dearer, fewer leave
# more evaluations that are not full.
STEP = 32


@dataclass(frozen=True)
class DenseReader:
    """The dense layer that alone reads a layer's channels.

    Attributes:
      name: its path.
      units: what it returns.
      features: which of its input features hold each channel.
      owner: the channel that each feature holds, negative where it holds none.
    """

    name: str
    units: int
    features: Int[np.ndarray, "P R"]
    owner: Int[np.ndarray, " F"]


def find_dense_reader(
    apply: taps.Apply, variables: Any, images: Array, layer: str
) -> DenseReader | None:
    """The dense layer that alone reads the channels of `layer`, if there is one.

    None also where a running sum would not be the layer's own sum to rounding: in
    bfloat16, or with a product or parameters of its own.
    """
    try:
        flow = channel_flow(apply, variables, images, layer)
    except InputError:
        return None
    if len(flow.consumers) != 1:
        return None
    ((name, owner),) = flow.consumers.items()
    (call,) = (c for c in list_calls(apply, variables, images[:1]) if c.name == name)
    params = at_path(variables["params"], name)
    counts = np.bincount(owner[owner >= 0], minlength=flow.channels)
    plain = (
        type(call.module) is nn.Dense
        and call.module.dot_general is None
        and call.module.dot_general_cls is None
        and call.module.precision is None
        and call.output.ndim == 2
        and call.output.dtype == params["kernel"].dtype == jnp.float32
        and set(params) <= {"kernel", "bias"}
        and counts.min() == counts.max()
    )
    if not plain:
        return None
    features = np.argsort(np.where(owner < 0, flow.channels, owner), kind="stable")
    features = features[: counts.sum()].reshape(flow.channels, -1)
    return DenseReader(name, call.output.shape[-1], features, owner)


@dataclass(frozen=True)
class _Network:
    """The network around a dense reader, its channels by rank in whole steps.

    Attributes:
      rank: of the channel that each feature holds; above all of them where none.
      steps: features of each channel by rank, padded with channels that change nothing.
    """

    apply: taps.Apply
    layer: str
    reader: DenseReader
    fill: Float[np.ndarray, " P"] | None
    rank: Int[np.ndarray, " F"]
    steps: Int[np.ndarray, "S R"]

    def read(self, variables: Any, images: Array, fm: Array) -> tuple[Array, ...]:
        """What the dense layer is given, whole and with all channels filled [B, F].

        Also what filling each channel changes there [B, S, R], and whether it does.
        """

        def given(feature_map: Array) -> Array:
            network = partial(
                taps.replace, self.apply, layer=self.layer, feature_map=feature_map
            )
            name = self.reader.name
            return taps.capture_inputs(network, variables, images, [name])[name]

        whole = given(fm)
        if self.fill is None:
            filled = jnp.where(self.reader.owner < 0, whole, 0.0)
        else:
            fill = jnp.asarray(self.fill, fm.dtype)
            filled = given(jnp.broadcast_to(fill, fm.shape))
        is_channel = np.arange(len(self.steps)) < len(self.reader.features)
        change = (filled - whole)[:, self.steps]
        change = jnp.where(is_channel[:, None], change, 0.0)
        return whole, filled, change, jnp.any(change != 0, axis=-1)

    def start(self, variables: Any, whole: Array, filled: Array, first: Array) -> Array:
        """The dense layer's sum [B, U] with the `first` channels pruned."""
        params = at_path(variables["params"], self.reader.name)
        x = jnp.where(self.rank >= first, whole, filled)
        return _product(x, params["kernel"]) + params.get("bias", 0.0)

    def predict(
        self, variables: Any, images: Array, total: Array, change: Array,
        first: Array, image: Array, pruned: Array,
    ) -> Array:  # fmt: skip
        """Classes [M] with so many channels pruned since the sum was fresh."""
        name = self.reader.name
        step = first + np.arange(STEP)
        kernel = at_path(variables["params"], name)["kernel"]
        kernel = kernel[jnp.asarray(self.steps)[step].reshape(-1)]
        parts = change[image[:, None], step]
        parts = jnp.where((np.arange(STEP) < pruned[:, None])[..., None], parts, 0)
        total = total[image] + _product(parts.reshape(len(image), -1), kernel)
        logits = taps.replace(self.apply, variables, images[image], name, total)
        return jnp.argmax(logits, axis=-1)


# Parts are small beside their sum: a matrix unit that rounds its factors would lose
# them.
_product = partial(jnp.matmul, precision="highest")


class RunningSum:
    """Evaluates the pairs that change what the dense layer reads.

    Attributes:
      functions: what was compiled.
      evaluated: (image, mask) pairs evaluated so far.
    """

    def __init__(
        self,
        apply: taps.Apply,
        layer: str,
        reader: DenseReader,
        mesh: Mesh,
        order: Int[np.ndarray, " P"],
        ks: Sequence[int],
        fill: Float[np.ndarray, " P"] | None,
        pairs: int,
    ):
        channels = len(order)
        rank = np.append(np.argsort(order), channels)[reader.owner]
        steps = np.pad(reader.features[order], [(0, -channels % STEP), (0, 0)])
        network = _Network(apply, layer, reader, fill, rank, steps)
        whole, spread = (REPLICATED,), (SPREAD, SPREAD)
        self._read = Sharded(network.read, mesh, (*whole, *spread), SPREAD)
        self._start = Sharded(network.start, mesh, (*whole, *spread, *whole), SPREAD)
        self._predict = Sharded(network.predict, mesh, (*whole * 5, *spread), SPREAD)
        self.functions = [self._read, self._start, self._predict]
        self.evaluated = 0
        self._channels, self._ks = channels, np.asarray(ks, np.int32)
        self._pairs = meshes.round_up(pairs, mesh.size)
        self._mesh = mesh

    def __call__(
        self, variables: Any, images: np.ndarray, feature_map: np.ndarray, size: int
    ) -> Int[np.ndarray, "K B"]:
        """Predictions of a batch whose first `size` images are real."""
        whole, filled, change, differs = self._read(variables, images, feature_map)
        differs = np.asarray(differs)[:size, : self._channels]
        changed = changed_pairs(differs, self._ks)
        self.evaluated += int(changed.sum())
        mask, image = np.nonzero(changed)
        pairs = np.stack([image, self._ks[mask]], axis=1).astype(np.int32)
        images, change = meshes.replicate((images, change), self._mesh)
        classes = []
        for first in range(0, self._channels, STEP):
            here = pairs[(pairs[:, 1] >= first) & (pairs[:, 1] < first + STEP)]
            if len(here) == 0:
                continue
            here[:, 1] -= first
            begin = np.int32(first)
            total = self._start(variables, whole, filled, begin)
            total = meshes.replicate(total, self._mesh)
            outputs = (
                self._predict(
                    variables, images, total, change, begin, some[:, 0], some[:, 1]
                )
                for some in chunks(here, self._pairs)
            )
            classes.append(np.concatenate(list(fetch(outputs)))[: len(here)])
        return carry_forward(changed, np.concatenate(classes))
