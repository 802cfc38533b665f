"""Which channels go first: criteria, order, masks."""

from jaxprune.ranking import criteria

__all__ = ["criteria"]
