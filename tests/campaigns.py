"""Random masks of a whole network: is the compact network equal to the masked one?

What the library computes, without its compilations: both networks and the bound are
run in NumPy (`numpy_programs`), the masked one and the bound as one traced program with
masks as data. Fills are drawn too, since equality is to hold whatever they predict.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import numpy_programs
from jaxprune.channels import masking, taps
from jaxprune.channels.fills import Fill
from jaxprune.channels.groups import find_groups
from jaxprune.channels.linear import Moments, group_features, regressed_together
from jaxprune.compaction.compact import as_compact, other_way
from jaxprune.compaction.cut import cut_variables
from jaxprune.compaction.proof import compare, masked_and_bound, rounded_layers
from jaxprune.errors import InputError
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
        self.whole = as_compact(model, variables, self.x, None)
        self.groups = find_groups(self.whole.apply, variables, self.x).groups
        self.layers = taps.list_layers(self.whole.apply, variables, self.x[:1])
        first = self.rng.integers(2)
        kinds = [n for i, n in enumerate(self.groups) if i % 2 == first]
        self.moments = {n: self._moments(self.groups[n]) for n in kinds}
        self.program, self.refused = None, 0

    def _moments(self, flow):
        found = {}
        for name, owner in flow.readers.items():
            features = group_features(owner, flow.channels)
            if features is None:
                return {}
            features = regressed_together(features)
            groups, size = features.shape
            factor = self.rng.normal(size=(groups, size, size)) / size**0.5
            found[name] = Moments(
                features, flow.channels, self.rng.normal(size=features.shape),
                factor @ factor.swapaxes(1, 2), np.zeros(factor.shape), 0.01,
            )  # fmt: skip
        return found

    def draw(self):
        """What is pruned of every group that has units to spare."""
        prunings = []
        for name, flow in self.groups.items():
            keep = self._mask(flow)
            fill = "drop"
            if self.moments.get(name):
                fill = Fill("linear", moments=self.moments[name])
            elif self.rng.random() < 0.7:
                means = {
                    reader: self.rng.normal(size=owner.shape).astype(np.float32)
                    for reader, owner in flow.readers.items()
                }
                fill = Fill("mean", means=means)
            variables = self.whole.variables
            prunings.append(masking.make_pruning(variables, flow, keep, fill))
        return prunings

    def _mask(self, flow):
        """Leaves each layer a channel: behind a concatenation several share a group."""
        while True:
            kept = self.rng.integers(1, flow.channels + 1)
            keep = self.rng.permutation(flow.channels) < kept
            if all(keep[owner[owner >= 0]].any() for owner in flow.producers.values()):
                return keep

    def masked(self, prunings):
        """The masked network's logits, and the bound on rounding."""
        masks = [p.mask for p in prunings]
        if self.program is None:
            apply, variables = self.whole.apply, self.whole.variables
            layers = rounded_layers(apply, variables, self.x)
            function = partial(masked_and_bound, apply, layers)
            self.program = jax.make_jaxpr(function)(variables, self.x, masks)
        return numpy_programs.run(self.program, self.whole.variables, self.x, masks)

    def compact(self, prunings):
        """The smaller variables, and the network of them as a function of such."""
        variables = cut_variables(self.layers, self.whole.variables, prunings, {})
        apply = replace(self.whole, variables=variables).apply
        program = jax.make_jaxpr(lambda v, x: apply(v, x))(variables, self.x)

        def logits(variables):
            return numpy_programs.run(program, variables, self.x)[0]

        return variables, logits

    def prove(self, prunings):
        """Compares the networks; None for one that the library refuses before.

        With cut widths that are equal by chance, code that compares shapes at a
        residual sum takes another way.
        """
        masked, bound = self.masked(prunings)
        variables, logits = self.compact(prunings)
        try:
            return compare(masked, logits(variables), bound)
        except InputError:
            small = replace(self.whole, variables=variables)
            if other_way(self.whole, self.layers, small, self.x[:1]):
                return None
            raise

    def draw_accepted(self, attempts=40):
        """What is pruned in the first drawn network that is not refused; the proof."""
        for _ in range(attempts):
            prunings = self.draw()
            proof = self.prove(prunings)
            if proof is not None:
                return prunings, proof
            self.refused += 1
        raise AssertionError(f"{attempts} masks were refused, one after another")
