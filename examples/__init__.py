"""Networks of one's own, each trained by its script and pruned by the command line."""
