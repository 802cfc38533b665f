"""Random masks of a whole network: is the compact network equal to the masked one?

What the library computes, without its compilations: both networks and the bound are
run in NumPy (`numpy_programs`), the masked one and the bound as one traced program with
masks as data. Fills are drawn too, since equality is to hold whatever they predict.
"""

import jax
import jax.numpy as jnp
import numpy as np

import numpy_programs
from jaxprune.adapters.linen import from_linen
from jaxprune.compaction.cut import cut
from jaxprune.compaction.network import as_compact, removed
from jaxprune.compaction.proof import (
    check_shares,
    compare,
    masked_values,
    step_shares,
    written,
)
from jaxprune.fills.fill import LinearFill, MeanFill
from jaxprune.fills.linear import Moments, group_features, regressed_together
from jaxprune.fills.masked import kept_of, make_pruning
from random_data import random_split, random_variables
from zoo import EXAMPLE_SHAPE


class Campaign:
    """A network, and masks of all its groups.

    Half of the groups have the linear fill; the others are dropped or have means. A
    fill's kind is part of the program's structure, so it is drawn once.
    """

    def __init__(self, model, seed=0, images=2):
        self.rng = np.random.default_rng(seed)
        shape = (1, *EXAMPLE_SHAPE)
        variables = random_variables(model, jnp.zeros(shape), seed)
        x = random_split(n=images, shape=EXAMPLE_SHAPE, classes=2, seed=seed).images
        self.x = jnp.asarray(x.astype(np.float32) / 255)
        self.network = from_linen(model, variables, self.x)
        self.graph = self.network.graph(self.x)
        self.groups = self.network.groups.groups
        first = self.rng.integers(2)
        kinds = [n for i, n in enumerate(self.groups) if i % 2 == first]
        self.moments = {n: self._moments(self.groups[n]) for n in kinds}
        self.program, self.refused = None, 0

    def _moments(self, group):
        found = {}
        for name, owner in group.consumers.items():
            features = group_features(owner, group.units)
            if features is None:
                return {}
            features = regressed_together(features)
            groups, size = features.shape
            factor = self.rng.normal(size=(groups, size, size)) / size**0.5
            found[name] = Moments(
                features, group.units, self.rng.normal(size=features.shape),
                factor @ factor.swapaxes(1, 2), np.zeros(factor.shape), 0.01,
            )  # fmt: skip
        return found

    def draw(self):
        """What is pruned of every group that has units to spare."""
        prunings = []
        for name, group in self.groups.items():
            keep = self._mask(group)
            fill = "drop"
            if self.moments.get(name):
                fill = LinearFill("linear", moments=self.moments[name])
            elif self.rng.random() < 0.7:
                means = {
                    consumer: self.rng.normal(size=owner.shape).astype(np.float32)
                    for consumer, owner in group.consumers.items()
                }
                fill = MeanFill("mean", means=means)
            prunings.append(make_pruning(self.network, group, keep, fill))
        return prunings

    def _mask(self, group):
        """Leaves each layer a channel: behind a concatenation several share a group."""
        while True:
            kept = self.rng.integers(1, group.units + 1)
            keep = self.rng.permutation(group.units) < kept
            held = (*group.producers.values(), *group.consumers.values())
            whole = [owner for owner in held if (owner >= 0).all()]
            if all(keep[owner].any() for owner in whole):
                return keep

    def masked(self, prunings):
        """What the masked network computes, in float64."""
        masks = [p.mask for p in prunings]
        given = self.network.arrays, self.x, masks
        with jax.enable_x64(True):
            if self.program is None:

                def function(arrays, x, masks):
                    return masked_values(self.graph, arrays, x, masks)

                self.program, self.structure = jax.make_jaxpr(
                    function, return_shape=True
                )(*given)
            found = numpy_programs.run(self.program, *given)
        return jax.tree.unflatten(jax.tree.structure(self.structure), found)

    def compact(self, prunings):
        """The smaller arrays before rounding, and a function: the network's logits."""
        arrays, exact = cut(self.network, prunings)
        small = removed(as_compact(self.network), prunings, arrays)
        program = jax.make_jaxpr(small.function)(arrays, self.x)

        def logits():
            return numpy_programs.run(program, arrays, self.x)[0]

        return {**arrays, **exact}, logits

    def used(self, prunings, masked, arrays):
        """How much of what rounding explains an equation uses at the most."""
        narrowing = self.graph.narrowing(kept_of(prunings))
        changes = written(self.graph, narrowing, self.network.arrays, arrays)
        with jax.enable_x64(True):

            def function(masked, arrays):
                return step_shares(self.graph, narrowing, masked, arrays, changes)

            program, structure = jax.make_jaxpr(function, return_shape=True)(
                masked, arrays
            )
            shares = numpy_programs.run(program, masked, arrays)
        shares = jax.tree.unflatten(jax.tree.structure(structure), shares)
        return check_shares(self.graph, shares)[0]

    def prove(self, prunings):
        """Compares the networks: each equation, and the logits."""
        masked = self.masked(prunings)
        arrays, logits = self.compact(prunings)
        used = self.used(prunings, masked, arrays)
        (value,) = self.graph.program.results
        return used, compare(masked.values[value], logits())
