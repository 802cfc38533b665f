"""Results of a sweep: predictions, curves, confidence, saved files."""
