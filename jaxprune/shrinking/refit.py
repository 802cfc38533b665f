r"""Layers of a cut network fitted to what the whole one computes; nothing is trained.

The whole and the cut network run over the calibration images side by side, layer by
layer. Wherever a layer reads units that are pruned, or meets what an earlier cut has
changed, it gets the kernel for which its target is nearest to the whole
network's: least squares, as in the channel pruning of He, Zhang and Sun 2017, with some
differences. The target is the whole network, so that what earlier cuts have changed is
corrected too. It is taken where the layer's output goes (`destinations`): at a residual
sum the layer makes good what the other branch has lost, before a ReLU what is negative
anyway does not count (`goals`). And the solution is drawn towards another one, so that
a few hundred images are enough:

    W_1 = A W,   A = E + (K'K + r_1 I)^{-1} K'(X - K E)  channel by channel, X from K
    W_2 = W_1 + (Z'Z + r_2 I)^{-1} Z'(Y - Z W_1)         patch by patch

with X the whole network's channels at the layer's input, K the kept ones of the cut
network's, E the rows of the identity that put them in their places, Z the patches of K
under the kernel, Y what the layer is to return, all less their means. So where images
say little, a layer stays as it was. r_1 and r_2 are found by cross-validation over
images (`jaxprune.shrinking.least_squares`).

The result is a network of the whole one's shapes with zeros in the rows of what is
pruned. Cut with the fill "drop" it becomes smaller and stays the same.

Axes: N images, F input features of a layer, k kept ones, T taps, U outputs, n rows.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxprune._base.batch import size_of
from jaxprune.compaction.cut import (
    has_own_kernel,
    offset_change,
    offset_paths,
    put_bias,
    put_kernel,
)
from jaxprune.graph.evaluate import run
from jaxprune.graph.groups import Groups, kept_indices
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network
from jaxprune.graph.stepwise import Stepwise
from jaxprune.shrinking.least_squares import Ridge, centred, parts_of, patches
from jaxprune.shrinking.objective import Fitted, Goal, fit
from jaxprune.shrinking.targets import find_destinations, follow

# Rows of a regression at most. Of patches, which have an element for each unknown, as
# many as hold so many elements, or so many rows for each unknown.
_ROWS = 130_000
_ELEMENTS = 2**27
_ROWS_PER_UNKNOWN = 4
# The first ridges that are tried, in units of the mean eigenvalue: of channels; and of
# patches, times the unknowns for each row.
_CHANNEL_RIDGE, _PATCH_RIDGE = 1e-3, 0.4


def refit(
    network: Network,
    images: Any,
    groups: Groups,
    keeps: Mapping[str, Bool[np.ndarray, " P"]],
    *,
    seed: int = 0,
    on_layer: Callable[[str], Any] = lambda name: None,
) -> dict[str, Any]:
    """Arrays of the whole network's shapes, for the network as cut.

    Args:
      network: the network. It runs layer by layer, so that feature maps of all images,
        twice, are in memory at once.
      images: calibration images [N, ...].
      groups: of its channels.
      keeps: masks of the groups that are cut.
      seed: of the draw of rows.
      on_layer: called with each layer's name once it is fitted, or left as it is.

    Returns:
      Arrays by path; those of `jaxprune.compaction.cut` are added.
    """
    images = jax.tree.map(jnp.asarray, images)
    return _Pair(network, images, groups, keeps, seed, on_layer).run()


def may_be_fitted(layer: Layer) -> bool:
    """Whether a layer's kernel can be set by itself, and its operand's rows be read."""
    if layer.leaf is None or layer.in_a_loop or layer.groups != 1:
        return False
    own = {layer.bias, *offset_paths(layer)}
    if not set(layer.added) <= own or not has_own_kernel(layer):
        return False
    if layer.kind == "dense":
        return not layer.axes.taps
    params = layer.equation.params
    numbers = params["dimension_numbers"]
    ordered = all(
        list(spec[2:]) == sorted(spec[2:])
        for spec in (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    )
    low = min(min(pair) for pair in params["padding"]) if params["padding"] else 0
    return ordered and set(params["lhs_dilation"]) <= {1} and low >= 0


class _Pair:
    """The whole and the cut network, each run as far as the other needs it."""

    def __init__(
        self,
        network: Network,
        images: Any,
        groups: Groups,
        keeps: Mapping[str, Bool[np.ndarray, " P"]],
        seed: int,
        on_layer: Callable[[str], Any],
    ):
        self.before = {path: np.asarray(a) for path, a in network.arrays.items()}
        self.arrays = dict(self.before)
        self.groups, self.keeps, self.seed = groups, keeps, seed
        self.on_layer = on_layer
        self.parts = parts_of(size_of(images), seed)
        graph = network.graph(images)
        self.program = graph.program
        fitted = {n: layer for n, layer in graph.layers.items() if may_be_fitted(layer)}
        self.ends = find_destinations(graph.program, fitted)
        also: Counter[int] = Counter()
        for name, layer in fitted.items():
            also.update([layer.input, layer.output, self.ends[name].value])
        layers = {layer.output: layer for layer in fitted.values()}
        self.fitted = layers
        self.whole = Stepwise(
            graph, self.before, images, layers, self._whole_layer, also
        )
        self.cut = Stepwise(
            graph, self.before, images, layers, self._cut_layer, Counter()
        )

    def run(self) -> dict[str, Any]:
        """The cut network's arrays by path."""
        for value in self.fitted:
            if value not in self.cut.done:
                self.cut.read(value)
        return self.arrays

    def _whole_layer(self, layer: Layer, x: Array) -> Array:
        return _output(layer, self.before, x)

    def _cut_layer(self, layer: Layer, x: Array) -> Array:
        self._fit(layer, np.asarray(x))
        self.on_layer(layer.name)
        return _output(layer, self.arrays, x)

    def _fit(self, layer: Layer, cut: np.ndarray) -> None:
        """Fits a layer that is given `cut`, if anything has changed for it."""
        end = self.ends[layer.name]
        reads = layer.input, layer.output, end.value
        whole, output, target = (np.asarray(self.whole.read(v)) for v in reads)
        for value in reads:
            self.whole.release(value)
        factor, rest = follow(self.cut, end, layer)
        rectified = end.rectified
        if not np.isfinite(factor).all():
            factor, rest, target = np.ones_like(factor), np.zeros_like(output), output
            rectified = False
        whole, cut = layer.features(whole), layer.features(cut)
        output, target, rest = (layer.outputs(a) for a in (output, target, rest))
        keep = self._kept(layer.name, "consumers", cut.shape[-1])
        used = self._kept(layer.name, "producers", output.shape[-1])
        goal = Goal(_rows(target[..., used]), _rows(rest[..., used]), factor[used])
        if keep.all() and (whole == cut).all():
            now = goal.factor * _rows(output[..., used]) + goal.rest
            if np.allclose(now, goal.target, rtol=1e-4, atol=1e-4):
                return
        goal = replace(goal, rectified=rectified)
        self._set(layer, keep, used, *self._fitted(layer, keep, used, whole, cut, goal))

    def _kept(self, layer: str, role: str, features: int) -> Bool[np.ndarray, " F"]:
        """Features of a layer that no group prunes."""
        keep = np.ones(features, bool)
        for name, mask in self.keeps.items():
            owner = getattr(self.groups.groups[name], role).get(layer)
            if owner is not None:
                keep &= kept_indices(mask, owner)
        return keep

    def _fitted(
        self,
        layer: Layer,
        keep: Bool[np.ndarray, " F"],
        used: Bool[np.ndarray, " _"],
        whole: np.ndarray,
        cut: np.ndarray,
        goal: Goal,
    ) -> Fitted:
        """The kernel for kept inputs and the outputs that are used; and the bias."""
        x, k = _rows(whole), _rows(cut[..., keep])
        pick = self._draw(len(x), _ROWS)
        kept, lost = k[pick].astype(np.float32), x[pick].astype(np.float32)
        lost[:, keep] -= kept
        channels = Ridge(centred(kept), _CHANNEL_RIDGE, self._parts(pick, len(x)))
        channels.choose(lost := centred(lost))
        a = channels.solve(lost)
        a[:, keep] += np.eye(len(a), dtype=np.float32)
        kernel = kernel_rows(layer, self.before)[..., used].astype(np.float32)
        towards = np.einsum("kf,...fu->...ku", a, kernel, optimize=True)
        towards = towards.reshape(-1, towards.shape[-1])
        unknowns, rows = len(towards), len(goal.target)
        count = max(_ELEMENTS // unknowns, _ROWS_PER_UNKNOWN * unknowns)
        pick = self._draw(rows, min(count, _ROWS))
        z = patches(layer, cut[..., keep], pick).astype(np.float32)
        ridge = _PATCH_RIDGE * unknowns / len(pick)
        return fit(z, goal.rows(pick), ridge, towards, self._parts(pick, rows))

    def _parts(self, pick: Int[np.ndarray, " n"], rows: int) -> Int[np.ndarray, " n"]:
        """The part of the image that each row comes from."""
        return self.parts[pick // (rows // len(self.parts))]

    def _set(
        self,
        layer: Layer,
        keep: Bool[np.ndarray, " F"],
        used: Bool[np.ndarray, " _"],
        fitted: Float[np.ndarray, "_ _"],
        bias: Float[np.ndarray, " _"],
    ) -> None:
        """Sets a layer's kernel and bias, or the map of one that has no bias."""
        # What is pruned of the layer's own outputs stays as it was: nobody reads it.
        result = np.array(kernel_rows(layer, self.before))
        result[..., ~keep, :] = 0
        rows = result[..., keep, :]
        rows[..., used] = fitted.reshape(rows[..., used].shape)
        result[..., keep, :] = rows
        put_kernel(self.arrays, layer, result)
        shift = np.zeros(result.shape[-1], np.float32)
        shift[used] = bias
        put_bias(self.arrays, layer, shift)

    def _draw(self, rows: int, count: int) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(rows)[:count]


def _rows(features: np.ndarray) -> np.ndarray:
    """Features [..., F] -> [n, F]."""
    return features.reshape(-1, features.shape[-1])


def kernel_rows(
    layer: Layer, arrays: Mapping[str, Any]
) -> Float[np.ndarray, "*taps F U"]:
    """The kernel that a layer multiplies by."""
    (kernel,) = run(layer.program, arrays, None, want=[layer.kernel_value])
    return layer.rows(np.asarray(kernel))


def _output(layer: Layer, arrays: Mapping[str, Any], x: Array) -> Array:
    """The output of a layer by itself, with its own arrays."""
    (output,) = run(
        layer.program, arrays, None, given={layer.input: x}, want=[layer.output],
        after=offset_change(layer, arrays),
    )  # fmt: skip
    return output
