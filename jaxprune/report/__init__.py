"""Figures from saved results; nothing here computes a network."""
