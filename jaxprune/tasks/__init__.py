"""Tasks: what a network's outputs are for, and how good they are."""
