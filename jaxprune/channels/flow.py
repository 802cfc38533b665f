"""Where the channels of a layer go: found from the traced computation, not from names.

The network is traced with every layer cut out: what a layer returns is an input of the
trace, what it is given is an output. Between the layers remain elementwise functions,
pools and reshapes. A tag for every element of every array is sent through them: the
channel that the element depends on, LIVE if it depends on the image in another way,
CONSTANT if on neither. An operation that joins a channel with anything else is an
error: the channel cannot leave alone.

Axes: P channels of the layer, F input features of a later layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.extend.core import Literal
from jaxtyping import Array, Int

from jaxprune import arguments
from jaxprune.channels import taps
from jaxprune.channels.tags import (
    LIVE,
    Joined,
    Tags,
    combine,
    constant,
    inner_jaxpr,
    propagate,
    step,
)
from jaxprune.channels.taps import Layer
from jaxprune.errors import InputError

# The layers whose parameters can be cut. Subclasses may compute anything.
READERS: tuple[type[nn.Module], ...] = (nn.Conv, nn.Dense)
NORMS: tuple[type[nn.Module], ...] = (nn.BatchNorm,)


@dataclass(frozen=True)
class ChannelFlow:
    """Where the channels of one layer, or of a group of layers, go.

    Every element is given the channel that it belongs to; negative where it belongs to
    none of these.

    Attributes:
      layer: its name; of a group, the first layer's.
      channels: their number, P.
      producers: for each layer that returns them, of each output channel [U].
      parameters: for each array of a norm between, or other array that is used with
        them, of each element of its last axis; by path.
      readers: for each convolution or dense layer that reads them, of every input
        feature [F].
    """

    layer: str
    channels: int
    producers: Mapping[str, Int[np.ndarray, " _"]]
    parameters: Mapping[str, Int[np.ndarray, " _"]]
    readers: Mapping[str, Int[np.ndarray, " _"]]


def layer_of(path: str) -> str:
    """The layer of an array: "params/block/conv/kernel" -> "block/conv"."""
    return "/".join(path.split("/")[1:-1])


def run_cut(
    apply: taps.Apply,
    variables: Any,
    x: Array,
    outputs: Sequence[Any],
    is_cut: Callable[[nn.Module], bool] = lambda module: True,
) -> tuple[list[Any], Any]:
    """Runs the network with the i-th call of a layer returning `outputs[i]`.

    Layers that `is_cut` says no to run as they are, and do not count.

    Returns:
      What every call was given, as lists of arrays, and the network's output.
    """
    inputs: list[Any] = []

    def substitute(call: taps.Call) -> Any:
        if not (call.is_layer and is_cut(call.module)):
            return call.run()
        inputs.append(call.arrays)
        return outputs[len(inputs) - 1]

    output = taps.intercept(apply, substitute)(variables, x)
    return inputs, output


def operations(
    apply: taps.Apply, variables: Any, x: Array, layers: Sequence[Layer]
) -> list[str]:
    """Names of the operations between the network's layers, in order."""
    outputs = [layer.output for layer in layers]
    jaxpr = jax.make_jaxpr(
        lambda v, x, outputs: run_cut(apply, v, x, outputs)
    )(variables, x, outputs)  # fmt: skip

    def names(jaxpr: Any) -> list[str]:
        found: list[str] = []
        for eqn in jaxpr.eqns:
            inner = inner_jaxpr(eqn)
            found += [eqn.primitive.name] if inner is None else names(inner)
        return found

    return names(jaxpr.jaxpr)


def channel_flow(
    apply: taps.Apply, variables: Any, x: Array, layer: str
) -> ChannelFlow:
    """Follows every channel of `layer` to the layers that read it.

    Args:
      apply: the network, see `jaxprune.channels.taps`.
      variables: its variables.
      x: an input; only its first example's shape is used.
      layer: name of a convolution.

    Raises:
      InputError: no such convolution, or its channels cannot be removed: the
        operation and the layer are named.
    """
    arguments.check_kind("x", x, Array | np.ndarray, "an array of inputs")
    x = x[:1]
    layers = taps.list_layers(apply, variables, x)
    return _Follower(layers, layer).follow(apply, variables, x)


class _Follower:
    """Sends tags through one trace; a layer's are worked out when first read."""

    def __init__(self, calls: tuple[Layer, ...], layer: str):
        self.calls, self.layer = calls, layer
        conv = taps.choose_conv(calls, layer)
        if type(conv.module) not in READERS or conv.module.feature_group_count != 1:
            raise self._refusal(f"{_describe(conv)} ties its outputs to its inputs")
        self.channels = int(conv.output.shape[-1])
        self.readers: dict[str, np.ndarray] = {}
        self.norms: dict[str, np.ndarray] = {}

    def follow(self, apply: taps.Apply, variables: Any, x: Array) -> ChannelFlow:
        outputs = [call.output for call in self.calls]
        closed, shapes = jax.make_jaxpr(
            lambda x, outputs: run_cut(apply, variables, x, outputs), return_shape=True
        )(x, outputs)
        jaxpr = closed.jaxpr
        image, *given = jaxpr.invars
        self.env: dict[Any, Tags] = {
            image: Tags(np.full(image.aval.shape, LIVE), frozenset({"the input"}))
        }
        for var in jaxpr.constvars:
            self.env[var] = constant(var.aval.shape)
        # Which call an output variable belongs to, and the variables given to it.
        sizes = [len(jax.tree.leaves(output)) for output in outputs]
        calls = np.repeat(np.arange(len(sizes)), sizes)
        self.owner = dict(zip(given, calls.tolist(), strict=True))
        self.returned = [
            [v for v in given if self.owner[v] == i] for i in range(len(sizes))
        ]
        results = iter(jaxpr.outvars)
        self.given = [[next(results) for _ in leaves] for leaves in shapes[0]]
        propagate(jaxpr, self.env, self._read, self._step, constant)
        for i in range(len(self.calls)):
            self._pass_layer(i)
        for var in results:
            if (self._read(var).tags >= 0).any():
                raise self._refusal("they reach the network's output")
        parameters = {
            path: self.norms[name]
            for path in flatten_dict(variables, sep="/")
            if (name := layer_of(path)) in self.norms
        }
        producers = {self.layer: np.arange(self.channels)}
        return ChannelFlow(
            self.layer, self.channels, producers, parameters, self.readers
        )

    def _refusal(self, why: str) -> InputError:
        return InputError(f"the channels of '{self.layer}' cannot be removed: {why}")

    def _read(self, var: Any) -> Tags:
        if isinstance(var, Literal):
            return constant(np.shape(var.val))
        if var not in self.env and var in self.owner:
            self._pass_layer(self.owner[var])
        return self.env[var]

    def _pass_layer(self, i: int) -> None:
        """Works out the tags of what the i-th call returns, and notes what it reads."""
        returned = self.returned[i]
        if all(var in self.env for var in returned) and returned:
            return
        call = self.calls[i]
        inputs = [self._read(var) for var in self.given[i]]
        origin = frozenset({call.name})
        if call.name == self.layer:
            (var,) = returned
            tags = np.broadcast_to(np.arange(self.channels), var.aval.shape)
            self.env[var] = Tags(tags, origin)
            return
        for var in returned:
            self.env[var] = Tags(np.full(var.aval.shape, LIVE), origin)
        if not any((tags.tags >= 0).any() for tags in inputs):
            return
        source = self._source(call, inputs)
        if type(call.module) in NORMS:
            self.norms[call.name] = source
            (var,) = returned
            self.env[var] = Tags(np.broadcast_to(source, var.aval.shape), origin)
        else:
            self.readers[call.name] = source

    def _source(self, call: Layer, inputs: list[Tags]) -> np.ndarray:
        """The channel that each input feature of a layer holds."""
        module = call.module
        reads = f"they are read by {_describe(call)}"
        if type(module) not in (*READERS, *NORMS) or len(inputs) != 1:
            raise self._refusal(f"{reads}, whose parameters cannot be cut")
        if getattr(module, "feature_group_count", 1) != 1:
            raise self._refusal(f"{reads}, whose inputs are tied to its outputs")
        if (
            getattr(module, "axis", -1) != -1
            or getattr(module, "mask", None) is not None
        ):
            raise self._refusal(f"{reads}, which has an axis or mask of its own")
        if sum(other.name == call.name for other in self.calls) > 1:
            raise self._refusal(f"{reads}, which is called more than once")
        features = inputs[0].tags.shape[-1]
        low, high = combine(inputs[0].tags.reshape(-1, features))
        if (low != high).any():
            raise self._refusal(f"{reads}, to which a feature is not one channel")
        return np.where(high >= 0, high, LIVE)

    def _step(self, eqn: Any, inputs: list[Tags]) -> list[Tags]:
        try:
            return step(eqn, inputs)
        except Joined as error:
            raise self._refusal(str(error)) from error


def _describe(call: Layer) -> str:
    groups = getattr(call.module, "feature_group_count", 1)
    kind = "grouped " if groups != 1 else ""
    return f"the {kind}{type(call.module).__name__} '{call.name}'"
