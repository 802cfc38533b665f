"""Labelled images as arrays: splits, pairs of digits, TFDS and its decoded cache."""
