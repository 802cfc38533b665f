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

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from jaxprune._base import processes
from jaxprune._base.batch import size_of, take
from jaxprune._base.mesh import make_mesh, place, round_up
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
from jaxprune.graph.network import IMAGES, Network
from jaxprune.graph.sizes import images_at_once
from jaxprune.graph.stepwise import Batches, Stepwise, by_batch, of_batch
from jaxprune.shrinking.least_squares import Ridge, centred, parts_of, patches
from jaxprune.shrinking.objective import Fitted, Goal, fit
from jaxprune.shrinking.targets import find_destinations, follow

# Rows of a regression at most. Of patches, which have an element for each unknown, as
# many as hold so many elements, or so many rows for each unknown.
ROWS = 130_000
ELEMENTS = 2**27
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
    rows: int = ROWS,
    mesh: Mesh | None = None,
    on_layer: Callable[[str], Any] = lambda name: None,
) -> dict[str, Any]:
    """Arrays of the whole network's shapes, for the network as cut.

    Args:
      network: the network. It runs layer by layer; feature maps of all images, twice,
        are in memory, or where they are larger in temporary files.
      images: calibration images [N, ...]; several processes give the same, and run a
        share each.
      groups: of its channels.
      keeps: masks of the groups that are cut.
      seed: of the draw of rows.
      rows: of a regression, at most.
      mesh: the devices; by default one.
      on_layer: called with each layer's name once it is fitted, or left as it is.

    Returns:
      Arrays by path; those of `jaxprune.compaction.cut` are added.
    """
    mesh = make_mesh(jax.local_devices()[:1]) if mesh is None else mesh
    return _Pair(network, images, groups, keeps, seed, rows, mesh, on_layer).run()


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


class _Seen(NamedTuple):
    """What a layer is given in a batch, and what becomes of what it returns.

    Attributes:
      whole: its operand in the whole network, [B, *positions, F].
      cut: the same in the cut one.
      output: what it returns in the whole network, [m, U].
      target: what becomes of that there, [m, U].
      rest: the same in the cut network without the layer, [m, U].
    """

    whole: np.ndarray
    cut: np.ndarray
    output: np.ndarray
    target: np.ndarray
    rest: np.ndarray


class _Sample(NamedTuple):
    """Some rows of a layer's operand, and some of what it returns, of all batches.

    Attributes:
      row_parts: part of the image that each row comes from, [n].
      whole: rows of the operand in the whole network, [n, F].
      kept: what is left of them in the cut one, [n, k].
      output_parts: part of the image that each output comes from, [m].
      patches: what the kernel meets there in the cut network, [m, T k].
      target: see `Goal`, [m, U].
      rest: see `Goal`, [m, U].
    """

    row_parts: np.ndarray
    whole: np.ndarray
    kept: np.ndarray
    output_parts: np.ndarray
    patches: np.ndarray
    target: np.ndarray
    rest: np.ndarray


class _Pair:
    """The whole and the cut network, each run as far as the other needs it."""

    def __init__(
        self,
        network: Network,
        images: Any,
        groups: Groups,
        keeps: Mapping[str, Bool[np.ndarray, " P"]],
        seed: int,
        rows: int,
        mesh: Mesh,
        on_layer: Callable[[str], Any],
    ):
        self.before = {path: np.asarray(a) for path, a in network.arrays.items()}
        self.arrays = dict(self.before)
        self.groups, self.keeps, self.seed, self.rows = groups, keeps, seed, rows
        self.on_layer = on_layer
        self.images = size_of(images)
        self.parts = parts_of(self.images, seed)
        own = processes.own(self.images)
        most = images_at_once(network, take(images, slice(IMAGES)))
        self.size = size = round_up(min(most, len(own)), mesh.size)
        # Of each batch the first image, among all of all processes, and the number.
        self.runs = [
            (int(some[0]), len(some))
            for some in np.split(own, range(size, len(own), size))
        ]
        # What fills the last batch are images, too: no row is ever of zeros.
        batches = [
            place(take(images, np.arange(first, first + size) % self.images), mesh)
            for first, _ in self.runs
        ]
        graph = network.graph(batches[0])
        fitted = {n: layer for n, layer in graph.layers.items() if may_be_fitted(layer)}
        self.ends = find_destinations(graph.program, fitted)
        also: Counter[int] = Counter()
        for name, layer in fitted.items():
            also.update([layer.input, layer.output, self.ends[name].value])
        layers = {layer.output: layer for layer in fitted.values()}
        self.fitted = layers
        self.whole = Stepwise(
            graph, self.before, batches, layers, self._whole_layer, also
        )
        self.cut = Stepwise(
            graph, self.before, batches, layers, self._cut_layer, Counter()
        )

    def run(self) -> dict[str, Any]:
        """The cut network's arrays by path."""
        for value in self.fitted:
            if value not in self.cut.done:
                self.cut.read(value)
        return self.arrays

    def _whole_layer(self, layer: Layer, x: Batches) -> Batches:
        return outputs(layer, self.before, x)

    def _cut_layer(self, layer: Layer, x: Batches) -> Batches:
        self._fit(layer, x)
        self.on_layer(layer.name)
        return outputs(layer, self.arrays, x)

    def _fit(self, layer: Layer, cut: Batches) -> None:
        """Fits a layer that is given `cut`, if anything has changed for it."""
        end = self.ends[layer.name]
        reads = layer.input, layer.output, end.value
        whole, output, target = (self.whole.read(value) for value in reads)
        for value in reads:
            self.whole.release(value)
        factor, rest = follow(self.cut, end, layer)
        rectified = end.rectified
        if not np.isfinite(factor).all():
            factor, rest, target = np.ones_like(factor), np.float32(0), output
            rectified = False
        keep = self._kept(layer.name, "consumers", layer.inputs)
        used = self._kept(layer.name, "producers", layer.channels)

        def seen() -> Iterator[_Seen]:
            shape = layer.program.shape(layer.output)
            for i, (_, count) in enumerate(self.runs):
                given = (
                    self._first(layer.features(np.asarray(v[i])), count)
                    for v in (whole, cut)
                )
                ends = (
                    layer.outputs(np.broadcast_to(np.asarray(of_batch(v, i)), shape))
                    for v in (output, target, rest)
                )
                rows = (_rows(self._first(end, count)) for end in ends)
                yield _Seen(*given, *rows)

        if not (keep.all() and self._unchanged(seen(), factor, used)):
            sample = self._sample(layer, keep, used, seen())
            goal = Goal(sample.target, sample.rest, factor[used], rectified)
            fitted = self._fitted(layer, keep, used, sample, goal)
            self._set(layer, keep, used, *fitted)

    def _first(self, array: np.ndarray, images: int) -> np.ndarray:
        """The rows of so many of a batch's images.

        There may be several for each, as where windows of an image are on the axis that
        images are on.
        """
        return array[: -(-len(array) * images // self.size)]

    def _unchanged(
        self,
        batches: Iterable[_Seen],
        factor: Float[np.ndarray, " U"],
        used: Bool[np.ndarray, " U"],
    ) -> bool:
        """Whether a layer gets in the cut network what it gets in the whole one."""
        same = all(
            np.allclose(seen.cut, seen.whole, rtol=1e-4, atol=1e-4)
            and np.allclose(
                (factor * seen.output + seen.rest)[:, used],
                seen.target[:, used],
                rtol=1e-4,
                atol=1e-4,
            )
            for seen in batches
        )
        return all(np.concatenate(processes.gather(np.array([same]))))

    def _sample(
        self,
        layer: Layer,
        keep: Bool[np.ndarray, " F"],
        used: Bool[np.ndarray, " U"],
        batches: Iterable[_Seen],
    ) -> _Sample:
        """Rows drawn at random, of all processes' images."""
        shape = layer.program.shape
        inputs = math.prod(shape(layer.input)) // layer.inputs // self.size
        outputs = math.prod(shape(layer.output)) // layer.channels // self.size
        unknowns = layer.products_per_output // layer.inputs * int(keep.sum())
        count = max(ELEMENTS // unknowns, _ROWS_PER_UNKNOWN * unknowns)
        rows = self._draw(inputs, self.rows)
        ends = self._draw(outputs, min(count, self.rows))
        parts = []
        for (first, images), seen in zip(self.runs, batches, strict=True):
            here = _within(rows, first * inputs, images * inputs)
            at = _within(ends, first * outputs, images * outputs)
            parts.append(
                (
                    _rows(seen.whole)[here],
                    _rows(seen.cut)[here][:, keep],
                    patches(layer, seen.cut, at, keep),
                    seen.target[at][:, used],
                    seen.rest[at][:, used],
                )
            )
        whole, left, met, target, rest = (
            np.concatenate(processes.gather(np.concatenate(column).astype(np.float32)))
            for column in zip(*parts, strict=True)
        )
        of_rows, of_ends = self.parts[rows // inputs], self.parts[ends // outputs]
        return _Sample(of_rows, whole, left, of_ends, met, target, rest)

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
        sample: _Sample,
        goal: Goal,
    ) -> Fitted:
        """The kernel for kept inputs and the outputs that are used; and the bias."""
        lost = sample.whole
        lost[:, keep] -= sample.kept
        channels = Ridge(centred(sample.kept), _CHANNEL_RIDGE, sample.row_parts)
        channels.choose(lost := centred(lost))
        a = channels.solve(lost)
        a[:, keep] += np.eye(len(a), dtype=np.float32)
        kernel = kernel_rows(layer, self.before)[..., used].astype(np.float32)
        towards = np.einsum("kf,...fu->...ku", a, kernel, optimize=True)
        towards = towards.reshape(-1, towards.shape[-1])
        ridge = _PATCH_RIDGE * len(towards) / len(sample.patches)
        return fit(sample.patches, goal, ridge, towards, sample.output_parts)

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

    def _draw(self, of_image: int, count: int) -> np.ndarray:
        """Some of all images' rows, ascending, by the number that an image has."""
        rng = np.random.default_rng(self.seed)
        return np.sort(rng.permutation(self.images * of_image)[:count])


def _within(
    numbers: Int[np.ndarray, " n"], first: int, count: int
) -> Int[np.ndarray, " m"]:
    """Those of ascending numbers from `first` on, counted from there."""
    start, end = np.searchsorted(numbers, (first, first + count))
    return numbers[start:end] - first


def _rows(features: np.ndarray) -> np.ndarray:
    """Features [..., F] -> [n, F]."""
    return features.reshape(-1, features.shape[-1])


def kernel_rows(
    layer: Layer, arrays: Mapping[str, Any]
) -> Float[np.ndarray, "*taps F U"]:
    """The kernel that a layer multiplies by."""
    (kernel,) = run(layer.program, arrays, None, want=[layer.kernel_value])
    return layer.rows(np.asarray(kernel))


def outputs(layer: Layer, arrays: Mapping[str, Any], x: Batches) -> Batches:
    """What a layer by itself returns, with its own of these arrays."""
    program = layer.program
    equations = program.needed([layer.output], {layer.input: None})
    read = {value for eqn in equations for value in eqn.inputs}
    paths = [path for path, value in program.leaves.items() if value in read]
    own = {p: arrays[p] for p in (*paths, *offset_paths(layer)) if p in arrays}
    key = layer.output, tuple(own)
    if key not in program.compiled:

        def output(own: Mapping[str, Any], x: Any) -> list[Any]:
            return run(
                program, own, None, given={layer.input: x}, want=[layer.output],
                after=offset_change(layer, own), fast=True,
            )  # fmt: skip

        program.compiled[key] = jax.jit(output)
    (found,) = by_batch(lambda i: program.compiled[key](own, x[i]), len(x))
    return found
