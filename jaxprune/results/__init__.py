"""What a sweep has found: predictions, curves, confidence, saved files."""
