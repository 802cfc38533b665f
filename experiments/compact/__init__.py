"""`python -m experiments.compact`: smaller networks, proved and measured."""
