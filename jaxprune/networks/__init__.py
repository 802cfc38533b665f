"""The experiments' networks: arithmetic, training, weights."""
