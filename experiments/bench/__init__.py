"""`python -m experiments.bench`: this project beside PyTorch and Torch-Pruning.

To add a measurement of --what=sweep: a function in `ours` or `pytorch` and its name in
MEASURES there, a place in RACES and a label in `plan`, and the ratios that it should
appear in. --what=host lies in `host`, --what=shrink in `shrink`; to add a competitor
there: what makes a `stages.Competitor`, and a line in `contest`.
"""
