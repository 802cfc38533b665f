"""Refuses a constant fill whose channels are no constants where they are read."""

from collections.abc import Sequence

from jaxprune._base.errors import InputError
from jaxprune.fills.masked import Pruning
from jaxprune.graph.constants import where_varying
from jaxprune.graph.network import Graph


def check_constants(graph: Graph, prunings: Sequence[Pruning]) -> None:
    """Raises InputError unless pruned channels reach their consumers as constants."""
    for pruning in prunings:
        if pruning.keep.all():
            continue
        name = pruning.group.name
        found = where_varying(graph.labels, name, pruning.group, ~pruning.keep)
        for consumer, eqn in found.items():
            raise InputError(
                f"fill '{pruning.fill.name}' is no constant where '{consumer}' reads "
                f"the channels of '{name}': {eqn.described} joins them with what "
                "depends on the image; take the fill 'drop' or 'linear'"
            )
