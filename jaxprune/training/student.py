"""A compact network as it is trained: which of its arrays, and BatchNorm's mode.

Which arrays are trained is said by the framework: linen's collection "params",
`nnx.Param`s, Keras's trainable variables, an Equinox module but not its state.
BatchNorm's statistics are not, nor are the maps and values that `jaxprune.compaction`
stores beside the network's own arrays.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxprune.compaction.cut import KERNELS
from jaxprune.compaction.network import Compact
from jaxprune.graph.batch_norm import (
    BatchNorm,
    BatchNorms,
    find_batch_norms,
    kept,
    normalised_by_batch,
)
from jaxprune.graph.layers import layer_of
from jaxprune.graph.network import Graph, Network


@dataclass(frozen=True, eq=False)
class Student:
    """A compact network that is trained on batches of one shape.

    Attributes:
      small: the network.
      graph: the network, for the batch's shape.
    """

    small: Compact
    graph: Graph

    @property
    def norms(self) -> BatchNorms:
        """Its BatchNorms."""
        return find_batch_norms(self.graph)

    def trained(self) -> list[str]:
        """Paths of the arrays that are trained."""
        whole = self.small.whole
        assert whole is not None
        untrained = _untrained(whole)
        statistics = _statistics(self.norms.found)

        def is_trained(path: str, array: Any) -> bool:
            if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
                return False
            collection, _, name = path.partition("/")
            if path not in whole.arrays:
                own = collection == KERNELS
                return own and whole.layers[name].leaf not in untrained
            return path not in untrained and path not in statistics

        return [p for p, array in self.small.arrays.items() if is_trained(p, array)]

    def following(self, trained: Collection[str]) -> list[BatchNorm]:
        """The BatchNorms that follow the batch in training.

        Not those whose own scale and bias are not trained: their layer is frozen.
        """
        program, norms = self.graph.program, self.norms.found
        own: dict[str, list[str]] = {}
        for path in program.leaves.keys() - _statistics(norms):
            own.setdefault(layer_of(path, program), []).append(path)

        def is_frozen(norm: BatchNorm) -> bool:
            others = own.get(layer_of(norm.mean.path, program), [])
            return bool(others) and not set(others) & set(trained)

        return [norm for norm in norms if not is_frozen(norm)]

    def outputs(
        self,
        arrays: Mapping[str, Any],
        x: Any,
        norms: Collection[BatchNorm],
        momentum: float,
    ) -> tuple[Any, dict[str, Array]]:
        """The network's outputs, and the statistics that have changed, by path.

        Args:
          arrays: the network's.
          x: a batch.
          norms: the BatchNorms that follow it.
          momentum: share of their statistics that is kept.
        """
        if not norms:
            return self.small.function(arrays, x), {}
        outputs, moments = normalised_by_batch(self.graph, arrays, x, [*norms])
        changed: dict[str, Array] = {}
        for norm, found in zip(norms, moments, strict=True):
            pairs = (norm.mean, found.mean), (norm.variance, found.variance)
            for statistic, number in pairs:
                number = jax.lax.stop_gradient(number)
                now = kept(self.graph, arrays, statistic, number)
                before = changed.get(statistic.path, arrays[statistic.path])
                share = jnp.asarray(momentum, before.dtype)
                changed[statistic.path] = share * before + (1 - share) * now
        return outputs, changed


def _untrained(whole: Network) -> Collection[str]:
    """Paths of the whole network's leaves that its framework does not train."""
    found: Collection[str] | None = getattr(whole.origin, "untrained", None)
    if found is not None:
        return found
    others = {path for path in whole.arrays if not path.startswith("params/")}
    return others if len(others) < len(whole.arrays) else ()


def _statistics(norms: Collection[BatchNorm]) -> set[str]:
    return {s.path for norm in norms for s in (norm.mean, norm.variance)}
