"""Fills: what a pruned channel becomes, and how that is fitted."""
