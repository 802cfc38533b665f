r"""Layers of a cut network fitted to what the whole one computes; nothing is trained.

The whole and the cut network run over the calibration images side by side, layer by
layer. Wherever a layer reads units that are pruned, or what an earlier cut has changed,
it gets the kernel that best gives the whole network's pre-activations Y from what it is
given in the cut network: least squares, as in the channel pruning of He, Zhang and Sun
2017, with two differences. The target is the whole network, so that what earlier cuts
have changed is corrected too; and the solution is drawn towards another one, so that a
few hundred images are enough:

    W_1 = A W,   A = (K'K + r_1 I)^{-1} K'X              channel by channel, X from K
    W_2 = W_1 + (Z'Z + r_2 I)^{-1} Z'(Y - Z W_1)         patch by patch

with X the whole network's channels at the layer's input, K the kept ones of the cut
network's, Z the patches of K under the kernel, all less their means. r_1 and r_2 are in
units of the mean eigenvalue. A dense layer needs the second step alone, with W_1 = 0.

The result is a network of the whole one's shapes with zeros in the rows of what is
pruned. Cut with the fill "drop" it becomes smaller and stays the same.

Axes: N images, F input features of a layer, k kept ones, T taps, U outputs, n rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
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
from jaxprune.errors import InputError
from jaxprune.shrinking.least_squares import centred, least_squares, patches

# Rows that channels are regressed on, and the fewest that patches are.
_CHANNEL_ROWS, _PATCH_ROWS = 30_000, 8_000
# Rows of patches for each unknown, where there are as many.
_ROWS_PER_UNKNOWN = 4
_CHANNEL_RIDGE, _PATCH_RIDGE = 1e-3, 0.1

Fitted = tuple[Float[np.ndarray, "Tk U"], Float[np.ndarray, " U"]]


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
        a feature map of all images, twice, is in memory at once.
      variables: its variables.
      images: calibration images [N, ...].
      groups: of its channels.
      keeps: masks of the groups that are cut.
      seed: of the draw of rows.
      on_layer: called with each layer's name once it is fitted, or left as it is.

    Raises:
      InputError: the network calls a layer where what it is given cannot be seen.
    """
    flat = flatten_dict(unfreeze(variables), sep="/")
    pair = _Pair(flat, groups, keeps, len(images), seed)
    both = jnp.concatenate([jnp.asarray(images)] * 2)

    def answer(call: taps.Call) -> Any:
        returned = pair.answer(call)
        if call.name and type(call.module) in READERS:
            on_layer(call.name)
        return returned

    taps.intercept(apply, answer)(variables, both)
    return unflatten_dict(pair.flat, sep="/")


@dataclass
class _Pair:
    """The whole and the cut network, in the halves of one batch.

    Attributes:
      flat: the cut network's variables by path, so far.
      groups: of the network's channels.
      keeps: masks of the groups that are cut.
      images: in each half, N.
      seed: of the draw of rows.
    """

    flat: dict[str, Any]
    groups: Groups
    keeps: Mapping[str, Bool[np.ndarray, " P"]]
    images: int
    seed: int

    def answer(self, call: taps.Call) -> Any:
        """What a layer returns to both halves, its variables fitted on the way."""
        module: Any = call.module
        # Without a name it is a module that `_run` runs by itself.
        if not call.name or type(module) not in READERS:
            return call.run()
        if getattr(module, "feature_group_count", 1) != 1:
            return call.run()
        if isinstance(call.input, jax.core.Tracer):
            raise InputError(
                f"'{call.name}' is called inside a transformation (nn.scan, nn.remat, "
                "nn.jit, jax.jit), where what it is given cannot be seen"
            )
        whole, cut = call.input[: self.images], call.input[self.images :]
        keep = self._kept(call.name, "readers", whole.shape[-1])
        if keep.all() and bool((whole == cut).all()):
            return call.run()
        target = call.run_on(whole)
        self._fit(call, np.asarray(whole), np.asarray(cut), np.asarray(target), keep)
        return jnp.concatenate([target, self._run(call, cut)])

    def _kept(self, layer: str, role: str, features: int) -> Bool[np.ndarray, " F"]:
        """Features of a layer that no group prunes."""
        keep = np.ones(features, bool)
        for name, mask in self.keeps.items():
            owner = getattr(self.groups.groups[name], role).get(layer)
            if owner is not None:
                keep &= kept_features(mask, owner)
        return keep

    def _fit(
        self,
        call: taps.Call,
        whole: np.ndarray,
        cut: np.ndarray,
        target: np.ndarray,
        keep: Bool[np.ndarray, " F"],
    ) -> None:
        """Sets the kernel and bias that give `target` from the kept channels."""
        path = f"params/{call.name}"
        kernel = np.asarray(self.flat[f"{path}/kernel"])
        used = self._kept(call.name, "producers", kernel.shape[-1])
        y = target[..., used].astype(np.float32)
        if isinstance(call.module, nn.Dense):
            fitted, bias = self._fit_dense(cut[..., keep], y)
        else:
            before = kernel[..., used].astype(np.float32)
            fitted, bias = self._fit_conv(call.module, before, whole, cut[..., keep], y)
        # What is pruned of the layer's own outputs stays as it was: nobody reads it.
        result = kernel.copy()
        result[..., ~keep, :] = 0
        rows = result[..., keep, :]
        rows[..., used] = fitted.reshape(rows[..., used].shape)
        result[..., keep, :] = rows
        self.flat[f"{path}/kernel"] = result
        shift = np.zeros(kernel.shape[-1], np.float32)
        shift[used] = bias
        for name in ("rows", "index"):
            self.flat.pop(f"offsets/{call.name}/{name}", None)
        if f"{path}/bias" in self.flat:
            self.flat[f"{path}/bias"] = shift.astype(kernel.dtype)
        else:
            positions = target.shape[1:-1]
            self.flat[f"offsets/{call.name}/rows"] = shift[None]
            self.flat[f"offsets/{call.name}/index"] = np.zeros(positions, np.uint8)

    def _fit_dense(self, cut: np.ndarray, y: np.ndarray) -> Fitted:
        rows = cut.reshape(-1, cut.shape[-1])
        pick = self._draw(len(rows), _CHANNEL_ROWS)
        z, y = rows[pick].astype(np.float32), y.reshape(-1, y.shape[-1])[pick]
        fitted = least_squares(centred(z), centred(y), _CHANNEL_RIDGE)
        return fitted, y.mean(0) - z.mean(0) @ fitted

    def _fit_conv(
        self,
        module: nn.Module,
        kernel: Float[np.ndarray, "*T F U"],
        whole: np.ndarray,
        cut: np.ndarray,
        y: np.ndarray,
    ) -> Fitted:
        x, k = (a.reshape(-1, a.shape[-1]) for a in (whole, cut))
        pick = self._draw(len(x), _CHANNEL_ROWS)
        a = least_squares(centred(k[pick]), centred(x[pick]), _CHANNEL_RIDGE)
        fitted = np.einsum("kf,...fu->...ku", a, kernel, optimize=True)
        fitted = fitted.reshape(-1, fitted.shape[-1])
        outputs = y.reshape(-1, y.shape[-1])
        count = max(_PATCH_ROWS, _ROWS_PER_UNKNOWN * len(fitted))
        pick = self._draw(len(outputs), count)
        z, outputs = patches(module, cut, pick, y.shape), outputs[pick]
        inputs = centred(z)
        residual = centred(outputs) - inputs @ fitted
        fitted = fitted + least_squares(inputs, residual, _PATCH_RIDGE)
        return fitted, outputs.mean(0) - z.mean(0) @ fitted

    def _draw(self, rows: int, count: int) -> np.ndarray:
        return np.random.default_rng(self.seed).permutation(rows)[:count]

    def _run(self, call: taps.Call, x: Array) -> Array:
        """The layer as it is now, on what the cut network gives it."""
        module: Any = call.module
        flat, path = self.flat, f"params/{call.name}"
        # Without a map that a compact network adds: it is in the new bias.
        product = "dot_general" if type(module) is nn.Dense else "conv_general_dilated"
        plain = module.clone(parent=None, use_bias=False, **{product: None})
        output = plain.apply({"params": {"kernel": flat[f"{path}/kernel"]}}, x)
        if f"{path}/bias" in flat:
            return output + jnp.asarray(flat[f"{path}/bias"], output.dtype)
        rows = flat[f"offsets/{call.name}/rows"]
        return output + jnp.asarray(rows[0], output.dtype)
