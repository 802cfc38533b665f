"""Whole networks, smaller to a budget."""
