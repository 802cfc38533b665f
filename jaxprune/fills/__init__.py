"""What a pruned channel becomes, and how that is fitted."""
