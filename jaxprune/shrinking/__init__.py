"""Whole networks, smaller to a budget: which channels of which group, and refitted."""
