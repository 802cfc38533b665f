"""Masked networks and layers' operands, for tests to compare with."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxprune.fills.masked import kept_of, make_pruning, run_masked
from jaxprune.graph.network import Network


def network_of(apply, variables, x):
    return Network(apply, variables, jnp.asarray(x))


def pruning_of(apply, variables, x, layer, keep, fill):
    """Of the layer's own channels."""
    network = network_of(apply, variables, x)
    group = network.graph().channels_of(layer)
    return make_pruning(network, group, keep, fill)


def zeroed(network, prunings, where=lambda path, axis: True):
    """The network's parameters with zeros wherever a unit goes.

    Args:
      network: the network.
      prunings: masks of its groups.
      where: for an axis of a leaf, whether zeros are written in it.
    """
    arrays = {path: np.array(array) for path, array in network.arrays.items()}
    for (path, axis), kept in kept_of(prunings).items():
        if where(path, axis):
            index = [slice(None)] * arrays[path].ndim
            index[axis] = ~kept
            arrays[path][tuple(index)] = 0
    return network.tree(arrays)


def masked_logits(apply, variables, x, prunings):
    """The network with what is pruned masked."""
    network = network_of(apply, variables, x)
    masks = [pruning.mask for pruning in prunings]
    program = jax.jit(lambda arrays, x: run_masked(network, arrays, x, masks))
    return np.asarray(program(network.arrays, network.example))


def given_to(apply, variables, x, names):
    """What layers are given, features last."""
    network = network_of(apply, variables, x)
    layers = network.graph(network.example).layers
    want = [layers[name].input for name in names]
    values = network.evaluate(network.example, want=want)
    pairs = zip(names, values, strict=True)
    return {name: np.asarray(layers[name].features(value)) for name, value in pairs}


def overwritten(apply, name, edit):
    """A linen network in which `edit` decides what a module returns.

    Knows nothing of graphs: edit(run, *args) is given the module's own call.
    """

    def interceptor(run, args, kwargs, context):
        if context.method_name != "__call__" or "/".join(context.module.path) != name:
            return run(*args, **kwargs)
        return edit(run, *args, **kwargs)

    def network(variables, x, **kwargs):
        with nn.intercept_methods(interceptor):
            return apply(variables, x, **kwargs)

    return network
