"""The cost of a network: parameters, multiply-adds, bytes, time; by its widths."""
