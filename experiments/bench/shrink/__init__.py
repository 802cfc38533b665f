"""Whole networks made smaller by this project and by Torch-Pruning, side by side."""
