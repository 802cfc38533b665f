"""Sweeps of one network: some criteria with one fill, or one with some fills."""
