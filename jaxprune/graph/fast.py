"""A network with the convolutions of `jaxprune.conv`, whichever it is written with."""

from typing import Any

import jax

from jaxprune._base.batch import path_name
from jaxprune.graph.evaluate import run
from jaxprune.graph.network import Network


def with_fast_convolutions(network: Network) -> Network:
    """The same network, several times faster on CPU, and equal to rounding."""

    def function(params: Any, batch: Any) -> Any:
        leaves = jax.tree_util.tree_leaves_with_path(params)
        arrays = {path_name(path): leaf for path, leaf in leaves}
        return run(network.graph(batch).program, arrays, batch, fast=True)

    return network.with_function(function)
