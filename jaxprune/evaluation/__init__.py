"""Predictions of a network with channels masked, one mask after another."""
