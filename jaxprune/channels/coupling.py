"""Which channels of a whole network can only go together: found by tracing it.

The network is traced with convolutions, dense layers and norms cut out: what they
return is an input of the trace, what they are given is an output. Every output channel
of a layer, and every element of a parameter that is used outside of these layers, is a
node. Tags say which node an element of an array depends on, LIVE if it depends on the
image in another way, CONSTANT if on neither. Where two nodes meet in one element (a
residual sum, a gate) they are tied: they go together or not at all. An operation that
joins channels in another way, or takes them by their position, keeps them: they are
left whole, with the reason.

Axes: F input features of a layer, U its output channels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.core import Literal
from jaxtyping import Array, Int
from scipy import sparse

from jaxprune.channels import taps
from jaxprune.channels.flow import NORMS, READERS, layer_of, run_cut
from jaxprune.channels.tags import (
    CONSTANT,
    ELEMENTWISE,
    LIVE,
    MOVING,
    REDUCTIONS,
    WINDOWS,
    by_position,
    combine,
    combine_windows,
    propagate,
)

# Norms over groups of channels: each group goes as a whole.
GROUP_NORMS: tuple[type[nn.Module], ...] = (nn.GroupNorm,)
_CUT = (*READERS, *NORMS, *GROUP_NORMS)


def _is_cut(module: nn.Module) -> bool:
    return type(module) in _CUT


def _constant(shape: tuple[int, ...]) -> np.ndarray:
    """Tags of an array that depends on nothing."""
    return np.full(shape, CONSTANT, np.int32)


class Coupling(NamedTuple):
    """What tracing found.

    Attributes:
      layers: the convolutions and dense layers in order of execution; node of each
        output channel, [U].
      readers: for each of them that does not tie its inputs to its outputs, the node
        that every input feature holds, [F]; negative where it holds none.
      parameters: paths of arrays in norms or outside of layers; node of each element
        of the last axis.
      tied: pairs of nodes that go together, [_, 2].
      kept: nodes that cannot go, with the reason.
    """

    layers: dict[str, Int[np.ndarray, " U"]]
    readers: dict[str, Int[np.ndarray, " F"]]
    parameters: dict[str, Int[np.ndarray, " _"]]
    tied: Int[np.ndarray, "_ 2"]
    kept: Mapping[int, str]


def trace(apply: taps.Apply, variables: Any, x: Array) -> Coupling:
    """Follows every channel of the network.

    Args:
      apply: the network, see `jaxprune.channels.taps`.
      variables: its variables.
      x: an input; only its first example's shape is used.
    """
    return _Tracer(apply, variables, x[:1]).run()


class _Tracer:
    """Sends tags through one trace; a layer's are worked out when first read."""

    def __init__(self, apply: taps.Apply, variables: Any, x: Array):
        self.apply, self.variables, self.x = apply, variables, x
        every = taps.list_layers(apply, variables, x)
        self.calls = [call for call in every if _is_cut(call.module)]
        self.flat = flatten_dict(variables, sep="/")
        self.count = 0
        self.tied: list[np.ndarray] = []
        self.kept: dict[int, str] = {}
        self.layers: dict[str, np.ndarray] = {}
        self.readers: dict[str, np.ndarray] = {}
        self.parameters: dict[str, np.ndarray] = {}
        names = [call.name for call in self.calls]
        self.shared = {name for name in names if names.count(name) > 1}
        for call in self.calls:
            if type(call.module) in READERS and call.name not in self.layers:
                self.layers[call.name] = self._nodes(call.output.shape[-1])
        for path, leaf in self.flat.items():
            if layer_of(path) not in self.layers and np.ndim(leaf):
                self.parameters[path] = self._nodes(np.shape(leaf)[-1])

    def _nodes(self, count: int) -> np.ndarray:
        self.count += count
        return np.arange(self.count - count, self.count, dtype=np.int32)

    def run(self) -> Coupling:
        outputs = [call.output for call in self.calls]

        def network(flat: Any, x: Array, outputs: Any) -> Any:
            variables = unflatten_dict(flat, sep="/")
            given, result = run_cut(self.apply, variables, x, outputs, _is_cut)
            return [arrays[0] for arrays in given], result

        jaxpr = jax.make_jaxpr(network)(self.flat, self.x, outputs).jaxpr
        given = list(jaxpr.invars)
        paths = sorted(self.flat)  # as JAX orders the leaves of a dict
        self.env: dict[Any, np.ndarray] = {}
        for var in jaxpr.constvars:
            self.env[var] = _constant(var.aval.shape)
        for path, var in zip(paths, given, strict=False):
            nodes = self.parameters.get(path, np.int32(CONSTANT))
            self.env[var] = np.broadcast_to(nodes, var.aval.shape)
        image, *returned = given[len(paths) :]
        self.env[image] = np.full(image.aval.shape, LIVE, np.int32)
        self.returned = dict(zip(returned, range(len(returned)), strict=True))
        self.given = jaxpr.outvars[: len(self.calls)]
        self.results = returned
        propagate(jaxpr, self.env, self._read, self._step, _constant)
        for i in range(len(self.calls)):
            self._pass_layer(i)
        for var in jaxpr.outvars[len(self.calls) :]:
            self._keep(self._read(var), "they are the network's output")
        tied = np.concatenate([np.zeros((0, 2), np.int64), *self.tied])
        return Coupling(self.layers, self.readers, self.parameters, tied, self.kept)

    def _read(self, var: Any) -> np.ndarray:
        if isinstance(var, Literal):
            return _constant(np.shape(var.val))
        if var not in self.env:
            self._pass_layer(self.returned[var])
        return self.env[var]

    def _keep(self, tags: np.ndarray, reason: str) -> None:
        for node in np.unique(tags[tags >= 0]):
            self.kept.setdefault(int(node), reason)

    def _tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Ties nodes; one that meets LIVE is kept: it is joined with the image."""
        a, b = np.broadcast_arrays(a, b)
        both = (a >= 0) & (b >= 0) & (a != b)
        if both.any():
            pairs = np.unique(a[both].astype(np.int64) * self.count + b[both])
            self.tied.append(np.stack(np.divmod(pairs, self.count), axis=1))
        for one, other in ((a, b), (b, a)):
            self._keep(one[other == LIVE], "they are joined with the input")

    def _pass_layer(self, i: int) -> None:
        """Works out the tags of what the i-th call returns, and notes what it reads."""
        if self.results[i] in self.env:
            return
        call, shape = self.calls[i], self.results[i].aval.shape
        tags = self._read(self.given[i])
        features = self._features(call, tags)
        kind = type(call.module)
        if kind in READERS:
            result = self._pass_reader(call, features)
        else:
            result = self._pass_norm(call, features)
        self.env[self.results[i]] = np.broadcast_to(result, shape)

    def _features(self, call: taps.Layer, tags: np.ndarray) -> np.ndarray:
        """The node of each input feature; those of features that mix some are kept."""
        kind, module = type(call.module).__name__, call.module
        described = f"the {kind} '{call.name}'"
        if call.name in self.shared:
            self._keep(tags, f"{described}, which reads them, is called more than once")
            if call.name in self.layers:
                self._keep(
                    self.layers[call.name], f"{described} is called more than once"
                )
            return np.full(tags.shape[-1], LIVE, np.int32)
        own = (
            getattr(module, "axis", -1) != -1
            or getattr(module, "mask", None) is not None
        )
        low, high = combine(tags.reshape(-1, tags.shape[-1]))
        if own or (low != high).any():
            why = "has an axis or mask of its own" if own else "holds some in a feature"
            self._keep(tags, f"{described}, which reads them, {why}")
            return np.full(tags.shape[-1], LIVE, np.int32)
        return high

    def _pass_reader(self, call: taps.Layer, features: np.ndarray) -> np.ndarray:
        nodes = self.layers[call.name]
        groups = getattr(call.module, "feature_group_count", 1)
        if groups == 1:
            self.readers.setdefault(call.name, features)
            return nodes
        # Each group as a whole, with all that it reads and returns.
        members = np.concatenate(
            [features.reshape(groups, -1), nodes.reshape(groups, -1)], axis=1
        )
        self._tie_groups(members)
        return nodes

    def _pass_norm(self, call: taps.Layer, features: np.ndarray) -> np.ndarray:
        if type(call.module) in GROUP_NORMS:
            size = call.module.group_size or len(features) // call.module.num_groups
            self._tie_groups(features.reshape(-1, size))
        for path, nodes in self.parameters.items():
            if layer_of(path) == call.name:
                self._tie(nodes, features)
        return features

    def _tie_groups(self, members: np.ndarray) -> None:
        self._tie(members, members.max(1, keepdims=True))

    def _step(self, eqn: Any, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Tags of an equation's results."""
        shapes = [var.aval.shape for var in eqn.outvars]
        if not any((tags >= 0).any() for tags in inputs):
            live = any((tags == LIVE).any() for tags in inputs)
            return [np.full(s, LIVE if live else CONSTANT, np.int32) for s in shapes]
        name = eqn.primitive.name
        if name in ELEMENTWISE:
            parts = [np.broadcast_to(tags, shapes[0]) for tags in inputs]
            high = np.maximum.reduce(parts)
            for part in parts:
                self._tie(part, high)
            return [high]
        if name in MOVING and not by_position(eqn, inputs):
            bound = eqn.primitive.bind(*inputs, **eqn.params)
            results = bound if eqn.primitive.multiple_results else [bound]
            return [np.asarray(tags) for tags in results]
        if name in REDUCTIONS:
            axes = eqn.params["axes"]
            moved = np.moveaxis(inputs[0], axes, range(len(axes)))
            low, high = combine(moved.reshape(-1, *shapes[0]))
        elif name in WINDOWS:
            low, high = combine_windows(inputs[0], eqn.params)
        else:
            low, high = np.zeros(1), np.ones(1)
        if (low == high).all():
            return [high.astype(np.int32)]
        where = str(eqn.source_info.name_stack)
        what = "takes them by their position" if name in MOVING else "joins them"
        for tags in inputs:
            self._keep(tags, f"the operation '{name}' {where and f'in {where} '}{what}")
        return [np.full(s, LIVE, np.int32) for s in shapes]


def components(count: int, pairs: Int[np.ndarray, "_ 2"]) -> Int[np.ndarray, " _"]:
    """For each of `count` nodes, the number of the component that pairs put it in."""
    ones = np.ones(len(pairs), np.int8)
    graph = sparse.coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), (count, count))
    labels: np.ndarray = sparse.csgraph.connected_components(graph, directed=False)[1]
    return labels
