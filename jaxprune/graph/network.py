"""A network: a function of parameters and a batch, and what is known of it.

    network = Network(function, params, example)
    network.layers, network.groups.groups, network(images)

Whatever framework a network is written in, it is a JAX function of a tree of arrays.
It is traced once for each shape of a batch; everything else is read from these traces.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from jaxprune._base import arguments
from jaxprune._base.batch import path_name
from jaxprune._base.errors import InputError, check_choice
from jaxprune.graph.constants import where_varying
from jaxprune.graph.evaluate import Change, Narrowing, run
from jaxprune.graph.groups import Grouping, Groups, LeafAxis, PruningGroup
from jaxprune.graph.labels import Labels, Splits, find_labels
from jaxprune.graph.layers import Layer
from jaxprune.graph.taps import up_to_relu
from jaxprune.graph.trace import Program, shape_of, trace
from jaxprune.graph.unions import STAYS

Function = Callable[[Any, Any], Any]

# Images in the trace that a network's layers and groups are read from: with one image,
# code may take an axis of one for something else.
IMAGES = 2


@dataclass(frozen=True, eq=False)
class Graph:
    """A network for batches of one shape.

    Attributes:
      labels: indices of its arrays that go together.
    """

    labels: Labels

    @property
    def program(self) -> Program:
        """Its equations."""
        return self.labels.program

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Every call of a layer by name, in order of execution."""
        return self.labels.layers

    @property
    def readers(self) -> dict[str, Layer]:
        """Layers, and sums over channels by themselves, see `Network.with_streams`."""
        return {**self.layers, **self.labels.sums}

    def reader(self, name: str) -> Layer:
        """The layer, or the sum over channels, of this name."""
        return self.labels.reader(name)

    def layer(self, name: str) -> Layer:
        """A layer by its name.

        Raises:
          InputError: there is none.
        """
        check_choice("layer", name, self.layers)
        return self.layers[name]

    @cached_property
    def groups(self) -> Groups:
        """Its channels, in groups that are pruned together."""
        return Grouping(self.labels).groups()

    def channels_of(self, layer: str) -> PruningGroup:
        """The channels of one layer, each a unit; see `Grouping.of_layer`."""
        self.layer(layer)
        return Grouping(self.labels).of_layer(layer)

    def last_conv(self) -> str:
        """Name of the last convolution whose channels can leave with a constant fill.

        Not so where they are part of a residual sum, or of the network's output.

        Raises:
          InputError: there is none; with the reason for the last convolution.
        """
        names = self._convs()
        reasons = []
        for name in reversed(names):
            try:
                self.with_map(name)
                self._check_constant(name)
            except InputError as error:
                reasons.append(str(error))
            else:
                return name
        raise InputError(
            "name a layer: no convolution's channels can leave with a constant fill; "
            f"{reasons[0]}"
        )

    def _check_constant(self, name: str) -> None:
        """Raises InputError unless a layer's channels can become constants and go."""
        group = self.channels_of(name)
        for consumer, eqn in where_varying(self.labels, name, group).items():
            raise InputError(
                f"{eqn.described} joins the channels of '{name}' with what depends on "
                f"the image, where '{consumer}' reads them"
            )

    def with_map(self, name: str) -> Layer:
        """The convolution or dense layer of this name, which is called once.

        Raises:
          InputError: there is none (those that there are, are listed), it is another
            kind of layer, it is called more than once, or inside a loop.
        """
        if name not in self.layers:
            known = [n for n, layer in self.layers.items() if layer.leaf is not None]
            check_choice("layer", name, known)
        layer = self.layers[name]
        if layer.kind == "product":
            raise InputError(
                f"layer '{name}' is no convolution and no dense layer but "
                f"{layer.described}"
            )
        calls = sum(other.leaf == layer.leaf for other in self.layers.values())
        if calls > 1:
            raise InputError(
                f"layer '{name}' is called {calls} times in one forward pass; its "
                "channels have no single feature map to rank or mask"
            )
        if layer.in_a_loop:
            raise InputError(
                f"layer '{name}' is inside a loop or a branch: its feature map cannot "
                "be read there"
            )
        return layer

    def _convs(self) -> list[str]:
        names = [
            name
            for name, layer in self.layers.items()
            if layer.kind == "conv" and layer.leaf is not None
        ]
        if not names:
            raise InputError(
                "the network calls no convolution, of what it is given, with a kernel"
            )
        return names

    def narrowing(self, kept: Mapping[LeafAxis, Bool[np.ndarray, " _"]]) -> Narrowing:
        """The indices of every value that go where indices of leaves go.

        Args:
          kept: for axes of leaves, True where an index is left.

        Raises:
          InputError: for a batch of this shape other indices belong together.
        """
        labels = self.labels
        removed = np.zeros(labels.unions.count, bool)
        for (path, axis), keep in kept.items():
            roots = labels.unions.roots(labels.leaf(path)[axis])
            removed[roots[~keep]] = True
        narrowing = Narrowing(labels, removed) if not removed[STAYS] else None
        for (path, axis), keep in kept.items():
            value = labels.program.leaves[path]
            if narrowing is None or (narrowing.kept(value)[axis] != keep).any():
                raise InputError(
                    f"for a batch of this shape the network's code goes another way: "
                    f"the channels of {path} do not go together as they did"
                )
        assert narrowing is not None
        return narrowing


@dataclass(frozen=True, eq=False)
class Network:
    """A function of parameters and a batch, with its parameters.

    Attributes:
      function: (params, batch) -> a tree of arrays; in evaluation mode, so that what it
        returns for an image depends on that image alone.
      params: a tree of arrays, such as a linen model's variables.
      example: a batch, or its shape; what the network is traced for where nothing else
        is given.
      origin: the framework's own network that this is read from, if it is one; see
        `jaxprune.adapters`.
      streams: whether sums over channels may leave out terms, see `with_streams`.
      head_dimensions: whether dimensions of all heads are a group, where one kernel
        makes several heads; see `with_head_dimensions`.
      up_to_relu: layers that end behind a ReLU, see `with_relu`.
    """

    function: Function
    params: Any
    example: Any = None
    origin: Any = None
    streams: bool = False
    head_dimensions: bool = False
    up_to_relu: frozenset[str] = frozenset()
    _graphs: dict[Any, Graph] = field(default_factory=dict, repr=False)
    _choice: list[Splits] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        arguments.check_function(self.function)
        arguments.check_parameters(self.params)

    def __call__(self, batch: Any) -> Any:
        """The network's output for a batch."""
        return self.function(self.params, batch)

    def __repr__(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"Network({name}, {len(self.arrays)} arrays)"

    def __reduce__(self) -> Any:
        """Without its graphs: they are traced again."""
        given = (self.function, self.params, self.example, self.origin)
        return Network, (*given, self.streams, self.head_dimensions, self.up_to_relu)

    @cached_property
    def arrays(self) -> dict[str, Any]:
        """The parameters by path, "params/block_1/conv/kernel"."""
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        return {path_name(path): leaf for path, leaf in leaves}

    def tree(self, arrays: Mapping[str, Any]) -> Any:
        """Arrays by path as a tree like the parameters'."""
        structure = jax.tree.structure(self.params)
        return jax.tree.unflatten(structure, [arrays[path] for path in self.arrays])

    def with_params(self, params: Any) -> "Network":
        """The same function with other parameters."""
        return replace(self, params=params)

    def with_function(self, function: Function) -> "Network":
        """Another function of the same parameters and batches."""
        return replace(self, function=function, origin=None, _graphs={}, _choice=[])

    def with_example(self, example: Any) -> "Network":
        """The same network, traced for another batch."""
        return replace(self, example=example)

    def with_streams(self) -> "Network":
        """The same network, in which channels under a LayerNorm or RMSNorm may go.

        Experimental. What a sum over channels by itself leaves out are the terms of
        those that go; what it is divided by stays. So the residual streams of
        transformers, mixers and ConvNeXt are groups, too. Masked and compact network
        are the same. What it costs in accuracy has not been measured yet.
        """
        if self.streams:
            return self
        return replace(self, streams=True, _graphs={}, _choice=[])

    def with_head_dimensions(self) -> "Network":
        """The same network, of whose attention dimensions go, and not whole heads.

        That is a choice where one kernel makes all heads, of [N, T, heads * dimensions]
        by a reshape: a dimension goes from every head at once, of queries and keys, or
        of values. Where a kernel has an axis for each, as in
        `linen.MultiHeadDotProductAttention`, heads and dimensions can go without it.
        """
        if self.head_dimensions:
            return self
        return replace(self, head_dimensions=True, _graphs={}, _choice=[])

    def read_as(self, other: "Network") -> "Network":
        """The same network, with the channels that another is said to have."""
        network = self.with_streams() if other.streams else self
        return network.with_head_dimensions() if other.head_dimensions else network

    def with_relu(self, layer: str) -> "Network":
        """The same network, in which a layer ends behind the ReLU after its BatchNorm.

        What is put in place of its channels, is put there. The network as it is, where
        the ReLU follows at once, or none does.

        Args:
          layer: name of the layer.
        """
        found = self.graph().layer(layer)
        if up_to_relu(found) is found:
            return self
        names = self.up_to_relu | {layer}
        return replace(self, up_to_relu=names, _graphs={}, _choice=[])

    def graph(self, batch: Any = None) -> Graph:
        """The network for batches of this shape; by default, of the example's.

        Raises:
          InputError: it does not run on them, or there is no example.
        """
        batch = self.few if batch is None else jax.tree.map(shape_of, batch)
        leaves = jax.tree.leaves(batch)
        key = (
            self._signature,
            jax.tree.structure(batch),
            *((leaf.shape, leaf.dtype) for leaf in leaves),
            jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        )
        if key not in self._graphs:
            program = trace(self.function, self.params, batch)
            choice = self._choice[0] if self._choice else None
            labels = find_labels(program, choice, self.streams, self.head_dimensions)
            if choice is None:
                self._choice.append(labels.choice)
            ends = {name: up_to_relu(labels.layers[name]) for name in self.up_to_relu}
            labels = replace(labels, layers={**labels.layers, **ends})
            self._graphs[key] = Graph(labels)
        return self._graphs[key]

    @cached_property
    def _signature(self) -> Any:
        """Structure and shapes of the parameters."""
        leaves, structure = jax.tree.flatten(jax.tree.map(shape_of, self.params))
        return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)

    @property
    def few(self) -> Any:
        """The shape of a batch of a few images like the example's.

        Raises:
          InputError: there is no example.
        """
        if self.example is None:
            raise InputError("give the network an example: Network(..., example=batch)")
        return jax.tree.map(_few, self.example)

    @property
    def layers(self) -> Mapping[str, Layer]:
        """Every call of a layer by name, in order of execution."""
        return self.graph().layers

    @property
    def groups(self) -> Groups:
        """Its channels, in groups that are pruned together."""
        return self.graph().groups

    def kernel(self, layer: str) -> Float[np.ndarray, "*taps F U"]:
        """The kernel that a layer multiplies by, see `Layer.rows`."""
        found = self.layers[layer]
        value = found.kernel_value
        (kernel,) = run(found.program, self.arrays, None, want=[value])
        return np.asarray(found.rows(np.asarray(kernel)))

    def evaluate(
        self,
        batch: Any,
        *,
        arrays: Mapping[str, Any] | None = None,
        want: Sequence[int] | None = None,
        given: Mapping[int, Any] | None = None,
        before: Mapping[int, Change] | None = None,
        after: Mapping[int, Change] | None = None,
    ) -> Any:
        """Values of the network; see `jaxprune.graph.evaluate.run`."""
        return run(
            self.graph(batch).program, self.arrays if arrays is None else arrays, batch,
            want=want, given=given, before=before, after=after,
        )  # fmt: skip


def _few(array: Any) -> jax.ShapeDtypeStruct:
    """The shape of a batch of a few images."""
    one = shape_of(array)
    if not one.shape:
        raise InputError("a batch has images on its first axis, got a number")
    return jax.ShapeDtypeStruct((IMAGES, *one.shape[1:]), one.dtype)
