"""Which channels go first: criteria, order, masks."""
