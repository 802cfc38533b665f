"""Sweeps of drawn networks: the fast ways give what a plain loop over K gives.

Nothing is compiled: the sweep's own programs, and the loop's, run in NumPy.
"""

from collections import Counter
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune
import numpy_programs
import reference
from drawn_networks import draw_network
from jaxprune._base import mesh
from jaxprune.adapters.linen import called_layers
from masked import overwritten
from random_data import random_split, random_variables
from tally import FULL, trials
from zoo import EXAMPLE_SHAPE

NETWORKS, PARTS = 1000, 4


class Interpreted:
    """What `mesh.Sharded` does, in NumPy."""

    def __init__(self, function, mesh, in_specs, out_specs):
        self._function, self._programs, self.compile_seconds = function, {}, 0.0

    def __call__(self, *arguments):
        arguments = jax.tree.map(np.asarray, arguments)
        shapes = str(jax.tree.map(lambda a: (a.shape, a.dtype), arguments))
        if shapes not in self._programs:
            closed, out = jax.make_jaxpr(self._function, return_shape=True)(*arguments)
            self._programs[shapes] = closed, jax.tree.structure(out)
        closed, structure = self._programs[shapes]
        found = numpy_programs.run(closed, *arguments)
        return jax.tree.unflatten(structure, map(jnp.asarray, found))


METHODS = {name: vars(Interpreted)[name] for name in ("__init__", "__call__")}


def with_both_classes(model, seed):
    """(apply on uint8 images, variables): either class is about as likely."""
    variables = random_variables(model, jnp.zeros((1, *EXAMPLE_SHAPE)), seed)

    def apply(variables, images, **kwargs):
        return model.apply(variables, images.astype(jnp.float32) / 255, **kwargs)

    images = random_split(n=6, shape=EXAMPLE_SHAPE, classes=2, seed=seed).images
    last = called_layers(apply, variables, images)[-1].name
    program = jax.make_jaxpr(apply)(variables, images)
    (logits,) = numpy_programs.run(program, variables, images)
    # Of one that returns the same for all images nothing but rounding would stay.
    if np.ptp(logits, axis=0).max() > 1e-4 * np.abs(logits).max():
        variables["params"][last]["bias"] -= logits.mean(0)
    return apply, variables


def naive(apply, variables, images, layer, order, fill):
    """Logits [K, N, C]: the whole network once for every K, its map overwritten."""

    def masked(variables, images, keep, values):
        def overwrite(run, *args):
            return jnp.where(keep, run(*args), values)

        return overwritten(apply, layer, overwrite)(variables, images)

    p = len(order)
    keep, values = np.ones(p, bool), fill.astype(np.float32)
    program = jax.make_jaxpr(masked)(variables, images, keep, values)
    found = []
    for k in range(p):
        keep = ~np.isin(np.arange(p), order[:k])
        found += numpy_programs.run(program, variables, images, keep, values)
    return np.stack(found)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_drawn_sweeps(part, tally, record_property):
    """1,000 in all; a second each, so that otherwise only a fortieth is tried."""
    tally.kind = "networks: fast path against naive"
    count, ways = NETWORKS if FULL else trials(NETWORKS) // 4, Counter()
    for seed in range(part * count // PARTS, (part + 1) * count // PARTS):
        rng = np.random.default_rng([7, seed])
        kinds, model = draw_network(rng)
        apply, variables = with_both_classes(model, seed)
        split = random_split(n=6, shape=EXAMPLE_SHAPE, classes=2, seed=seed)
        calls = called_layers(apply, variables, jnp.asarray(split.images))
        convs = [c.name for c in calls if type(c.module).__name__ == "Conv"]
        layer = convs[rng.integers(len(convs))]
        what = f"{seed}: {kinds}, {layer}"
        with mock.patch.multiple(mesh.Sharded, **METHODS):
            one = mesh.make_mesh(jax.local_devices()[:1])
            tapped = jaxprune.tap_layer(
                apply, variables, split, layer=layer, batch_size=3, mesh=one
            )
            fill = rng.normal(size=tapped.channels) * (rng.random() < 0.5)
            scores = rng.normal(size=tapped.channels)
            result = jaxprune.sweep_layer(tapped, scores, fill=fill)
        ways[result.about["evaluation"]] += 1
        logits = naive(
            apply, variables, jnp.asarray(split.images), layer, result.order, fill
        )
        try:
            reference.check_predictions(result.predictions, logits)
            losses = reference.cross_entropy(logits, split.labels)
            np.testing.assert_allclose(
                result.cross_entropy, losses, rtol=1e-3, atol=1e-4
            )
            tally.add("equal")
        except AssertionError as error:
            tally.add("wrong", f"{what}: {error}")
    record_property("ways", dict(ways))
    tally.close()
