"""The curve over K: every number of pruned channels, measured exactly."""
