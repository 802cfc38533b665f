r"""Proof that a compact network equals the masked one, and what rounding explains.

Both compute the same function of the image, in another order of summation. A sum of n
products, s = \sum_i w_i x_i, is right to about \sqrt{n} u \sum_i |w_i| |x_i| with unit
roundoff u, taking the single roundings as independent and without bias (Higham and
Mary, A new approach to probabilistic rounding error analysis, 2019, theorem 3.1). That
is the error e_j of element j of every layer's output, twice since two networks round.
To first order it reaches logit c multiplied by J_cj, the derivative of the logit by
that output, which reverse differentiation gives exactly. Independent errors add in
squares:

    bound_c = LAMBDA \sqrt{ \sum_j (J_cj 2 e_j)^2 }

The chance that a single sum exceeds LAMBDA times its estimate is at most
2 exp(-LAMBDA^2 / 2), which is 3e-14 for LAMBDA = 8. What lies between the layers
(pools, activations) is computed alike in both.

Axes: N images, C classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from jaxprune.channels import taps
from jaxprune.channels.coupling import GROUP_NORMS
from jaxprune.channels.flow import NORMS, READERS
from jaxprune.channels.linear import Regression
from jaxprune.channels.masking import Mask, mask_channels
from jaxprune.channels.taps import at_path
from jaxprune.errors import InputError

LAMBDA = 8.0

Magnitude = Callable[[Array], Array]


@dataclass(frozen=True)
class Proof:
    """Comparison of the compact network's logits with the masked network's.

    Attributes:
      images: how many images were compared.
      largest_difference: of two logits.
      relative_difference: the same, divided by the image's largest absolute logit.
      bound: what rounding explains, for the image and logit where it is largest.
      bound_used: largest share of its bound that a difference takes up, in [0, 1].
      equal_predictions: share of images with the same prediction, in [0, 1].
      different_predictions: number of images with another prediction.
      largest_margin_of_different: between the two largest masked logits there.
      accuracy_masked: share predicted right by the masked network, where labels are
        known.
      accuracy_compact: by the compact network.
    """

    images: int
    largest_difference: float
    relative_difference: float
    bound: float
    bound_used: float
    equal_predictions: float
    different_predictions: int
    largest_margin_of_different: float
    accuracy_masked: float | None = None
    accuracy_compact: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The figures by name."""
        return asdict(self)


def compare(
    masked: Float[np.ndarray, "N C"],
    compact: Float[np.ndarray, "N C"],
    bound: Float[np.ndarray, "N C"],
    labels: Int[np.ndarray, " N"] | None = None,
) -> Proof:
    """Compares logits of the same images.

    Raises:
      InputError: a difference is larger than its bound, or not finite.
    """
    difference = np.abs(masked - compact)
    scale = np.maximum(np.abs(masked).max(-1), np.finfo(np.float32).tiny)
    used = difference / np.maximum(bound, np.finfo(np.float32).tiny)
    before, after = masked.argmax(-1), compact.argmax(-1)
    differs = before != after
    top = np.sort(masked[differs], axis=-1)
    margins = top[:, -1] - top[:, -2] if top.shape[-1] > 1 else np.zeros(len(top))
    proof = Proof(
        images=len(masked),
        largest_difference=float(difference.max()),
        relative_difference=float((difference.max(-1) / scale).max()),
        bound=float(bound.max()),
        bound_used=float(used.max()),
        equal_predictions=float(1 - differs.mean()),
        different_predictions=int(differs.sum()),
        largest_margin_of_different=float(margins.max(initial=0)),
        accuracy_masked=None if labels is None else float((before == labels).mean()),
        accuracy_compact=None if labels is None else float((after == labels).mean()),
    )
    if not used.max() <= 1:
        raise InputError(
            f"the compact network differs from the masked one by "
            f"{proof.largest_difference:.3g}, {proof.bound_used:.3g} times what "
            "rounding explains: nothing is returned"
        )
    return proof


def rounding_bound(
    apply: taps.Apply,
    variables: Any,
    x: Array,
    masks: Sequence[Mask] = (),
) -> tuple[Float[np.ndarray, "N C"], Float[np.ndarray, "N C"]]:
    """The masked network's logits, and how far rounding alone can move them.

    Args:
      apply: the network, see `jaxprune.channels.taps`.
      variables: its variables.
      x: inputs; each costs as many backward passes as there are classes.
      masks: of its channels.
    """
    program = jax.jit(
        partial(masked_and_bound, apply, rounded_layers(apply, variables, x))
    )
    logits, bound = program(variables, x, masks)
    return np.asarray(logits, np.float32), np.asarray(bound, np.float64)


def rounded_layers(apply: taps.Apply, variables: Any, x: Array) -> list[taps.Layer]:
    """The calls of layers whose results are rounded sums."""
    return [
        layer
        for layer in taps.list_layers(apply, variables, x)
        if _is_rounded(layer.module)
    ]


def masked_and_bound(
    apply: taps.Apply,
    layers: Sequence[taps.Layer],
    variables: Any,
    x: Array,
    masks: Sequence[Mask],
) -> tuple[Array, Array]:
    """What `rounding_bound` compiles.

    All but the first two arguments may be traced, so that one program serves many
    masks.

    Args:
      apply: the network.
      layers: its `rounded_layers`, for inputs of the shape of `x`.
      variables: its variables.
      x: inputs.
      masks: of its channels.
    """

    def perturbed(errors: list[Array]) -> tuple[Array, list[Array]]:
        given: list[Array] = []
        network = mask_channels(_with_errors(apply, errors, given), masks)
        return network(variables, x), given

    zeros = [jnp.zeros(a.output.shape, a.output.dtype) for a in layers]
    logits, pull, given = jax.vjp(perturbed, zeros, has_aux=True)
    errors = [
        2 * _error(layer, variables, value, _sums(layer.name, masks))
        for layer, value in zip(layers, given, strict=True)
    ]

    def square(direction: Array) -> Array:
        (jacobian,) = pull(jnp.broadcast_to(direction, logits.shape))
        squares = [
            jnp.square(derivative.astype(jnp.float32) * error)
            for derivative, error in zip(jacobian, errors, strict=True)
        ]
        return jnp.stack([s.reshape(len(x), -1).sum(-1) for s in squares]).sum(0)

    squares = lax.map(square, jnp.eye(logits.shape[-1], dtype=logits.dtype))
    floor = float(jnp.finfo(logits.dtype).eps) / 2 * jnp.abs(logits)
    return logits, LAMBDA * (jnp.sqrt(squares.T) + floor.astype(jnp.float32))


def _sums(name: str, masks: Sequence[Mask]) -> list[Magnitude]:
    """Of the sums that a layer's input is itself worked out by: their size."""
    found = [(mask.at_readers.get(name), mask.keep) for mask in masks]
    return [
        partial(how.magnitude, keep=keep)
        for how, keep in found
        if isinstance(how, Regression)
    ]


def _is_rounded(module: nn.Module) -> bool:
    return type(module) in (*READERS, *NORMS, *GROUP_NORMS)


def _with_errors(
    apply: taps.Apply, errors: list[Array], given: list[Array]
) -> taps.Apply:
    """The network with an error added to what each layer returns.

    What the layers are given is appended to `given`.
    """

    def add(call: taps.Call) -> Any:
        output = call.run()
        if call.is_layer and _is_rounded(call.module):
            output = output + errors[len(given)]
            given.append(call.input)
        return output

    return taps.intercept(apply, add)


def _error(
    layer: taps.Layer, variables: Any, x: Array, sums: Sequence[Magnitude]
) -> Array:
    """Rounding error of each element of a layer's output: sqrt(n) u sum |w| |x|.

    Of norms, see the code below.
    """
    unit = float(jnp.finfo(layer.output.dtype).eps) / 2
    params = at_path(variables["params"], layer.name)
    if isinstance(layer.module, nn.GroupNorm):
        return unit * _of_group_norm(layer.module, params, jnp.asarray(x, jnp.float32))
    x = _size(x)
    for magnitude in sums:
        x = magnitude(x)
    shift = _size(params.get("bias", 0.0))
    if isinstance(layer.module, nn.BatchNorm):
        statistics = at_path(variables["batch_stats"], layer.name)
        deviation = jnp.sqrt(_size(statistics["var"]) + layer.module.epsilon)
        factor = _size(params.get("scale", 1.0)) / deviation
        return unit * 2 * ((x + _size(statistics["mean"])) * factor + shift)
    kernel = _size(params["kernel"])
    products = kernel.size // kernel.shape[-1]
    if sums:  # each predicted feature is such a sum itself
        products += kernel.shape[-2]
    return unit * products**0.5 * (linear(layer.module, kernel, x) + shift)


def _of_group_norm(module: nn.GroupNorm, params: Any, x: Array) -> Array:
    """Of normalised groups, in units of rounding.

    A group's mean and variance are rounded once for all its n elements, while the sum
    of squares over elements takes them as independent: hence sqrt(n). The variance is
    a difference, E[x^2] - E[x]^2, with the error of the larger number. A sum of n terms
    by halves is taken to lose sqrt(1 + log n).
    """
    held = module.group_size or x.shape[-1] // (module.num_groups or 1)
    of_groups = x.shape[-1] // held, held
    rows = x.reshape(len(x), -1, *of_groups)
    scale, shift = (
        jnp.broadcast_to(_size(params.get(name, default)), x.shape[-1:])
        for name, default in (("scale", 1.0), ("bias", 0.0))
    )
    mean, size, square = (
        rows_of.mean((1, 3), keepdims=True)
        for rows_of in (rows, jnp.abs(rows), jnp.square(rows))
    )
    variance = jnp.maximum(square - jnp.square(mean), 0) + module.epsilon
    n = rows.shape[1] * rows.shape[3]
    shared = size + jnp.abs(rows - mean) * square / variance
    alone = 2 * (jnp.abs(rows) + size)
    error = (alone + (n * (1 + math.log2(n))) ** 0.5 * shared) / jnp.sqrt(variance)
    return (error * scale.reshape(of_groups)).reshape(x.shape) + 2 * shift


def _size(x: Any) -> Array:
    return jnp.abs(jnp.asarray(x, jnp.float32))


def linear(module: nn.Module, kernel: Any, x: Array) -> Array:
    """A convolution or dense layer without its bias, with another kernel."""
    options: dict[str, Any] = {"features": kernel.shape[-1], "use_bias": False}
    if isinstance(module, nn.Conv):
        options["conv_general_dilated"] = None
    else:
        options["dot_general"] = None
    bare = module.clone(
        parent=None, name=None, dtype=jnp.float32, precision="highest", **options
    )
    y: Any = bare.apply({"params": {"kernel": jnp.asarray(kernel, jnp.float32)}}, x)
    return y
