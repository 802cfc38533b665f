"""Loss curves of all groups and widths at once, from gradients.

The linear fill takes from a consumer's operand, of each pruned unit p, its residual r_p
times a row b_p: see `Nested` in `jaxprune.fills.linear`, where residuals and rows are
those of all K in one order of pruning. With g the gradient of a number of the outputs
at that operand, pruning K units changes the number, to first order, by

    s_K = - sum over consumers and positions, over pruned p, of r_p (b_p . g).

So a forward pass and a few backward passes give the terms of all units of all groups,
and their cumulative sums along the order of pruning are every width's. Which numbers
are asked for, and what loss their changes come to, is the loss's own `Probe`.

Kin: Theis et al. 2018, whose Fisher pruning has gates in the place of residuals; K-FAC
(Martens and Grosse 2015), which draws labels as a probe may.

Axes: B images of a batch, D numbers of a probe, P units, W widths, G groups of Q
features as in `jaxprune.fills.linear`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxprune._base import processes
from jaxprune._base.batch import pad_rows, size_of, take
from jaxprune._base.mesh import place, replicate, round_up
from jaxprune.fills.linear import Nested
from jaxprune.graph.evaluate import Change
from jaxprune.graph.layers import Layer
from jaxprune.graph.network import Network
from jaxprune.shrinking.curves import Curve, narrower, own_batches
from jaxprune.shrinking.halves import Half
from jaxprune.tasks.imitation import Probe

# Images times draws, at the least, and draws of an image at the most.
_SAMPLES, _DRAWS = 2048, 16
_LARGEST_BATCH = 64
# Of a batch's gradients, in all.
_BYTES = 2**30


def estimated_curves(
    network: Network,
    halves: Sequence[Half],
    orders: Mapping[str, Int[np.ndarray, " P"]],
    probe: Probe,
    mesh: Mesh,
) -> dict[str, Curve]:
    """Estimates the curves of groups, all at once.

    Args:
      network: the network.
      halves: of the calibration images.
      orders: of the groups' units, by name.
      probe: of the loss.
      mesh: the devices. Several processes give the same, and run a share each.

    Returns:
      The curves by the groups' names. Those of a network that has no derivative are
      left out, and of groups of which it says nothing: where it is 0 everywhere, as
      behind a rounding, or not finite.
    """
    try:
        losses = _mean_losses(network, halves, list(orders), probe, mesh)
    except (TypeError, ValueError, NotImplementedError):  # JAX's, of no derivative
        return {}
    return {
        name: Curve.of(orders[name], of)
        for name, of in losses.items()
        if np.isfinite(of).all() and of.any()
    }


def _mean_losses(
    network: Network,
    halves: Sequence[Half],
    groups: Sequence[str],
    probe: Probe,
    mesh: Mesh,
) -> dict[str, Float[np.ndarray, " W"]]:
    """The mean loss of each group's widths."""
    consumers = sorted({n for fill in halves[0].fills.values() for n in fill.moments})
    images_count = sum(size_of(half.images) for half in halves)
    draws = min(-(-_SAMPLES // images_count), _DRAWS)

    @jax.jit
    def sums(
        arrays: Any, x: Any, first: Array, count: Array, nested: Any, rows: Any,
        orders: Any,
    ) -> dict[str, Array]:  # fmt: skip
        layers = {name: network.graph(x).layer(name) for name in consumers}
        keys = jax.vmap(jax.random.key)(first * draws + jnp.arange(draws))
        outputs, given, gradients = _gradients(
            network, layers, arrays, x, lambda outputs: probe.values(outputs, keys)
        )
        real = jnp.arange(size_of(x)) < count
        found = {}
        for group, own in nested.items():
            order = orders[group]
            of_each = [
                _terms(
                    layers[name], fit, rows[group].get(name), given[name],
                    gradients[name], len(order),
                )
                for name, fit in own.items()
            ]  # fmt: skip
            terms = jnp.stack(of_each).sum(0)[..., order]
            pruned = np.array([len(order) - w for w in narrower(len(order))], int)
            changes = -jnp.cumsum(terms, -1)[..., pruned - 1]
            losses = probe.loss(outputs, jnp.moveaxis(changes, (0, 2), (2, 0)))
            found[group] = jnp.where(real, losses, 0).sum(1)
        return found

    widths = {
        name: len(narrower(len(orders))) for name, orders in halves[0].orders.items()
    }
    total = {name: np.zeros(widths[name]) for name in groups}
    size = _batch_size(network, consumers, halves[0].images)
    arrays = replicate(network.arrays, mesh)
    done = 0
    for half in halves:
        nested = {name: half.nested(name) for name in groups}
        rows = _rows_at_output(network, nested)
        for start, batch in own_batches(half.images, size):
            x = place(pad_rows(batch, round_up(size, mesh.size)), mesh)
            found = sums(
                arrays, x, done + start, size_of(batch), nested, rows, half.orders
            )
            for group, losses in found.items():
                total[group] += np.asarray(losses, np.float64) / images_count
        done += size_of(half.images)
    return {name: processes.total(losses) for name, losses in total.items()}


def _rows_at_output(
    network: Network, nested: Mapping[str, Mapping[str, Nested]]
) -> dict[str, dict[str, np.ndarray]]:
    """The rows that residuals meet, of consumers that one tap reads with."""
    return {
        group: {
            name: fit.kernel(network.kernel(name)).astype(np.float32)
            for name, fit in own.items()
            if _at_output(network.layers[name])
        }
        for group, own in nested.items()
    }


def _gradients(
    network: Network,
    layers: Mapping[str, Layer],
    arrays: Mapping[str, Any],
    x: Any,
    values: Callable[[Any], Float[Array, "B D"]],
) -> tuple[Any, dict[str, Array], dict[str, Array]]:
    """Outputs, what consumers are given, and gradients [D, B, ...] of values there.

    Of those that one tap reads with, the gradients at what they return, which has fewer
    channels where a network narrows.
    """
    program = network.graph(x).program
    ends = {n: _at_output(layer) for n, layer in layers.items()}

    def probed(added: Mapping[str, Array]) -> tuple[Array, Any]:
        before, after = (
            {
                layer.equation.number: _plus(0 if end else layer.x, added[name])
                for name, layer in layers.items()
                if ends[name] == end
            }
            for end in (False, True)
        )
        inputs = [layer.input for layer in layers.values()]
        want = [*program.results, *inputs]
        found = network.evaluate(
            x, arrays=arrays, want=want, before=before, after=after
        )
        results = found[: len(program.results)]
        outputs = jax.tree.unflatten(program.output, results)
        given = dict(zip(layers, found[len(results) :], strict=True))
        return values(outputs).sum(0), (outputs, given)

    places = {
        n: layer.product if ends[n] else layer.input for n, layer in layers.items()
    }
    zeros = {
        name: jnp.zeros(program.shape(place), program.types[place].dtype)
        for name, place in places.items()
    }
    found, pull, (outputs, given) = jax.vjp(probed, zeros, has_aux=True)
    # One after another: on CPU a loop takes an eighth of the time of all at once.
    gradients = jax.lax.map(lambda one: pull(one)[0], jnp.eye(len(found)))
    return outputs, given, gradients


def _at_output(layer: Layer) -> bool:
    """Whether gradients are taken at what a layer returns.

    It returns at each position what it reads there alone, and not more channels.
    """
    shapes = layer.program.shape(layer.input), layer.program.shape(layer.product)
    lengths = [
        np.delete(shape, axes).tolist()
        for shape, axes in zip(
            shapes, (layer.axes.features, layer.axes.channels), strict=True
        )
    ]
    kernel = layer.program.shape(layer.kernel_value)
    one_tap = all(kernel[axis] == 1 for axis in layer.axes.taps)
    fewer = layer.channels <= layer.inputs
    return one_tap and fewer and lengths[0] == lengths[1]


def _plus(operand: int, added: Array) -> Change:
    """The change that adds an array to one of an equation's operands, or results."""

    def change(operands: Sequence[Array]) -> list[Array]:
        changed = list(operands)
        changed[operand] = changed[operand] + added
        return changed

    return change


def _terms(
    layer: Layer,
    fit: Nested,
    rows: Array | None,
    given: Array,
    gradients: Array,
    units: int,
) -> Float[Array, "D B P"]:
    """Each unit's part of the values' changes, over a consumer's positions.

    Args:
      layer: the consumer.
      fit: of the units there.
      rows: that the residuals meet, [..., G, Q, U], where gradients are at the output.
      given: the consumer's operand.
      gradients: of the values.
      units: their number, P.
    """
    residuals = fit.residuals(layer.features(given))
    dtype = residuals.dtype

    def slopes(gradient: Array) -> Float[Array, "B *positions G Q"]:
        if rows is not None:
            kernel = rows.reshape(rows.shape[-3:])
            at_output = layer.outputs(gradient).astype(dtype)
            return jnp.einsum("...u,gqu->...gq", at_output, kernel)
        at_input = layer.features(gradient)[..., fit.features].astype(dtype)
        return jnp.einsum("...gq,gpq->...gp", at_input, jnp.asarray(fit.back, dtype))

    def of_one(gradient: Array) -> Float[Array, "B P"]:
        met = residuals * slopes(gradient)
        return met.reshape(len(met), -1, units).sum(1)

    return jax.lax.map(of_one, gradients)


def _batch_size(network: Network, consumers: Sequence[str], images: Any) -> int:
    """Images that are run at once."""
    one = take(images, slice(1))
    graph = network.graph(one)
    shapes = [graph.program.shape(graph.layers[name].input) for name in consumers]
    elements = sum(int(np.prod(shape)) for shape in shapes)
    most = _BYTES // max(4 * _DRAWS * elements, 1)
    return max(1, min(size_of(images), _LARGEST_BATCH, most))
