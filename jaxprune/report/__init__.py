"""Figures from saved results; nothing here computes a network."""

from jaxprune.report import compact, criteria, curves, feature_maps, page

__all__ = ["compact", "criteria", "curves", "feature_maps", "page"]
