"""Figures from saved results; nothing here computes a network."""

from jaxprune.report import compact, curves, feature_maps

__all__ = ["compact", "curves", "feature_maps"]
