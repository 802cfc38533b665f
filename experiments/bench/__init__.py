"""`python -m experiments.bench`: this project's times beside PyTorch's.

To add a measurement: a function in `ours` or `pytorch` and its name in MEASURES there,
a place in RACES and a label in `plan`, and the ratios that it should appear in.
"""
