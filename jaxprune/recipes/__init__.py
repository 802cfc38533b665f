"""The experiments: their networks, how they are trained, their checkpoints."""
