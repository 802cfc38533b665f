r"""Layers of a cut network fitted to what the whole one computes; nothing is trained.

The whole and the cut network run over the calibration images side by side, layer by
layer. Wherever a layer reads units that are pruned, or meets what an earlier cut has
changed, it gets the kernel for which the value that it leads to is nearest to the whole
network's: least squares, as in the channel pruning of He, Zhang and Sun 2017, with some
differences. The target is the whole network, so that what earlier cuts have changed is
corrected too. It is taken where the layer's output goes (`destinations`): at a residual
sum the layer makes good what the other branch has lost, before a ReLU what is negative
anyway does not count (`goals`). And the solution is drawn towards another one, so that
a few hundred images are enough:

    W_1 = A W,   A = (K'K + r_1 I)^{-1} K'X              channel by channel, X from K
    W_2 = W_1 + (Z'Z + r_2 I)^{-1} Z'(Y - Z W_1)         patch by patch

with X the whole network's channels at the layer's input, K the kept ones of the cut
network's, Z the patches of K under the kernel, Y what the layer is to return, all less
their means. r_1 and r_2 are in units of the mean eigenvalue. A dense layer needs the
second step alone, with W_1 = 0.

The result is a network of the whole one's shapes with zeros in the rows of what is
pruned. Cut with the fill "drop" it becomes smaller and stays the same.

Axes: N images, F input features of a layer, k kept ones, T taps, U outputs, n rows.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float

from jaxprune.channels import taps
from jaxprune.channels.fills import kept_features
from jaxprune.channels.flow import READERS
from jaxprune.channels.groups import Groups
from jaxprune.channels.program import Run, trace_program
from jaxprune.shrinking.destinations import find_destinations, follow
from jaxprune.shrinking.goals import Fitted, Goal, fit
from jaxprune.shrinking.least_squares import centred, least_squares, patches

# Rows of a regression at most. Of patches, which have an element for each unknown, as
# many as hold so many elements, or so many rows for each unknown.
_ROWS = 130_000
_ELEMENTS = 2**27
_ROWS_PER_UNKNOWN = 4
_CHANNEL_RIDGE = 1e-3
# Of patches, times the unknowns for each row: the more rows, the less to be guessed.
_PATCH_RIDGE = 0.4


def refit(
    apply: taps.Apply,
    variables: Any,
    images: Any,
    groups: Groups,
    keeps: Mapping[str, Bool[np.ndarray, " P"]],
    *,
    seed: int = 0,
    on_layer: Callable[[str], Any] = lambda name: None,
) -> Any:
    """Variables of the whole network's shapes, for the network as cut.

    Args:
      apply: the network, see `jaxprune.channels.taps`. It runs layer by layer, so that
        feature maps of all images, twice, are in memory at once.
      variables: its variables.
      images: calibration images [N, ...].
      groups: of its channels.
      keeps: masks of the groups that are cut.
      seed: of the draw of rows.
      on_layer: called with each layer's name once it is fitted, or left as it is.

    Raises:
      InputError: the network calls a layer where what it is given cannot be seen.
    """
    images = jnp.asarray(images)
    pair = _Pair(apply, variables, images, groups, keeps, seed, on_layer)
    return unflatten_dict(pair.run(), sep="/")


def _is_open(module: nn.Module) -> bool:
    """Whether a layer may be fitted: no groups that tie its outputs to its inputs."""
    kind = type(module) in READERS
    return kind and getattr(module, "feature_group_count", 1) == 1


class _Pair:
    """The whole and the cut network, each run as far as the other needs it."""

    def __init__(
        self,
        apply: taps.Apply,
        variables: Any,
        images: Array,
        groups: Groups,
        keeps: Mapping[str, Bool[np.ndarray, " P"]],
        seed: int,
        on_layer: Callable[[str], Any],
    ):
        self.before = flatten_dict(unfreeze(variables), sep="/")
        self.flat = dict(self.before)
        self.groups, self.keeps, self.seed = groups, keeps, seed
        self.on_layer = on_layer
        self.program = program = trace_program(apply, variables, images, _is_open)
        calls = Counter(call.name for call in program.layers)
        # One that is called twice would have to serve two places at once.
        unknowns = {
            i: int(np.prod(self.flat[f"params/{call.name}/kernel"].shape[:-1]))
            for i, call in enumerate(program.layers)
            if calls[call.name] == 1
        }
        self.ends = find_destinations(program, unknowns)
        also: Counter[int] = Counter()
        for i, end in self.ends.items():
            also.update([program.given[i], program.returned[i], end.value])
        self.whole = Run(program, self.before, images, self._whole_layer, also)
        self.cut = Run(program, self.before, images, self._cut_layer, Counter())

    def run(self) -> dict[str, Any]:
        """The cut network's variables by path."""
        for value in self.program.returned:
            if value not in self.cut.done:
                self.cut.read(value)
        return self.flat

    def _whole_layer(self, i: int, x: Array) -> Array:
        return _run_layer(self.program.layers[i], self.before, x)

    def _cut_layer(self, i: int, x: Array) -> Array:
        call = self.program.layers[i]
        if i in self.ends:
            self._fit(i, np.asarray(x))
        self.on_layer(call.name)
        return _run_layer(call, self.flat, x)

    def _fit(self, i: int, cut: np.ndarray) -> None:
        """Fits a layer that is given `cut`, if anything has changed for it."""
        program, call, end = self.program, self.program.layers[i], self.ends[i]
        reads = program.given[i], program.returned[i], end.value
        whole, output, target = (np.asarray(self.whole.read(v)) for v in reads)
        for value in reads:
            self.whole.release(value)
        factor, rest = follow(self.cut, end, call.output.dtype)
        rectified = end.rectified
        if not np.isfinite(factor).all():
            factor, rest, target = np.ones_like(factor), np.zeros_like(output), output
            rectified = False
        keep = self._kept(call.name, "readers", cut.shape[-1])
        used = self._kept(call.name, "producers", output.shape[-1])
        goal = Goal(_rows(target[..., used]), _rows(rest[..., used]), factor[used])
        if keep.all() and (whole == cut).all():
            now = goal.factor * _rows(output[..., used]) + goal.rest
            if np.allclose(now, goal.target, rtol=1e-4, atol=1e-4):
                return
        goal = replace(goal, rectified=rectified)
        self._set(call, keep, used, *self._fitted(call, keep, used, whole, cut, goal))

    def _kept(self, layer: str, role: str, features: int) -> Bool[np.ndarray, " F"]:
        """Features of a layer that no group prunes."""
        keep = np.ones(features, bool)
        for name, mask in self.keeps.items():
            owner = getattr(self.groups.groups[name], role).get(layer)
            if owner is not None:
                keep &= kept_features(mask, owner)
        return keep

    def _fitted(
        self,
        call: taps.Layer,
        keep: Bool[np.ndarray, " F"],
        used: Bool[np.ndarray, " _"],
        whole: np.ndarray,
        cut: np.ndarray,
        goal: Goal,
    ) -> Fitted:
        """The kernel for kept inputs and the outputs that are used; and the bias."""
        x, k = _rows(whole), _rows(cut[..., keep])
        pick = self._draw(len(x), _ROWS)
        if isinstance(call.module, nn.Dense):
            return fit(k[pick].astype(np.float32), goal.rows(pick), _CHANNEL_RIDGE)
        a = least_squares(centred(k[pick]), centred(x[pick]), _CHANNEL_RIDGE)
        kernel = np.asarray(self.before[f"params/{call.name}/kernel"])[..., used]
        kernel = kernel.astype(np.float32)
        towards = np.einsum("kf,...fu->...ku", a, kernel, optimize=True)
        towards = towards.reshape(-1, towards.shape[-1])
        unknowns = len(towards)
        count = max(_ELEMENTS // unknowns, _ROWS_PER_UNKNOWN * unknowns)
        pick = self._draw(len(goal.target), min(count, _ROWS))
        z = patches(call.module, cut[..., keep], pick, call.output.shape)
        ridge = _PATCH_RIDGE * unknowns / len(pick)
        return fit(z.astype(np.float32), goal.rows(pick), ridge, towards)

    def _set(
        self,
        call: taps.Layer,
        keep: Bool[np.ndarray, " F"],
        used: Bool[np.ndarray, " _"],
        fitted: Float[np.ndarray, "_ _"],
        bias: Float[np.ndarray, " _"],
    ) -> None:
        """Sets a layer's kernel and bias, or the map of one that has no bias."""
        path = f"params/{call.name}"
        # What is pruned of the layer's own outputs stays as it was: nobody reads it.
        result = np.array(self.flat[f"{path}/kernel"])
        result[..., ~keep, :] = 0
        rows = result[..., keep, :]
        rows[..., used] = fitted.reshape(rows[..., used].shape)
        result[..., keep, :] = rows
        self.flat[f"{path}/kernel"] = result
        shift = np.zeros(result.shape[-1], np.float32)
        shift[used] = bias
        for name in ("rows", "index"):
            self.flat.pop(f"offsets/{call.name}/{name}", None)
        if f"{path}/bias" in self.flat:
            self.flat[f"{path}/bias"] = shift.astype(result.dtype)
        else:
            positions = call.output.shape[1:-1]
            self.flat[f"offsets/{call.name}/rows"] = shift[None]
            self.flat[f"offsets/{call.name}/index"] = np.zeros(positions, np.uint8)

    def _draw(self, rows: int, count: int) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(rows)[:count]


def _rows(features: np.ndarray) -> np.ndarray:
    """Features [..., F] -> [n, F]."""
    return features.reshape(-1, features.shape[-1])


def _run_layer(call: taps.Layer, flat: Mapping[str, Any], x: Array) -> Array:
    """A layer on its own, with the variables that it has."""
    module: Any = call.module
    path, offsets = f"params/{call.name}", f"offsets/{call.name}"
    kernel = flat[f"{path}/kernel"]
    # Without a bias, and without a map that a compact network adds: both come below.
    product = "dot_general" if type(module) is nn.Dense else "conv_general_dilated"
    plain = module.clone(
        parent=None, use_bias=False, features=kernel.shape[-1], **{product: None}
    )
    output = plain.apply({"params": {"kernel": kernel}}, x)
    if f"{path}/bias" in flat:
        output = output + jnp.asarray(flat[f"{path}/bias"], output.dtype)
    if f"{offsets}/rows" in flat:
        rows = jnp.asarray(flat[f"{offsets}/rows"], output.dtype)
        output = output + rows[jnp.asarray(flat[f"{offsets}/index"])]
    return output
