"""What a network costs: parameters, multiply-adds, bytes, time; by its widths."""
